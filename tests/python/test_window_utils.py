"""natten_mlx.utils.window: host integers on NumPy arrays, against the oracle's windows."""

from __future__ import annotations

import numpy as np
import pytest

from harness import succeeds
from natten_mlx.utils import window
from oracle import Axis

AXES = [
    Axis(length, kernel, dilation=dilation)
    for length in (1, 2, 5, 7, 8, 12, 19)
    for kernel in range(1, length + 1)
    for dilation in range(1, length // kernel + 1)
]


@pytest.mark.parametrize("axis", AXES, ids=lambda a: f"{a.length}-{a.kernel_size}-{a.dilation}")
def test_every_query(axis: Axis) -> None:
    length, kernel, dilation = axis.length, axis.kernel_size, axis.dilation
    positions = np.arange(length)
    starts, ends = window.compute_window_start_end(positions, length, kernel, dilation)
    biases = window.compute_pb_start(positions, length, kernel, dilation)
    for query in positions:
        keys = axis.keys(query)
        start = keys[0]
        end = min(length, start + kernel * dilation)
        assert starts[query] == start and ends[query] == end
        assert list(range(start, end, dilation)) == keys
        assert biases[query] == axis.bias_index(query, start)
        assert window.get_window_start(int(query), length, kernel, kernel // 2, dilation) == start
        assert window.get_window_end(start, length, kernel, dilation) == end
        assert window.get_pb_start(int(query), length, kernel, kernel // 2, dilation) == biases[query]


def test_numpy_is_imported_by_the_first_call() -> None:
    """It is most of what importing the library would cost."""
    succeeds("""
    import sys, natten_mlx
    assert "numpy" not in sys.modules
    assert natten_mlx.get_window_start(5, 8, 3, 1, 1) == 4 and "numpy" in sys.modules
    """)


def test_results_are_integers_of_the_positions_shape() -> None:
    positions = np.array([[0, 3], [5, 7]])
    starts, ends = window.compute_window_start_end(positions, 8, 3, 2)
    assert starts.shape == ends.shape == (2, 2)
    assert np.issubdtype(np.asarray(starts).dtype, np.integer)
    assert [[Axis(8, 3, dilation=2).keys(int(i))[0] for i in row] for row in positions] == np.asarray(starts).tolist()


def test_anything_with_index_is_an_integer() -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    assert window.get_window_start(5, 10, Three(), 1, 1) == window.get_window_start(5, 10, 3, 1, 1) == 4
