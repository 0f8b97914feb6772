"""Neighborhood attention on arrays that are spread over machines.

Written by scripts/write_stubs.py from __init__.py.
"""

from collections.abc import Sequence
from typing import Any, Literal, overload

import mlx.core as mx

from natten_mlx.functional import Bools, Ints, StreamOrDevice

@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: Literal[False] = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> mx.array:
    """natten_mlx.na1d on arrays that are spread over ranks: this rank's rows of its result.

    Equal to the plain call on the whole arrays: on CPUs bit for bit in the forward, on GPUs to rounding. rpb and
    additional tokens are whole on every rank, and their gradient is this rank's part: sum_gradients adds it up.
    lengths are of the whole axes, and the same on every rank.

    Args:
        query, key, value: This rank's slab [B, L, heads, dim]; the axis that is spread has this rank's rows.
        kernel_size, stride, dilation, is_causal, scale, return_lse, additional_keys, additional_values, gna_stride,
        is_circular, rpb, lengths, stream: See natten_mlx.na1d.
        group: Default: mx.distributed.init().
        axis: Spatial axis that is spread.
        rows: Rows of every rank. Given, nothing is sent before the messages; otherwise each call gathers them together
            with its other arguments, which takes as long as the ranks are apart.
        overlap: Whether queries that need no halo are computed apart from the others, while messages travel. Default:
            where messages have a stream of their own, as on a GPU.
        communication_stream: CPU stream of the messages; default: that of MLX's own communication. All communication
            of a group must be on one stream.

    Returns:
        out [B, out..., Hq, Dv] in query's dtype; with return_lse also lse [B, out..., Hq] in float32. On the spread
        axis the queries of the slab that are multiples of the stride.

    Raises:
        ValueError: arguments that do not fit, or that ranks do not share; then on every rank, with
            "[distributed.na1d]" in front.
    """
@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints, dilation: Ints,
    is_causal: Bools, scale: float | mx.array | None, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na1d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: Literal[False] = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> mx.array:
    """natten_mlx.na2d on arrays that are spread over ranks: this rank's rows of its result.

    Equal to the plain call on the whole arrays: on CPUs bit for bit in the forward, on GPUs to rounding. rpb and
    additional tokens are whole on every rank, and their gradient is this rank's part: sum_gradients adds it up.
    lengths are of the whole axes, and the same on every rank.

    Args:
        query, key, value: This rank's slab [B, H, W, heads, dim]; the axis that is spread has this rank's rows.
        kernel_size, stride, dilation, is_causal, scale, return_lse, additional_keys, additional_values, gna_stride,
        is_circular, rpb, lengths, stream: See natten_mlx.na2d.
        group: Default: mx.distributed.init().
        axis: Spatial axis that is spread.
        rows: Rows of every rank. Given, nothing is sent before the messages; otherwise each call gathers them together
            with its other arguments, which takes as long as the ranks are apart.
        overlap: Whether queries that need no halo are computed apart from the others, while messages travel. Default:
            where messages have a stream of their own, as on a GPU.
        communication_stream: CPU stream of the messages; default: that of MLX's own communication. All communication
            of a group must be on one stream.

    Returns:
        out [B, out..., Hq, Dv] in query's dtype; with return_lse also lse [B, out..., Hq] in float32. On the spread
        axis the queries of the slab that are multiples of the stride.

    Raises:
        ValueError: arguments that do not fit, or that ranks do not share; then on every rank, with
            "[distributed.na2d]" in front.
    """
