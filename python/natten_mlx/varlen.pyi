"""Neighborhood attention over padded samples of different lengths.

Written by scripts/write_stubs.py from varlen.py.
"""

from collections.abc import Sequence
from typing import Literal, overload

import mlx.core as mx

from natten_mlx.functional import Bools, Ints, StreamOrDevice

@overload
def na1d_varlen(
    query: mx.array, key: mx.array, value: mx.array, seq_lens: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False,
    return_lse: Literal[False] = False, gna_stride: Ints = 1, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array:
    """1-D neighborhood attention over padded samples: na1d with lengths.

    Args:
        query, key, value: See na1d.
        seq_lens: [B] int32 or int64, from kernel_size * dilation (1 on a causal axis) to the padded size
            on each axis. Each sample is computed as if it ended there; results past it are exactly 0, and what stands
            in the padding reaches nothing.
        kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na1d.
        is_circular, query_start, key_start, shape: See na1d. Lengths are those of the whole axes; a circular one
            then has rows at positions from 0 to shape only, and each sample goes around at its own length.

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
    gna_stride: Ints = 1, stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0,
    key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na1d_varlen(
    query: mx.array, key: mx.array, value: mx.array, seq_lens: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    gna_stride: Ints = 1, stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0,
    key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na2d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False,
    return_lse: Literal[False] = False, gna_stride: Ints = 1, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array:
    """2-D neighborhood attention over padded samples: na2d with lengths.

    Args:
        query, key, value: See na2d.
        spatial_sizes: [B, 2] int32 or int64, from kernel_size * dilation (1 on a causal axis) to the padded size
            on each axis. Each sample is computed as if it ended there; results past it are exactly 0, and what stands
            in the padding reaches nothing.
        kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na2d.
        is_circular, query_start, key_start, shape: See na2d. Lengths are those of the whole axes; a circular one
            then has rows at positions from 0 to shape only, and each sample goes around at its own length.

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
    gna_stride: Ints = 1, stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0,
    key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na2d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    gna_stride: Ints = 1, stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0,
    key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na3d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False,
    return_lse: Literal[False] = False, gna_stride: Ints = 1, stream: StreamOrDevice = None,
    is_circular: Bools = False, query_start: Ints = 0, key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array:
    """3-D neighborhood attention over padded samples: na3d with lengths.

    Args:
        query, key, value: See na3d.
        spatial_sizes: [B, 3] int32 or int64, from kernel_size * dilation (1 on a causal axis) to the padded size
            on each axis. Each sample is computed as if it ended there; results past it are exactly 0, and what stands
            in the padding reaches nothing.
        kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na3d.
        is_circular, query_start, key_start, shape: See na3d. Lengths are those of the whole axes; a circular one
            then has rows at positions from 0 to shape only, and each sample goes around at its own length.

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
    gna_stride: Ints = 1, stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0,
    key_start: Ints = 0, shape: Ints | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na3d_varlen(
    query: mx.array, key: mx.array, value: mx.array, spatial_sizes: mx.array, kernel_size: Ints, dilation: Ints = 1,
    scale: float | mx.array | None = None, *, stride: Ints = 1, is_causal: Bools = False, return_lse: bool = False,
    gna_stride: Ints = 1, stream: StreamOrDevice = None, is_circular: Bools = False, query_start: Ints = 0,
    key_start: Ints = 0, shape: Ints | None = None,
) -> mx.array | tuple[mx.array, mx.array]: ...
