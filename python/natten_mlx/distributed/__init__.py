"""Neighborhood attention on arrays that are spread over machines.

Each rank of an mx.distributed.Group holds a slab of one spatial axis of query, key and value, in rank order; slabs may
differ in size. Only the rows of keys and values that a rank's windows reach come from its neighbors, and their
gradients go back to them. Every rank makes the same calls in the same order and evaluates their results.
"""

# What type checkers and editors see is __init__.pyi, which scripts/write_stubs.py writes from this file.
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from natten_mlx import _ext
from natten_mlx.functional import _RANKS, Bools, Ints, StreamOrDevice, _public

__all__ = ["bytes_sent", "gather", "na1d", "na2d", "na3d", "shard", "sum_gradients"]

_ATTENTION = """natten_mlx.{name} on arrays that are spread over ranks: this rank's rows of its result.

    Equal to the plain call on the whole arrays: on CPUs bit for bit in the forward, on GPUs to rounding. rpb and
    additional tokens are whole on every rank, and their gradient is this rank's part: sum_gradients adds it up.
    lengths are of the whole axes, and the same on every rank.

    Args:
        query, key, value: This rank's slab [B, {axes}, heads, dim]; the axis that is spread has this rank's rows.
        kernel_size, stride, dilation, is_causal, scale, return_lse, additional_keys, additional_values, gna_stride,
        is_circular, rpb, lengths, stream: See natten_mlx.{name}.
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
            "[distributed.{name}]" in front.
    """


def _attention(rank: int) -> Callable[..., Any]:
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
        is_circular: Bools = False,
        rpb: mx.array | None = None,
        lengths: mx.array | None = None,
        group: mx.distributed.Group | None = None,
        axis: int = 0,
        rows: Sequence[int] | None = None,
        overlap: bool | None = None,
        communication_stream: StreamOrDevice = None,
        stream: StreamOrDevice = None,
    ) -> mx.array | tuple[mx.array, mx.array]:
        if type(return_lse).__name__ not in ("bool", "bool_"):  # NumPy's too
            got = f"{return_lse!r} ({type(return_lse).__name__})"
            raise ValueError(f"[distributed.na{rank}d] return_lse must be bool, got {got}")
        window = (kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values, gna_stride)
        slabs = (group, axis, rows, overlap, communication_stream)
        out, lse = _ext.distributed_attention(
            rank, query, key, value, *window, rpb, lengths, stream, is_circular, *slabs
        )
        return (out, lse) if return_lse else out

    return _public(attention, rank, "", _ATTENTION)


na1d, na2d, na3d = map(_attention, _RANKS)


def shard(
    x: mx.array,
    axis: int = 0,
    group: mx.distributed.Group | None = None,
    *,
    rows: Sequence[int] | None = None,
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
    return _ext.distributed_shard(x, group, axis, rows, stream)


def gather(
    x: mx.array,
    axis: int = 0,
    group: mx.distributed.Group | None = None,
    *,
    rows: Sequence[int] | None = None,
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
    return _ext.distributed_gather(x, group, axis, rows, stream)


def sum_gradients(gradients: Any, group: mx.distributed.Group | None = None, *, stream: StreamOrDevice = None) -> Any:
    """The sums over all ranks of gradients of parameters that every rank holds, such as rpb or a module's weights.

    Args:
        gradients: A tree of arrays, of the same shapes on every rank.
        group: Default: mx.distributed.init().
        stream: Stream or device to run on.

    Returns:
        The same tree of sums, with the same bits on every rank.
    """
    flat: Any = tree_flatten(gradients)
    sums = _ext.distributed_sum([array for _, array in flat], group, stream)
    return tree_unflatten([(name, total) for (name, _), total in zip(flat, sums, strict=True)])


def bytes_sent() -> int:
    """Bytes of keys, values and their gradients that this process has sent to its neighbors so far."""
    return _ext.distributed_bytes_sent()
