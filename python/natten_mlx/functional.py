"""Neighborhood attention on arrays, heads last.

Shapes below use B batch, L (or H W, or D H W) spatial axes, Hq query heads, Hkv key/value heads (Hq divisible by Hkv;
query head h reads key/value head h // (Hq // Hkv)), D and Dv head dims of query/key and of value, and out... for
ceil(L / stride) on each spatial axis. Arrays are float32, float16 or bfloat16 (float64 on the CPU device); sums are
float32, or float64 where an input is.

Per-axis parameters are a scalar or one value per axis. For an axis of length L: 1 <= kernel_size,
kernel_size * dilation <= L unless the axis is causal, 1 <= stride <= kernel_size, 1 <= gna_stride <= kernel_size, and
not both strides above 1. On a circular axis, which is not causal, dilation divides L and gna_stride L / dilation.

A span is a part of the queries of a whole axis with the keys that it needs: row r of query is the position
query_start + r on an axis of length shape, row r of key and value the position key_start + r. The result is that of the
plain call on the whole arrays, for the queries of the span. Every key of their windows must be there (key_span tells
which); on a circular axis rows are positions modulo shape, at most shape of them, and key_start may be negative.

Every function is differentiable with respect to each floating array, works under mx.compile, mx.vmap and
mx.checkpoint, and raises ValueError for arguments that do not fit, before any work starts.
"""

# Each idea is written once and made into the functions of the three ranks. What type checkers and editors see of them,
# overloads included, is functional.pyi, which scripts/write_stubs.py writes from this file.
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from natten_mlx import _ext

Ints = int | Sequence[int]
Bools = bool | Sequence[bool]
StreamOrDevice = mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None

_ATTENTION = """{rank}-D neighborhood attention: softmax(scale * query.key + rpb) . value over the window of each query.

    Args:
        query: [B, {axes}, Hq, D].
        key: [B, {axes}, Hkv, D].
        value: [B, {axes}, Hkv, Dv].
        kernel_size: Keys per axis. Windows at a border are shifted inside, so that they keep their size.
        stride: Query stride: only queries 0, s, 2s, ... are computed.
        dilation: Distance between the keys of a window.
        is_causal: Per axis: keys after the query are not attended.
        scale: Of the logits; default D ** -0.5. A number, or an array of one element or of shape [Hq] (a learned
            temperature), which is multiplied into query in float32, rounded to query's dtype, and is differentiable.
        return_lse: Also return the log-sum-exp of the logits.
        additional_keys: [B or 1, N, Hkv, D], attended by every query in the same softmax; a batch of 1 serves every
            sample.
        additional_values: [B or 1, N, Hkv, Dv].
        gna_stride: Neighboring queries that share the window of their leader (Generalized Neighborhood Attention).
        rpb: Relative position bias [Hq, {table}], indexed by key minus query place plus K - 1 on each axis.
        lengths: {lengths} int32 or int64: the tokens of each padded sample. Results past them are 0.
        stream: Stream or device to run on.
        is_circular: Per axis: windows wrap around instead of being shifted inside.
        query_start: Position of the first row of query on each axis, for a span.
        key_start: Position of the first row of key and value.
        shape: Lengths of the whole axes; default those of query.

    Returns:
        out [B, out..., Hq, Dv] in query's dtype; with return_lse also lse [B, out..., Hq] in float32.

    Raises:
        ValueError: shapes, dtypes or parameters that do not fit, with "[{name}]" in front.
    """

_QK = """Logits of {rank}-D neighborhood attention, the first half of the split form.

    Args:
        query: [B, {axes}, Hq, D].
        key: [B, {axes}, Hkv, D].
        kernel_size, dilation, stride, is_causal, scale, gna_stride, rpb, lengths, additional_keys, stream: See
            na{rank}d.
        is_circular, query_start, key_start, shape: See na{rank}d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size) + N] in query's dtype. Slots are row-major; on an
        axis, slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty
        slots hold -inf. The N slots of additional keys come last.

    Raises:
        ValueError: arguments that do not fit, with "[{name}]" in front.
    """

_AV = """Weighted values of {rank}-D neighborhood attention, the second half of the split form.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size) + N] in the slots of na{rank}d_qk; those of empty slots are
            ignored.
        value: [B, {axes}, Hkv, Dv].
        kernel_size, dilation, stride, is_causal, gna_stride, lengths, additional_values, stream: See na{rank}d.
        is_circular, query_start, key_start: See na{rank}d.
        shape: Lengths of the whole axes; default those of value.

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[{name}]" in front.
    """

_RANKS = (1, 2, 3)


