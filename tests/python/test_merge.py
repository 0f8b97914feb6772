"""merge_attentions: joint attention from partial ones, its gradient, and empty parts."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
import oracle
from cases import Case
from harness import assert_near, attention, to_mlx, to_numpy, vjp


def parts(rng: np.random.Generator, count: int, spatial: tuple[int, ...] = (5,), dim: int = 4) -> tuple[list, list]:
    shape = (2, *spatial, 3)
    outputs = [to_numpy(to_mlx(rng.standard_normal((*shape, dim)))) for _ in range(count)]
    lses = [to_numpy(to_mlx(2 * rng.standard_normal(shape))) for _ in range(count)]
    return outputs, lses


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 2)])
def test_merge_and_gradient(rng: np.random.Generator, count: int, spatial: tuple[int, ...]) -> None:
    outputs, lses = parts(rng, count, spatial)

    def call(*inputs: mx.array) -> list[mx.array]:
        return list(natten_mlx.merge_attentions(list(inputs[:count]), list(inputs[count:])))

    inputs = [to_mlx(x) for x in (*outputs, *lses)]
    out, lse = call(*inputs)
    expected_out, expected_lse = oracle.merge(outputs, lses)
    assert_near(out, expected_out, 1e-5)
    assert_near(lse, expected_lse, 1e-5)
    dout, dlse = rng.standard_normal(expected_out.shape), rng.standard_normal(expected_lse.shape)
    douts, dlses = oracle.merge_backward(outputs, lses, dout, dlse)
    for got, expected in zip(vjp(call, inputs, [to_mlx(dout), to_mlx(dlse)]), [*douts, *dlses], strict=True):
        assert_near(got, expected, 1e-4)


def test_merge_of_two_halves_of_an_attention(tier: str) -> None:
    """A window and additional tokens by hand are the one call that takes both."""
    case = Case((6, 5), (3, 3), heads=2, kv_heads=1, extra=4)
    arrays = case.arrays()
    names, call = attention(case)
    inputs = {name: to_mlx(arrays[name]) for name in names}
    joint, joint_lse = call(*(inputs[name] for name in names))
    window = natten_mlx.na2d(*(inputs[name] for name in ("query", "key", "value")), 3, return_lse=True)
    query = inputs["query"].reshape(1, 30, 2, 4)
    logits = 0.5 * mx.einsum("bqhd,bkd->bqhk", query, inputs["additional_keys"][:, :, 0])
    dense = mx.einsum("bqhk,bkd->bqhd", mx.softmax(logits, axis=-1), inputs["additional_values"][:, :, 0])
    dense_lse = mx.logsumexp(logits, axis=-1)
    out, lse = natten_mlx.merge_attentions(
        [window[0], dense.reshape(1, 6, 5, 2, 4)], [window[1], dense_lse.reshape(1, 6, 5, 2)]
    )
    assert_near(out, to_numpy(joint), 1e-5)
    assert_near(lse, to_numpy(joint_lse), 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_result_has_the_first_outputs_dtype_and_a_float32_lse(rng: np.random.Generator, dtype: str) -> None:
    outputs, lses = parts(rng, 2)
    arrays = [to_mlx(outputs[0], dtype), to_mlx(outputs[1])]
    out, lse = natten_mlx.merge_attentions(arrays, [to_mlx(x) for x in lses])
    assert out.dtype == arrays[0].dtype and lse.dtype == mx.float32
    expected, expected_lse = oracle.merge([to_numpy(x) for x in arrays], lses)
    assert_near(out, expected, {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-5}[dtype])
    assert_near(lse, expected_lse, 1e-5)


def test_float64_stays_float64(rng: np.random.Generator) -> None:
    outputs, lses = (
        [rng.standard_normal((2, 5, 3, 4)) for _ in range(2)],
        [rng.standard_normal((2, 5, 3)) for _ in range(2)],
    )
    out, lse = natten_mlx.merge_attentions(
        [to_mlx(x, "float64") for x in outputs], [to_mlx(x, "float64") for x in lses]
    )
    assert out.dtype == mx.float64 and lse.dtype == mx.float64
    expected, expected_lse = oracle.merge(outputs, lses)
    assert_near(out, expected, 1e-14)
    assert_near(lse, expected_lse, 1e-14)


def test_empty_parts(rng: np.random.Generator) -> None:
    """lse = -inf in one part leaves the other; in all parts gives out 0, lse -inf, gradients 0."""
    outputs, lses = parts(rng, 2)
    lses[0][0] = -np.inf
    lses[1][0, 2:] = -np.inf
    expected_out, expected_lse = oracle.merge(outputs, lses)

    def call(*inputs: mx.array) -> list[mx.array]:
        return list(natten_mlx.merge_attentions(inputs[:2], inputs[2:]))

    inputs = [to_mlx(x) for x in (*outputs, *lses)]
    out, lse = call(*inputs)
    assert_near(out, expected_out, 1e-5)
    assert_near(lse, expected_lse, 1e-5)
    assert np.all(to_numpy(out)[0, 2:] == 0) and np.all(np.isneginf(to_numpy(lse)[0, 2:]))
    dout, dlse = rng.standard_normal(expected_out.shape), rng.standard_normal(expected_lse.shape)
    grads = [to_numpy(x) for x in vjp(call, inputs, [to_mlx(dout), to_mlx(dlse)])]
    douts, dlses = oracle.merge_backward(outputs, lses, dout, dlse)
    live = ~np.isneginf(expected_lse)
    for got, expected in zip(grads, [*douts, *dlses], strict=True):
        assert np.isfinite(got).all()
        assert np.all(got[~live] == 0)
        assert_near(got[live], expected[live], 1e-4)


@pytest.mark.parametrize("holds", [0.0, np.nan])
def test_merge_of_nothing(holds: float) -> None:
    """Where every partial attention is empty: out 0, lse -inf, gradients 0, whatever the outputs hold."""
    outputs = [mx.full((2, 3, 4), holds), mx.full((2, 3, 4), holds)]
    lse_tensors = [mx.full((2, 3), -mx.inf), mx.full((2, 3), -mx.inf)]
    out, lse = natten_mlx.merge_attentions(outputs, lse_tensors)
    assert np.array_equal(to_numpy(out), np.zeros((2, 3, 4)))
    assert np.isneginf(to_numpy(lse)).all()

    def call(a: mx.array, b: mx.array, la: mx.array, lb: mx.array) -> list[mx.array]:
        return list(natten_mlx.merge_attentions([a, b], [la, lb]))

    for poison in (1.0, np.inf, np.nan):  # what a loss makes of -inf
        grads = vjp(call, [*outputs, *lse_tensors], [mx.full((2, 3, 4), poison), mx.full((2, 3), poison)])
        assert all(np.array_equal(to_numpy(g), np.zeros(g.shape)) for g in grads)


@pytest.mark.parametrize("lse", [-1000.0, 1000.0])
def test_merge_with_nothing(lse: float) -> None:
    """An empty part leaves the other one as it is, however far its lse is from 0."""
    parts = [mx.ones((3, 4)), mx.zeros((3, 4)), mx.full((3,), lse), mx.full((3,), -mx.inf)]

    def call(a: mx.array, b: mx.array, la: mx.array, lb: mx.array) -> list[mx.array]:
        return list(natten_mlx.merge_attentions([a, b], [la, lb]))

    out, merged = call(*parts)
    assert mx.array_equal(out, parts[0]) and mx.array_equal(merged, parts[2])
    grads = vjp(call, parts, [mx.full((3, 4), 2.0), mx.ones((3,))])
    expected = [mx.full((3, 4), 2.0), mx.zeros((3, 4)), mx.ones((3,)), mx.zeros((3,))]
    assert all(mx.array_equal(g, e) for g, e in zip(grads, expected, strict=True))


def test_large_lse_does_not_overflow() -> None:
    outputs = [mx.full((1, 2, 1, 3), value) for value in (1.0, 3.0)]
    out, lse = natten_mlx.merge_attentions(outputs, [mx.full((1, 2, 1), 1e4), mx.full((1, 2, 1), 1e4)])
    assert_near(out, np.full((1, 2, 1, 3), 2.0), 1e-6)
    assert_near(lse, np.full((1, 2, 1), 1e4 + np.log(2)), 1e-6)


def test_compile_and_vmap(rng: np.random.Generator) -> None:
    outputs, lses = parts(rng, 2)
    arrays = [to_mlx(x) for x in (*outputs, *lses)]

    def call(a: mx.array, b: mx.array, la: mx.array, lb: mx.array) -> tuple[mx.array, mx.array]:
        return natten_mlx.merge_attentions([a, b], [la, lb])

    expected_out, expected_lse = oracle.merge(outputs, lses)
    out, lse = mx.compile(call)(*arrays)
    assert_near(out, expected_out, 1e-5)
    out, lse = mx.vmap(call)(*(x[:, None] for x in arrays))
    assert_near(out[:, 0], expected_out, 1e-5)
    assert_near(lse[:, 0], expected_lse, 1e-5)
