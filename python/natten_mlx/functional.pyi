"""Neighborhood attention on arrays, heads last. Written by scripts/write_stubs.py from functional.py."""

from collections.abc import Sequence
from typing import Literal, overload

import mlx.core as mx

Ints = int | Sequence[int]
Bools = bool | Sequence[bool]
StreamOrDevice = mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None

@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: Literal[False] = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """1-D neighborhood attention: softmax(scale * query.key + rpb) . value over the window of each query.

    Args:
        query: [B, L, Hq, D].
        key: [B, L, Hkv, D].
        value: [B, L, Hkv, Dv].
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
        rpb: Relative position bias [Hq, 2K-1], indexed by key minus query place plus K - 1 on each axis.
        lengths: [B] int32 or int64: the tokens of each padded sample. Results past them are 0.
        stream: Stream or device to run on.

    Returns:
        out [B, out..., Hq, Dv] in query's dtype; with return_lse also lse [B, out..., Hq] in float32.

    Raises:
        ValueError: shapes, dtypes or parameters that do not fit, with "[na1d]" in front.
    """
@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints, dilation: Ints,
    is_causal: Bools, scale: float | mx.array | None, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: Literal[False] = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """2-D neighborhood attention: softmax(scale * query.key + rpb) . value over the window of each query.

    Args:
        query: [B, H, W, Hq, D].
        key: [B, H, W, Hkv, D].
        value: [B, H, W, Hkv, Dv].
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
        rpb: Relative position bias [Hq, 2K-1, 2K-1], indexed by key minus query place plus K - 1 on each axis.
        lengths: [B, 2] int32 or int64: the tokens of each padded sample. Results past them are 0.
        stream: Stream or device to run on.

    Returns:
        out [B, out..., Hq, Dv] in query's dtype; with return_lse also lse [B, out..., Hq] in float32.

    Raises:
        ValueError: shapes, dtypes or parameters that do not fit, with "[na2d]" in front.
    """
@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints, dilation: Ints,
    is_causal: Bools, scale: float | mx.array | None, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: Literal[False] = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """3-D neighborhood attention: softmax(scale * query.key + rpb) . value over the window of each query.

    Args:
        query: [B, D, H, W, Hq, D].
        key: [B, D, H, W, Hkv, D].
        value: [B, D, H, W, Hkv, Dv].
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
        rpb: Relative position bias [Hq, 2K-1, 2K-1, 2K-1], indexed by key minus query place plus K - 1 on each axis.
        lengths: [B, 3] int32 or int64: the tokens of each padded sample. Results past them are 0.
        stream: Stream or device to run on.

    Returns:
        out [B, out..., Hq, Dv] in query's dtype; with return_lse also lse [B, out..., Hq] in float32.

    Raises:
        ValueError: shapes, dtypes or parameters that do not fit, with "[na3d]" in front.
    """
@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints, dilation: Ints,
    is_causal: Bools, scale: float | mx.array | None, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

def na1d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """Logits of 1-D neighborhood attention, the first half of the split form.

    Args:
        query: [B, L, Hq, D].
        key: [B, L, Hkv, D].
        kernel_size, dilation, stride, is_causal, scale, gna_stride, rpb, lengths, stream: See na1d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size)] in query's dtype. Slots are row-major; on an axis,
        slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty slots
        hold -inf.

    Raises:
        ValueError: arguments that do not fit, with "[na1d_qk]" in front.
    """

def na2d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """Logits of 2-D neighborhood attention, the first half of the split form.

    Args:
        query: [B, H, W, Hq, D].
        key: [B, H, W, Hkv, D].
        kernel_size, dilation, stride, is_causal, scale, gna_stride, rpb, lengths, stream: See na2d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size)] in query's dtype. Slots are row-major; on an axis,
        slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty slots
        hold -inf.

    Raises:
        ValueError: arguments that do not fit, with "[na2d_qk]" in front.
    """

def na3d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """Logits of 3-D neighborhood attention, the first half of the split form.

    Args:
        query: [B, D, H, W, Hq, D].
        key: [B, D, H, W, Hkv, D].
        kernel_size, dilation, stride, is_causal, scale, gna_stride, rpb, lengths, stream: See na3d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size)] in query's dtype. Slots are row-major; on an axis,
        slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty slots
        hold -inf.

    Raises:
        ValueError: arguments that do not fit, with "[na3d_qk]" in front.
    """

