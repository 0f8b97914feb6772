"""Decoding: modules that are causal on their first axis, fed piece by piece.

A cache keeps the keys and values of the last `kernel_size * dilation` rows (tokens, or rows or frames of an image or
video), as many as windows reach back to. Row `position` is kept at [position % dilation, position // dilation %
kernel_size]: the keys of one window lie side by side. The position is an array, so that a compiled step stays right.
"""

import math
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from natten_mlx import _ext, functional
from natten_mlx._arguments import ints, per_axis
from natten_mlx._padding import missing_rows
from natten_mlx._slabs import takes_offset
from natten_mlx.merge import merge_attentions

Attended = tuple[mx.array, dict[str, mx.array]]  # the output, and what the cache has then
_WINDOW = ("kernel_size", "stride", "dilation", "is_causal", "gna_stride", "is_circular")


class DecodingCache(dict[str, mx.array]):
    """What a module remembers of the rows that it has seen: a dict of arrays, as `mx.eval` and `mx.compile` take it.

    Keys: `keys` and `values` [B, dilation, kernel_size, grid..., kv_heads, head_dim], `position` (rows seen, int64).
    """

    def copy(self) -> "DecodingCache":
        """One that goes on by itself from here."""
        return DecodingCache(self)


def make_cache(module: Any, batch: int, dtype: mx.Dtype | None, grid: tuple[int, ...]) -> DecodingCache:
    """For inputs [batch, rows, grid..., C] of a module."""
    _check_module(module)
    name = type(module).__name__
    if len(grid) != module.rank - 1:
        raise ValueError(f"[{name}] grid must hold the lengths of the other {module.rank - 1} axes, got {grid!r}")
    if dtype is None:
        weights: Any = tree_flatten(module.parameters())
        dtype = next(p.dtype for _, p in weights if mx.issubdtype(p.dtype, mx.floating))
    elif not isinstance(dtype, mx.Dtype) or not mx.issubdtype(dtype, mx.floating):
        raise ValueError(f"[{name}] dtype must be a floating type, got {dtype!r}")
    grid = tuple(map(sum, zip(grid, missing_rows(module, batch, (1, *grid))[1:], strict=True)))
    kernel, dilation = _reach(module)
    tokens = batch * kernel * dilation * math.prod(grid)
    if tokens >= 2**31:
        raise ValueError(f"[{name}] batch * kernel_size * dilation * grid must be below 2^31 tokens, got {tokens}")
    shape = (batch, dilation, kernel, *grid, module.num_kv_heads, module.head_dim)
    # Without memory: the first step makes some that suits the kernels.
    keys, values = (mx.broadcast_to(mx.array(0.0, dtype), shape) for _ in range(2))
    return DecodingCache(keys=keys, values=values, position=mx.array(0, mx.int64))


def attend_next(module: Any, x: mx.array, cache: DecodingCache) -> mx.array:
    """x [B, rows, grid..., C], the next rows -> [B, rows, out..., heads, head_dim]; the cache has them then."""
    _check_module(module)
    _check_cache(module, x, cache)
    # A step is one node, whose position must not lead a gradient from integers of a rope into the rows before.
    position = cache["position"] if module.rope is None else mx.stop_gradient(cache["position"])
    query, key, value = module.project(x, position if module.rank == 1 else _on_first_axis(module, position, 0))
    _check_rows(module, x, {"query": query, "key": key, "value": value})
    for kept, rows in (("keys", key), ("values", value)):
        if rows.dtype != cache[kept].dtype:
            raise ValueError(
                f"[{type(module).__name__}] the cache must have the type of the module's {kept}, {rows.dtype}, "
                f"got {cache[kept].dtype}"
            )
    out, after = _attend_next(module, query, key, value, cache)
    cache.update(after)
    return out


def _attend_next(module: Any, query: mx.array, key: mx.array, value: mx.array, cache: DecodingCache) -> Attended:
    step = _attend_at_once(module, query, key, value, cache)
    if step is not None:
        return step
    kernel, dilation = _reach(module)
    rows, position = query.shape[1], cache["position"]
    is_plain = dilation == 1 and 1 < rows <= kernel // 2 and "rpb" not in module
    if is_plain and all(map(_ext.is_concrete, (position, key, value, cache["keys"], cache["values"]))):
        seen: Any = position.item()
        if seen >= kernel:
            out, after = _attend_in_place(module, query, key, value, cache, seen % kernel)
            return out, after | {"position": position + rows}
    return _attend_composed(module, query, key, value, cache)


