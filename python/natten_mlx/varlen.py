"""Neighborhood attention over padded samples of different lengths."""

# As in functional.py: written once for the ranks, and varlen.pyi is what type checkers and editors see.
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from natten_mlx import _ext
from natten_mlx.functional import Bools, Ints, StreamOrDevice, _public

_VARLEN = """{rank}-D neighborhood attention over padded samples: na{rank}d with lengths.

    Args:
        query, key, value: See na{rank}d.
        {lengths_name}: {lengths} int32 or int64, from kernel_size * dilation (1 on a causal axis) to the padded size
            on each axis. Each sample is computed as if it ended there; results past it are exactly 0, and what stands
            in the padding reaches nothing.
        kernel_size, dilation, scale, stride, is_causal, return_lse, gna_stride, stream: See na{rank}d.
        is_circular, query_start, key_start, shape: See na{rank}d. Lengths are those of the whole axes; a circular one
            then has rows at positions from 0 to shape only, and each sample goes around at its own length.

    Returns:
        See na{rank}d.

    Raises:
        ValueError: arguments that do not fit, with "[{name}]" in front. Lengths that depend on a trace of
            mx.compile or mx.vmap cannot be checked: an illegal one makes its sample 0.
    """


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
        is_circular: Bools = False,
        query_start: Ints = 0,
        key_start: Ints = 0,
        shape: Ints | None = None,
    ) -> mx.array | tuple[mx.array, mx.array]:
        arrays, window = (query, key, value, spatial_sizes), (kernel_size, stride, dilation, is_causal)
        options = (gna_stride, stream, is_circular, query_start, key_start, shape)
        return _ext.varlen(name, rank, *arrays, "spatial_sizes", *window, scale, return_lse, *options)

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
        is_circular: Bools = False,
        query_start: Ints = 0,
        key_start: Ints = 0,
        shape: Ints | None = None,
    ) -> mx.array | tuple[mx.array, mx.array]:
        arrays, window = (query, key, value, seq_lens), (kernel_size, stride, dilation, is_causal)
        options = (gna_stride, stream, is_circular, query_start, key_start, shape)
        return _ext.varlen("na1d_varlen", 1, *arrays, "seq_lens", *window, scale, return_lse, *options)

    return _public(varlen, 1, "_varlen", _VARLEN)


na1d_varlen, na2d_varlen, na3d_varlen = _varlen_1d(), _varlen(2), _varlen(3)
