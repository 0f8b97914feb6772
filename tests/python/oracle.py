"""Neighborhood attention in float64 NumPy, straight from the definition: a dense mask and textbook formulas.

Shares no code with the library. Every gradient is the analytic one; `test_oracle.py` checks them by central
differences. Layout is the library's: query [B, L..., Hq, D], key [B, L..., Hkv, D], value [B, L..., Hkv, Dv].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Axis:
    """One axis of a neighborhood; the letters L, K, s, d, u of the literature."""

    length: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    gna_stride: int = 1
    is_causal: bool = False
    is_circular: bool = False

    def keys(self, query: int) -> list[int]:
        """Absolute positions of the keys that `query` attends, in the order of their slots."""
        if self.is_circular:
            return [place % self.places * self.dilation + query % self.dilation for place in self.unwrapped(query)]
        length, kernel, dilation, share = self.length, self.kernel_size, self.dilation, self.gna_stride
        group, place = query % dilation, query // dilation
        places = -(-(length - group) // dilation)
        if self.is_causal:
            leader = min((place // share) * share + share - 1, places - 1)
            start, end = max(leader - kernel + 1, 0), place + 1
        else:
            leader = min((place // share) * share + share // 2, places - 1)
            start = min(max(leader - kernel // 2, 0), places - kernel)
            end = start + kernel
        return [place_of_key * dilation + group for place_of_key in range(start, end)]

    @property
    def places(self) -> int:
        """Of each dilation group of a circular axis."""
        return self.length // self.dilation

    def unwrapped(self, query: int) -> range:
        """Places of a circular window before they are taken modulo the length of the group."""
        start = query // self.dilation // self.gna_stride * self.gna_stride + self.gna_stride // 2
        return range(start - self.kernel_size // 2, start - self.kernel_size // 2 + self.kernel_size)

    def slot(self, query: int, key: int) -> int:
        """Slot of the split form: non-causal windows count from their first key, causal ones end at the query."""
        if self.is_causal:
            return self.kernel_size - 1 - (query // self.dilation - key // self.dilation)
        return self.keys(query).index(key)

    def bias_index(self, query: int, key: int) -> int:
        if self.is_circular:
            return self.unwrapped(query)[self.slot(query, key)] - query // self.dilation + self.kernel_size - 1
        return key // self.dilation - query // self.dilation + self.kernel_size - 1

    def queries(self) -> range:
        return range(0, self.length, self.stride)

    def is_legal(self) -> bool:
        if self.is_circular and (self.length % self.dilation or self.places % self.gna_stride):
            return False
        return self.length >= 1 and (self.is_causal or self.kernel_size * self.dilation <= self.length)


@dataclass(frozen=True)
class Span:
    """The positions on one axis that the rows of query, and of key and value, are."""

    query_start: int
    query_rows: int
    key_start: int
    key_rows: int

    def queries(self, axis: Axis) -> list[int]:
        """The positions that are computed."""
        rows = range(self.query_start, self.query_start + self.query_rows)
        return [position for position in rows if position % axis.stride == 0]

    def keys(self, axis: Axis) -> list[int]:
        rows = range(self.key_start, self.key_start + self.key_rows)
        return [position % axis.length if axis.is_circular else position for position in rows]


@cache
def _axis_tables(axis: Axis) -> tuple[Array, Array, Array]:
    """mask, slot and bias index, each [queries, keys] of one axis."""
    shape = (len(axis.queries()), axis.length)
    mask = np.zeros(shape, dtype=bool)
    slot = np.zeros(shape, dtype=np.int64)
    bias = np.zeros(shape, dtype=np.int64)
    for row, query in enumerate(axis.queries()):
        for key in axis.keys(query):
            mask[row, key] = True
            slot[row, key] = axis.slot(query, key)
            bias[row, key] = axis.bias_index(query, key)
    return mask, slot, bias


def _combine(tables: list[Array], bases: list[int]) -> Array:
    """Row-major index over several axes, [prod(queries), prod(keys)]."""
    total = np.zeros((1, 1), dtype=np.int64)
    for table, base in zip(tables, bases, strict=True):
        total = total[:, None, :, None] * base + table[None, :, None, :]
        total = total.reshape(total.shape[0] * total.shape[1], -1)
    return total


def dense_tables(axes: tuple[Axis, ...]) -> tuple[Array, Array, Array]:
    """mask, slot and flat bias index over all axes, [prod(queries), prod(keys)]."""
    tables = [_axis_tables(axis) for axis in axes]
    mask = _combine([1 - table[0].astype(np.int64) for table in tables], [2] * len(axes)) == 0
    slot = _combine([table[1] for table in tables], [axis.kernel_size for axis in axes])
    bias = _combine([table[2] for table in tables], [2 * axis.kernel_size - 1 for axis in axes])
    return mask, slot, bias


def flat_index(positions: list[list[int]], shape: Sequence[int]) -> Array:
    """Row-major index of the product of positions on each axis."""
    grid = np.meshgrid(*(np.array(p, np.int64) for p in positions), indexing="ij")
    return np.ravel_multi_index([g.ravel() for g in grid], tuple(shape))


@dataclass(frozen=True)
class Geometry:
    """A whole neighborhood on a whole input: what the masks depend on."""

    axes: tuple[Axis, ...]
    batch: int
    lengths: tuple[tuple[int, ...], ...] | None = None  # per sample and axis
    parts: tuple[Span, ...] = ()  # none: whole axes

    @property
    def spans(self) -> tuple[Span, ...]:
        return self.parts or tuple(Span(0, axis.length, 0, axis.length) for axis in self.axes)

    @property
    def query_rows(self) -> tuple[int, ...]:
        return tuple(span.query_rows for span in self.spans)

    @property
    def key_rows(self) -> tuple[int, ...]:
        return tuple(span.key_rows for span in self.spans)

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(len(span.queries(axis)) for axis, span in zip(self.axes, self.spans, strict=True))

    @property
    def computed(self) -> tuple[slice, ...]:
        """Rows of query that are computed."""
        return tuple(
            slice(-span.query_start % axis.stride, None, axis.stride)
            for axis, span in zip(self.axes, self.spans, strict=True)
        )

    def sample_axes(self, sample: int) -> tuple[Axis, ...]:
        if self.lengths is None:
            return self.axes
        return tuple(replace(a, length=length) for a, length in zip(self.axes, self.lengths[sample], strict=True))

    def tables(self) -> tuple[Array, Array, Array]:
        """mask, slot, bias index [B, Nq, Nk] on the rows of the arrays; rows and columns in the padding are masked."""
        size = (self.batch, prod(self.output), prod(self.key_rows))
        mask, slot, bias = np.zeros(size, bool), np.zeros(size, np.int64), np.zeros(size, np.int64)
        for b in range(self.batch):
            axes = self.sample_axes(b)
            legal = all(a.is_legal() and a.length <= full.length for a, full in zip(axes, self.axes, strict=True))
            if not legal:
                continue
            # Positions of the rows that are not padding: a sample's are the first ones of the axis.
            queries = [span.queries(full) for span, full in zip(self.spans, self.axes, strict=True)]
            keys = [span.keys(full) for span, full in zip(self.spans, self.axes, strict=True)]
            rows = [[i for i, p in enumerate(of) if p < a.length] for of, a in zip(queries, axes, strict=True)]
            cols = [[i for i, p in enumerate(of) if p < a.length] for of, a in zip(keys, axes, strict=True)]
            at = [[of[i] // a.stride for i in held] for of, held, a in zip(queries, rows, axes, strict=True)]
            of_keys = [[of[i] for i in held] for of, held in zip(keys, cols, strict=True)]
            where = np.ix_(flat_index(rows, self.output), flat_index(cols, self.key_rows))
            from_whole = np.ix_(
                flat_index(at, tuple(len(a.queries()) for a in axes)), flat_index(of_keys, [a.length for a in axes])
            )
            whole = dense_tables(axes)
            for table, of_axes in zip((mask, slot, bias), whole, strict=True):
                table[b][where] = of_axes[from_whole]
            held = whole[0][from_whole[0]].sum() == mask[b].sum()
            assert held, "a key that a window needs is in no row"
        return mask, slot, bias


@dataclass
class Call:
    """Inputs of one attention call and what the oracle derives from them."""

    geometry: Geometry
    query: Array
    key: Array
    value: Array
    scale: float | None = None
    rpb: Array | None = None
    additional_keys: Array | None = None
    additional_values: Array | None = None
    _saved: dict[str, Array] = field(default_factory=dict)

    def _flat(self, x: Array) -> Array:
        """[B, L..., H, C] -> [B, H, N, C] in float64."""
        x = np.asarray(x, np.float64)
        heads, channels = x.shape[-2:]
        return x.reshape(x.shape[0], -1, heads, channels).transpose(0, 2, 1, 3)

    def _strided(self, x: Array) -> Array:
        """Only the computed queries."""
        return x[(slice(None), *self.geometry.computed)]

    def _grid(self, x: Array, spatial: tuple[int, ...]) -> Array:
        """[B, H, N, C] -> [B, spatial..., H, C]"""
        batch, heads, _, channels = x.shape
        return x.transpose(0, 2, 1, 3).reshape(batch, *spatial, heads, channels)

    def _unstrided(self, dq: Array) -> Array:
        full = np.zeros((dq.shape[0], *self.geometry.query_rows, *dq.shape[-2:]))
        full[(slice(None), *self.geometry.computed)] = dq
        return full

    def _visible(self, x: Array, mask: Array, axis: int) -> Array:
        """Zero what no window holds, so that NaN in padding does not reach a product."""
        used = mask.any(axis=axis)
        return np.where(used[:, None, :, None], x, 0.0)

    def forward(self) -> tuple[Array, Array]:
        """-> out [B, out..., Hq, Dv], lse [B, out..., Hq]"""
        mask, _, bias_index = self.geometry.tables()
        q = self._visible(self._flat(self._strided(self.query)), mask, axis=2)
        k = self._visible(self._flat(self.key), mask, axis=1)
        v = self._visible(self._flat(self.value), mask, axis=1)
        live = mask.any(axis=2)  # [B, Nq]
        if self.additional_keys is not None:
            extra = self._flat(self.additional_keys)
            k = np.concatenate([k, extra], axis=2)
            v = np.concatenate([v, self._flat(self.additional_values)], axis=2)
            mask = np.concatenate([mask, np.broadcast_to(live[:, :, None], (*live.shape, extra.shape[2]))], axis=2)
        group = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        logits = scale * (q @ k.transpose(0, 1, 3, 2))
        if self.rpb is not None:
            table = np.asarray(self.rpb, np.float64).reshape(self.rpb.shape[0], -1)
            window = bias_index.shape[2]
            logits[..., :window] += table[:, bias_index].transpose(1, 0, 2, 3)
        masked = np.where(mask[:, None], logits, -np.inf)
        largest = masked.max(axis=-1)
        some = ~np.isneginf(largest)  # a query all of whose logits are -inf attends nothing
        top = np.where(some, largest, 0.0)
        weights = np.exp(masked - top[..., None])
        total = np.where(some, weights.sum(axis=-1), 1.0)
        probs = weights / total[..., None]
        out = probs @ v
        lse = np.where(live[:, None], np.where(some, top + np.log(total), -np.inf), 0.0)
        self._saved = {"q": q, "k": k, "v": v, "probs": probs, "out": out, "live": live, "scale": np.float64(scale)}
        return self._grid(out, self.geometry.output), self._grid(lse[..., None], self.geometry.output)[..., 0]

    def backward(self, dout: Array, dlse: Array | None = None, kept: Array | None = None) -> dict[str, Array]:
        """Gradients of every input for cotangents of `out` and `lse`; with `kept` as the forward's saved `out`."""
        if not self._saved:
            self.forward()
        q, k, v = self._saved["q"], self._saved["k"], self._saved["v"]
        probs, out, live = self._saved["probs"], self._saved["out"], self._saved["live"]
        scale = float(self._saved["scale"])
        do = np.where(live[:, None, :, None], self._flat(dout), 0.0)
        delta = (do * (out if kept is None else self._flat(kept))).sum(axis=-1)
        if dlse is not None:
            delta = delta - np.where(live[:, None], self._flat(dlse[..., None])[..., 0], 0.0)
        dlogits = probs * (do @ v.transpose(0, 1, 3, 2) - delta[..., None])
        dq = scale * (dlogits @ k)
        dk = scale * (dlogits.transpose(0, 1, 3, 2) @ q)
        dv = probs.transpose(0, 1, 3, 2) @ do
        heads, kv_heads = q.shape[1], self.key.shape[-2]

        def per_kv_head(x: Array) -> Array:
            return x.reshape(x.shape[0], kv_heads, heads // kv_heads, *x.shape[2:]).sum(axis=2)

        dk, dv = per_kv_head(dk), per_kv_head(dv)
        spatial = self.geometry.key_rows
        window = prod(spatial)
        grads = {
            "query": self._unstrided(self._grid(dq, self.geometry.output)),
            "key": self._grid(dk[:, :, :window], spatial),
            "value": self._grid(dv[:, :, :window], spatial),
        }
        if self.rpb is not None:
            grads["rpb"] = self._rpb_gradient(dlogits[..., :window])
        if self.additional_keys is not None:
            tokens = (self.additional_keys.shape[1],)
            grads["additional_keys"] = self._grid(dk[:, :, window:], tokens)
            grads["additional_values"] = self._grid(dv[:, :, window:], tokens)
        return grads

    def _rpb_gradient(self, dlogits: Array) -> Array:
        mask, _, bias_index = self.geometry.tables()
        gradient = np.zeros((self.rpb.shape[0], prod(self.rpb.shape[1:])))
        for head in range(gradient.shape[0]):
            np.add.at(gradient[head], bias_index[mask], dlogits[:, head][mask])
        return gradient.reshape(self.rpb.shape)

    def qk(self) -> Array:
        """Logits of the split form [B, out..., Hq, prod(K)]; empty slots -inf, rows in the padding 0."""
        mask, slot, bias_index = self.geometry.tables()
        q = self._visible(self._flat(self._strided(self.query)), mask, axis=2)
        k = self._visible(self._flat(self.key), mask, axis=1)
        k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        logits = scale * (q @ k.transpose(0, 1, 3, 2))
        if self.rpb is not None:
            table = np.asarray(self.rpb, np.float64).reshape(self.rpb.shape[0], -1)
            logits += table[:, bias_index].transpose(1, 0, 2, 3)
        result = to_slots(logits, mask, slot, self._volume(), empty=-np.inf)
        live = mask.any(axis=2)
        result = np.where(live[:, None, :, None], result, 0.0)
        return self._grid(result, self.geometry.output)

    def qk_backward(self, dlogits: Array) -> dict[str, Array]:
        mask, slot, _ = self.geometry.tables()
        q = self._visible(self._flat(self._strided(self.query)), mask, axis=2)
        k = self._visible(self._flat(self.key), mask, axis=1)
        heads, kv_heads = q.shape[1], k.shape[1]
        dense = to_dense(self._flat(dlogits), mask, slot)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        dq = scale * (dense @ np.repeat(k, heads // kv_heads, axis=1))
        dk = scale * (dense.transpose(0, 1, 3, 2) @ q)
        dk = dk.reshape(dk.shape[0], kv_heads, heads // kv_heads, *dk.shape[2:]).sum(axis=2)
        grads = {
            "query": self._unstrided(self._grid(dq, self.geometry.output)),
            "key": self._grid(dk, self.geometry.key_rows),
        }
        if self.rpb is not None:
            grads["rpb"] = self._rpb_gradient(dense)
        return grads

    def av(self, attn: Array) -> Array:
        """out [B, out..., Hq, Dv] for attn [B, out..., Hq, prod(K)]"""
        mask, slot, _ = self.geometry.tables()
        v = self._visible(self._flat(self.value), mask, axis=1)
        dense = to_dense(self._flat(attn), mask, slot)
        return self._grid(dense @ np.repeat(v, dense.shape[1] // v.shape[1], axis=1), self.geometry.output)

    def av_backward(self, attn: Array, dout: Array) -> dict[str, Array]:
        mask, slot, _ = self.geometry.tables()
        v = self._visible(self._flat(self.value), mask, axis=1)
        dense = to_dense(self._flat(attn), mask, slot)
        heads, kv_heads = dense.shape[1], v.shape[1]
        do = np.where(mask.any(axis=2)[:, None, :, None], self._flat(dout), 0.0)
        dattn = do @ np.repeat(v, heads // kv_heads, axis=1).transpose(0, 1, 3, 2)
        dv = dense.transpose(0, 1, 3, 2) @ do
        dv = dv.reshape(dv.shape[0], kv_heads, heads // kv_heads, *dv.shape[2:]).sum(axis=2)
        return {
            "attn": self._grid(to_slots(dattn, mask, slot, self._volume(), empty=0.0), self.geometry.output),
            "value": self._grid(dv, self.geometry.key_rows),
        }

    def _volume(self) -> int:
        return prod(axis.kernel_size for axis in self.geometry.axes)


def to_slots(dense: Array, mask: Array, slot: Array, volume: int, empty: float) -> Array:
    """[B, H, Nq, Nk] -> [B, H, Nq, volume]"""
    result = np.full((*dense.shape[:3], volume), empty)
    b, row, col = np.nonzero(mask)
    result[b, :, row, slot[b, row, col]] = dense[b, :, row, col]
    return result


def to_dense(slots: Array, mask: Array, slot: Array) -> Array:
    """[B, H, Nq, volume] -> [B, H, Nq, Nk]; what no window holds is 0, whatever stands in empty slots."""
    result = np.zeros((*slots.shape[:3], mask.shape[2]))
    b, row, col = np.nonzero(mask)
    result[b, :, row, col] = slots[b, :, row, slot[b, row, col]]
    return result


def merge(outputs: list[Array], lses: list[Array]) -> tuple[Array, Array]:
    """Joint attention of partial ones over disjoint keys: outputs [..., D], lse [...]."""
    lse = np.stack([np.asarray(x, np.float64) for x in lses])
    top = lse.max(axis=0)
    top = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(lse - top)
    total = weights.sum(axis=0)
    safe = np.where(total == 0, 1.0, total)
    out = sum((w / safe)[..., None] * np.asarray(o, np.float64) for w, o in zip(weights, outputs, strict=True))
    with np.errstate(divide="ignore"):
        return out, np.where(total == 0, -np.inf, top + np.log(total))


def merge_backward(
    outputs: list[Array], lses: list[Array], dout: Array, dlse: Array
) -> tuple[list[Array], list[Array]]:
    out, lse = merge(outputs, lses)
    empty = np.isneginf(lse)
    douts, dlses = [], []
    for o, part in zip(outputs, lses, strict=True):
        weight = np.where(empty, 0.0, np.exp(np.asarray(part, np.float64) - np.where(empty, 0.0, lse)))
        douts.append(weight[..., None] * dout)
        dlses.append(weight * (dlse + (dout * (np.asarray(o, np.float64) - out)).sum(axis=-1)))
    return douts, dlses
