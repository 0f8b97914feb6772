"""Neighborhood attention on arrays, heads last.

Written by scripts/write_stubs.py from functional.py.
"""

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
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
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
        additional_keys: [B or 1, N, Hkv, D], attended by every query in the same softmax; a batch of 1 serves every
            sample.
        additional_values: [B or 1, N, Hkv, Dv].
        gna_stride: Neighboring queries that share the window of their leader (Generalized Neighborhood Attention).
        rpb: Relative position bias [Hq, 2K-1], indexed by key minus query place plus K - 1 on each axis.
        lengths: [B] int32 or int64: the tokens of each padded sample. Results past them are 0.
        stream: Stream or device to run on.
        is_circular: Per axis: windows wrap around instead of being shifted inside.
        query_start: Position of the first row of query on each axis, for a span.
        key_start: Position of the first row of key and value.
        shape: Lengths of the whole axes; default those of query.

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
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: Literal[False] = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
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
        additional_keys: [B or 1, N, Hkv, D], attended by every query in the same softmax; a batch of 1 serves every
            sample.
        additional_values: [B or 1, N, Hkv, Dv].
        gna_stride: Neighboring queries that share the window of their leader (Generalized Neighborhood Attention).
        rpb: Relative position bias [Hq, 2K-1, 2K-1], indexed by key minus query place plus K - 1 on each axis.
        lengths: [B, 2] int32 or int64: the tokens of each padded sample. Results past them are 0.
        stream: Stream or device to run on.
        is_circular: Per axis: windows wrap around instead of being shifted inside.
        query_start: Position of the first row of query on each axis, for a span.
        key_start: Position of the first row of key and value.
        shape: Lengths of the whole axes; default those of query.

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
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: Literal[False] = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
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
        additional_keys: [B or 1, N, Hkv, D], attended by every query in the same softmax; a batch of 1 serves every
            sample.
        additional_values: [B or 1, N, Hkv, Dv].
        gna_stride: Neighboring queries that share the window of their leader (Generalized Neighborhood Attention).
        rpb: Relative position bias [Hq, 2K-1, 2K-1, 2K-1], indexed by key minus query place plus K - 1 on each axis.
        lengths: [B, 3] int32 or int64: the tokens of each padded sample. Results past them are 0.
        stream: Stream or device to run on.
        is_circular: Per axis: windows wrap around instead of being shifted inside.
        query_start: Position of the first row of query on each axis, for a span.
        key_start: Position of the first row of key and value.
        shape: Lengths of the whole axes; default those of query.

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
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

def na1d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, additional_keys: mx.array | None = None,
    stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0,
    shape: Ints | None = None,
) -> mx.array:
    """Logits of 1-D neighborhood attention, the first half of the split form.

    Args:
        query: [B, L, Hq, D].
        key: [B, L, Hkv, D].
        kernel_size, dilation, stride, is_causal, scale, gna_stride, rpb, lengths, additional_keys, stream: See
            na1d.
        is_circular, query_start, key_start, shape: See na1d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size) + N] in query's dtype. Slots are row-major; on an
        axis, slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty
        slots hold -inf. The N slots of additional keys come last.

    Raises:
        ValueError: arguments that do not fit, with "[na1d_qk]" in front.
    """

def na2d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, additional_keys: mx.array | None = None,
    stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0,
    shape: Ints | None = None,
) -> mx.array:
    """Logits of 2-D neighborhood attention, the first half of the split form.

    Args:
        query: [B, H, W, Hq, D].
        key: [B, H, W, Hkv, D].
        kernel_size, dilation, stride, is_causal, scale, gna_stride, rpb, lengths, additional_keys, stream: See
            na2d.
        is_circular, query_start, key_start, shape: See na2d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size) + N] in query's dtype. Slots are row-major; on an
        axis, slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty
        slots hold -inf. The N slots of additional keys come last.

    Raises:
        ValueError: arguments that do not fit, with "[na2d_qk]" in front.
    """

def na3d_qk(
    query: mx.array, key: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, gna_stride: Ints = 1,
    rpb: mx.array | None = None, lengths: mx.array | None = None, additional_keys: mx.array | None = None,
    stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0,
    shape: Ints | None = None,
) -> mx.array:
    """Logits of 3-D neighborhood attention, the first half of the split form.

    Args:
        query: [B, D, H, W, Hq, D].
        key: [B, D, H, W, Hkv, D].
        kernel_size, dilation, stride, is_causal, scale, gna_stride, rpb, lengths, additional_keys, stream: See
            na3d.
        is_circular, query_start, key_start, shape: See na3d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size) + N] in query's dtype. Slots are row-major; on an
        axis, slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty
        slots hold -inf. The N slots of additional keys come last.

    Raises:
        ValueError: arguments that do not fit, with "[na3d_qk]" in front.
    """

def na1d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, gna_stride: Ints = 1, lengths: mx.array | None = None,
    additional_values: mx.array | None = None, stream: StreamOrDevice = None, is_circular: Bools = False,
    query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array:
    """Weighted values of 1-D neighborhood attention, the second half of the split form.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size) + N] in the slots of na1d_qk; those of empty slots are
            ignored.
        value: [B, L, Hkv, Dv].
        kernel_size, dilation, stride, is_causal, gna_stride, lengths, additional_values, stream: See na1d.
        is_circular, query_start, key_start: See na1d.
        shape: Lengths of the whole axes; default those of value.

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na1d_av]" in front.
    """

def na2d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, gna_stride: Ints = 1, lengths: mx.array | None = None,
    additional_values: mx.array | None = None, stream: StreamOrDevice = None, is_circular: Bools = False,
    query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array:
    """Weighted values of 2-D neighborhood attention, the second half of the split form.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size) + N] in the slots of na2d_qk; those of empty slots are
            ignored.
        value: [B, H, W, Hkv, Dv].
        kernel_size, dilation, stride, is_causal, gna_stride, lengths, additional_values, stream: See na2d.
        is_circular, query_start, key_start: See na2d.
        shape: Lengths of the whole axes; default those of value.

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na2d_av]" in front.
    """

def na3d_av(
    attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1, *, stride: Ints = 1,
    is_causal: Bools = False, gna_stride: Ints = 1, lengths: mx.array | None = None,
    additional_values: mx.array | None = None, stream: StreamOrDevice = None, is_circular: Bools = False,
    query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array:
    """Weighted values of 3-D neighborhood attention, the second half of the split form.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size) + N] in the slots of na3d_qk; those of empty slots are
            ignored.
        value: [B, D, H, W, Hkv, Dv].
        kernel_size, dilation, stride, is_causal, gna_stride, lengths, additional_values, stream: See na3d.
        is_circular, query_start, key_start: See na3d.
        shape: Lengths of the whole axes; default those of value.

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na3d_av]" in front.
    """

@overload
def attention(
    query: mx.array, key: mx.array, value: mx.array, scale: float | mx.array | None = None, is_causal: bool = False,
    return_lse: Literal[False] = False, *, stream: StreamOrDevice = None,
) -> mx.array:
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
@overload
def attention(
    query: mx.array, key: mx.array, value: mx.array, scale: float | mx.array | None, is_causal: bool,
    return_lse: Literal[True], *, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def attention(
    query: mx.array, key: mx.array, value: mx.array, scale: float | mx.array | None = None, is_causal: bool = False,
    *, return_lse: Literal[True], stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def attention(
    query: mx.array, key: mx.array, value: mx.array, scale: float | mx.array | None = None, is_causal: bool = False,
    return_lse: bool = False, *, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...
