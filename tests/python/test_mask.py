"""neighborhood_mask against the oracle's masks, and as the mask of dense attention."""

from __future__ import annotations

from math import prod
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given

import natten_mlx
from cases import TABLE, Case, calls
from harness import assert_near, lengths_array, rounded, to_mlx, to_numpy


def mask_of(case: Case, **options: Any) -> mx.array:
    names = ("query_start", "query_rows", "key_start", "key_rows")
    span = dict(zip(names, zip(*case.span, strict=True), strict=True)) if case.span else {}
    return natten_mlx.neighborhood_mask(case.spatial, **case.parameters(), **span, **options)


def check_mask(case: Case) -> None:
    mask, _, bias_index = case.geometry().tables()
    lengths = lengths_array(case)
    expected = mask if case.lengths is None else mask[:, None]
    if lengths is None:
        expected = expected[0]
    got = mask_of(case, lengths=lengths)
    assert got.dtype == mx.bool_ and np.array_equal(np.array(got), expected)
    added = mask_of(case, lengths=lengths, dtype=mx.float32)
    assert np.array_equal(to_numpy(added), np.where(expected, 0.0, -np.inf))
    if not case.rpb:
        return
    table = rounded(case.arrays(), "float32")["rpb"]
    biased = np.where(mask[:, None], table.reshape(case.heads, -1)[:, bias_index].swapaxes(0, 1), -np.inf)
    got = mask_of(case, lengths=lengths, dtype=mx.float32, rpb=to_mlx(table))
    assert np.array_equal(to_numpy(got), biased if case.lengths is not None else biased[0])


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_cases(case: Case) -> None:
    check_mask(case)


@given(case=calls())
def test_random(case: Case) -> None:
    check_mask(case)


@pytest.mark.parametrize(
    "case",
    [
        Case((12,), (5,), heads=2, rpb=True, stride=(2,)),
        Case((9, 8), (3, 4), heads=2, rpb=True, dilation=(2, 1), is_causal=(True, False)),
        Case((9, 8), (3, 4), heads=2, rpb=True, batch=2, lengths=((9, 5), (6, 8)), gna_stride=(2, 1)),
    ],
    ids=str,
)
def test_dense_attention_with_it_is_neighborhood_attention(case: Case) -> None:
    """Output and every gradient, the bias table's too."""
    arrays = rounded(case.arrays(), "float32")
    inputs = [to_mlx(arrays[name]) for name in ("query", "key", "value", "rpb")]
    lengths = lengths_array(case)

    def neighborhood(q: mx.array, k: mx.array, v: mx.array, rpb: mx.array) -> mx.array:
        call = getattr(natten_mlx, f"na{case.rank}d")
        return call(q, k, v, rpb=rpb, lengths=lengths, **case.parameters())

    def dense(q: mx.array, k: mx.array, v: mx.array, rpb: mx.array) -> mx.array:
        mask = mask_of(case, rpb=rpb, lengths=lengths, dtype=mx.float32)
        live = mx.isfinite(mask).any(axis=-1, keepdims=True)
        steps = (slice(None), *(slice(None, None, s) for s in case.stride))
        q, k, v = (x.reshape(x.shape[0], -1, *x.shape[-2:]).swapaxes(1, 2) for x in (q[steps], k, v))
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=case.dim**-0.5, mask=mx.where(live, mask, 0.0))
        return mx.where(live, out, 0.0).swapaxes(1, 2).reshape(case.batch, *case.output, case.heads, -1)

    assert_near(dense(*inputs), to_numpy(neighborhood(*inputs)), 1e-5)
    cotangent = [to_mlx(arrays["dout"])]
    expected = mx.vjp(lambda *x: [neighborhood(*x)], inputs, cotangent)[1]
    got = mx.vjp(lambda *x: [dense(*x)], inputs, cotangent)[1]
    for name, mine, theirs in zip(("query", "key", "value", "rpb"), got, expected, strict=True):
        assert_near(mine, to_numpy(theirs), 1e-4, name)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64])
def test_dtypes(dtype: mx.Dtype) -> None:
    case = Case((7, 6), (3, 4))
    mask = mask_of(case, dtype=dtype, stream=mx.cpu)
    assert mask.dtype == dtype
    assert np.array_equal(to_numpy(mask), np.where(case.geometry().tables()[0][0], 0.0, -np.inf))


