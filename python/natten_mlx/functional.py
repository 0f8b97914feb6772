"""Neighborhood attention on arrays, heads last.

Shapes below use B batch, L (or H W, or D H W) spatial axes, Hq query heads, Hkv key/value heads (Hq divisible by Hkv;
query head h reads key/value head h // (Hq // Hkv)), D and Dv head dims of query/key and of value, and out... for
ceil(L / stride) on each spatial axis. Arrays are float32, float16 or bfloat16 (float64 on the CPU device); sums are
float32, or float64 where an input is.

Per-axis parameters are a scalar or one value per axis. For an axis of length L: 1 <= kernel_size,
kernel_size * dilation <= L, 1 <= stride <= kernel_size, 1 <= gna_stride <= kernel_size, and not both strides above 1.

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
        additional_keys: [B, N, Hkv, D], attended by every query in the same softmax.
        additional_values: [B, N, Hkv, Dv].
        gna_stride: Neighboring queries that share the window of their leader (Generalized Neighborhood Attention).
        rpb: Relative position bias [Hq, {table}], indexed by key minus query place plus K - 1 on each axis.
        lengths: {lengths} int32 or int64: the tokens of each padded sample. Results past them are 0.
        stream: Stream or device to run on.

    Returns:
        out [B, out..., Hq, Dv] in query's dtype; with return_lse also lse [B, out..., Hq] in float32.

    Raises:
        ValueError: shapes, dtypes or parameters that do not fit, with "[{name}]" in front.
    """

_QK = """Logits of {rank}-D neighborhood attention, the first half of the split form.

    Args:
        query: [B, {axes}, Hq, D].
        key: [B, {axes}, Hkv, D].
        kernel_size, dilation, stride, is_causal, scale, gna_stride, rpb, lengths, stream: See na{rank}d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size)] in query's dtype. Slots are row-major; on an axis,
        slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty slots
        hold -inf.

    Raises:
        ValueError: arguments that do not fit, with "[{name}]" in front.
    """

_AV = """Weighted values of {rank}-D neighborhood attention, the second half of the split form.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size)] in the slots of na{rank}d_qk; those of empty slots are ignored.
        value: [B, {axes}, Hkv, Dv].
        kernel_size, dilation, stride, is_causal, gna_stride, lengths, stream: See na{rank}d.

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[{name}]" in front.
    """

_VARLEN = """{rank}-D neighborhood attention over padded samples: na{rank}d with lengths.

    Args:
        query, key, value: See na{rank}d.
        {lengths_name}: {lengths} int32 or int64, from kernel_size * dilation to the padded size on each axis. Each
            sample is computed as if it ended there; results past it are exactly 0, and what stands in the padding
            reaches nothing.
        kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na{rank}d.

    Returns:
        See na{rank}d.

    Raises:
        ValueError: arguments that do not fit, with "[{name}]" in front. Lengths that depend on a trace of
            mx.compile or mx.vmap cannot be checked: an illegal one makes its sample 0.
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
    ) -> mx.array | tuple[mx.array, mx.array]:
        window = (kernel_size, stride, dilation, is_causal)
        extra = (additional_keys, additional_values)
        return _ext.attention(
            name, rank, query, key, value, *window, scale, return_lse, *extra, gna_stride, rpb, lengths, stream
        )

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
        stream: StreamOrDevice = None,
    ) -> mx.array:
        window = (kernel_size, stride, dilation, is_causal)
        return _ext.qk(name, rank, query, key, *window, scale, gna_stride, rpb, lengths, stream)

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
        stream: StreamOrDevice = None,
    ) -> mx.array:
        return _ext.av(name, rank, attn, value, kernel_size, stride, dilation, is_causal, gna_stride, lengths, stream)

    return _public(av, rank, "_av", _AV)


def _varlen(rank: int) -> Callable[..., Any]:
    name = f"na{rank}d_varlen"

    def varlen(
        query: mx.array,
        key: mx.array,
        value: mx.array,
        spatial_sizes: mx.array,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | mx.array | None = None,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        return_lse: bool = False,
        gna_stride: Ints = 1,
        stream: StreamOrDevice = None,
    ) -> mx.array | tuple[mx.array, mx.array]:
        arrays, window = (query, key, value, spatial_sizes), (kernel_size, stride, dilation, is_causal)
        return _ext.varlen(name, rank, *arrays, "spatial_sizes", *window, scale, return_lse, gna_stride, stream)

    return _public(varlen, rank, "_varlen", _VARLEN)


def _varlen_1d() -> Callable[..., Any]:
    """The only one whose lengths have another name."""

    def varlen(
        query: mx.array,
        key: mx.array,
        value: mx.array,
        seq_lens: mx.array,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | mx.array | None = None,
        *,
        stride: Ints = 1,
        is_causal: Bools = False,
        return_lse: bool = False,
        gna_stride: Ints = 1,
        stream: StreamOrDevice = None,
    ) -> mx.array | tuple[mx.array, mx.array]:
        arrays, window = (query, key, value, seq_lens), (kernel_size, stride, dilation, is_causal)
        return _ext.varlen("na1d_varlen", 1, *arrays, "seq_lens", *window, scale, return_lse, gna_stride, stream)

    return _public(varlen, 1, "_varlen", _VARLEN)


na1d, na2d, na3d = map(_attention, _RANKS)
na1d_qk, na2d_qk, na3d_qk = map(_qk, _RANKS)
na1d_av, na2d_av, na3d_av = map(_av, _RANKS)
na1d_varlen, na2d_varlen, na3d_varlen = _varlen_1d(), _varlen(2), _varlen(3)


def neighborhood_mask(
    shape: Ints,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    *,
    gna_stride: Ints = 1,
    rpb: mx.array | None = None,
    lengths: mx.array | None = None,
    dtype: mx.Dtype = mx.bool_,
    stream: StreamOrDevice = None,
) -> mx.array:
    """The neighborhood as a dense mask, for checks and for dense attention (mx.fast.scaled_dot_product_attention).

    Args:
        shape: Lengths of the 1 to 3 spatial axes.
        kernel_size, stride, dilation, is_causal, gna_stride: See na1d.
        rpb: Relative position bias [Hq, 2K-1 per axis], which is added; needs a floating dtype.
        lengths: [B] (1-D) or [B, rank] int32 or int64: the tokens of each padded sample. Queries past them attend none.
        dtype: bool_, true where a query attends a key; or a floating type, 0 there and -inf elsewhere.
        stream: Stream or device to run on.

    Returns:
        [queries, keys], both row-major; [Hq, queries, keys] with rpb; [B, 1 or Hq, queries, keys] with lengths.

    Raises:
        ValueError: arguments that do not fit, 2^31 elements or more, with "[neighborhood_mask]" in front.
    """
    window = (kernel_size, stride, dilation, is_causal, gna_stride)
    return _ext.neighborhood_mask(shape, *window, rpb, lengths, dtype, stream)