def na1d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, gna_stride: Ints = 1, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """Weighted values of 1-D neighborhood attention, the second half of the split form.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size)] in the slots of na1d_qk; those of empty slots are ignored.
        value: [B, L, Hkv, Dv].
        kernel_size, dilation, stride, is_causal, gna_stride, lengths, stream: See na1d.

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na1d_av]" in front.
    """

def na2d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, gna_stride: Ints = 1, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """Weighted values of 2-D neighborhood attention, the second half of the split form.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size)] in the slots of na2d_qk; those of empty slots are ignored.
        value: [B, H, W, Hkv, Dv].
        kernel_size, dilation, stride, is_causal, gna_stride, lengths, stream: See na2d.

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na2d_av]" in front.
    """

def na3d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, gna_stride: Ints = 1, lengths: mx.array | None = None, stream: StreamOrDevice = None,
) -> mx.array:
    """Weighted values of 3-D neighborhood attention, the second half of the split form.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size)] in the slots of na3d_qk; those of empty slots are ignored.
        value: [B, D, H, W, Hkv, Dv].
        kernel_size, dilation, stride, is_causal, gna_stride, lengths, stream: See na3d.

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na3d_av]" in front.
    """

@overload
def na1d_varlen(
    query: mx.array, key: mx.array, value: mx.array, seq_lens: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False,
    return_lse: Literal[False] = False, gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> mx.array:
    """1-D neighborhood attention over padded samples: na1d with lengths.

    Args:
        query, key, value: See na1d.
        seq_lens: [B] int32 or int64, from kernel_size * dilation to the padded size on each axis. Each
            sample is computed as if it ended there; results past it are exactly 0, and what stands in the padding
            reaches nothing.
        kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na1d.

    Returns:
        See na1d.

    Raises:
        ValueError: arguments that do not fit, with "[na1d_varlen]" in front. Lengths that depend on a trace of
            mx.compile or mx.vmap cannot be checked: an illegal one makes its sample 0.
    """
@overload
def na1d_varlen(
    query: mx.array, key: mx.array, value: mx.array, seq_lens: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: Literal[True],
    gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na1d_varlen(
    query: mx.array, key: mx.array, value: mx.array, seq_lens: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na2d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False,
    return_lse: Literal[False] = False, gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> mx.array:
    """2-D neighborhood attention over padded samples: na2d with lengths.

    Args:
        query, key, value: See na2d.
        spatial_sizes: [B, 2] int32 or int64, from kernel_size * dilation to the padded size on each axis. Each
            sample is computed as if it ended there; results past it are exactly 0, and what stands in the padding
            reaches nothing.
        kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na2d.

    Returns:
        See na2d.

    Raises:
        ValueError: arguments that do not fit, with "[na2d_varlen]" in front. Lengths that depend on a trace of
            mx.compile or mx.vmap cannot be checked: an illegal one makes its sample 0.
    """
@overload
def na2d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: Literal[True],
    gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na2d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na3d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False,
    return_lse: Literal[False] = False, gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> mx.array:
    """3-D neighborhood attention over padded samples: na3d with lengths.

    Args:
        query, key, value: See na3d.
        spatial_sizes: [B, 3] int32 or int64, from kernel_size * dilation to the padded size on each axis. Each
            sample is computed as if it ended there; results past it are exactly 0, and what stands in the padding
            reaches nothing.
        kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na3d.

    Returns:
        See na3d.

    Raises:
        ValueError: arguments that do not fit, with "[na3d_varlen]" in front. Lengths that depend on a trace of
            mx.compile or mx.vmap cannot be checked: an illegal one makes its sample 0.
    """
@overload
def na3d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: Literal[True],
    gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na3d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    gna_stride: Ints = 1, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

def neighborhood_mask(
    shape: Ints, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1, is_causal: Bools = False, *,
    gna_stride: Ints = 1, rpb: mx.array | None = None, lengths: mx.array | None = None, dtype: mx.Dtype = mx.bool_,
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
