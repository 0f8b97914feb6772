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

from collections.abc import Sequence

import mlx.core as mx

from natten_mlx import _ext

Ints = int | Sequence[int]
Bools = bool | Sequence[bool]
StreamOrDevice = mx.Stream | mx.Device | None


def na1d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    return_lse: bool = False,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    *,
    gna_stride: Ints = 1,
    rpb: mx.array | None = None,
    lengths: mx.array | None = None,
    stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """1-D neighborhood attention: softmax(scale * query.key + rpb) . value over the window of each query.

    Args:
        query: [B, L, Hq, D].
        key: [B, L, Hkv, D].
        value: [B, L, Hkv, Dv].
        kernel_size: Keys per axis. Windows at a border are shifted inside, so that they keep their size.
        stride: Query stride: only queries 0, s, 2s, ... are computed.
        dilation: Distance between the keys of a window.
        is_causal: Per axis: keys after the query are not attended.
        scale: Of the logits; default D ** -0.5.
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
    out, lse = _ext.attention(
        "na1d",
        1,
        query,
        key,
        value,
        kernel_size,
        stride,
        dilation,
        is_causal,
        scale,
        additional_keys,
        additional_values,
        gna_stride,
        rpb,
        lengths,
        "lengths",
        stream,
    )
    return (out, lse) if return_lse else out


def na1d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    gna_stride: Ints = 1,
    rpb: mx.array | None = None,
    lengths: mx.array | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """Logits of 1-D neighborhood attention, the first half of the split form. Arguments: see na1d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size)] in query's dtype. Slots are row-major; on an axis,
        slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty slots
        hold -inf.

    Raises:
        ValueError: arguments that do not fit, with "[na1d_qk]" in front.
    """
    return _ext.qk(
        "na1d_qk", 1, query, key, kernel_size, stride, dilation, is_causal, scale, gna_stride, rpb, lengths, stream
    )


def na1d_av(
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
    """Weighted values of 1-D neighborhood attention, the second half of the split form. Arguments: see na1d.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size)] in the slots of na1d_qk; those of empty slots are ignored.
        value: [B, L, Hkv, Dv].

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na1d_av]" in front.
    """
    return _ext.av("na1d_av", 1, attn, value, kernel_size, stride, dilation, is_causal, gna_stride, lengths, stream)


def na1d_varlen(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    seq_lens: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    scale: float | None = None,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    return_lse: bool = False,
    gna_stride: Ints = 1,
    stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """1-D neighborhood attention over padded samples: na1d with lengths.

    Args:
        query, key, value, kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na1d.
        seq_lens: [B] int32 or int64, from kernel_size * dilation to the padded size on each axis. Each sample
            is computed as if it ended there; results past it are exactly 0, and what stands in the padding reaches
            nothing.

    Returns:
        See na1d.

    Raises:
        ValueError: arguments that do not fit, with "[na1d_varlen]" in front. Lengths that depend on a trace of
            mx.compile or mx.vmap cannot be checked: an illegal one makes its sample 0.
    """
    out, lse = _ext.attention(
        "na1d_varlen",
        1,
        query,
        key,
        value,
        kernel_size,
        stride,
        dilation,
        is_causal,
        scale,
        None,
        None,
        gna_stride,
        None,
        seq_lens,
        "seq_lens",
        stream,
    )
    return (out, lse) if return_lse else out


def na2d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    return_lse: bool = False,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    *,
    gna_stride: Ints = 1,
    rpb: mx.array | None = None,
    lengths: mx.array | None = None,
    stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """2-D neighborhood attention: softmax(scale * query.key + rpb) . value over the window of each query.

    Args:
        query: [B, H, W, Hq, D].
        key: [B, H, W, Hkv, D].
        value: [B, H, W, Hkv, Dv].
        kernel_size: Keys per axis. Windows at a border are shifted inside, so that they keep their size.
        stride: Query stride: only queries 0, s, 2s, ... are computed.
        dilation: Distance between the keys of a window.
        is_causal: Per axis: keys after the query are not attended.
        scale: Of the logits; default D ** -0.5.
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
    out, lse = _ext.attention(
        "na2d",
        2,
        query,
        key,
        value,
        kernel_size,
        stride,
        dilation,
        is_causal,
        scale,
        additional_keys,
        additional_values,
        gna_stride,
        rpb,
        lengths,
        "lengths",
        stream,
    )
    return (out, lse) if return_lse else out


def na2d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    gna_stride: Ints = 1,
    rpb: mx.array | None = None,
    lengths: mx.array | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """Logits of 2-D neighborhood attention, the first half of the split form. Arguments: see na2d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size)] in query's dtype. Slots are row-major; on an axis,
        slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty slots
        hold -inf.

    Raises:
        ValueError: arguments that do not fit, with "[na2d_qk]" in front.
    """
    return _ext.qk(
        "na2d_qk", 2, query, key, kernel_size, stride, dilation, is_causal, scale, gna_stride, rpb, lengths, stream
    )