def _attend_at_once(
    module: Any, query: mx.array, key: mx.array, value: mx.array, cache: DecodingCache
) -> Attended | None:
    """In one kernel, where there is one for the module."""
    if "rpb" in module or module.num_registers or isinstance(module.scale, mx.array):
        return None

    def composed(inputs: list[mx.array]) -> list[mx.array]:
        q, k, v, keys, values, at = inputs
        out, after = _attend_composed(module, q, k, v, DecodingCache(keys=keys, values=values, position=at))
        return [out, after["keys"], after["values"]]

    step = _ext.decoding_step(
        f"na{module.rank}d",
        module.rank,
        [query, key, value, cache["keys"], cache["values"], cache["position"]],
        **{name: getattr(module, name) for name in _WINDOW},
        scale=module.scale,
        composed=composed,
    )
    return None if step is None else (step[0], dict(zip(("keys", "values", "position"), step[1:], strict=True)))


def _attend_composed(module: Any, query: mx.array, key: mx.array, value: mx.array, cache: DecodingCache) -> Attended:
    attend = _attend_one if query.shape[1] == 1 else _attend_several
    out, rings = attend(module, query, key, value, cache)
    return out, rings | {"position": cache["position"] + query.shape[1]}


def _attend_one(module: Any, query: mx.array, key: mx.array, value: mx.array, cache: DecodingCache) -> Attended:
    """The keys of a row's window are all that its place in the dilation has: in another order, which softmax does not
    see, and at first not all of them written, which a bias of -inf hides."""
    kernel, dilation = _reach(module)
    position = cache["position"]
    group: int | None
    if _ext.is_concrete(position):  # no operation to find the place, and a view of the window
        seen: Any = position.item()
        group = seen % dilation
        start = mx.array([group, seen // dilation % kernel], mx.int32)
    else:
        start = mx.stack([position % dilation, position // dilation % kernel]).astype(mx.int32)
        group = None if dilation > 1 else 0
    window, rings = [], {}
    for name, row in (("keys", key), ("values", value)):
        ring = _ext.slice_updated(cache[name], mx.expand_dims(row, 1), start, [1, 2])
        rings[name] = ring
        window.append(_ext.slice_from(ring, start[:1], [1], [1]).squeeze(1) if group is None else ring[:, group])

    # Of the plain window on an axis of kernel_size rows, whatever the place of the query.
    out = module.attend(
        query,
        *window,
        rpb=_bias(module, position),
        shape=[kernel, *query.shape[2:-2]],
        is_causal=_on_first_axis(module, False, module.is_causal),
        dilation=_on_first_axis(module, 1, module.dilation),
    )
    return out, rings


def _bias(module: Any, position: mx.array) -> mx.array | None:
    """What hides rows that are not written, and the module's table: by the rows of the ring, for a query at place 0."""
    kernel, dilation = _reach(module)
    if "rpb" not in module and _ext.is_concrete(position):
        seen: Any = position.item()
        if seen >= (kernel - 1) * dilation:
            return None
    last = position // dilation
    age = (last - mx.arange(kernel, dtype=mx.int64)) % kernel
    written = age <= last
    first, *others = ints(module.kernel_size, module.rank)
    shape = (module.num_heads, 2 * first - 1, *(2 * k - 1 for k in others))
    written = written.reshape(-1, *[1] * (module.rank - 1))
    if "rpb" in module:
        table = mx.where(written, module.rpb.astype(mx.float32)[:, first - 1 - age], -math.inf)
    else:
        table = mx.where(written, mx.array(0.0), -math.inf)[None]
    unused = mx.zeros((table.shape[0], first - 1, *table.shape[2:]))
    return mx.broadcast_to(mx.concatenate([unused, table], axis=1), shape)


def _attend_several(module: Any, query: mx.array, key: mx.array, value: mx.array, cache: DecodingCache) -> Attended:
    kernel, dilation = _reach(module)
    kept, rows, position = kernel * dilation, query.shape[1], mx.clip(cache["position"], 0, 2**62)
    old = position - kept + mx.arange(kept, dtype=mx.int64)
    by_age = old % dilation * kernel + old // dilation % kernel
    # The row that a place of the ring holds then is the last of its group, or as much older as the place is before it.
    group = mx.arange(dilation, dtype=mx.int64)[:, None]
    last = (position + rows - 1 - group) // dilation
    place = last - (last - mx.arange(kernel, dtype=mx.int64)) % kernel
    source = (place * dilation + group - (position - kept)).reshape(-1)
    joined, rings = [], {}
    for name, new in (("keys", key), ("values", value)):
        ring = cache[name]
        every = mx.concatenate([mx.take(ring.flatten(1, 2), by_age, axis=1), new], axis=1)
        rings[name] = mx.take(every, source, axis=1).reshape(ring.shape)
        joined.append(every)

    reach = kept - dilation  # of a window, back from its query
    if _ext.is_concrete(position):
        before: Any = position.item()
        seen = min(reach, before)
        ordered_keys, ordered_values = (every[:, kept - seen :] for every in joined)
        return _attend_span(module, query, ordered_keys, ordered_values), rings
    # In a trace nobody knows how much is written. Queries that reach into the cache mask what is not, slot by slot.
    near = min(rows, reach)
    parts = []
    if near:
        at = position + mx.arange(near, dtype=mx.int64)[:, None]
        written = at >= dilation * mx.arange(kernel - 1, -1, -1, dtype=mx.int64)
        wide = query[:, :near].astype(mx.result_type(query.dtype, mx.float32))  # logits have query's type
        ordered_keys, ordered_values = (every[:, : kept + near] for every in joined)
        out = _attend_span(module, wide, ordered_keys, ordered_values, written)
        parts.append(out.astype(query.dtype))
    if near < rows:
        parts.append(_attend_span(module, query[:, near:], key, value))
    return mx.concatenate(parts, axis=1), rings


def _attend_in_place(
    module: Any, query: mx.array, key: mx.array, value: mx.array, cache: DecodingCache, place: int
) -> Attended:
    """Of a few rows that a full ring gets from `place` on, without putting it in order. The keys that they overwrite,
    which only some rows attend, are the first ones of a causal call that ends with the new ones; all rows attend all
    that stays, one piece of the ring or two. A piece shorter than the rows goes between the old and the new keys."""
    kernel, rows = _reach(module)[0], query.shape[1]
    end = place + rows
    stay = [(end, kernel), (0, place)] if end <= kernel else [(end - kernel, place)]
    short = [piece for piece in stay if piece[1] - piece[0] < rows]
    first = [(place, min(end, kernel)), (0, max(end - kernel, 0)), *short]
    near_key, near_value = _joined(cache["keys"], first, key), _joined(cache["values"], first, value)
    mx.eval(near_key, near_value)  # nothing else refers to the ring then, so that it is changed where it lies
    rings = {name: _written(cache[name], new, place) for name, new in (("keys", key), ("values", value))}
    wide = query.astype(mx.result_type(query.dtype, mx.float32))
    parts = [_attend_part(module, wide, near_key, near_value, is_causal=True)]
    for start, stop in stay:
        if stop - start >= rows:
            keys, values = (rings[name][:, 0, start:stop] for name in ("keys", "values"))
            parts.append(_attend_part(module, wide, keys, values, is_causal=False))
    outs, lses = zip(*parts, strict=True)
    out = merge_attentions(outs, lses)[0] if len(parts) > 1 else outs[0]
    return out.astype(query.dtype), rings


def _joined(ring: mx.array, pieces: list[tuple[int, int]], new: mx.array) -> mx.array:
    return mx.concatenate([*(ring[:, 0, start:stop] for start, stop in pieces), new], axis=1)


def _written(ring: mx.array, new: mx.array, place: int) -> mx.array:
    before_end = min(new.shape[1], ring.shape[2] - place)
    for rows, start in ((new[:, :before_end], place), (new[:, before_end:], 0)):
        if rows.shape[1]:
            ring = _ext.slice_updated(ring, mx.expand_dims(rows, 1), mx.array([start]), [2])
    return ring


def _attend_part(
    module: Any, query: mx.array, key: mx.array, value: mx.array, is_causal: bool
) -> tuple[mx.array, mx.array]:
    """out and lse of rows that attend all of key, or that are its last ones and attend as many as come before them."""
    length, rows = key.shape[1], query.shape[1]
    first = {"kernel_size": length - rows if is_causal else length, "is_causal": is_causal, "is_circular": False}
    window = {name: _on_first_axis(module, first.get(name, 1), getattr(module, name)) for name in _WINDOW}
    extra = {}
    if is_causal and module.num_registers:
        extra = {"additional_keys": module.register_keys, "additional_values": module.register_values}
    out: tuple[mx.array, mx.array] = getattr(functional, f"na{module.rank}d")(
        query,
        key,
        value,
        scale=module.scale,
        return_lse=True,
        query_start=_on_first_axis(module, length - rows if is_causal else 0, 0),
        shape=[length, *key.shape[2:-2]],
        **window,
        **extra,
    )
    return out


def _attend_span(
    module: Any, query: mx.array, key: mx.array, value: mx.array, written: mx.array | None = None
) -> mx.array:
    """Of queries that are the last rows of key and value. `written`, bool [rows, kernel_size], masks slots."""
    length = key.shape[1]
    span = {
        "query_start": _on_first_axis(module, length - query.shape[1], 0),
        "shape": [length, *key.shape[2:-2]],
    }
    return module._attend(query, key, value, span, written)


def _on_first_axis(module: Any, first: Any, others: Any) -> list[Any]:
    return [first, *per_axis(others, module.rank)[1:]]


def _reach(module: Any) -> tuple[int, int]:
    """kernel_size and dilation of the first axis."""
    kernel, dilation = (ints(values, 1)[0] for values in (module.kernel_size, module.dilation))
    return kernel, dilation


def _check_module(module: Any) -> None:
    name = type(module).__name__
    if module.shard_axis is not None:
        raise ValueError(f"[{name}] decoding is of one rank: make a module without group and shard_axis")
    if not per_axis(module.is_causal, 1)[0]:
        raise ValueError(f"[{name}] decoding needs a first axis that is causal, got is_causal={module.is_causal!r}")
    for option, why in (
        ("stride", "every row is a query"),
        ("gna_stride", "windows that rows share depend on rows to come"),
    ):
        if per_axis(getattr(module, option), 1)[0] != 1:
            raise ValueError(f"[{name}] decoding needs {option} 1 on the first axis: {why}")
    if module.training and module.attn_drop_rate > 0:
        raise ValueError(f"[{name}] decoding drops no attention weights: call module.eval() before")
    if module.rope is not None and not takes_offset(module.rope):
        raise ValueError(f"[{name}] decoding needs a rope that takes the keyword offset, got {module.rope!r}")


def _check_cache(module: Any, x: mx.array, cache: Any) -> None:
    name = type(module).__name__
    if not isinstance(cache, DecodingCache) or set(cache) != {"keys", "values", "position"}:
        raise ValueError(f"[{name}] cache must be what make_cache returns, got {type(cache).__name__}")
    for kept, array in cache.items():
        if not isinstance(array, mx.array):
            raise ValueError(f"[{name}] the cache's {kept} must be an mx.array, got {type(array).__name__}")
    position = cache["position"]
    if position.dtype != mx.int64 or position.ndim:
        raise ValueError(
            f"[{name}] the cache's position must be an int64 array without axes, got {position.dtype} "
            f"{list(position.shape)}"
        )
    if x.shape[1] == 0:
        raise ValueError(f"[{name}] expected at least one new row, got shape {list(x.shape)}")
    kernel, dilation = _reach(module)
    expected = (x.shape[0], dilation, kernel, *x.shape[2:-1], module.num_kv_heads, module.head_dim)
    for kept in ("keys", "values"):
        if cache[kept].shape != expected:
            raise ValueError(
                f"[{name}] the cache's {kept} must have shape {list(expected)} (batch of x, dilation, kernel_size, "
                f"other axes of x, kv_heads, head_dim), got {list(cache[kept].shape)}"
            )


def _check_rows(module: Any, x: mx.array, projected: dict[str, Any]) -> None:
    """Of x: a subclass, a norm or a rope may have made them otherwise, and the ring has room for these only."""
    for label, rows in projected.items():
        heads = module.num_heads if label == "query" else module.num_kv_heads
        expected = (*x.shape[:-1], heads, module.head_dim)
        if not isinstance(rows, mx.array) or rows.shape != expected:
            got = list(rows.shape) if isinstance(rows, mx.array) else type(rows).__name__
            raise ValueError(
                f"[{type(module).__name__}] project must give a {label} of shape {list(expected)} (that of x, heads, "
                f"head_dim), got {got}"
            )
