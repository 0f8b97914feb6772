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


def inputs(batch: int, length: int, heads: int, dim: int) -> list[mx.array]:
    return [mx.broadcast_to(mx.array(0.0), (batch, length, heads, dim)) for _ in range(3)]


@pytest.mark.parametrize("length", [2**12, 2**15])
def test_the_graph_does_not_grow_with_the_problem(length: int) -> None:
    q, k, v = inputs(4, length, 8, 64)
    with natten_mlx.backend("pure"):
        out = natten_mlx.na1d(q, k, v, 63)
        forward = nodes(out)
        gradients = mx.grad(lambda q, k, v: natten_mlx.na1d(q, k, v, 63).sum(), argnums=[0, 1, 2])(q, k, v)
        both = nodes(*gradients)
    assert (forward < 15_000, both < 60_000) == (True, True), f"{forward} nodes forward, {both} with gradients"


def test_what_fits_no_memory_is_an_error_that_names_the_size() -> None:
    arrays = inputs(8, 2**20, 8, 64)
    for call in (natten_mlx.na1d, natten_mlx.explain):
        with natten_mlx.backend("pure"), pytest.raises(ValueError, match=r"^\[na1d\] .*GiB.*memory limit"):
            call(*arrays, 2**15, stream=mx.cpu)
    with natten_mlx.backend("pure"), pytest.raises(ValueError, match=r"^\[na1d_qk\] .*GiB"):
        natten_mlx.na1d_qk(*arrays[:2], 2**15, stream=mx.cpu)
