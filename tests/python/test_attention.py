"""Forward, log-sum-exp and every gradient of the fused and the split form against the oracle, on every tier."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given

import natten_mlx
from cases import HALF_TABLE, TABLE, Case, calls
from harness import (
    FORWARD_TOLERANCE,
    GRADIENT_TOLERANCE,
    assert_half_near,
    assert_near,
    attention,
    check_split_form,
    gradient_dtypes_match,
    naive_attention,
    rounded,
    to_mlx,
    to_numpy,
    vjp,
)


def check_attention(case: Case) -> None:
    names, call = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    inputs = [to_mlx(arrays[name], case.dtype) for name in names]
    reference = case.call(arrays)
    out, lse = reference.forward()
    result, result_lse = call(*inputs)
    assert result.dtype == inputs[0].dtype
    assert result_lse.dtype == (mx.float64 if case.dtype == "float64" else mx.float32)
    assert_near(result, out, FORWARD_TOLERANCE[case.dtype], "out")
    assert_near(result_lse, lse, FORWARD_TOLERANCE[case.dtype], "lse")

    cotangents = [to_mlx(arrays["dout"], case.dtype), to_mlx(arrays["dlse"], case.dtype)]
    grads = vjp(call, inputs, cotangents)
    assert gradient_dtypes_match(inputs, grads)
    expected = reference.backward(arrays["dout"], arrays["dlse"])
    for name, gradient in zip(names, grads, strict=True):
        assert_near(gradient, expected[name], GRADIENT_TOLERANCE[case.dtype], f"gradient of {name}")


def check_split(case: Case) -> None:
    case = case.with_(extra=None)
    arrays = rounded(case.arrays(), case.dtype)
    check_split_form(case, arrays, FORWARD_TOLERANCE[case.dtype], GRADIENT_TOLERANCE[case.dtype])


def check_half(case: Case) -> None:
    names, call = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    inputs = [to_mlx(arrays[name], case.dtype) for name in names]
    reference, naive = case.call(arrays), naive_attention(case)
    out, lse = reference.forward()
    result, result_lse = call(*inputs)
    assert result.dtype == inputs[0].dtype
    assert result_lse.dtype == mx.float32
    assert_half_near(result, [to_numpy(naive(*inputs)[0])], out, case.dtype, "out")
    assert_near(result_lse, lse, 1e-5, "lse")  # float32 sums over exact products: as good as a float32 call

    dout, dlse = to_mlx(arrays["dout"], case.dtype), to_mlx(arrays["dlse"], case.dtype)
    grads = vjp(call, inputs, [dout, dlse.astype(mx.float32)])
    naive_grads = vjp(naive, inputs, [dout, dlse])
    assert gradient_dtypes_match(inputs, grads)
    expected = reference.backward(arrays["dout"], arrays["dlse"])
    # Where few values are compared, a naive result is near by luck. The gradients that an exact backward makes of `out`
    # as it is saved, in this dtype, are a second measure of what the dtype allows.
    saved = reference.backward(arrays["dout"], arrays["dlse"], kept=rounded({"out": out}, case.dtype)["out"])
    for name, gradient, rough in zip(names, grads, naive_grads, strict=True):
        what = f"gradient of {name}"
        assert_half_near(gradient, [to_numpy(rough), saved[name]], expected[name], case.dtype, what)


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_attention(tier: str, case: Case) -> None:
    check_attention(case)


@pytest.mark.parametrize("case", [case for case in TABLE if case.extra is None], ids=str)
def test_split(tier: str, case: Case) -> None:
    check_split(case)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", HALF_TABLE, ids=str)
def test_half(tier: str, case: Case) -> None:
    check_half(case)


@given(case=calls())
def test_attention_random(tier: str, case: Case) -> None:
    check_attention(case)


@given(case=calls(with_extra=False))
def test_split_random(tier: str, case: Case) -> None:
    check_split(case)


# Its seven queries come out within a tenth of an ulp by luck in `naive`, and an ulp off by what rounding `out` costs.
ROUNDED_OUT = Case(
    (22,), (11,), is_causal=(True,), batch=3, heads=1, dim=1, value_dim=17, dtype="bfloat16", scale=0.27535862300520386,
    rpb=True, extra=0, lengths=((2,), (4,), (1,)), seed=451,
)  # fmt: skip


@given(case=calls(dtypes=("float16", "bfloat16")))
@example(case=ROUNDED_OUT)
def test_half_random(tier: str, case: Case) -> None:
    check_half(case)


@given(case=calls(dtypes=("float64",)))
def test_float64_random(case: Case) -> None:
    with natten_mlx.backend("pure"):
        check_attention(case)
        check_split(case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", [TABLE[8], Case((7, 8), (4, 3), is_causal=(True, False), heads=2, dim=16)], ids=str)
def test_half_split(tier: str, case: Case, dtype: str) -> None:
    """Every result is a float32 sum, rounded once."""
    case = case.with_(dtype=dtype)
    arrays = rounded(case.arrays(), dtype)
    epsilon = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype] * 1.01
    check_split_form(case, arrays, epsilon, epsilon)


CENTRAL = [
    Case((5, 4), (3, 2), is_causal=(False, True), heads=2, kv_heads=1, dim=2, value_dim=3, rpb=True, dtype="float64"),
    Case((7,), (3,), stride=(2,), dilation=(2,), dim=2, extra=2, dtype="float64"),
    Case((4, 3, 3), (2, 2, 3), gna_stride=(2, 1, 1), dim=1, dtype="float64"),
    Case((6,), (2,), batch=2, lengths=((4,), (6,)), dim=2, rpb=True, dtype="float64"),
]


@pytest.mark.parametrize("case", CENTRAL, ids=str)
def test_gradients_by_central_differences(case: Case) -> None:
    """The library against itself, without the oracle: catches a forward and an oracle that are wrong alike."""
    names, call = attention(case)
    arrays = case.arrays()
    dout, dlse = to_mlx(arrays["dout"], "float64"), to_mlx(arrays["dlse"], "float64")

    def value() -> float:
        out, lse = call(*(to_mlx(arrays[name], "float64") for name in names))
        return ((out * dout).sum() + (lse * dlse).sum()).item()

    with natten_mlx.backend("pure"):
        grads = vjp(call, [to_mlx(arrays[name], "float64") for name in names], [dout, dlse])
        for name, gradient in zip(names, grads, strict=True):
            rng = np.random.default_rng(1)
            for _ in range(3):
                direction = rng.standard_normal(arrays[name].shape)
                saved, step = arrays[name], 1e-5
                arrays[name] = saved + step * direction
                high = value()
                arrays[name] = saved - step * direction
                low = value()
                arrays[name] = saved
                slope = (to_numpy(gradient) * direction).sum()
                assert (high - low) / (2 * step) == pytest.approx(slope, rel=1e-7, abs=1e-8), name


@pytest.mark.parametrize("index", range(4))
def test_one_gradient_alone(tier: str, index: int) -> None:
    """Backward kernels are separate: asking for one gradient gives what asking for all gives."""
    case = Case((8, 7), (3, 4), heads=2, kv_heads=1, value_dim=3, rpb=True, is_causal=(False, True))
    names, call = attention(case)
    arrays = case.arrays()
    inputs = [to_mlx(arrays[name]) for name in names]
    dout, dlse = to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])

    def loss(*args: mx.array) -> mx.array:
        out, lse = call(*args)
        return (out * dout).sum() + (lse * dlse).sum()

    alone = mx.grad(loss, argnums=index)(*inputs)
    every = mx.grad(loss, argnums=list(range(4)))(*inputs)
    assert_near(alone, to_numpy(every[index]), 1e-6, names[index])
    assert_near(
        alone, case.call(rounded(arrays, "float32")).backward(arrays["dout"], arrays["dlse"])[names[index]], 1e-4
    )


def test_out_without_lse_and_lse_alone(tier: str) -> None:
    """One of the two outputs unused: its cotangent is zero."""
    case = Case((9,), (4,), heads=2)
    names, call = attention(case)
    arrays = rounded(case.arrays(), "float32")
    inputs = [to_mlx(arrays[name]) for name in names]
    dout, dlse = arrays["dout"], arrays["dlse"]
    grads = mx.grad(lambda *args: (call(*args)[0] * to_mlx(dout)).sum(), argnums=[0, 1, 2])(*inputs)
    expected = case.call(arrays).backward(dout)
    for name, gradient in zip(names, grads, strict=True):
        assert_near(gradient, expected[name], 1e-4, name)
    grads = mx.grad(lambda *args: (call(*args)[1] * to_mlx(dlse)).sum(), argnums=[0, 1, 2])(*inputs)
    expected = case.call(arrays).backward(0 * dout, dlse)
    for name, gradient in zip(names, grads, strict=True):
        assert_near(gradient, expected[name], 1e-4, name)
    assert np.all(to_numpy(grads[2]) == 0)  # lse does not depend on value


@pytest.mark.parametrize(
    "dtypes",
    [("float16", "float32", "bfloat16"), ("float32", "bfloat16", "float16"), ("bfloat16", "bfloat16", "float32")],
    ids="-".join,
)
def test_mixed_dtypes(tier: str, dtypes: tuple[str, str, str]) -> None:
    """Sums in float32; the result in query's dtype; each gradient in its input's."""
    case = Case((7, 6), (3, 3), heads=2, dim=8, rpb=True)
    names, call = attention(case)
    given_dtypes = dict(zip(names, (*dtypes, "float32"), strict=True))
    arrays = case.arrays()
    for name, dtype in given_dtypes.items():
        arrays[name] = to_numpy(to_mlx(arrays[name], dtype))
    arrays["dout"] = to_numpy(to_mlx(arrays["dout"], dtypes[0]))
    inputs = [to_mlx(arrays[name], given_dtypes[name]) for name in names]
    out, lse = case.call(arrays).forward()
    result, result_lse = call(*inputs)
    rounding = {"float32": 1e-5, "float16": 2.0**-11, "bfloat16": 2.0**-8}
    assert result.dtype == inputs[0].dtype and result_lse.dtype == mx.float32
    assert_near(result, out, 1.01 * rounding[dtypes[0]], "out")
    assert_near(result_lse, lse, 1e-5, "lse")
    grads = vjp(call, inputs, [to_mlx(arrays["dout"], dtypes[0]), mx.zeros(lse.shape)])
    assert gradient_dtypes_match(inputs, grads)
    # delta is computed from `out` as stored, so its rounding enters every gradient
    bound = 3 * max(rounding[dtypes[0]], 1e-5)
    for name, gradient in zip(names, grads, strict=True):
        expected = case.call(arrays).backward(arrays["dout"])[name]
        assert_near(gradient, expected, bound + rounding[given_dtypes[name]], name)


def test_scalars_and_sequences_are_the_same(tier: str) -> None:
    import natten_mlx

    case = Case((6, 7), (3, 3), dilation=(2, 2))
    arrays = case.arrays()
    q, k, v = (to_mlx(arrays[name]) for name in ("query", "key", "value"))
    results = [
        natten_mlx.na2d(q, k, v, 3, 1, 2),
        natten_mlx.na2d(q, k, v, [3, 3], (1, 1), dilation=(2, 2), is_causal=[False, False], gna_stride=1),
        natten_mlx.na2d(q, k, v, kernel_size=np.int64(3), stride=np.int32(1), dilation=np.array([2, 2])),
    ]
    for result in results:
        assert_near(result, case.call(rounded(arrays, "float32")).forward()[0], 1e-5)


def test_same_bits_on_every_run(tier: str) -> None:
    case = Case((16, 15), (5, 4), heads=4, kv_heads=2, dim=16, rpb=True)
    names, call = attention(case)
    arrays = case.arrays()
    inputs = [to_mlx(arrays[name]) for name in names]
    cotangents = [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])]
    first = [*call(*inputs), *vjp(call, inputs, cotangents)]
    for _ in range(3):
        again = [*call(*inputs), *vjp(call, inputs, cotangents)]
        assert all(np.array_equal(np.array(x), np.array(y)) for x, y in zip(first, again, strict=True))
