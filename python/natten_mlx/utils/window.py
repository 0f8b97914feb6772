"""Window arithmetic on the host: integers in, integers out, elementwise on numpy arrays.

For the query at `index` of an axis, not causal and without strides. `neighborhood_size` is kernel_size // 2; it is
accepted for programs written for NATTEN and must agree.
"""

import operator
from functools import cache
from typing import Any

from natten_mlx import _ext

# NumPy is imported by the first call: that takes longer than the import of everything else.


@cache
def _starts() -> Any:
    import numpy as np

    return np.vectorize(_ext.window_start, otypes=[np.int64, np.int64])


@cache
def _ends() -> Any:
    import numpy as np

    return np.vectorize(_ext.window_end, otypes=[np.int64])


def _each(function: Any, *arguments: Any) -> Any:
    """Of arguments whose shapes broadcast."""
    import numpy as np

    try:
        np.broadcast_shapes(*(np.shape(argument) for argument in arguments))
    except ValueError as error:
        raise ValueError(f"[window] arguments must be integers or arrays of shapes that broadcast: {error}") from None
    return function(*arguments)


def _check_neighborhood(kernel_size: Any, neighborhood_size: Any) -> None:
    import numpy as np

    try:
        expected = np.vectorize(operator.index, otypes=[np.int64])(kernel_size) // 2
    except TypeError:  # where there is no index, nobody has looked at it
        given = f"{kernel_size!r} ({type(kernel_size).__name__})"
        raise ValueError(f"[window] kernel_size values must be int, got {given}") from None
    if np.any(_each(lambda given, expected: np.asarray(given) != expected, neighborhood_size, expected)):
        raise ValueError(f"[window] neighborhood_size must be kernel_size // 2 = {expected}, got {neighborhood_size}")


def _plain(values: Any) -> Any:
    return int(values) if values.ndim == 0 else values


def get_window_start(index: Any, length: Any, kernel_size: Any, neighborhood_size: Any, dilation: Any) -> Any:
    """First key that the query at `index` attends.

    Raises:
        ValueError: what is no integer, an index outside the axis, a window that does not fit it, a wrong
            neighborhood_size.
    """
    starts = _each(_starts(), index, length, kernel_size, dilation)[0]
    _check_neighborhood(kernel_size, neighborhood_size)
    return _plain(starts)


def get_window_end(start_index: Any, length: Any, kernel_size: Any, dilation: Any) -> Any:
    """min(length, start_index + kernel_size * dilation): keys are start, start + dilation, ... below it."""
    return _plain(_each(_ends(), start_index, length, kernel_size, dilation))


def get_pb_start(index: Any, length: Any, kernel_size: Any, neighborhood_size: Any, dilation: Any) -> Any:
    """First index into the axis of the relative position bias (of 2 * kernel_size - 1 entries).

    Raises:
        ValueError: see get_window_start.
    """
    biases = _each(_starts(), index, length, kernel_size, dilation)[1]
    _check_neighborhood(kernel_size, neighborhood_size)
    return _plain(biases)


def compute_window_start_end(query_positions: Any, length: Any, kernel_size: Any, dilation: Any) -> tuple[Any, Any]:
    """(starts, ends) of the windows of several queries."""
    starts = _each(_starts(), query_positions, length, kernel_size, dilation)[0]
    return _plain(starts), get_window_end(starts, length, kernel_size, dilation)


def compute_pb_start(query_positions: Any, length: Any, kernel_size: Any, dilation: Any) -> Any:
    """First bias indices of several queries."""
    return _plain(_each(_starts(), query_positions, length, kernel_size, dilation)[1])
