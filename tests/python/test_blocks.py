"""The pure tier in blocks of queries: graphs of bounded size, within MLX's memory limit."""

from __future__ import annotations

import io

import mlx.core as mx
import pytest

import natten_mlx


def nodes(*outputs: mx.array) -> int:
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    return text.getvalue().count("shape=rectangle")


def inputs(batch: int, grid: tuple[int, ...], heads: int, dim: int) -> list[mx.array]:
    return [mx.broadcast_to(mx.array(0.0), (batch, *grid, heads, dim)) for _ in range(3)]


@pytest.mark.parametrize(
    ("grid", "heads", "kernel_size", "options"),
    [
        ((2**12,), (8, 64), 63, {}),
        ((2**15,), (8, 64), 63, {}),
        ((2**15,), (8, 64), 63, {"is_causal": True, "rpb": mx.zeros((8, 125))}),
        ((128, 128), (8, 64), 13, {"lengths": mx.array([[128, 100]] * 4)}),
        ((32, 32, 32), (8, 64), 5, {"is_causal": True}),
        # Blocks that make their own tables of windows.
        ((2**17,), (1, 2), 63, {}),
        (
            (40, 64, 64),
            (1, 2),
            5,
            {"is_causal": True, "rpb": mx.zeros((1, 9, 9, 9)), "lengths": mx.array([[40] * 3] * 4)},
        ),
    ],
)
def test_the_graph_does_not_grow_with_the_problem(grid, heads, kernel_size, options) -> None:
    q, k, v = inputs(4, grid, *heads)
    function = getattr(natten_mlx, f"na{len(grid)}d")
    with natten_mlx.backend("pure"):
        forward = nodes(function(q, k, v, kernel_size, **options))
        loss = lambda q, k, v: function(q, k, v, kernel_size, **options).sum()  # noqa: E731
        both = nodes(*mx.grad(loss, argnums=[0, 1, 2])(q, k, v))
    assert 1_000 < forward < 6_000 and both < 11_000, f"{forward} nodes forward, {both} with gradients"


def test_memory_comes_before_nodes() -> None:
    """16 blocks would be 48 MiB each; a limit of 256 MiB leaves 16."""
    q, k, v = inputs(1, (2**15,), 1, 2)
    with natten_mlx.backend("pure"):
        few = nodes(natten_mlx.na1d(q, k, v, 1023))
        limit = mx.set_memory_limit(2**28)
        try:
            many = nodes(natten_mlx.na1d(q, k, v, 1023))
        finally:
            mx.set_memory_limit(limit)
    assert many > 2 * few, f"{few} nodes, {many} with little memory"


def test_long_windows_of_a_large_batch_name_their_size() -> None:
    arrays = inputs(8, (32768,), 8, 64)
    limit = mx.set_memory_limit(2**34)  # a machine may have enough
    try:
        with (
            natten_mlx.backend("pure"),
            pytest.raises(ValueError, match=r"gather 32.5 GiB .* of 32768 queries.*memory limit allows 1 GiB"),
        ):
            natten_mlx.na1d(*arrays, 2048)
    finally:
        mx.set_memory_limit(limit)


def test_what_fits_no_memory_is_an_error_that_names_the_size() -> None:
    arrays = inputs(8, (2**20,), 8, 64)
    for call in (natten_mlx.na1d, natten_mlx.explain):
        with natten_mlx.backend("pure"), pytest.raises(ValueError, match=r"^\[na1d\] .*GiB.*memory limit"):
            call(*arrays, 2**15, stream=mx.cpu)
    with natten_mlx.backend("pure"), pytest.raises(ValueError, match=r"^\[na1d_qk\] .*GiB"):
        natten_mlx.na1d_qk(*arrays[:2], 2**15, stream=mx.cpu)
