"""Additional tokens in the split form, and those of batch 1: values, gradients, types, errors."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import (
    GRADIENT_TOLERANCE,
    assert_near,
    function,
    gradient_dtypes_match,
    options,
    rounded,
    to_mlx,
    to_numpy,
)
from test_attention import check_attention, check_half

CASES = (
    Case((9,), (4,), extra=3, heads=2, batch=2),
    Case((11,), (3,), extra=2, is_causal=(True,), dilation=(3,), heads=4, kv_heads=2, value_dim=7, batch=2),
    Case((9, 7), (3, 4), extra=1, stride=(2, 1), gna_stride=(1, 2), rpb=True, heads=2, kv_heads=1),
    Case((5, 4, 6), (2, 3, 4), extra=4, is_causal=(True, False, False), heads=2, scale=0.3),
    Case((10,), (3,), extra=2, stride=(2,), batch=2, lengths=((7,), (10,)), heads=2, rpb=True),
    Case((6, 6), (3, 3), extra=0, batch=2),
)
IDS = [str(case) for case in CASES]
NAMES = ("query", "key", "value", "rpb", "additional_keys", "additional_values")


def first_sample(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x[:1] if name.startswith("additional") else x for name, x in arrays.items()}


def in_all_samples(arrays: dict[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    return {name: np.repeat(x, batch // len(x), 0) if name.startswith("add") else x for name, x in arrays.items()}


def split_form(case: Case):
    """The fused call out of its two halves."""
    names = [name for name in NAMES if name in case.shapes()]

    def call(*inputs: mx.array) -> mx.array:
        a = dict(zip(names, inputs, strict=True))
        extra = {"rpb": a.get("rpb"), "additional_keys": a["additional_keys"]}
        logits = function(case, "_qk")(a["query"], a["key"], **extra, **options(case, "scale"))
        weights = mx.softmax(logits, axis=-1, precise=True)
        return function(case, "_av")(weights, a["value"], additional_values=a["additional_values"], **options(case))

    return names, call


@pytest.mark.parametrize("shared", [False, True], ids=["per sample", "batch 1"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_split_form(tier: str, case: Case, shared: bool) -> None:
    arrays = first_sample(case.arrays()) if shared else case.arrays()
    names, call = split_form(case)
    inputs = [to_mlx(arrays[name]) for name in names]
    oracle = case.call(in_all_samples(arrays, case.batch))
    out, _ = oracle.forward()
    logits = function(case, "_qk")(
        *inputs[:2], rpb=None, additional_keys=to_mlx(arrays["additional_keys"]), **options(case, "scale")
    )
    assert logits.shape == (*out.shape[:-1], case.volume + case.extra)
    assert_near(call(*inputs), out, 1e-5)

    grads = mx.vjp(call, inputs, [to_mlx(arrays["dout"])])[1]
    assert gradient_dtypes_match(inputs, grads)
    expected = oracle.backward(arrays["dout"])
    for name, gradient in zip(names, grads, strict=True):
        total = expected[name]
        if name.startswith("additional") and shared:
            total = total.sum(axis=0, keepdims=True)
        if total.size:
            assert_near(gradient, total, GRADIENT_TOLERANCE["float32"], name)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_slots_come_last(tier: str, case: Case) -> None:
    arrays = case.arrays()
    query, key, extra = (to_mlx(arrays[name]) for name in ("query", "key", "additional_keys"))
    logits = to_numpy(function(case, "_qk")(query, key, additional_keys=extra, **options(case, "scale")))
    window = function(case, "_qk")(query, key, **options(case, "scale"))
    assert np.array_equal(logits[..., : case.volume], to_numpy(window))
    rows = arrays["query"][(slice(None), *(slice(None, None, s) for s in case.stride))]
    keys = np.repeat(arrays["additional_keys"], case.heads // case.kv_heads, axis=2)
    live = case.geometry().tables()[0].any(axis=2).reshape(case.batch, *case.output)
    products = np.einsum("b...hd,bnhd->b...hn", rows, keys) * (case.dim**-0.5 if case.scale is None else case.scale)
    assert_near(mx.array(logits[..., case.volume :]), np.where(live[..., None, None], products, 0.0), 1e-5)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_fused_with_tokens_of_batch_1(tier: str, case: Case) -> None:
    arrays = first_sample(case.arrays())
    names = [name for name in NAMES if name in case.shapes()]

    def call(*inputs: mx.array) -> list[mx.array]:
        a = dict(zip(names, inputs, strict=True))
        q, k, v = (a.pop(name) for name in names[:3])
        return list(function(case)(q, k, v, return_lse=True, **a, **options(case, "scale")))

    inputs = [to_mlx(arrays[name]) for name in names]
    oracle = case.call(in_all_samples(arrays, case.batch))
    for result, expected in zip(call(*inputs), oracle.forward(), strict=True):
        assert_near(result, expected, 1e-5)
    grads = mx.vjp(call, inputs, [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])])[1]
    for name, gradient in zip(names, grads, strict=True):
        expected = oracle.backward(arrays["dout"], arrays["dlse"])[name]
        if name.startswith("additional"):
            expected = expected.sum(axis=0, keepdims=True)
        if expected.size:
            assert_near(gradient, expected, GRADIENT_TOLERANCE["float32"], name)


# Of the fused call, with head dims and counts that kernels cut differently: less than a block of tokens, several
# chunks, few queries.
FUSED = (
    Case((70,), (9,), extra=1, heads=2, dim=8),
    Case((40,), (7,), extra=300, heads=4, kv_heads=2, dim=16, value_dim=8, batch=2),
    Case((13, 17), (5, 4), extra=33, stride=(2, 1), gna_stride=(1, 3), rpb=True, heads=2, dim=16),
    Case((12, 15), (5, 3), extra=20, is_circular=(True, False), dilation=(2, 3), heads=2, kv_heads=1, dim=24),
    Case((14,), (5,), extra=7, is_circular=(True,), span=((3, 8, -6, 14),), rpb=True, dim=8),
    Case((20, 9), (4, 3), extra=70, is_causal=(True, False), span=((8, 7, 3, 13), (0, 9, 0, 9)), value_dim=40, dim=32),
    Case((18, 11), (5, 3), extra=5, batch=3, lengths=((18, 11), (6, 7), (9, 3)), rpb=True, heads=2, dim=8),
    Case((5, 6, 7), (3, 4, 5), extra=130, is_causal=(False, False, True), heads=2, kv_heads=1, dim=8, value_dim=16),
    Case((9,), (30,), extra=3, is_causal=(True,), batch=2, dim=40),
    Case((50,), (20,), extra=90, is_causal=(True,), span=((48, 2, 29, 21),), rpb=True, heads=4, kv_heads=2, dim=16),
    Case((20,), (5,), extra=12, dim=140, value_dim=131),
    Case((11,), (3,), extra=2, dim=1, value_dim=1),
)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_fused(tier: str, case: Case, dtype: str) -> None:
    if dtype == "float32":
        check_attention(case)
    else:
        check_half(case.with_(dtype=dtype))


def test_types_that_differ_from_those_of_keys(tier: str) -> None:
    """As in a call where all have the wider one, but for the rounding of the result."""
    x = mx.random.normal((1, 20, 2, 16)).astype(mx.float16)
    tokens = mx.random.normal((1, 3, 2, 16))
    out, lse = natten_mlx.na1d(x, x, x, 5, additional_keys=tokens, additional_values=tokens, return_lse=True)
    wide = x.astype(mx.float32)
    exact = natten_mlx.na1d(wide, wide, wide, 5, additional_keys=tokens, additional_values=tokens, return_lse=True)
    assert out.dtype == mx.float16
    assert_near(out, to_numpy(exact[0]), 2e-3)
    assert_near(lse, to_numpy(exact[1]), 1e-5)


def test_transformations_of_the_fused_call(tier: str) -> None:
    """vmap over tokens and over queries, compile, tangents, second derivatives: as call by call, or as on pure."""
    x = mx.random.normal((3, 2, 9, 2, 8))
    tokens = mx.random.normal((3, 1, 4, 2, 8))

    def call(x: mx.array, tokens: mx.array) -> mx.array:
        return natten_mlx.na1d(x, x, x, 3, additional_keys=tokens, additional_values=tokens)

    def squares(x: mx.array, tokens: mx.array) -> mx.array:
        return (call(x, tokens) ** 2).sum()

    gradients = mx.grad(squares, argnums=(0, 1))
    for axes, arguments in (
        ((0, 0), [(a, t) for a, t in zip(x, tokens, strict=True)]),
        ((None, 0), [(x[0], t) for t in tokens]),
        ((0, None), [(a, tokens[0]) for a in x]),
    ):
        given = [array if axis == 0 else array[0] for array, axis in zip((x, tokens), axes, strict=True)]
        mapped = mx.vmap(call, in_axes=axes)(*given)
        assert mx.allclose(mapped, mx.stack([call(*each) for each in arguments]), atol=1e-5)
        one_by_one = [gradients(*each) for each in arguments]
        for i, got in enumerate(mx.vmap(gradients, in_axes=axes)(*given)):
            assert mx.allclose(got, mx.stack([each[i] for each in one_by_one]), atol=1e-4)
    assert mx.allclose(mx.compile(call)(x[0], tokens[0]), call(x[0], tokens[0]), atol=1e-5)

    def of_gradients(x: mx.array, tokens: mx.array) -> mx.array:
        return sum((g**2).sum() for g in gradients(x, tokens))

    def derivatives() -> list[mx.array]:
        _, tangents = mx.jvp(call, [x[0], tokens[0]], [x[1], tokens[1]])
        return [*tangents, *mx.grad(of_gradients, argnums=(0, 1))(x[0], tokens[0])]

    with natten_mlx.backend("pure"):
        expected = derivatives()
    for got, right in zip(derivatives(), expected, strict=True):
        assert_near(got, to_numpy(right), 1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(tier: str, dtype: str) -> None:
    """Logits are rounded once, and so is the sum of both parts of the values."""
    case = Case((9, 7), (3, 3), extra=3, heads=2, dtype=dtype)
    arrays = rounded(case.arrays(), dtype)
    names, call = split_form(case)
    out = call(*(to_mlx(arrays[name], dtype) for name in names))
    assert out.dtype == getattr(mx, dtype)
    assert_near(out, case.call(arrays).forward()[0], {"float16": 4e-3, "bfloat16": 3e-2}[dtype])


def test_transformations(tier: str) -> None:
    """Mapped over tokens of one batch, and compiled."""
    x, tokens = mx.random.normal((2, 9, 2, 4)), mx.random.normal((3, 1, 2, 2, 4))

    def call(tokens: mx.array) -> mx.array:
        logits = natten_mlx.na1d_qk(x, x, 3, additional_keys=tokens)
        return natten_mlx.na1d_av(mx.softmax(logits, axis=-1), x, 3, additional_values=tokens)

    expected = mx.stack([call(t) for t in tokens])
    assert mx.allclose(mx.vmap(call)(tokens), expected, atol=1e-5)
    assert mx.allclose(mx.compile(call)(tokens[0]), expected[0], atol=1e-5)


def test_a_batch_of_0(tier: str) -> None:
    x, tokens = mx.zeros((0, 6, 2, 4)), mx.zeros((1, 3, 2, 4))
    logits = natten_mlx.na1d_qk(x, x, 3, additional_keys=tokens)
    assert logits.shape == (0, 6, 2, 6)
    assert natten_mlx.na1d_av(logits, x, 3, additional_values=tokens).shape == x.shape


X, ATTN = mx.zeros((2, 6, 4, 8)), mx.zeros((2, 6, 4, 5))
WRONG = {
    "additional_keys must be 4D": lambda: natten_mlx.na1d_qk(X, X, 3, additional_keys=mx.zeros((2, 3, 8))),
    "must have the batch of query, 2, or 1, got 3": lambda: natten_mlx.na1d_qk(
        X, X, 3, additional_keys=mx.zeros((3, 2, 4, 8))
    ),
    "must have the heads of key": lambda: natten_mlx.na1d_qk(X, X, 3, additional_keys=mx.zeros((1, 2, 3, 8))),
    "must have head dim 8": lambda: natten_mlx.na1d_av(ATTN, X, 3, additional_values=mx.zeros((1, 2, 4, 7))),
    r"prod\(kernel_size\) \+ additional tokens = 6, got 5": lambda: natten_mlx.na1d_av(
        ATTN, X, 3, additional_values=mx.zeros((1, 3, 4, 8))
    ),
    r"prod\(kernel_size\) = 3, got 5": lambda: natten_mlx.na1d_av(ATTN, X, 3),
    "additional_values must be float32": lambda: natten_mlx.na1d_av(
        ATTN, X, 3, additional_values=mx.zeros((1, 2, 4, 8), mx.int32)
    ),
    "must be an mlx.core.array": lambda: natten_mlx.na1d_qk(X, X, 3, additional_keys=[1.0]),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[na1d_(qk|av)\] .*{message}"):
        WRONG[message]()


def test_explain_tells_where_the_tokens_of_the_fused_call_are(tier: str) -> None:
    x, tokens = mx.zeros((1, 8, 2, 16)), mx.zeros((1, 3, 2, 16))

    def told(tokens: mx.array) -> str:
        return natten_mlx.explain(x, x, x, 3, additional_keys=tokens, additional_values=tokens).kernel

    assert told(tokens).endswith("3 additional tokens in it" if tier != "pure" else "by MLX's operations")
    assert told(tokens.astype(mx.float16)).endswith("by MLX's operations")


def test_explain_names_the_tokens() -> None:
    shape, tokens = (1, 8, 2, 4), (1, 3, 2, 4)
    assert "3 additional tokens" in natten_mlx.explain(shape, shape, None, 3, op="qk", additional_keys=tokens).kernel
    attn = (1, 8, 2, 6)
    assert "3 additional tokens" in natten_mlx.explain(attn, None, shape, 3, op="av", additional_values=tokens).kernel
    with pytest.raises(ValueError, match="additional tokens = 6, got 5"):
        natten_mlx.explain((1, 8, 2, 5), None, shape, 3, op="av", additional_values=tokens)
