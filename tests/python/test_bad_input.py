"""Input that no one should give: huge parameters and shapes, size-0 axes, NaN and infinity in the data."""

from __future__ import annotations

from math import prod

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import assert_near, attention, rounded, split_av, split_qk, to_mlx, to_numpy, vjp

HUGE = [2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**33 + 3, 2**62, 2**63 - 1, 2**63, 2**64, 2**64 + 3, 10**30]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("parameter", ["kernel_size", "stride", "dilation", "gna_stride"])
def test_huge_parameters(parameter: str, value: int) -> None:
    """No product or narrowing overflows into something legal."""
    q = mx.zeros((1, 8, 9, 2, 4))
    for given in (value, (value, 1), (1, value), -value, (3, -value)):
        with pytest.raises(ValueError, match=rf"^\[na2d\] .*{parameter}"):
            natten_mlx.na2d(q, q, q, **{"kernel_size": 3, parameter: given})


def test_products_that_overflow() -> None:
    q = mx.zeros((1, 8, 1, 1))
    for kernel, dilation in ((4, 2**62), (4, 2**61 + 1), (8, 2**61), (2, 2**63 - 1)):
        with pytest.raises(ValueError, match="dilation"):
            natten_mlx.na1d(q, q, q, kernel, dilation=dilation)


def test_window_of_more_slots_than_a_shape_can_hold() -> None:
    x = mx.broadcast_to(mx.array(0.0), (1, 1500, 1500, 1500, 1, 1))
    with pytest.raises(ValueError, match=r"^\[na3d_qk\] "):
        natten_mlx.na3d_qk(x, x, 1500)  # 1500^3 > 2^31


def test_bias_of_more_entries_than_a_shape_can_hold() -> None:
    """The table a huge window would need is compared without overflow."""
    x = mx.broadcast_to(mx.array(0.0), (1, 2**30 + 1, 1, 1))
    with pytest.raises(ValueError, match="rpb"):
        natten_mlx.na1d(x, x, x, 2**30 + 1, rpb=mx.zeros((1, 1)))


def test_arrays_of_more_bytes_than_64_bits_count() -> None:
    """Broadcast inputs are small; the logits, and the gradients of attn and of a whole query, would not be."""
    x = mx.broadcast_to(mx.array(0.0), (1, 2**30, 16, 1))
    with pytest.raises(ValueError, match=r"^\[na1d_qk\] .*too large"):
        natten_mlx.na1d_qk(x, x, 2**28)
    with pytest.raises(ValueError, match=r"^\[na1d_av\] .*too large"):
        natten_mlx.na1d_av(mx.broadcast_to(mx.array(0.0), (1, 2**30, 16, 2**28)), x, 2**28)
    wide = mx.broadcast_to(mx.array(0.0), (1, 2**30, 16, 2**28))
    with pytest.raises(ValueError, match=r"^\[na1d\] .*too large"):
        natten_mlx.na1d(wide, wide, x, 3)
    natten_mlx.na1d(x, x, x, 2**28, stream=mx.cpu)  # logits are never stored: this one is only slow


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_size_zero_axes(rank: int) -> None:
    spatial = (4, 5, 6)[:rank]
    call, name = getattr(natten_mlx, f"na{rank}d"), rf"^\[na{rank}d\] "
    for axis in range(1, rank + 3):  # every axis but the batch
        shape = [2, *spatial, 2, 4]
        shape[axis] = 0
        x = mx.zeros(shape)
        with pytest.raises(ValueError, match=name):
            call(x, x, x, 1)
    q, empty = mx.zeros((2, *spatial, 2, 4)), mx.zeros((2, *spatial, 2, 0))
    with pytest.raises(ValueError, match=name):
        call(q, q, empty, 1)
    with pytest.raises(ValueError, match=name):
        call(q, q[..., :0, :], q[..., :0, :], 1)


@pytest.mark.parametrize("integer", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64])
def test_numpy_integers(integer: type) -> None:
    case = Case((9, 8), (3, 4), dilation=(2, 1), stride=(2, 3))
    arrays = rounded(case.arrays(), "float32")
    inputs = [to_mlx(arrays[name]) for name in ("query", "key", "value")]
    out = natten_mlx.na2d(
        *inputs, *(tuple(integer(x) for x in xs) for xs in (case.kernel_size, case.stride, case.dilation))
    )
    assert_near(out, case.call(arrays).forward()[0], 1e-5)


def test_arrays_without_axes_are_no_sequences() -> None:
    q = mx.random.normal((1, 8, 2, 4))
    assert mx.array_equal(natten_mlx.na1d(q, q, q, np.array(3)), natten_mlx.na1d(q, q, q, 3))
    for kernel_size in (np.array(3.0), mx.array(3.0)):
        with pytest.raises(ValueError, match="kernel_size values must be int"):
            natten_mlx.na1d(q, q, q, kernel_size)


