"""Decoding: rows given piece by piece are what one call gives; caches, compilation, errors."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import natten_mlx
from harness import assert_near, to_numpy
from natten_mlx.nn import DecodingCache, NeighborhoodAttention1D, RoPE
from test_modules import make

CHANNELS, HEADS, BATCH = 16, 4, 2

# rank, other axes, rows per step, options
CASES: dict[str, tuple[int, tuple[int, ...], list[int], dict[str, Any]]] = {
    "token by token": (1, (), [1] * 9, {"kernel_size": 4}),
    "dilated": (1, (), [1] * 14, {"kernel_size": 3, "dilation": 3}),
    "prompts": (1, (), [5, 1, 1, 3, 1, 20, 2], {"kernel_size": 3, "dilation": 3, "num_kv_heads": 2}),
    "bias": (1, (), [1, 1, 4, 1, 1, 1, 9], {"kernel_size": 4, "dilation": 2, "rel_pos_bias": True}),
    "a few rows in a full ring": (1, (), [16, 3, 8, 1, 7, 2, 8, 5, 3, 3], {"kernel_size": 16, "num_kv_heads": 2}),
    "a few rows beside registers": (
        1,
        (),
        [9, 4, 2, 4, 3, 4, 4],
        {"kernel_size": 8, "num_registers": 2, "rope": RoPE(4), "qk_scale": mx.array([0.2, 0.4, 0.6, 0.8])},
    ),
    "longer than what comes": (
        1,
        (),
        [3, 2, 1],
        {"kernel_size": 7, "rel_pos_bias": True, "num_registers": 2, "pad_input": True},
    ),
    "window of one": (1, (), [3, 1, 1, 8], {"kernel_size": 1, "dilation": 2}),
    "rope and norm": (
        1,
        (),
        [2, 1, 1, 6, 1],
        {"kernel_size": 5, "rope": RoPE(4), "qk_norm": nn.RMSNorm(4), "qk_scale": mx.array([0.2, 0.4, 0.6, 0.8])},
    ),
    "rows of an image": (
        2,
        (5,),
        [1, 1, 2, 1, 4, 1],
        {"kernel_size": (3, 3), "dilation": (2, 1), "rel_pos_bias": True, "rope": RoPE((2, 2))},
    ),
    "rows narrower than the window": (2, (3,), [1, 2, 1], {"kernel_size": (3, 5), "pad_input": True}),
    "frames smaller than the window": (
        3,
        (3, 4),
        [1, 1, 3],
        {"kernel_size": (3, 3, 5), "dilation": (1, 2, 1), "stride": (1, 2, 3), "pad_input": True, "num_registers": 1},
    ),
    "strided columns": (2, (6,), [1, 2, 1, 1], {"kernel_size": (2, 4), "stride": (1, 2)}),
    "a few rows of an image in a full ring": (
        2,
        (6,),
        [9, 2, 3, 4, 2],
        {"kernel_size": (8, 3), "stride": (1, 2), "dilation": (1, 2), "num_registers": 1},
    ),
    "frames": (3, (3, 4), [1, 1, 1, 2, 3], {"kernel_size": (2, 3, 2), "num_registers": 1, "rope": RoPE((0, 2, 2))}),
    "frames, causal columns": (
        3,
        (4, 3),
        [2, 1, 1, 1],
        {"kernel_size": (3, 2, 3), "is_causal": (True, False, True), "gna_stride": (1, 2, 1)},
    ),
}


def module_of(rank: int, options: dict[str, Any]) -> nn.Module:
    mx.random.seed(0)
    causal = (True, *[False] * (rank - 1))
    return make(rank, CHANNELS, HEADS, **{"is_causal": causal, **options})


def in_pieces(step: Any, x: mx.array, pieces: Sequence[int]) -> mx.array:
    outputs, first = [], 0
    for rows in pieces:
        outputs.append(step(x[:, first : first + rows]))
        mx.eval(outputs[-1])
        first += rows
    return mx.concatenate(outputs, axis=1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_pieces_are_the_whole(tier: str, name: str, compiled: bool) -> None:
    rank, grid, pieces, options = CASES[name]
    module = module_of(rank, options)
    x = mx.random.normal((BATCH, sum(pieces), *grid, CHANNELS))
    cache = module.make_cache(BATCH, grid=grid)

    def step(x: mx.array) -> mx.array:
        return module.step(x, cache)

    traced = mx.compile(step, inputs=[cache, module.state], outputs=[cache]) if compiled else step
    assert_near(in_pieces(traced, x, pieces), to_numpy(module(x)), 1e-5)
    assert cache["position"].item() == sum(pieces)


@pytest.mark.parametrize("dtype, compiled", [(mx.float16, False), (mx.bfloat16, False), (mx.bfloat16, True)])
def test_half_types(tier: str, dtype: mx.Dtype, compiled: bool) -> None:
    module = module_of(1, {"kernel_size": 5, "dilation": 2, "rel_pos_bias": True})
    module.set_dtype(dtype)
    x = mx.random.normal((BATCH, 12, CHANNELS)).astype(dtype)
    cache = module.make_cache(BATCH)
    assert cache["keys"].dtype == cache["values"].dtype == dtype

    def step(x: mx.array) -> mx.array:
        return module.step(x, cache)

    traced = mx.compile(step, inputs=[cache, module.state], outputs=[cache]) if compiled else step
    result = in_pieces(traced, x, [3, 1, 5, 1, 1, 1])
    assert result.dtype == dtype
    assert_near(result, to_numpy(module(x)), {mx.float16: 4e-3, mx.bfloat16: 3e-2}[dtype])


def test_a_few_rows_leave_a_full_ring_in_its_order() -> None:
    """Keys are read where they lie: a step writes its rows over the oldest ones, across the end of the ring too."""
    module = module_of(1, {"kernel_size": 8})
    x = mx.random.normal((1, 25, CHANNELS))
    cache = module.make_cache(1)
    in_pieces(lambda x: module.step(x, cache), x, [10, 4, 4, 4, 3])
    keys = module.project(x)[1]
    for position in range(17, 25):
        assert mx.allclose(cache["keys"][:, 0, position % 8], keys[:, position], atol=1e-6)


def test_a_step_computes_no_places_that_are_known() -> None:
    """Outside of a trace: every operation is a launch on a GPU, and a window that is cut out of the ring a copy."""
    module = module_of(1, {"kernel_size": 3, "dilation": 2, "num_registers": 1})  # not in one kernel
    cache, x = module.make_cache(1), mx.random.normal((1, 9, CHANNELS))
    module.step(x[:, :8], cache)
    mx.eval(cache)
    text = io.StringIO()
    mx.export_to_dot(text, module.step(x[:, 8:], cache), *cache.values())
    kinds = Counter(re.findall(r'label ?= ?"([^"]+)"', text.getvalue()))
    assert not kinds.keys() & {"Remainder", "FloorDivide", "NattenSlice:natten_mlx.exportable", "Concatenate"}, kinds
    assert kinds["NattenSliceUpdate:natten_mlx.exportable"] == 2


def test_a_step_compiles_once() -> None:
    module = module_of(1, {"kernel_size": 3, "dilation": 2})
    cache, traces = module.make_cache(1), []

    def step(x: mx.array) -> mx.array:
        traces.append(x.shape)
        return module.step(x, cache)

    compiled = mx.compile(step, inputs=[cache, module.state], outputs=[cache])
    x = mx.random.normal((1, 20, CHANNELS))
    in_pieces(compiled, x, [1] * 20)
    assert len(traces) == 1


def test_the_cache_holds_what_windows_reach() -> None:
    module = module_of(3, {"kernel_size": (3, 2, 2), "dilation": (2, 1, 1), "num_kv_heads": 2})
    cache = module.make_cache(5, mx.float16, grid=(6, 7))
    assert cache["keys"].shape == cache["values"].shape == (5, 2, 3, 6, 7, 2, 4)
    assert cache["keys"].dtype == mx.float16 and cache["position"].item() == 0
    assert module_of(2, {"kernel_size": 2}).make_cache(1, grid=7)["keys"].shape == (1, 1, 2, 7, 4, 4)


def test_a_copy_goes_on_by_itself() -> None:
    module = module_of(1, {"kernel_size": 4})
    x = mx.random.normal((1, 8, CHANNELS))
    cache = module.make_cache(1)
    module.step(x[:, :6], cache)
    other = cache.copy()
    first = module.step(x[:, 6:], cache)
    module.step(-x[:, 6:7], other)
    assert isinstance(other, DecodingCache) and other["position"].item() == 7 and cache["position"].item() == 8
    assert mx.allclose(first, module(x)[:, 6:], atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_positions_beyond_32_bits(rows: int) -> None:
    """As long as nothing else knows a row's position, only its place in the ring matters."""
    module = module_of(1, {"kernel_size": 3, "dilation": 2})
    x = mx.random.normal((1, 12, CHANNELS))
    cache = module.make_cache(1)
    module.step(x[:, :9], cache)
    cache["position"] = cache["position"] + 6 * 2**40
    assert mx.allclose(module.step(x[:, 9 : 9 + rows], cache), module(x)[:, 9 : 9 + rows], atol=1e-5)