def _public(function: Callable[..., Any], rank: int, suffix: str, text: str) -> Callable[..., Any]:
    """Name and docstring of what is na{rank}d{suffix} for users."""
    name = f"na{rank}d{suffix}"
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text.format(
        name=name,
        rank=rank,
        axes={1: "L", 2: "H, W", 3: "D, H, W"}[rank],
        table=", ".join(["2K-1"] * rank),
        lengths="[B]" if rank == 1 else f"[B, {rank}]",
        lengths_name="seq_lens" if rank == 1 else "spatial_sizes",
    )
    return function


def _attention(rank: int) -> Callable[..., Any]:
    name = f"na{rank}d"

    def attention(
        query: mx.array,
        key: mx.array,
        value: mx.array,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        scale: float | mx.array | None = None,
        return_lse: bool = False,
        additional_keys: mx.array | None = None,
        additional_values: mx.array | None = None,
        *,
        gna_stride: Ints = 1,
        rpb: mx.array | None = None,
        lengths: mx.array | None = None,
        stream: StreamOrDevice = None,
        is_circular: Bools = False,
        query_start: Ints = 0,
        key_start: Ints = 0,
        shape: Ints | None = None,
    ) -> mx.array | tuple[mx.array, mx.array]:
        window = (kernel_size, stride, dilation, is_causal)
        extra = (additional_keys, additional_values)
        options = (gna_stride, rpb, lengths, stream, is_circular, query_start, key_start, shape)
        return _ext.attention(name, rank, query, key, value, *window, scale, return_lse, *extra, *options)

    return _public(attention, rank, "", _ATTENTION)


def _qk(rank: int) -> Callable[..., Any]:
    name = f"na{rank}d_qk"

    def qk(
        query: mx.array,
        key: mx.array,
        kernel_size: Ints,
        dilation: Ints = 1,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        scale: float | mx.array | None = None,
        gna_stride: Ints = 1,
        rpb: mx.array | None = None,
        lengths: mx.array | None = None,
        additional_keys: mx.array | None = None,
        stream: StreamOrDevice = None,
        is_circular: Bools = False,
        query_start: Ints = 0,
        key_start: Ints = 0,
        shape: Ints | None = None,
    ) -> mx.array:
        window = (kernel_size, stride, dilation, is_causal)
        options = (gna_stride, rpb, lengths, additional_keys, stream, is_circular, query_start, key_start, shape)
        return _ext.qk(name, rank, query, key, *window, scale, *options)

    return _public(qk, rank, "_qk", _QK)


def _av(rank: int) -> Callable[..., Any]:
    name = f"na{rank}d_av"

    def av(
        attn: mx.array,
        value: mx.array,
        kernel_size: Ints,
        dilation: Ints = 1,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        gna_stride: Ints = 1,
        lengths: mx.array | None = None,
        additional_values: mx.array | None = None,
        stream: StreamOrDevice = None,
        is_circular: Bools = False,
        query_start: Ints = 0,
        key_start: Ints = 0,
        shape: Ints | None = None,
    ) -> mx.array:
        window = (kernel_size, stride, dilation, is_causal)
        options = (gna_stride, lengths, additional_values, stream, is_circular, query_start, key_start, shape)
        return _ext.av(name, rank, attn, value, *window, *options)

    return _public(av, rank, "_av", _AV)


na1d, na2d, na3d = map(_attention, _RANKS)
na1d_qk, na2d_qk, na3d_qk = map(_qk, _RANKS)
na1d_av, na2d_av, na3d_av = map(_av, _RANKS)


def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | mx.array | None = None,
    is_causal: bool = False,
    return_lse: bool = False,
    *,
    stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """Dense attention: every query attends every key, as many of each as there are.

    On a GPU it is MLX's scaled_dot_product_attention, unless lse is asked for or types are mixed; else the kernels of
    this library, which a window as long as the key axis makes dense.

    Args:
        query: [B, Lq, Hq, D].
        key: [B, Lk, Hkv, D].
        value: [B, Lk, Hkv, Dv].
        scale: See na1d.
        is_causal: Whether query i, at position Lk - Lq + i, attends keys up to its position only. Needs Lq <= Lk.
        return_lse: Also return the log-sum-exp of the logits, for merge_attentions.
        stream: Stream or device to run on.

    Returns:
        out [B, Lq, Hq, Dv] in query's dtype; with return_lse also lse [B, Lq, Hq] in float32.

    Raises:
        ValueError: arguments that do not fit, with "[attention]" in front.
    """
    return _ext.dense_attention(query, key, value, scale, is_causal, return_lse, stream)