def test_anything_with_index_is_an_integer() -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    q = mx.random.normal((1, 8, 1, 4))
    expected = natten_mlx.na1d(q, q, q, 3)
    assert mx.array_equal(natten_mlx.na1d(q, q, q, Three()), expected)
    assert mx.array_equal(natten_mlx.na1d(q, q, q, [Three()]), expected)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-30, 50.0])
def test_unusual_scales(tier: str, scale: float) -> None:
    case = Case((9,), (4,), scale=scale, heads=2)
    arrays = rounded(case.arrays(), "float32")
    out, lse = attention(case)[1](*(to_mlx(arrays[name]) for name in case.shapes()))
    expected, expected_lse = case.call(arrays).forward()
    assert_near(out, expected, 1e-4 if scale == 50.0 else 1e-5)
    assert_near(lse, expected_lse, 1e-5)


@pytest.mark.parametrize("size", [1e4, 1e18])
def test_large_logits_do_not_overflow(tier: str, size: float) -> None:
    """exp of a logit of 1e4 is infinite: the softmax must subtract the largest."""
    case = Case((9,), (4,), scale=size)
    arrays = rounded(case.arrays(), "float32")
    out, lse = attention(case)[1](*(to_mlx(arrays[name]) for name in case.shapes()))
    assert np.isfinite(to_numpy(out)).all() and np.isfinite(to_numpy(lse)).all()
    assert_near(lse, case.call(arrays).forward()[1], 1e-5)


NEIGHBORHOODS = [
    Case((33,), (5,), heads=2),
    Case((33,), (6,), is_causal=(True,), dilation=(2,)),
    Case((32,), (7,), stride=(3,)),
    Case((40,), (16,), gna_stride=(8,)),
    Case((9, 17), (3, 4), is_causal=(False, True), heads=2, kv_heads=1),
    Case((12, 11), (4, 3), dilation=(2, 1), gna_stride=(1, 3), rpb=True),
    Case((18, 17), (5, 5), dim=16),
    Case((5, 6, 7), (3, 2, 4), is_causal=(True, False, False)),
    # Empty slots that are keys of others, in several rows and heads.
    Case((6, 26), (3, 12), is_causal=(False, True), gna_stride=(1, 5), heads=4, kv_heads=2, rpb=True),
]
# Where products of a weight of 0 with a whole row are the natural way, they must not let a NaN in.
HALF_NEIGHBORHOODS = [
    Case((18, 17), (5, 5), dim=16, dtype="float16"),
    Case((40,), (16,), dim=64, heads=4, kv_heads=2, is_causal=(True,), dtype="bfloat16"),
    Case((6, 6, 9), (3, 2, 4), dim=32, dilation=(1, 2, 1), rpb=True, dtype="float16"),
    Case((6, 40), (2, 9), dim=16, dilation=(1, 2), is_causal=(False, True), gna_stride=(1, 3), dtype="bfloat16"),
]


# Tolerance between two results that may differ in the order of sums, or in where they round.
SAME = {"float32": 1e-6, "float16": 2.0**-9, "bfloat16": 2.0**-6}


def neighbours(case: Case, token: tuple[int, ...]) -> np.ndarray:
    """Which output rows hold key `token`, [out...]"""
    mask = case.geometry().tables()[0][0].reshape(*case.output, *case.spatial)
    return mask[(Ellipsis, *token)]