def test_a_single_axis_is_a_number_too() -> None:
    assert mx.array_equal(natten_mlx.neighborhood_mask(9, 4), natten_mlx.neighborhood_mask((9,), (4,)))


def test_transformations() -> None:
    """Lengths that are traced or mapped, a bias that is mapped; an illegal length masks its sample."""
    case = Case((9,), (3,), batch=3, lengths=((9,), (5,), (4,)))
    lengths = lengths_array(case)
    mask = lambda n: natten_mlx.neighborhood_mask(9, 3, lengths=n)  # noqa: E731
    assert mx.array_equal(mx.compile(mask)(lengths), mask(lengths))
    assert mx.array_equal(mx.vmap(mask)(lengths[:, None]), mask(lengths)[:, None])
    illegal = mx.compile(mask)(mx.array([9, 2, 12]))
    assert mx.array_equal(illegal[0], mask(lengths)[0]) and not illegal[1:].any().item()
    biased = lambda rpb: natten_mlx.neighborhood_mask(9, 3, rpb=rpb, dtype=mx.float32)  # noqa: E731
    tables = mx.random.normal((4, 2, 5))
    assert mx.array_equal(mx.vmap(biased)(tables), mx.stack([biased(table) for table in tables]))


@pytest.mark.parametrize("dtype", [mx.bool_, mx.float32])
def test_shapeless_compile_is_right_or_raises(dtype: mx.Dtype) -> None:
    compiled = mx.compile(lambda n: natten_mlx.neighborhood_mask(9, 3, lengths=n, dtype=dtype), shapeless=True)
    traced, other = mx.array([9, 5]), mx.array([9, 5, 4])
    try:
        got = compiled(traced)
        mx.eval(got)
    except ValueError:
        return
    assert mx.array_equal(got, natten_mlx.neighborhood_mask(9, 3, lengths=traced, dtype=dtype))
    with pytest.raises(ValueError, match="shapeless=True"):
        mx.eval(compiled(other))


def test_empty_batch() -> None:
    empty = natten_mlx.neighborhood_mask((4, 5), 3, lengths=mx.zeros((0, 2), mx.int32))
    assert empty.shape == (0, 1, 20, 20) and prod(empty.shape) == 0


@pytest.mark.parametrize(
    ("fragment", "arguments"),
    [
        ("shape must hold 1 to 3 positive lengths, got ()", {"shape": ()}),
        ("shape must hold 1 to 3 positive lengths, got (2, 3, 4, 5)", {"shape": (2, 3, 4, 5)}),
        ("shape must hold 1 to 3 positive lengths, got (8, 0)", {"shape": (8, 0)}),
        ("shape values must be int or a sequence of int, got None (NoneType)", {"shape": None}),
        ("shape values must be int, got 8.0 (float)", {"shape": (8.0, 8)}),
        ("kernel_size[0]=9 must be <= input spatial size 8", {"kernel_size": 9}),
        ("kernel_size must have length 2, got 3", {"kernel_size": (3, 3, 3)}),
        ("stride[0]=4 must be <= kernel_size[0]=3", {"stride": 4}),
        ("is_causal values must be bool", {"is_causal": 1}),
        ("dtype must be float32, float16, bfloat16 or float64, got int32", {"dtype": mx.int32}),
        ("dtype must be an mlx.core.Dtype", {"dtype": float}),
        ("rpb must come with a floating dtype, got bool", {"rpb": mx.zeros((1, 5, 5))}),
        ("rpb must have shape [2, 5, 5], got (2, 5, 4)", {"rpb": mx.zeros((2, 5, 4)), "dtype": mx.float32}),
        ("rpb must have shape [1, 5, 5], got ()", {"rpb": mx.array(0.0), "dtype": mx.float32}),
        ("lengths must have shape [1, 2], got (1, 3)", {"lengths": mx.array([[8, 8, 8]])}),
        ("lengths[0, 0]=2 must be >= kernel_size * dilation = 3", {"lengths": mx.array([[2, 8]])}),
        ("the mask must have fewer than 2^31 elements", {"shape": (300, 300)}),
        ("stream must be None", {"stream": "cpu"}),
    ],
)
def test_errors(fragment: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        natten_mlx.neighborhood_mask(**{"shape": (8, 8), "kernel_size": 3, **arguments})
    assert str(caught.value).startswith("[neighborhood_mask] ") and fragment in str(caught.value)
