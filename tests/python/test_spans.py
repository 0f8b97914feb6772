"""Spans, circular axes and long causal kernels: what the table of cases does not show."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import natten_mlx
from cases import PER_AXIS, Case, axes, needed_keys, oracle_axis
from harness import assert_near, attention, rounded, to_mlx, to_numpy, vjp
from oracle import Span


@pytest.fixture(autouse=True)
def pure() -> Any:
    with natten_mlx.backend("pure"):
        yield


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((5, 8, 4, 20), (6, 8)),
        ((5, 0, 4, 20), (0, 6)),
        ((5, 19, 1, 20), (15, 5)),
        (((5, 3), 8, (4, 2), 20), ((6, 7), (8, 4))),
        (((5,), 8, 4, 20), ((6,), (8,))),
        ((np.int64(5), np.int32(8), 4, 20), (6, 8)),
        ((1, 2**59, 3, 2**60), (2**59, 3)),
    ],
)
def test_key_span(arguments: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert natten_mlx.key_span(*arguments) == expected


def test_key_span_of_other_neighborhoods() -> None:
    assert natten_mlx.key_span(4, 29, 1, 30, is_causal=True) == (26, 4)
    assert natten_mlx.key_span(3, 10, 2, 40, dilation=5) == (5, 12)
    assert natten_mlx.key_span(5, 0, 3, 12, is_circular=True) == (-2, 7)
    assert natten_mlx.key_span(5, 10, 2, 12, is_circular=True) == (8, 6)
    assert natten_mlx.key_span(5, 0, 9, 12, is_circular=True) == (0, 12)
    assert natten_mlx.key_span(6, 7, 2, 30, stride=5)[1] == 0  # no multiple of 5
    assert natten_mlx.key_span(10**9, 7, 1, 8, is_causal=True) == (0, 8)


@given(axis=axes(20), data=st.data())
def test_key_span_is_what_a_call_needs(axis: dict[str, Any], data: st.DataObject) -> None:
    """One row less on either side is an error that names the positions."""
    length = axis["spatial"]
    start = data.draw(st.integers(0, length - 1))
    rows = data.draw(st.integers(1, length - start))
    parameters = {name: axis[name] for name in PER_AXIS}
    first, count = natten_mlx.key_span(query_start=start, rows=rows, shape=length, **parameters)
    oracle = oracle_axis(axis)
    if not Span(start, rows, 0, 0).queries(oracle):
        assert count == 0
        return
    needed = needed_keys(oracle, Span(start, rows, 0, 0))
    assert (first, count) == (needed.start, len(needed))

    def call(first: int, count: int) -> mx.array:
        q, k = mx.zeros((1, rows, 1, 1)), mx.zeros((1, count, 1, 1))
        return natten_mlx.na1d(q, k, k, query_start=start, key_start=first, shape=length, **parameters)

    mx.eval(call(first, count))
    if count == 1:
        return
    for less in ((first + 1, count - 1), (first, count - 1)):
        with pytest.raises(ValueError, match=r"\[na1d\] keys of axis 0 must hold positions .* of the window's queries"):
            call(*less)


ERRORS = [
    ("keys of axis 0 must hold positions 6..13 of the window's queries, got 7..13", {"key": 7, "key_start": 7}),
    ("keys of axis 0 must hold positions 6..13 of the window's queries, got 6..12", {"key": 7}),
    ("queries of axis 0 must lie at positions 0..19, got 17..20", {"query_start": 17}),
    ("queries of axis 0 must lie at positions 0..19, got -1..2", {"query_start": -1}),
    ("queries of axis 0 must lie at positions 0..19, got 4 from 9223372036854775807 on", {"query_start": 2**63 - 1}),
    ("keys of axis 0 must lie at positions 0..19, got -1..6", {"key_start": -1}),
    ("keys of axis 0 must lie at positions 0..19, got 13..20", {"key_start": 13}),
    ("kernel_size[0]=5 must be <= input spatial size 4", {"shape": None}),
    ("shape values must be positive, got 0", {"shape": 0}),
    ("shape[0]=1152921504606846977 must be at most 2^60", {"shape": 2**60 + 1}),
    ("query_start must have length 1, got 2", {"query_start": (8, 8)}),
    ("key_start must have length 1, got 2", {"key_start": (6, 6)}),
    ("shape must have length 1, got 2", {"shape": (20, 20)}),
    ("query_start values must be int or a sequence of int, got 1.5 (float)", {"query_start": 1.5}),
    ("key_start values must be int, got True (bool)", {"key_start": True}),
    ("shape values must be int or a sequence of int, got 'a' (str)", {"shape": "a"}),
    ("is_circular values must be bool", {"is_circular": 1}),
    ("is_causal[0] and is_circular[0] must not both be true", {"is_circular": True, "is_causal": True}),
    ("dilation[0]=3 must divide the length of a circular axis, got 20", {"is_circular": True, "dilation": 3}),
    (
        "gna_stride[0]=3 must divide length / dilation of a circular axis, got 20",
        {"is_circular": True, "gna_stride": 3},
    ),
    ("dilation[0] * kernel_size[0] = 25 exceeds input size 20", {"is_circular": True, "dilation": 5}),
    ("kernel_size[0]=21 must be <= input spatial size 20", {"is_circular": True, "kernel_size": 21}),
    ("keys of circular axis 0 must start at a position from -20 to 19", {"is_circular": True, "key_start": -21}),
    ("keys of circular axis 0 must start at a position from -20 to 19", {"is_circular": True, "key_start": 20}),
    ("have at most 20 rows, got 0..20", {"is_circular": True, "key": 21, "key_start": 0}),
    (
        "keys of axis 0 must hold positions 6..13 of the window's queries, got 8..15",
        {"is_circular": True, "key_start": 8},
    ),
    ("kernel_size[0]=1152921504606846977 must be at most 2^60", {"is_causal": True, "kernel_size": 2**60 + 1}),
    ("Batch dimensions must match", {"batch": 2}),
    ("with lengths shape[0] must be below 2^31", {"shape": 2**31, "lengths": mx.array([2**31 - 1])}),
    ("in sample 0, got 6..13", {"lengths": mx.array([10])}),
    ("must lie at positions 0..19, got -2..5", {"is_circular": True, "key_start": -2, "lengths": mx.array([20])}),
]


@pytest.mark.parametrize(("fragment", "changes"), ERRORS, ids=[fragment for fragment, _ in ERRORS])
def test_errors(fragment: str, changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"kernel_size": 5, "query_start": 8, "key_start": 6, "shape": 20, **changes}
    q, k = mx.zeros((1, 4, 1, 2)), mx.zeros((arguments.pop("batch", 1), arguments.pop("key", 8), 1, 2))
    weights = mx.zeros((1, 4, 1, 5))
    split = {name: value for name, value in arguments.items() if name != "kernel_size"}
    for name, call in (
        ("na1d", lambda: natten_mlx.na1d(q, k, k, **arguments)),
        ("na1d_qk", lambda: natten_mlx.na1d_qk(q, k, arguments["kernel_size"], **split)),
        ("na1d_av", lambda: natten_mlx.na1d_av(weights, k, arguments["kernel_size"], **split)),
    ):
        if name == "na1d_av" and changes == {"shape": None}:
            continue  # the default is value's length
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value).startswith(f"[{name}] ")
        if name != "na1d_av" or "queries of axis" not in fragment:
            assert fragment in str(caught.value)


@pytest.mark.parametrize("dilation", [9, 2**31, 2**45, 2**60])
def test_a_causal_dilation_beyond_the_axis(tier: str, dilation: int) -> None:
    """Every token is a group of its own: a table of all groups would not fit into memory."""
    options = {"is_causal": True, "rpb": mx.random.normal((2, 5)), "return_lse": True}
    q, k = mx.random.normal((1, 8, 2, 4)), mx.random.normal((1, 8, 2, 4))

    def call(q: mx.array, k: mx.array, **span: Any) -> list[mx.array]:
        inputs = [q, k, options["rpb"]]
        function = lambda q, k, rpb: natten_mlx.na1d(q, k, k, 3, dilation=dilation, **{**options, "rpb": rpb}, **span)  # noqa: E731
        outputs, gradients = mx.vjp(function, inputs, [mx.ones((1, 8, 2, 4)), mx.ones((1, 8, 2))])
        logits = natten_mlx.na1d_qk(q, k, 3, dilation=dilation, is_causal=True, **span)
        weights = mx.where(mx.isinf(logits), 0.0, 1.0)
        return [
            *outputs,
            *gradients,
            weights,
            natten_mlx.na1d_av(weights, k, 3, dilation=dilation, is_causal=True, **span),
        ]

    found = call(q, k)
    assert_near(found[0], to_numpy(k), 1e-6)
    assert_near(found[5], to_numpy(mx.broadcast_to(mx.array([0.0, 0.0, 1.0]), (1, 8, 2, 3))), 0)
    assert_near(found[6], to_numpy(k), 1e-6)
    if dilation > 2**31:
        far = call(q, k, query_start=dilation - 9, key_start=dilation - 9, shape=dilation)
        for a, b in zip(found, far, strict=True):
            assert_near(a, to_numpy(b), 1e-6)


@pytest.mark.parametrize("length", [1, 3])
def test_a_window_of_one_key_has_no_dilation(tier: str, length: int) -> None:
    q, far = mx.random.normal((1, length, 2, 4)), {"shape": 2**60, "dilation": 2**58}
    for start in (0, 2**58 - 1, 2**59 + 5):
        span = {"query_start": start, "key_start": start, **far}
        for causal in (False, True):
            assert_near(natten_mlx.na1d(q, q, q, 1, is_causal=causal, **span), to_numpy(q), 1e-6)
        assert_near(natten_mlx.na1d(q, q, q, 1, is_circular=True, **span), to_numpy(q), 1e-6)


@pytest.mark.parametrize("name", ["kernel_size", "query_start", "key_start", "shape"])
def test_a_traced_integer_is_refused(name: str) -> None:
    q = mx.zeros((1, 4, 1, 2))
    call = mx.compile(lambda x: natten_mlx.na1d(q, q, q, **{"kernel_size": 3, name: x}))
    with pytest.raises(
        ValueError, match=rf"^\[na1d\] {name} values must be int, got a value that is not known in a trace"
    ):
        call(mx.array(0))


@pytest.mark.parametrize("shape", [2**31 + 7, 2**45, 2**60])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dilation": 3},
        {"gna_stride": 2},
        {"stride": 3},
        {"is_causal": True, "gna_stride": 2},
    ],
    ids=str,
)
def test_far_positions_are_those_near_zero(shape: int, options: dict[str, Any]) -> None:
    """Away from borders only differences of positions matter, modulo what dilation and strides repeat in."""
    far = (shape // 2) // 12 * 12
    q, k, v = normal(1, 8, 2, 4), normal(1, 32, 2, 4, seed=1), normal(1, 32, 2, 4, seed=2)
    near = natten_mlx.na1d(q, k, v, 5, query_start=36, key_start=24, shape=96, **options)
    moved = natten_mlx.na1d(q, k, v, 5, query_start=36 + far, key_start=24 + far, shape=shape, **options)
    assert mx.array_equal(near, moved)


def test_borders_of_a_huge_axis() -> None:
    shape = 2**60
    q, k, v = normal(1, 3, 1, 4), normal(1, 6, 1, 4, seed=1), normal(1, 6, 1, 4, seed=2)
    near = natten_mlx.na1d(q, k, v, 5, query_start=17, key_start=14, shape=20)
    far = natten_mlx.na1d(q, k, v, 5, query_start=shape - 3, key_start=shape - 6, shape=shape)
    assert mx.array_equal(near, far)
    halo = {"is_circular": True, "query_start": 0, "key_start": -2}
    near = natten_mlx.na1d(q[:, :2], k, v, 5, shape=20, **halo)
    assert mx.array_equal(near, natten_mlx.na1d(q[:, :2], k, v, 5, shape=shape, **halo))
    rows = k, v
    past = natten_mlx.na1d(q, *rows, 4, is_circular=True, query_start=shape - 3, key_start=shape - 5, shape=shape)
    assert mx.array_equal(past, natten_mlx.na1d(q, *rows, 4, is_circular=True, query_start=17, key_start=15, shape=20))


@pytest.mark.parametrize("kernel_size", [8, 9, 1000, 10**9, 2**60])
def test_a_causal_kernel_that_holds_everything(kernel_size: int) -> None:
    q, k, v = normal(2, 8, 2, 4), normal(2, 8, 2, 4, seed=1), normal(2, 8, 2, 4, seed=2)
    out = natten_mlx.na1d(q, k, v, kernel_size, is_causal=True)
    flat = [x.swapaxes(1, 2) for x in (q, k, v)]
    dense = mx.fast.scaled_dot_product_attention(*flat, scale=0.5, mask="causal").swapaxes(1, 2)
    assert mx.allclose(out, dense, atol=1e-5)
    if kernel_size < 2**31:
        mask = natten_mlx.neighborhood_mask(8, kernel_size, is_causal=True)
        assert mx.array_equal(mask, mx.tril(mx.ones((8, 8))).astype(mx.bool_))
    if kernel_size == 10**9:
        with pytest.raises(ValueError, match="prod"):
            natten_mlx.na3d_qk(mx.zeros((1, 2, 2, 2, 1, 1)), mx.zeros((1, 2, 2, 2, 1, 1)), kernel_size, is_causal=True)


def test_a_span_without_computed_queries_is_empty() -> None:
    q, k = normal(2, 2, 2, 4), normal(2, 9, 2, 4, seed=1)
    options = {"stride": 5, "query_start": 6, "key_start": 1, "shape": 20}
    out, lse = natten_mlx.na1d(q, k, k, 5, return_lse=True, **options)
    assert out.shape == (2, 0, 2, 4) and lse.shape == (2, 0, 2)
    assert natten_mlx.na1d_qk(q, k, 5, **options).shape == (2, 0, 2, 5)
    assert natten_mlx.na1d_av(mx.zeros((2, 0, 2, 5)), k, 5, **options).shape == (2, 0, 2, 4)
    grads = mx.grad(lambda *x: natten_mlx.na1d(*x, 5, **options).sum(), argnums=[0, 1, 2])(q, k, k)
    assert all(not g.any().item() for g in grads)


def test_split_form_of_a_part_of_the_queries_with_all_keys() -> None:
    """For av the whole axes are those of value."""
    q, k, v = normal(1, 20, 2, 4), normal(1, 20, 2, 4, seed=1), normal(1, 20, 2, 4, seed=2)
    logits = natten_mlx.na1d_qk(q[:, 8:12], k, 5, query_start=8, shape=20)
    assert mx.allclose(logits, natten_mlx.na1d_qk(q, k, 5)[:, 8:12], atol=1e-6)
    out = natten_mlx.na1d_av(mx.softmax(logits, axis=-1), v, 5, query_start=8)
    assert mx.allclose(out, natten_mlx.na1d(q, k, v, 5)[:, 8:12], atol=1e-5)


@pytest.mark.parametrize(
    ("case", "illegal"),
    [
        (Case((18,), (5,), batch=3, span=((6, 8, 3, 15),), lengths=((9,), (18,), (14,))), [4, 19, 7]),  # 7: keys 2..6
        (Case((12,), (3,), batch=3, is_circular=(True,), dilation=(2,), lengths=((6,), (12,), (8,))), [7, 4, 14]),
        (Case((12,), (4,), batch=2, is_circular=(True,), span=((0, 3, 0, 12),), lengths=((5,), (12,))), [3, 0]),
        (Case((12,), (2,), batch=2, is_circular=(True,), gna_stride=(2,), lengths=((6,), (12,))), [5, 0]),
        (Case((9,), (4,), batch=2, is_causal=(True,), lengths=((1,), (9,))), [0, 10]),
    ],
    ids=str,
)
def test_compile_with_traced_lengths(tier: str, case: Case, illegal: list[int]) -> None:
    """Legal ones are right; an illegal one makes its sample 0, forward and backward."""
    arrays = rounded(case.arrays(), "float32")
    names, _ = attention(case)
    inputs = [to_mlx(arrays[name]) for name in names]
    options = case.parameters() | case.placement()

    @mx.compile
    def step(lengths: mx.array, *inputs: mx.array) -> list[mx.array]:
        def call(*x: mx.array) -> list[mx.array]:
            return list(natten_mlx.na1d(*x, return_lse=True, lengths=lengths, **options))

        cotangents = [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])]
        return call(*inputs) + vjp(call, list(inputs), cotangents)

    legal = mx.array(case.lengths)[:, 0]
    out, lse, *grads = step(legal, *inputs)
    expected = case.call(arrays)
    assert_near(out, expected.forward()[0], 1e-5)
    for name, gradient in zip(names, grads, strict=True):
        assert_near(gradient, expected.backward(arrays["dout"], arrays["dlse"])[name], 1e-4, name)
    for sample, length in enumerate(illegal):
        changed = np.array(legal)
        changed[sample] = length
        results = step(mx.array(changed), *inputs)
        for result, before in zip(results, (out, lse, *grads), strict=True):
            assert not result[sample].any().item()
            others = [i for i in range(case.batch) if i != sample]
            assert np.array_equal(to_numpy(result)[others], to_numpy(before)[others])


def test_nan_reaches_only_the_queries_whose_window_holds_it() -> None:
    case = Case((20,), (5,), is_circular=(True,), span=((0, 6, -4, 14),))
    arrays = {name: to_mlx(x) for name, x in case.arrays().items()}
    key = np.array(arrays["key"])
    key[:, 1] = np.nan  # position -3: in no window
    out = natten_mlx.na1d(arrays["query"], mx.array(key), arrays["value"], **case.parameters(), **case.placement())
    assert mx.isfinite(out).all().item()
    key[:, 2] = np.nan  # position -2
    out = natten_mlx.na1d(arrays["query"], mx.array(key), arrays["value"], **case.parameters(), **case.placement())
    assert mx.isnan(out[:, 0]).all().item() and mx.isfinite(out[:, 1:]).all().item()


def test_equal_calls_of_other_spellings_are_one_call() -> None:
    """The arguments of whole axes, written out, are the plain call: the same tier, the same bits."""
    x = normal(1, 12, 2, 4)
    with natten_mlx.backend("auto"):
        plain = natten_mlx.explain(x, x, x, 5)
        assert natten_mlx.explain(x, x, x, 5, query_start=0, key_start=(0,), shape=12) == plain
        assert mx.array_equal(natten_mlx.na1d(x, x, x, 5, shape=(12,)), natten_mlx.na1d(x, x, x, 5))


def test_a_turned_circular_axis_gives_turned_results() -> None:
    q, k, v = normal(1, 15, 2, 4), normal(1, 15, 2, 4, seed=1), normal(1, 15, 2, 4, seed=2)
    out = natten_mlx.na1d(q, k, v, 4, dilation=3, is_circular=True)
    turned = natten_mlx.na1d(*(mx.roll(x, 6, axis=1) for x in (q, k, v)), 4, dilation=3, is_circular=True)
    assert mx.allclose(turned, mx.roll(out, 6, axis=1), atol=1e-6)
    for start in (-15, -4, 7, 14):  # rows of keys from another position on
        rows = [mx.roll(x, -start, axis=1) for x in (k, v)]
        other = natten_mlx.na1d(q, *rows, 4, dilation=3, is_circular=True, key_start=start)
        assert mx.allclose(other, out, atol=1e-6)


@pytest.mark.parametrize("backend", ["pure", "nanobind"])
@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 1), (3, 3), (5, 2), (12, 1)])
def test_the_first_rows_of_causal_axes_have_the_bits_of_the_whole(backend, kernel, dilation):
    """Windows are shortened to what a span can attend, which must not change the order of sums."""
    if backend == "nanobind" and not natten_mlx.has_nanobind():
        pytest.skip(natten_mlx.get_support_matrix()["nanobind"]["reason"])
    options = {"kernel_size": (3, kernel), "dilation": (1, dilation), "is_causal": (False, True), "return_lse": True}
    mx.random.seed(kernel)
    whole = [mx.random.normal((40, 5, 13, 1, 8)) for _ in range(3)]
    with natten_mlx.backend(backend):
        wanted = natten_mlx.na2d(*whole, **options)
        for rows in range(1, 6):
            got = natten_mlx.na2d(*(a[:, :, :rows] for a in whole), **options, shape=(5, 13))
            for mine, all_rows in zip(got, wanted, strict=True):
                assert mx.array_equal(mine, all_rows[:, :, :rows]), rows