def some_tokens(case: Case) -> list[tuple[int, ...]]:
    first = tuple(0 for _ in case.spatial)
    middle = tuple(length // 2 for length in case.spatial)
    last = tuple(length - 1 for length in case.spatial)
    return [first, middle, last]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("case", NEIGHBORHOODS + HALF_NEIGHBORHOODS, ids=str)
def test_poison_reaches_only_the_windows_that_hold_it(tier: str, case: Case, name: str, poison: float) -> None:
    names, call = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    clean = [to_numpy(x) for x in call(*(to_mlx(arrays[n], case.dtype) for n in names))]
    for token in some_tokens(case):
        dirty = {**arrays, name: arrays[name].copy()}
        dirty[name][(slice(None), *token)] = poison
        if name == "query":
            reached = np.zeros(case.output, bool)
            if all(t % s == 0 for t, s in zip(token, case.stride, strict=True)):
                reached[tuple(t // s for t, s in zip(token, case.stride, strict=True))] = True
        else:
            reached = neighbours(case, token)
        out, lse = (to_numpy(x) for x in call(*(to_mlx(dirty[n], case.dtype) for n in names)))
        # not bit-equal: a tile may rescale by another running maximum
        assert_near(out[:, ~reached], clean[0][:, ~reached], SAME[case.dtype], f"out, poison at {token}")
        assert_near(lse[:, ~reached], clean[1][:, ~reached], 1e-6, f"lse, poison at {token}")
        if np.isnan(poison):
            assert np.isnan(out[:, reached]).all()
            assert name == "value" or np.isnan(lse[:, reached]).all()


@pytest.mark.parametrize("case", NEIGHBORHOODS + HALF_NEIGHBORHOODS, ids=str)
def test_poison_in_the_cotangent_reaches_only_its_neighbours(tier: str, case: Case) -> None:
    names, call = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    inputs = [to_mlx(arrays[name], case.dtype) for name in names]
    clean = [to_numpy(x) for x in vjp(call, inputs, [to_mlx(arrays["dout"], case.dtype), to_mlx(arrays["dlse"])])]
    mask = case.geometry().tables()[0][0]
    for row in (0, prod(case.output) // 2, prod(case.output) - 1):
        where = np.unravel_index(row, case.output)
        dirty = arrays["dout"].copy()
        dirty[(slice(None), *where)] = np.nan
        grads = [to_numpy(x) for x in vjp(call, inputs, [to_mlx(dirty, case.dtype), to_mlx(arrays["dlse"])])]
        held = mask[row].reshape(case.spatial)
        own = np.zeros(case.spatial, bool)
        own[tuple(w * s for w, s in zip(where, case.stride, strict=True))] = True
        for name, got, expected, reached in zip(names[:3], grads, clean, (own, held, held), strict=False):
            assert_near(got[:, ~reached], expected[:, ~reached], SAME[case.dtype], f"gradient of {name}")
            assert np.isnan(got[:, reached]).all(), name


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("case", NEIGHBORHOODS, ids=str)
def test_poison_in_the_split_form(tier: str, case: Case, poison: float) -> None:
    """Also in empty slots of `attn`, whose value is ignored."""
    arrays = rounded(case.arrays(), "float32")
    token = some_tokens(case)[1]
    reached = neighbours(case, token)
    for names, call, name in ((*split_qk(case), "key"), (*split_av(case), "value")):
        clean = to_numpy(call(*(to_mlx(arrays[n]) for n in names))[0])
        dirty = {**arrays, name: arrays[name].copy()}
        dirty[name][(slice(None), *token)] = poison
        got = to_numpy(call(*(to_mlx(dirty[n]) for n in names))[0])
        assert_near(got[:, ~reached], clean[:, ~reached], 1e-6)

    empty = np.isneginf(case.call(arrays).qk())
    attn = np.where(empty, poison, arrays["attn"])
    names, call = split_av(case)
    inputs = [to_mlx(attn), to_mlx(arrays["value"])]
    assert_near(call(*inputs)[0], case.call(arrays).av(arrays["attn"]), 1e-5)
    expected = case.call(arrays).av_backward(arrays["attn"], arrays["dout"])
    dattn, dvalue = vjp(call, inputs, [to_mlx(arrays["dout"])])
    assert_near(dattn, expected["attn"], 1e-4)
    assert np.all(to_numpy(dattn)[empty] == 0)
    assert_near(dvalue, expected["value"], 1e-4)

    # the cotangent of logits may hold anything where softmax saw -inf
    names, call = split_qk(case)
    inputs = [to_mlx(arrays[n]) for n in names]
    cotangent = np.where(empty, poison, arrays["dlogits"])
    expected = case.call(arrays).qk_backward(arrays["dlogits"])
    for name, gradient in zip(names, vjp(call, inputs, [to_mlx(cotangent)]), strict=True):
        assert_near(gradient, expected[name], 1e-4, name)


def test_nan_everywhere_does_not_crash(tier: str) -> None:
    case = Case((9, 8), (3, 4), heads=2, rpb=True, extra=2)
    _, call = attention(case)
    inputs = [mx.full(shape, float("nan")) for shape in case.shapes().values()]
    results = [*call(*inputs), *vjp(call, inputs, [mx.ones((1, 9, 8, 2, 4)), mx.ones((1, 9, 8, 2))])]
    assert all(np.isnan(to_numpy(x)).all() for x in results[:2])


def test_single_tokens(tier: str) -> None:
    """The smallest legal call of each rank."""
    for rank in (1, 2, 3):
        case = Case((1,) * rank, (1,) * rank, dim=1)
        arrays = rounded(case.arrays(), "float32")
        out, lse = attention(case)[1](*(to_mlx(arrays[name]) for name in case.shapes()))
        assert_near(out, arrays["value"], 1e-6)
        assert_near(lse, case.call(arrays).forward()[1], 1e-5)