@pytest.mark.parametrize("position", [-1, -7, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_position_that_no_step_made_stays_in_the_ring(tier: str, position: int, rows: int, compiled: bool) -> None:
    module = module_of(1, {"kernel_size": 3, "dilation": 2})
    cache = module.make_cache(1)
    cache["position"] = mx.array(position, mx.int64)

    def step(x: mx.array) -> mx.array:
        return module.step(x, cache)

    traced = mx.compile(step, inputs=[cache, module.state], outputs=[cache]) if compiled else step
    mx.eval(traced(mx.zeros((1, rows, CHANNELS))), cache)
    rings = (cache["keys"], cache["values"])
    assert all(ring.shape == (1, 2, 3, HEADS, CHANNELS // HEADS) and mx.isfinite(ring).all() for ring in rings)


def test_a_rope_gets_positions_that_go_on() -> None:
    seen: list[Any] = []

    def rope(query: mx.array, key: mx.array, offset: Any = 0) -> tuple[mx.array, mx.array]:
        seen.append(offset)
        return query, key

    module = module_of(1, {"kernel_size": 3, "rope": rope})
    cache = module.make_cache(1)
    for rows in (4, 1, 2):
        module.step(mx.zeros((1, rows, CHANNELS)), cache)
    assert [offset.item() for offset in seen] == [0, 4, 5]
    module = module_of(2, {"kernel_size": 2, "rope": rope})
    cache = module.make_cache(1, grid=4)
    for _ in range(2):
        module.step(mx.zeros((1, 1, 4, CHANNELS)), cache)
    assert (seen[-1][0].item(), seen[-1][1]) == (1, 0)


@pytest.mark.parametrize("options", [{}, {"rope": RoPE(4)}], ids=["plain", "rope"])
def test_steps_differentiate(tier: str, options: dict[str, Any]) -> None:
    module = module_of(1, {"kernel_size": 3, **options})
    x = mx.random.normal((1, 5, CHANNELS))

    def last(x: mx.array) -> mx.array:
        cache = module.make_cache(1)
        module.step(x[:, :2], cache)
        module.step(x[:, 2:4], cache)
        return (module.step(x[:, 4:], cache) ** 2).sum()

    expected = to_numpy(mx.grad(lambda x: (module(x)[:, 4:] ** 2).sum())(x))
    for gradient in (mx.grad(last), mx.compile(mx.grad(last))):
        assert_near(gradient(x), expected, 1e-4)
    mapped = mx.vmap(last)(mx.stack([x, 2 * x]))
    assert_near(mapped, to_numpy(mx.stack([last(x), last(2 * x)])), 1e-4)
    tangent = mx.random.normal(x.shape)
    assert_near(mx.jvp(last, [x], [tangent])[1][0], (expected * to_numpy(tangent)).sum(), 1e-4)

    def curvature(function: Callable[[mx.array], mx.array]) -> mx.array:
        return mx.grad(lambda x: (mx.grad(function)(x) * tangent).sum())(x)

    assert_near(curvature(last), to_numpy(curvature(lambda x: (module(x)[:, 4:] ** 2).sum())), 1e-4)


MAPPED_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dilated": {"dilation": 2},
    "bias and rope": {"rel_pos_bias": True, "rope": RoPE(4)},
    "registers": {"num_registers": 2},
}


@pytest.mark.parametrize("seen, pieces", [(0, (1, 2)), (9, (1, 1)), (9, (2,))], ids=str)
@pytest.mark.parametrize("name", MAPPED_OPTIONS)
def test_steps_map(tier: str, name: str, seen: int, pieces: tuple[int, ...]) -> None:
    """Whatever is mapped of rows, rings, position and a weight, and whichever way the gradient and the map nest: each
    example is its own."""
    module = module_of(1, {"kernel_size": 4, "num_kv_heads": 2, **MAPPED_OPTIONS[name]})
    start = module.make_cache(1)
    if seen:
        module.step(mx.random.normal((1, seen, CHANNELS)), start)
    x = mx.random.normal((1, sum(pieces), CHANNELS))
    own = module.q_proj.weight
    inputs = [x, start["keys"], start["values"], own, start["position"]]

    def call(*arrays: mx.array) -> list[mx.array]:
        x, keys, values, module.q_proj.weight, position = arrays
        cache, outputs, first = DecodingCache(keys=keys, values=values, position=position), [], 0
        for rows in pieces:
            outputs.append(module.step(x[:, first : first + rows], cache))
            first += rows
        module.q_proj.weight = own
        return [*outputs, *cache.values()]

    def squares(arrays: Sequence[mx.array]) -> mx.array:
        return sum((a.astype(mx.float32) ** 2).sum() for a in arrays)

    def tangent(*arrays: mx.array) -> list[mx.array]:
        function = lambda *some: call(*some, arrays[4])[:-1]  # noqa: E731
        return mx.jvp(function, list(arrays[:4]), [0.5 * a for a in arrays[:4]])[1]

    gradient = mx.grad(lambda *arrays: squares(call(*arrays)), argnums=[0, 1, 2, 3])
    for mapped in [(0,), (1,), (2,), (3,), (4,), (0, 4), (1, 2), (0, 1, 2, 3, 4)]:
        axes = [-1 if i in mapped and inputs[i].ndim else 0 if i in mapped else None for i in range(5)]
        stacked = [
            x if axis is None else mx.stack([x, x + 1, x + 2] if x.ndim == 0 else [x, 0.5 * x, -x], axis=axis)
            for x, axis in zip(inputs, axes, strict=True)
        ]
        rows = [
            [x if axis is None else mx.take(x, i, axis=axis) for x, axis in zip(stacked, axes, strict=True)]
            for i in range(3)
        ]
        over = lambda function, axes=axes: mx.vmap(function, in_axes=tuple(axes))  # noqa: E731
        for kind, function in {"step": call, "gradient": gradient, "tangent": tangent}.items():
            expected = [mx.stack(each) for each in zip(*(function(*row) for row in rows), strict=True)]
            for found, wanted in zip(over(function)(*stacked), expected, strict=True):
                assert_near(found, to_numpy(wanted), 1e-4, f"{kind}, {mapped}")
        whole = mx.grad(lambda *arrays, over=over: squares(over(call)(*arrays)), argnums=[0, 1, 2, 3])
        each = [gradient(*row) for row in rows]
        for i, found in enumerate(whole(*stacked)):
            wanted = [gradients[i] for gradients in each]
            total = sum(wanted) if axes[i] is None else mx.stack(wanted, axis=axes[i])
            assert_near(found, to_numpy(total), 1e-4, f"gradient of the map, {mapped}")
    compiled = mx.compile(over(gradient))
    for found, wanted in zip(compiled(*stacked), over(gradient)(*stacked), strict=True):
        assert_near(found, to_numpy(wanted), 1e-4)


def test_a_step_changes_a_ring_of_its_own_in_place_and_no_other(tier: str) -> None:
    module = module_of(1, {"kernel_size": 20})
    x = mx.random.normal((1, 30, CHANNELS))
    cache = module.make_cache(1)
    module.step(x[:, :25], cache)
    kept = cache.copy()
    before = to_numpy(kept["keys"])
    first = module.step(x[:, 25:26], cache)
    assert (to_numpy(kept["keys"]) == before).all()
    assert_near(module.step(x[:, 25:26], kept), to_numpy(first), 0)


def test_a_ring_that_had_to_be_copied_is_changed_in_place_from_then_on() -> None:
    module = module_of(1, {"kernel_size": 20})
    x = mx.random.normal((1, 30, CHANNELS))

    def address() -> int:
        mx.eval(cache)
        return np.asarray(cache["keys"]).ctypes.data

    with natten_mlx.backend("nanobind"):
        cache = module.make_cache(1)
        module.step(x[:, :25], cache)
        for _ in range(2):
            first = address()
            assert first % 64 == 0
            module.step(x[:, 25:26], cache)
            assert address() == first
            held = cache.copy()
            module.step(x[:, 26:28], cache)
            assert address() != first
            del held


def cached(module: nn.Module, batch: int = 1, **options: Any) -> Any:
    return lambda x: module.step(x, module.make_cache(batch, **options))


def changed(**arrays: Any) -> DecodingCache:
    cache = PLAIN.make_cache(1)
    cache.update(arrays)
    return cache


def projecting(change: Callable[..., Any]) -> nn.Module:
    """A subclass whose rows do not fit, which a kernel would read past the end of."""

    class Changed(NeighborhoodAttention1D):
        def project(self, x: mx.array, offset: Any = None) -> Any:
            return change(*super().project(x, offset))

    return Changed(CHANNELS, HEADS, 3, is_causal=True)


X = mx.zeros((1, 1, CHANNELS))
PLAIN = module_of(1, {"kernel_size": 3})
WRONG: dict[str, Any] = {
    r"\[NeighborhoodAttention1D\] decoding needs a first axis that is causal": lambda: make(1, 16, 4, 3).make_cache(1),
    r"first axis that is causal, got is_causal=\(False, True\)": lambda: make(
        2, 16, 4, 3, is_causal=(False, True)
    ).make_cache(1, grid=4),
    r"decoding needs stride 1 on the first axis": lambda: module_of(1, {"kernel_size": 3, "stride": 2}).make_cache(1),
    r"decoding needs gna_stride 1 on the first axis: windows that rows share": lambda: module_of(
        1, {"kernel_size": 3, "gna_stride": 3}
    ).make_cache(1),
    r"decoding drops no attention weights": lambda: module_of(1, {"kernel_size": 3, "attn_drop": 0.1}).make_cache(1),
    r"needs a rope that takes the keyword offset": lambda: module_of(
        1, {"kernel_size": 3, "rope": lambda query, key: (query, key)}
    ).make_cache(1),
    r"batch must be an int from 1 on, got 0": lambda: PLAIN.make_cache(0),
    r"batch must be at most 2147483647, got 1099511627776": lambda: PLAIN.make_cache(2**40),
    r"dtype must be a floating type, got mlx.core.int32": lambda: PLAIN.make_cache(1, mx.int32),
    r"grid must hold the lengths of the other 0 axes, got \(4,\)": lambda: PLAIN.make_cache(1, grid=4),
    r"grid must hold the lengths of the other 2 axes, got \(\)": lambda: module_of(3, {"kernel_size": 2}).make_cache(1),
    r"batch \* kernel_size \* dilation \* grid must be below 2\^31 tokens, got 10737418235": lambda: module_of(
        2, {"kernel_size": (5, 1)}
    ).make_cache(1, grid=2**31 - 1),
    r"batch \* kernel_size \* dilation \* grid must be below 2\^31 tokens, got 1099511627776": lambda: module_of(
        1, {"kernel_size": 2**20, "dilation": 2**20}
    ).make_cache(1),
    r"Expected input shape \[B, L, C\], got \(1, 16\)": lambda: cached(PLAIN)(X[0]),
    r"channel dim must be embed_dim = 16, got 4": lambda: cached(PLAIN)(X[..., :4]),
    r"expected at least one new row": lambda: cached(PLAIN)(X[:, :0]),
    r"the cache's keys must have shape \[1, 1, 3, 4, 4\] \(batch of x, .* got \[2, 1, 3, 4, 4\]": lambda: cached(
        PLAIN, 2
    )(X),
    r"the cache must have the type of the module's keys, mlx.core.float32, got mlx.core.float16": lambda: cached(
        PLAIN, dtype=mx.float16
    )(X),
    r"the cache's keys must have shape": lambda: PLAIN.step(X, module_of(1, {"kernel_size": 4}).make_cache(1)),
    r"the cache's keys must be an mx.array, got NoneType": lambda: PLAIN.step(X, changed(keys=None)),
    r"the cache's values must be an mx.array, got ndarray": lambda: PLAIN.step(X, changed(values=np.zeros(3))),
    r"position must be an int64 array without axes, got mlx.core.int32 \[\]": lambda: PLAIN.step(
        X, changed(position=mx.array(3, mx.int32))
    ),
    r"position must be an int64 array without axes, got mlx.core.int64 \[1\]": lambda: PLAIN.step(
        X, changed(position=mx.array([3], mx.int64))
    ),
    r"project must give a query of shape \[1, 1, 4, 4\] .*, got \[1, 1, 2, 8\]": lambda: cached(
        projecting(lambda q, k, v: (q.reshape(1, 1, 2, 8), k, v))
    )(X),
    r"project must give a key of shape \[1, 1, 4, 4\] .*, got NoneType": lambda: cached(
        projecting(lambda q, k, v: (q, None, v))
    )(X),
    r"project must give a key of shape \[1, 1, 4, 4\] .*, got \[1, 1, 1, 4\]": lambda: cached(
        projecting(lambda q, k, v: (q, k[:, :, :1], v[:, :, :1]))
    )(X),
    r"project must give a value of shape \[1, 3, 4, 4\] .*, got \[1, 1, 4, 4\]": lambda: cached(
        projecting(lambda q, k, v: (q, k, v[:, :1]))
    )(mx.zeros((1, 3, CHANNELS))),
    r"cache must be what make_cache returns, got dict": lambda: PLAIN.step(X, {}),
    r"cache must be what make_cache returns, got NoneType": lambda: PLAIN.step(X, None),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_an_error_leaves_the_cache_as_it_was() -> None:
    cache = PLAIN.make_cache(1)
    before = dict(cache)
    with pytest.raises(ValueError):
        PLAIN.step(mx.zeros((2, 1, CHANNELS)), cache)
    assert all(cache[name] is before[name] for name in before)