@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints, dilation: Ints,
    is_causal: Bools, scale: float | mx.array | None, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na2d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: Literal[False] = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> mx.array:
    """natten_mlx.na3d on arrays that are spread over ranks: this rank's rows of its result.

    Equal to the plain call on the whole arrays: on CPUs bit for bit in the forward, on GPUs to rounding. rpb and
    additional tokens are whole on every rank, and their gradient is this rank's part: sum_gradients adds it up.
    lengths are of the whole axes, and the same on every rank.

    Args:
        query, key, value: This rank's slab [B, D, H, W, heads, dim]; the axis that is spread has this rank's rows.
        kernel_size, stride, dilation, is_causal, scale, return_lse, additional_keys, additional_values, gna_stride,
        is_circular, rpb, lengths, stream: See natten_mlx.na3d.
        group: Default: mx.distributed.init().
        axis: Spatial axis that is spread.
        rows: Rows of every rank. Given, nothing is sent before the messages; otherwise each call gathers them together
            with its other arguments, which takes as long as the ranks are apart.
        overlap: Whether queries that need no halo are computed apart from the others, while messages travel. Default:
            where messages have a stream of their own, as on a GPU.
        communication_stream: CPU stream of the messages; default: that of MLX's own communication. All communication
            of a group must be on one stream.

    Returns:
        out [B, out..., Hq, Dv] in query's dtype; with return_lse also lse [B, out..., Hq] in float32. On the spread
        axis the queries of the slab that are multiples of the stride.

    Raises:
        ValueError: arguments that do not fit, or that ranks do not share; then on every rank, with
            "[distributed.na3d]" in front.
    """
@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints, dilation: Ints,
    is_causal: Bools, scale: float | mx.array | None, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, *, return_lse: Literal[True],
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def na3d(
    query: mx.array, key: mx.array, value: mx.array, kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1,
    is_causal: Bools = False, scale: float | mx.array | None = None, return_lse: bool = False,
    additional_keys: mx.array | None = None, additional_values: mx.array | None = None, *, gna_stride: Ints = 1,
    is_circular: Bools = False, rpb: mx.array | None = None, lengths: mx.array | None = None,
    group: mx.distributed.Group | None = None, axis: int = 0, rows: Sequence[int] | None = None,
    overlap: bool | None = None, communication_stream: StreamOrDevice = None, stream: StreamOrDevice = None,
) -> mx.array | tuple[mx.array, mx.array]: ...

def shard(
    x: mx.array, axis: int = 0, group: mx.distributed.Group | None = None, *, rows: Sequence[int] | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """This rank's slab of an array that all ranks hold.

    Args:
        x: [B, spatial..., ...], the same on every rank.
        axis: Spatial axis, 0 for the one after the batch.
        group: Default: mx.distributed.init().
        rows: Rows of every rank; default: as equal as possible, longer slabs first.
        stream: Stream or device to run on.

    Returns:
        The slab. Its gradient is 0 outside of it (sum_gradients adds up what ranks got).

    Raises:
        ValueError: arguments that do not fit.
    """

def gather(
    x: mx.array, axis: int = 0, group: mx.distributed.Group | None = None, *, rows: Sequence[int] | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    """The whole array on every rank, from its slabs.

    Args:
        x: This rank's slab [B, spatial..., ...].
        axis: Spatial axis, 0 for the one after the batch.
        group: Default: mx.distributed.init().
        rows: Rows of every rank; default: they are gathered first.
        stream: Stream or device to run on.

    Returns:
        The whole array. The gradient of a slab is the sum of what all ranks got for it: a loss that every rank computes
        from the whole array counts once for each of them.

    Raises:
        ValueError: arguments that do not fit, or that ranks do not share; then on every rank.
    """

def sum_gradients(
    gradients: Any, group: mx.distributed.Group | None = None, *, stream: StreamOrDevice = None,
) -> Any:
    """The sums over all ranks of gradients of parameters that every rank holds, such as rpb or a module's weights.

    Args:
        gradients: A tree of arrays, of the same shapes on every rank.
        group: Default: mx.distributed.init().
        stream: Stream or device to run on.

    Returns:
        The same tree of sums, with the same bits on every rank.
    """

def bytes_sent() -> int:
    """Bytes of keys, values and their gradients that this process has sent to its neighbors so far."""
