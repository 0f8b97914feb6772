"""`scale`: a number that float32 can hold, or an array that is differentiated."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import assert_near, function, options, rounded, to_mlx, to_numpy, vjp

CASES = [
    Case((9,), (4,), heads=2),
    Case((7, 8), (3, 4), heads=4, kv_heads=2, value_dim=3, stride=(2, 1), rpb=True, batch=2),
    Case((4, 5, 6), (2, 3, 3), heads=2, is_causal=(True, False, False)),
    Case((6, 7), (3, 3), extra=3, heads=2),
    Case((9,), (3,), batch=2, heads=2, lengths=((5,), (9,))),
]


def scaled(case: Case, arrays: dict[str, np.ndarray], scale: np.ndarray) -> tuple[Case, dict[str, np.ndarray]]:
    """The same attention with the scale in query, as the oracle can have it."""
    return case.with_(scale=1.0), {**arrays, "query": arrays["query"] * np.reshape(scale, (-1, 1))}


def scale_gradient(scale: np.ndarray, query: np.ndarray, gradient_of_scaled: np.ndarray) -> np.ndarray:
    per_head = (query * gradient_of_scaled).sum(axis=-1).reshape(-1, query.shape[-2]).sum(axis=0)
    return (per_head if scale.size > 1 else per_head.sum()).reshape(scale.shape)


@pytest.mark.parametrize("shape", ["0-d", "one element", "per head"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_array(tier: str, case: Case, shape: str) -> None:
    arrays = rounded(case.arrays(), "float32")
    scale = {"0-d": np.array(0.3), "one element": np.array([[0.3]]), "per head": np.linspace(0.2, -0.9, case.heads)}[
        shape
    ]
    scale = to_numpy(to_mlx(scale))
    names = list(case.shapes())

    def call(scale: mx.array, *inputs: mx.array) -> list[mx.array]:
        given = dict(zip(names, inputs, strict=True))
        q, k, v = (given.pop(name) for name in ("query", "key", "value"))
        return list(function(case)(q, k, v, scale=scale, return_lse=True, **given, **options(case)))

    reference_case, reference_arrays = scaled(case, arrays, scale)
    reference = reference_case.call(reference_arrays)
    inputs = [to_mlx(scale), *(to_mlx(arrays[name]) for name in names)]
    for result, expected in zip(call(*inputs), reference.forward(), strict=True):
        assert_near(result, expected, 1e-5)
    grads = vjp(call, inputs, [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])])
    expected = reference.backward(arrays["dout"], arrays["dlse"])
    assert_near(grads[0], scale_gradient(scale, arrays["query"], expected["query"]), 1e-4, "scale")
    expected["query"] = expected["query"] * np.reshape(scale, (-1, 1))
    for name, gradient in zip(names, grads[1:], strict=True):
        assert_near(gradient, expected[name], 1e-4, name)


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_array_in_the_split_form(tier: str, case: Case) -> None:
    arrays = rounded(case.arrays(), "float32")
    scale = to_numpy(to_mlx(np.linspace(0.2, -0.9, case.heads)))
    extra = {"rpb": to_mlx(arrays["rpb"])} if case.rpb else {}

    def call(scale: mx.array, q: mx.array, k: mx.array) -> list[mx.array]:
        return [function(case, "_qk")(q, k, scale=scale, **extra, **options(case))]

    reference_case, reference_arrays = scaled(case, arrays, scale)
    reference = reference_case.call(reference_arrays)
    inputs = [to_mlx(scale), to_mlx(arrays["query"]), to_mlx(arrays["key"])]
    assert_near(call(*inputs)[0], reference.qk(), 1e-5)
    expected = reference.qk_backward(arrays["dlogits"])
    grads = vjp(call, inputs, [to_mlx(arrays["dlogits"])])
    assert_near(grads[0], scale_gradient(scale, arrays["query"], expected["query"]), 1e-4, "scale")
    assert_near(grads[1], expected["query"] * scale[:, None], 1e-4, "query")
    assert_near(grads[2], expected["key"], 1e-4, "key")


@pytest.mark.parametrize("suffix", ["", "_qk"])
def test_rows_that_are_not_computed_do_not_reach_its_gradient(tier: str, suffix: str) -> None:
    """NaN in the padding, in a sample of illegal lengths, and in rows that a query stride leaves out."""
    case = Case(
        (11, 6), (3, 3), stride=(2, 1), batch=3, lengths=((7, 6), (11, 4), (3, 3)), span=((1, 9, 0, 11), (0, 6, 0, 6))
    )
    arrays = rounded(case.arrays(), "float32")
    for b, (rows, columns) in enumerate(case.lengths or ()):
        arrays["query"][b, max(rows - 1, 0) :] = np.nan
        arrays["query"][b, :, columns:] = np.nan
    arrays["query"][:, ::2] = np.nan  # positions 1, 3, ...
    given = [to_mlx(arrays[name]) for name in (("query", "key", "value") if not suffix else ("query", "key"))]
    rest = {name: value for name, value in options(case).items() if name != "lengths"}

    def gradient(lengths: mx.array, zeros: bool) -> mx.array:
        query = mx.where(mx.isnan(given[0]), 0, given[0]) if zeros else given[0]
        call = lambda scale: function(case, suffix)(query, *given[1:], scale=scale, lengths=lengths, **rest)  # noqa: E731
        return mx.grad(lambda scale: mx.where(mx.isinf(call(scale)), 0, call(scale)).sum())(mx.array([0.4]))

    lengths = mx.array(case.lengths)
    expected = to_numpy(gradient(lengths, True))
    assert abs(expected).max() > 0
    assert_near(gradient(lengths, False), expected, 1e-6)
    illegal = mx.array([[7, 6], [1, 0], [3, 3]])
    assert_near(mx.compile(gradient)(illegal, False), to_numpy(mx.compile(gradient)(illegal, True)), 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_array_with_a_half_query(tier: str, dtype: str) -> None:
    """The product is rounded to query's dtype, once: the call equals that with the rounded query."""
    case = Case((9,), (4,), heads=2, dim=16, dtype=dtype)
    q, k, v = (to_mlx(case.arrays()[name], dtype) for name in ("query", "key", "value"))
    scale = mx.array([0.3, 1.7])
    out, lse = natten_mlx.na1d(q, k, v, 4, scale=scale, return_lse=True)
    by_hand = (q.astype(mx.float32) * scale[:, None]).astype(q.dtype)
    expected, expected_lse = natten_mlx.na1d(by_hand, k, v, 4, scale=1.0, return_lse=True)
    assert out.dtype == q.dtype and mx.array_equal(out, expected) and mx.array_equal(lse, expected_lse)
    gradient = mx.grad(lambda s: natten_mlx.na1d(q, k, v, 4, scale=s).astype(mx.float32).sum())(scale)
    assert gradient.dtype == mx.float32 and gradient.shape == (2,)


