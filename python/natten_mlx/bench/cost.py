"""Useful floating-point operations, compulsory bytes, and the percentages made of them: every formula is here."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

from natten_mlx import _ext
from natten_mlx.bench.cases import FORWARD, GRAD_KEY, GRAD_QUERY, STEP, Case

ITEM_SIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Axis(NamedTuple):
    """One axis of a case."""

    queries: range
    length: int
    kernel: int
    stride: int
    dilation: int
    is_causal: bool
    gna_stride: int
    is_circular: bool

    def keys(self, query: int) -> list[int]:
        """Positions that the query at a position attends."""
        return _ext.window_keys(query, *self[1:])


@functools.cache
def _attended(axis: Axis) -> int:
    """Pairs of a computed query and a key."""
    return sum(len(axis.keys(query)) for query in axis.queries)


@functools.cache
def _whole(axis: Axis) -> int:
    """Computed queries whose window no border shifts or cuts: it is what it would be on an endless axis."""
    if axis.is_circular:
        return len(axis.queries)
    # Keeps groups, leaders and computed queries in place.
    margin = axis.kernel * axis.dilation * axis.gna_stride * axis.stride
    longer = axis._replace(length=axis.length + 2 * margin)
    return sum(axis.keys(query) == [key - margin for key in longer.keys(query + margin)] for query in axis.queries)


def _axes(case: Case) -> list[Axis]:
    def spread(value: int | bool | tuple[int, ...] | tuple[bool, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * case.rank

    parameters = (case.kernel, case.stride, case.dilation, case.is_causal, case.gna_stride, case.is_circular)
    return [
        Axis(range(-(-start // s) * s, start + rows, s), length, k, s, d, bool(c), u, bool(o))
        for (start, rows), length, k, s, d, c, u, o in zip(
            case.query_span, case.shape[1:-2], *map(spread, parameters), strict=True
        )
    ]


def border(case: Case) -> float:
    """Part of the queries whose window, on some axis, a border shifts or cuts."""
    return 1.0 - math.prod(_whole(axis) for axis in _axes(case)) / math.prod(case.queries)


@dataclass(frozen=True)
class Size:
    """The numbers that costs are made of."""

    pairs: int
    """Query-key pairs of one batch entry and head; tokens x prod(kernel_size) when nothing is causal or strided."""
    queries: int
    query_rows: int
    """Queries of the array: with a stride not all of them are computed."""
    keys: int
    slots: int
    """Elements of the attention of one query in the split form, empty ones included."""
    batch_heads: int
    batch_kv_heads: int
    head_dim: int
    value_dim: int
    item_size: int


def size(case: Case, kv_heads: int | None = None, value_dim: int | None = None) -> Size:
    """Counts of a case; `kv_heads` and `value_dim` default to those of query."""
    batch, *_, heads, dim = case.shape
    return Size(
        pairs=math.prod(_attended(axis) for axis in _axes(case)),
        queries=math.prod(case.queries),
        query_rows=math.prod(rows for _, rows in case.query_span),
        keys=math.prod(rows for _, rows in case.key_span),
        slots=math.prod(case.kernel),
        batch_heads=batch * heads,
        batch_kv_heads=batch * (kv_heads or heads),
        head_dim=dim,
        value_dim=value_dim or dim,
        item_size=ITEM_SIZE[case.dtype],
    )


def flops(form: str, direction: str, n: Size) -> float:
    """Useful operations: products and sums with the attended keys, no softmax, no border waste, no recomputation but
    that of the fused backward, which does not store the attention.

    Forward 4 tokens heads prod(K) D when D = Dv. A fused full backward 10: logits, dattn, dq, dk, dv.
    """
    qk, av = 2.0 * n.head_dim, 2.0 * n.value_dim
    per_pair = {
        ("fused", FORWARD): qk + av,
        ("fused", GRAD_QUERY): (qk + av) + (qk + av + qk),
        ("fused", STEP): (qk + av) + (qk + av + qk + qk + av),
        ("split", FORWARD): qk + av,
        ("split", STEP): (qk + av) + 2 * (qk + av),
        ("qk", FORWARD): qk,
        ("qk", GRAD_KEY): 2 * qk,
    }[form, direction]
    return per_pair * n.pairs * n.batch_heads


def compulsory_bytes(form: str, direction: str, n: Size) -> float:
    """Every input, output and gradient once; in the split form the logits and weights too, which are inputs and outputs
    of its calls."""
    query = n.queries * n.batch_heads * n.head_dim
    all_queries = n.query_rows * n.batch_heads * n.head_dim
    key = n.keys * n.batch_kv_heads * n.head_dim
    value = n.keys * n.batch_kv_heads * n.value_dim
    out = n.queries * n.batch_heads * n.value_dim
    attention = n.queries * n.batch_heads * n.slots
    elements = {
        ("fused", FORWARD): query + key + value + out,
        ("fused", GRAD_QUERY): query + key + value + 2 * out + all_queries,
        ("fused", STEP): query + key + value + 2 * out + all_queries + key + value,
        ("split", FORWARD): query + key + value + out + 4 * attention,  # logits and weights, written and read
        ("split", STEP): query + key + value + 2 * out + all_queries + key + value + 8 * attention,
        ("qk", FORWARD): query + key + attention,
        ("qk", GRAD_KEY): 2 * query + 2 * key + 2 * attention,
    }[form, direction]
    return float(elements * n.item_size)


def percent(achieved: float, limit: float) -> float:
    """`achieved` as percent of `limit`; NaN where the limit is unknown."""
    return 100.0 * achieved / limit if limit else math.nan


@dataclass(frozen=True)
class Roofline:
    """The least time that the machine's limits allow, and which of them binds."""

    compute: float
    memory: float
    dispatch: float

    @property
    def seconds(self) -> float:
        """The slowest of the three."""
        return max(self.compute, self.memory, self.dispatch)

    @property
    def bound(self) -> str:
        """compute, memory or dispatch."""
        return max(("compute", "memory", "dispatch"), key=lambda name: getattr(self, name))


def roofline(operations: float, moved: float, fma_rate: float, copy_rate: float, dispatch: float = 0.0) -> Roofline:
    """Bounds in seconds; the rates are per second, `dispatch` is the time of a call that computes next to nothing."""
    return Roofline(operations / fma_rate, moved / copy_rate, dispatch)
