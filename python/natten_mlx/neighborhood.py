"""Which keys are attended, without attending: a neighborhood as a mask, and the keys that a span of queries needs."""

from typing import overload

import mlx.core as mx

from natten_mlx import _ext
from natten_mlx.functional import Bools, Ints, StreamOrDevice


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
    is_circular: Bools = False,
    query_start: Ints = 0,
    query_rows: Ints | None = None,
    key_start: Ints = 0,
    key_rows: Ints | None = None,
) -> mx.array:
    """The neighborhood as a dense mask, for checks and for dense attention (mx.fast.scaled_dot_product_attention).

    Args:
        shape: Lengths of the 1 to 3 spatial axes.
        kernel_size, stride, dilation, is_causal, gna_stride, is_circular: See na1d.
        rpb: Relative position bias [Hq, 2K-1 per axis], which is added; needs a floating dtype.
        lengths: [B] (1-D) or [B, rank] int32 or int64: the tokens of each padded sample. Queries past them attend none.
        dtype: bool_, true where a query attends a key; or a floating type, 0 there and -inf elsewhere.
        stream: Stream or device to run on.
        query_start, query_rows: The positions whose queries the mask has, per axis; default all.
        key_start, key_rows: The positions whose keys it has, which must be all that the queries attend; default all.

    Returns:
        [queries, keys], both row-major; [Hq, queries, keys] with rpb; [B, 1 or Hq, queries, keys] with lengths.

    Raises:
        ValueError: arguments that do not fit, 2^31 elements or more, with "[neighborhood_mask]" in front.
    """
    window = (kernel_size, stride, dilation, is_causal, gna_stride)
    span = (query_start, query_rows, key_start, key_rows)
    return _ext.neighborhood_mask(shape, *window, rpb, lengths, dtype, stream, is_circular, *span)


@overload
def key_span(
    kernel_size: int,
    query_start: int,
    rows: int,
    shape: int,
    dilation: int = 1,
    is_causal: bool = False,
    *,
    stride: int = 1,
    gna_stride: int = 1,
    is_circular: bool = False,
) -> tuple[int, int]: ...
@overload
def key_span(
    kernel_size: Ints,
    query_start: Ints,
    rows: Ints,
    shape: Ints,
    dilation: Ints = 1,
    is_causal: Bools = False,
    *,
    stride: Ints = 1,
    gna_stride: Ints = 1,
    is_circular: Bools = False,
) -> tuple[int, int] | tuple[tuple[int, ...], tuple[int, ...]]: ...
def key_span(
    kernel_size: Ints,
    query_start: Ints,
    rows: Ints,
    shape: Ints,
    dilation: Ints = 1,
    is_causal: Bools = False,
    *,
    stride: Ints = 1,
    gna_stride: Ints = 1,
    is_circular: Bools = False,
) -> tuple[int, int] | tuple[tuple[int, ...], tuple[int, ...]]:
    """The keys that a span of queries needs: what to pass as key and value with query_start.

    Args:
        query_start: Position of the first query of the span.
        rows: How many positions the span has.
        shape: Length of the whole axis.
        kernel_size, dilation, is_causal, stride, gna_stride, is_circular: See na1d.

    Returns:
        (key_start, rows): from the least to the last key of the span's windows. Numbers where every argument is one,
        else a tuple of a number per axis each. On a circular axis key_start may be negative and key_start + rows above
        shape; where the windows go around the whole axis, it is (0, shape). rows is 0 where the query stride leaves no
        query in the span.

    Raises:
        ValueError: arguments that do not fit, with "[key_span]" in front.
    """
    window = (dilation, is_causal, stride, gna_stride, is_circular)
    return _ext.key_span(kernel_size, query_start, rows, shape, *window)