def test_array_in_varlen_functions_and_transformations(tier: str) -> None:
    case = CASES[4]
    q, k, v = (to_mlx(case.arrays()[name]) for name in ("query", "key", "value"))
    lengths = mx.array([5, 9])

    def call(scale: mx.array) -> mx.array:
        return natten_mlx.na1d_varlen(q, k, v, lengths, 3, scale=scale)

    def of_number(scale: float) -> mx.array:
        return natten_mlx.na1d_varlen(q, k, v, lengths, 3, scale=scale)

    for compiled in (call, mx.compile(call)):
        assert_near(compiled(mx.array(0.3)), to_numpy(of_number(0.3)), 1e-5)
        assert_near(compiled(mx.array(0.6)), to_numpy(of_number(0.6)), 1e-5)
    mapped = mx.vmap(call)(mx.array([0.3, 0.6]))
    assert_near(mapped, np.stack([to_numpy(of_number(s)) for s in (0.3, 0.6)]), 1e-5)


def calls() -> list[tuple[str, Callable[..., object]]]:
    q = mx.zeros((1, 8, 2, 4))
    return [
        ("na1d", lambda scale: natten_mlx.na1d(q, q, q, 3, scale=scale)),
        ("na1d_qk", lambda scale: natten_mlx.na1d_qk(q, q, 3, scale=scale)),
        ("na1d_varlen", lambda scale: natten_mlx.na1d_varlen(q, q, q, mx.array([8]), 3, scale=scale)),
        ("na1d", lambda scale: natten_mlx.explain(q, q, q, 3, scale=scale)),
    ]


@pytest.mark.parametrize("scale", [1e39, -1e300, float("nan"), float("inf"), np.float64(1e39)])
def test_numbers_that_float32_does_not_hold(scale: float) -> None:
    for name, call in calls():
        with pytest.raises(ValueError, match=rf"^\[{name}\] scale must be finite"):
            call(scale)


@pytest.mark.parametrize(
    "scale", [mx.ones((3,)), mx.ones((2, 2)), mx.ones((1, 2)), mx.ones((0,)), mx.array(2), mx.array(True), "0.5", [0.5]]
)
def test_what_is_no_scale(scale: object) -> None:
    for name, call in calls():
        with pytest.raises(ValueError, match=rf"^\[{'(explain|na1d)' if name == 'na1d' else name}\] scale must be"):
            call(scale)


def test_explain_with_an_array(tier: str) -> None:
    q = mx.zeros((1, 8, 2, 4))
    assert natten_mlx.explain(q, q, q, 3, scale=mx.ones((2,))) == natten_mlx.explain(q, q, q, 3)