def na2d_av(
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
    """Weighted values of 2-D neighborhood attention, the second half of the split form. Arguments: see na2d.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size)] in the slots of na2d_qk; those of empty slots are ignored.
        value: [B, H, W, Hkv, Dv].

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na2d_av]" in front.
    """
    return _ext.av("na2d_av", 2, attn, value, kernel_size, stride, dilation, is_causal, gna_stride, lengths, stream)


def na2d_varlen(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    spatial_sizes: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    scale: float | None = None,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    return_lse: bool = False,
    gna_stride: Ints = 1,
    stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """2-D neighborhood attention over padded samples: na2d with lengths.

    Args:
        query, key, value, kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na2d.
        spatial_sizes: [B, 2] int32 or int64, from kernel_size * dilation to the padded size on each axis. Each sample
            is computed as if it ended there; results past it are exactly 0, and what stands in the padding reaches
            nothing.

    Returns:
        See na2d.

    Raises:
        ValueError: arguments that do not fit, with "[na2d_varlen]" in front. Lengths that depend on a trace of
            mx.compile or mx.vmap cannot be checked: an illegal one makes its sample 0.
    """
    out, lse = _ext.attention(
        "na2d_varlen",
        2,
        query,
        key,
        value,
        kernel_size,
        stride,
        dilation,
        is_causal,
        scale,
        None,
        None,
        gna_stride,
        None,
        spatial_sizes,
        "spatial_sizes",
        stream,
    )
    return (out, lse) if return_lse else out


def na3d(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    return_lse: bool = False,
    additional_keys: mx.array | None = None,
    additional_values: mx.array | None = None,
    *,
    gna_stride: Ints = 1,
    rpb: mx.array | None = None,
    lengths: mx.array | None = None,
    stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """3-D neighborhood attention: softmax(scale * query.key + rpb) . value over the window of each query.

    Args:
        query: [B, D, H, W, Hq, D].
        key: [B, D, H, W, Hkv, D].
        value: [B, D, H, W, Hkv, Dv].
        kernel_size: Keys per axis. Windows at a border are shifted inside, so that they keep their size.
        stride: Query stride: only queries 0, s, 2s, ... are computed.
        dilation: Distance between the keys of a window.
        is_causal: Per axis: keys after the query are not attended.
        scale: Of the logits; default D ** -0.5.
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
    out, lse = _ext.attention(
        "na3d",
        3,
        query,
        key,
        value,
        kernel_size,
        stride,
        dilation,
        is_causal,
        scale,
        additional_keys,
        additional_values,
        gna_stride,
        rpb,
        lengths,
        "lengths",
        stream,
    )
    return (out, lse) if return_lse else out


def na3d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    gna_stride: Ints = 1,
    rpb: mx.array | None = None,
    lengths: mx.array | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """Logits of 3-D neighborhood attention, the first half of the split form. Arguments: see na3d.

    Returns:
        scale * query.key + rpb, [B, out..., Hq, prod(kernel_size)] in query's dtype. Slots are row-major; on an axis,
        slot t is key start + t, or for a causal axis right-aligned (the last slot is the query itself). Empty slots
        hold -inf.

    Raises:
        ValueError: arguments that do not fit, with "[na3d_qk]" in front.
    """
    return _ext.qk(
        "na3d_qk", 3, query, key, kernel_size, stride, dilation, is_causal, scale, gna_stride, rpb, lengths, stream
    )


def na3d_av(
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
    """Weighted values of 3-D neighborhood attention, the second half of the split form. Arguments: see na3d.

    Args:
        attn: Weights [B, out..., Hq, prod(kernel_size)] in the slots of na3d_qk; those of empty slots are ignored.
        value: [B, D, H, W, Hkv, Dv].

    Returns:
        [B, out..., Hq, Dv] in attn's dtype.

    Raises:
        ValueError: arguments that do not fit, with "[na3d_av]" in front.
    """
    return _ext.av("na3d_av", 3, attn, value, kernel_size, stride, dilation, is_causal, gna_stride, lengths, stream)


def na3d_varlen(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    spatial_sizes: mx.array,
    kernel_size: Ints,
    dilation: Ints = 1,
    scale: float | None = None,
    *,
    stride: Ints = 1,
    is_causal: Bools = False,
    return_lse: bool = False,
    gna_stride: Ints = 1,
    stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """3-D neighborhood attention over padded samples: na3d with lengths.

    Args:
        query, key, value, kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na3d.
        spatial_sizes: [B, 3] int32 or int64, from kernel_size * dilation to the padded size on each axis. Each sample
            is computed as if it ended there; results past it are exactly 0, and what stands in the padding reaches
            nothing.

    Returns:
        See na3d.

    Raises:
        ValueError: arguments that do not fit, with "[na3d_varlen]" in front. Lengths that depend on a trace of
            mx.compile or mx.vmap cannot be checked: an illegal one makes its sample 0.
    """
    out, lse = _ext.attention(
        "na3d_varlen",
        3,
        query,
        key,
        value,
        kernel_size,
        stride,
        dilation,
        is_causal,
        scale,
        None,
        None,
        gna_stride,
        None,
        spatial_sizes,
        "spatial_sizes",
        stream,
    )
    return (out, lse) if return_lse else out
