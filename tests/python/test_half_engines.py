"""Half types at head dims that matrix instructions take: windows of every kind, arrays of any layout, and what NaN and
infinity reach. Once as planned, and once with NATTEN_FAST_TILE such that a Hopper GPU takes its warpgroup instructions
also where the other engine is faster."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import assert_half_near, assert_near, attention, naive_attention, rounded, to_mlx, to_numpy, vjp
from test_attention import check_half

F16, BF16 = "float16", "bfloat16"
CASES = [
    Case((200,), (100,), batch=2, heads=4, kv_heads=2, dim=64, dtype=F16),
    Case((131,), (33,), heads=2, dim=128, dtype=BF16, scale=-0.3),
    Case((150,), (64,), is_causal=(True,), dilation=(2,), dim=32, dtype=F16),
    Case((120,), (40,), gna_stride=(8,), heads=2, dim=16, value_dim=48, dtype=BF16),
    Case((97,), (31,), stride=(3,), dim=64, value_dim=128, dtype=F16),
    Case((23, 19), (9, 8), heads=2, dim=32, dtype=F16),
    Case((24, 33), (6, 7), (), (2, 3), (True, False), (3, 2), dim=96, value_dim=80, dtype=BF16),
    Case((32, 32), (16, 16), gna_stride=(16, 8), heads=2, dim=128, dtype=F16),
    Case((20, 21), (7, 5), stride=(2, 5), heads=4, kv_heads=1, dim=48, dtype=BF16),
    Case((18, 17), (5, 7), batch=3, lengths=((18, 17), (5, 9), (11, 7)), heads=2, dim=64, dtype=F16),
    Case((9, 10, 11), (3, 5, 4), heads=2, dim=64, dtype=BF16, scale=1.0),
    Case((8, 12, 10), (4, 3, 5), dilation=(2, 1, 2), is_causal=(False, True, True), dim=32, value_dim=64, dtype=F16),
    Case((7, 9, 8), (3, 3, 4), stride=(2, 1, 3), gna_stride=(1, 3, 1), batch=2, dim=80, dtype=F16),
    Case((6, 1, 20), (3, 1, 7), heads=2, dim=64, dtype=F16),
    Case((12, 14, 10), (5, 4, 6), stride=(2, 1, 1), heads=4, kv_heads=2, dim=128, dtype=F16),
    Case((300,), (90,), batch=2, lengths=((300,), (131,)), is_causal=(True,), heads=2, dim=96, dtype=BF16),
    Case((40, 1, 1), (9, 1, 1), is_causal=(True, False, False), dim=112, dtype=BF16),
    Case((9, 14), (3, 5), heads=2, kv_heads=1, dim=256, dtype=F16),
    Case((24, 19), (7, 6), heads=2, kv_heads=1, dim=72, dtype=F16),
    Case((140,), (33,), is_causal=(True,), batch=2, dim=40, value_dim=56, dtype=BF16, scale=-0.4),
    Case((9, 8, 10), (3, 5, 4), stride=(1, 2, 1), dim=24, value_dim=8, dtype=F16),
    Case((13, 16), (5, 4), dilation=(2, 3), dim=120, value_dim=104, dtype=F16),
    Case((60,), (40,), heads=2, dim=200, value_dim=136, dtype=F16, scale=-0.1),
    Case((50,), (17,), dilation=(2,), is_causal=(True,), dim=192, value_dim=64, dtype=BF16),
    Case((6, 7, 5), (3, 4, 3), is_circular=(False, True, False), dim=133, value_dim=160, dtype=F16),
    Case((300,), (90,), span=((100, 120, 50, 230),), heads=4, kv_heads=2, dim=64, dtype=F16),
    Case((40, 30), (9, 7), (), (1, 2), span=((0, 11, 0, 20), (17, 13, 8, 22)), dim=32, value_dim=48, dtype=BF16),
    Case(
        (9, 12, 14),
        (5, 5, 4),
        (1, 1, 2),
        (),
        (False, True, False),
        span=((4, 1, 2, 5), (3, 9, 0, 12), (5, 6, 2, 12)),
        heads=2,
        dim=64,
        dtype=F16,
    ),
    Case((256,), (128,), gna_stride=(128,), span=((37, 150, 0, 256),), dim=128, dtype=F16),
    Case((70, 40), (6, 5), (5, 2), (3, 1), span=((21, 30, 10, 50), (7, 25, 4, 33)), dim=80, value_dim=96, dtype=BF16),
    Case(
        (60, 40),
        (9, 7),
        is_causal=(False, True),
        span=((20, 20, 10, 40), (10, 20, 3, 28)),
        batch=3,
        lengths=((60, 40), (50, 20), (60, 12)),
        dim=64,
        dtype=F16,
    ),
    Case((200,), (70,), is_circular=(True,), heads=4, kv_heads=2, dim=64, dtype=BF16),
    Case((128,), (64,), gna_stride=(64,), is_circular=(True,), dim=32, dtype=F16),
    Case((20, 24), (20, 7), (), (1, 2), (), (4, 1), (True, True), dim=32, value_dim=48, dtype=F16),
    Case((40, 9), (8, 5), (3, 1), is_circular=(True, False), heads=2, kv_heads=1, dim=128, dtype=F16),
    Case(
        (8, 9, 10),
        (5, 3, 5),
        (1, 2, 1),
        (1, 3, 1),
        (False, False, True),
        (),
        (True, True, False),
        batch=2,
        heads=2,
        dim=80,
        dtype=F16,
    ),
    Case(
        (48, 21),
        (9, 5),
        (),
        (2, 1),
        (),
        (2, 1),
        (True, True),
        batch=3,
        lengths=((48, 21), (24, 10), (20, 21)),
        dim=64,
        dtype=BF16,
    ),
    Case(
        (60, 40),
        (9, 4),
        (2, 1),
        (),
        (),
        (1, 2),
        (True, True),
        span=((3, 55, -7, 60), (0, 40, 6, 40)),
        heads=2,
        kv_heads=1,
        dim=64,
        dtype=BF16,
    ),
    Case((60, 24), (9, 4), span=((5, 20, -3, 32), (0, 24, 0, 24)), is_circular=(True, False), dim=64, dtype=F16),
]
BIASED = [
    Case((90,), (33,), heads=4, kv_heads=2, dim=32, dtype=F16, rpb=True),
    Case((21, 18), (7, 6), batch=2, heads=2, dim=32, value_dim=48, dtype=F16, rpb=True),
    Case((16, 20), (4, 5), dilation=(2, 3), is_causal=(True, False), gna_stride=(2, 1), dim=64, dtype=BF16, rpb=True),
    Case((18, 17), (5, 7), stride=(2, 3), batch=2, lengths=((18, 17), (5, 9)), dim=80, dtype=F16, rpb=True),
    Case((7, 9, 8), (3, 5, 4), is_causal=(False, True, False), heads=2, dim=16, dtype=BF16, rpb=True),
    Case((12, 15), (5, 6), is_circular=(True, False), heads=2, kv_heads=1, dim=128, dtype=F16, rpb=True),
    Case((10, 9), (3, 4), heads=2, dim=160, value_dim=224, dtype=BF16, rpb=True),
    Case((150,), (2500,), is_causal=(True,), dim=64, dtype=F16, rpb=True, scale=-0.1),  # a large table
    Case((60, 24), (9, 4), (2, 1), span=((5, 40, 0, 52), (0, 24, 0, 24)), heads=2, dim=96, dtype=BF16, rpb=True),
    Case((22, 19), (7, 6), heads=4, kv_heads=1, dim=256, dtype=F16, rpb=True, scale=0.3),
]
EXTRA = [
    Case((200,), (33,), batch=2, heads=4, kv_heads=2, dim=64, extra=5, dtype=F16),
    Case((23, 19), (9, 8), heads=2, dim=32, extra=70, dtype=BF16),
    Case((20, 21), (7, 5), stride=(2, 5), heads=4, kv_heads=1, dim=48, value_dim=16, extra=300, dtype=F16),
    Case((18, 17), (5, 7), batch=3, lengths=((18, 17), (5, 9), (11, 7)), heads=2, dim=64, extra=1, dtype=F16),
    Case((8, 12, 10), (4, 3, 5), (), (2, 1, 2), (False, True, True), dim=32, value_dim=64, extra=33, dtype=BF16),
    Case((12, 15), (5, 6), is_circular=(True, False), heads=2, kv_heads=1, dim=128, extra=17, dtype=F16, rpb=True),
    Case((50,), (17,), dilation=(2,), is_causal=(True,), dim=192, value_dim=64, extra=40, dtype=BF16),
    Case((30,), (6,), is_causal=(True,), span=((29, 1, 24, 6),), heads=4, kv_heads=2, dim=64, extra=130, dtype=F16),
    Case((32, 32), (16, 16), gna_stride=(16, 8), heads=2, dim=128, extra=77, dtype=F16),
    Case((22, 19), (7, 6), is_circular=(True, False), heads=2, dim=72, value_dim=88, extra=70, dtype=F16),
    Case((24, 33), (6, 7), (), (2, 3), (True, False), heads=2, dim=96, value_dim=80, extra=64, dtype=BF16, scale=-0.2),
    Case((40, 11), (5, 4), span=((20, 9, 17, 15), (0, 6, 0, 9)), dim=16, extra=3, dtype=F16, rpb=True),
]


@pytest.fixture(params=["", "warpgroup=1"], ids=["planned", "warpgroups"])
def engine(request: pytest.FixtureRequest, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        if tier != "fast_metal":
            pytest.skip("it has one engine")
        monkeypatch.setenv("NATTEN_FAST_TILE", request.param)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES + BIASED + EXTRA, ids=str)
def test_half(tier: str, engine: None, case: Case) -> None:
    check_half(case)


def forward(case: Case, inputs: list[mx.array]) -> tuple[np.ndarray, np.ndarray]:
    _, call = attention(case)
    out, lse = call(*inputs)
    return to_numpy(out), to_numpy(lse)


def gradients(case: Case, inputs: list[mx.array], dout: mx.array) -> list[np.ndarray]:
    _, call = attention(case)
    dlse = mx.full(dout.shape[:-1], 0.5)
    return [to_numpy(x) for x in vjp(call, inputs, [dout, dlse])]


@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[10], CASES[17], EXTRA[1]], ids=str)
def test_any_layout(tier: str, engine: None, case: Case) -> None:
    """Heads first, channels apart, rows that are not aligned: the same bits as from dense arrays."""
    names, _ = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    dense = [to_mlx(arrays[name], case.dtype) for name in names]
    dout = to_mlx(arrays["dout"], case.dtype)
    expected = [*forward(case, dense), *gradients(case, dense, dout)]

    def heads_first(x: mx.array) -> mx.array:
        return mx.contiguous(x.swapaxes(1, -2)).swapaxes(1, -2)

    def channels_apart(x: mx.array) -> mx.array:
        return mx.contiguous(x.swapaxes(-2, -1)).swapaxes(-2, -1)

    def unaligned(x: mx.array) -> mx.array:
        wide = mx.concatenate([x[..., :1], x, x[..., :1]], axis=-1)
        mx.eval(wide)
        return wide[..., 1:-1]

    for layout in (heads_first, channels_apart, unaligned):
        inputs = [layout(x) for x in dense]
        results = [*forward(case, inputs), *gradients(case, inputs, layout(dout))]
        for got, wanted in zip(results, expected, strict=True):
            assert np.array_equal(got, wanted), layout.__name__


def poisoned_arrays(cases: list[Case], *names: str) -> list:
    """Cases with the name of each array in turn."""
    with_extra = (*names, "additional_keys", "additional_values")
    pairs = [(case, name) for case in cases for name in (names if case.extra is None else with_extra)]
    return [pytest.param(case, name, id=f"{case}-{name}") for case, name in pairs]


def place_in(case: Case, name: str) -> tuple[int, ...]:
    row = (case.extra // 2,) if name.startswith("additional") else tuple(length // 2 for length in case.spatial)
    return (0, *row, 0, 3)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("case", "name"),
    poisoned_arrays(
        [*(CASES[i] for i in (0, 5, 6, 10, 17)), BIASED[1], BIASED[3], *EXTRA[:2], EXTRA[6]], "query", "key", "value"
    ),
)
def test_what_poison_reaches(tier: str, engine: None, case: Case, poison: float, name: str) -> None:
    """NaN and infinity change the queries whose windows hold them, and no other (in `pure`, a block of queries)."""
    names, _ = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    clean = forward(case, [to_mlx(arrays[n], case.dtype) for n in names])
    alike = case.with_(scale=0.01)  # where no weight is too small to be seen
    right = alike.call(arrays).forward()
    place = place_in(case, name)
    arrays[name][place] = 50.0
    changed = alike.call(arrays).forward()
    met = (changed[1] != right[1]) | (changed[0] != right[0]).any(axis=-1)
    arrays[name][place] = poison
    out, lse = forward(case, [to_mlx(arrays[n], case.dtype) for n in names])
    is_value = name in ("value", "additional_values")
    if is_value:
        assert not np.isfinite(out[met][:, 3]).any()
    elif np.isnan(poison):
        assert not np.isfinite(out[met]).any() and not np.isfinite(lse[met]).any()
    if tier == "pure":
        return
    if is_value:
        assert np.isfinite(np.delete(out, 3, axis=-1)).all()
    # Others of a tile may be computed again, without rounding weights: near, not the same bits.
    tolerance = 2e-3 if case.dtype == F16 else 2e-2
    assert np.allclose(out[~met], clean[0][~met], atol=tolerance, rtol=tolerance)
    assert np.allclose(lse[~met], clean[1][~met], atol=1e-5, rtol=1e-5)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("case", "name"),
    poisoned_arrays(
        [*(CASES[i] for i in (0, 6, 10, 17, 22)), *(BIASED[i] for i in (0, 1, 2, 6, 9)), *EXTRA[:2], EXTRA[6]],
        *("query", "key", "value", "dout"),
    ),
)
def test_what_poison_reaches_of_gradients(tier: str, engine: None, case: Case, poison: float, name: str) -> None:
    """The gradients that a change of the number would reach, and no other."""
    if tier == "pure":
        pytest.skip("it works in blocks of queries")
    names, _ = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    clean = gradients(case, [to_mlx(arrays[n], case.dtype) for n in names], to_mlx(arrays["dout"], case.dtype))
    alike = case.with_(scale=0.01)  # where no weight is too small to be seen
    dlse = np.full(arrays["dout"].shape[:-1], 0.5)
    right = alike.call(arrays).backward(arrays["dout"], dlse)
    place = place_in(case, name)
    arrays[name][place] = 50.0
    changed = alike.call(arrays).backward(arrays["dout"], dlse)
    arrays[name][place] = poison
    poisoned = gradients(case, [to_mlx(arrays[n], case.dtype) for n in names], to_mlx(arrays["dout"], case.dtype))
    tolerance = 4e-3 if case.dtype == F16 else 1e-2
    for n, got, before in zip(names, poisoned, clean, strict=True):
        met = changed[n] != right[n] if n == "rpb" else (changed[n] != right[n]).any(axis=-1)
        if np.isnan(poison):
            finite = np.isfinite(got[met])
            assert not (finite if n == "rpb" else finite.all(axis=-1)).any(), n
        # Others of a tile may be computed again, without rounding weights: near, not the same bits.
        assert np.abs(got - before)[~met].max(initial=0.0) <= tolerance * max(1.0, np.abs(before).max()), n


def test_logits_that_are_all_minus_infinity(tier: str, engine: None) -> None:
    """Such queries get zeros, with any instructions."""
    query = mx.full((1, 80, 2, 64), 60000.0, dtype=mx.float16)
    key = mx.full((1, 80, 2, 64), -np.inf, dtype=mx.float16)
    value = mx.ones((1, 80, 2, 64), dtype=mx.float16)
    out, lse = natten_mlx.na1d(query, key, value, 63, return_lse=True)
    _, grads = mx.vjp(lambda q, k, v: natten_mlx.na1d(q, k, v, 63), [query, key, value], [value])
    if tier == "pure":  # MLX's softmax of them
        assert np.isnan(to_numpy(out)).all() or np.all(to_numpy(out) == 0)
        return
    assert np.all(to_numpy(out) == 0)
    assert np.all(to_numpy(lse) == -np.inf)
    assert all(np.all(to_numpy(x) == 0) for x in grads[1:])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-9, -1e-9])
def test_scales_that_make_logits_alike(tier: str, engine: None, scale: float, biased: bool) -> None:
    case = (BIASED[1] if biased else CASES[5]).with_(scale=scale)
    names, _ = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    inputs = [to_mlx(arrays[n], case.dtype) for n in names]
    _, call = attention(case)
    out, lse = call(*inputs)
    right, right_lse = case.call(arrays).forward()
    assert_half_near(out, [to_numpy(naive_attention(case)(*inputs)[0])], right, case.dtype, "out")
    assert_near(lse, right_lse, 1e-5, "lse")
    check_half(case)


@pytest.mark.parametrize("large", [1e4, 1e9, 1e30, -1e9, -np.inf])
@pytest.mark.parametrize("index", [1, 3, 7])
def test_biases_of_any_size(tier: str, engine: None, index: int, large: float) -> None:
    """Also of keys that most windows do not have, and of as many as all of some."""
    case = BIASED[index]
    names, _ = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    arrays["rpb"].reshape(-1)[::7] = large
    inputs = [to_mlx(arrays[n], "float32" if n == "rpb" else case.dtype) for n in names]
    _, call = attention(case)
    out, lse = call(*inputs)
    right, right_lse = case.call(arrays).forward()
    assert_half_near(out, [to_numpy(naive_attention(case)(*inputs)[0])], right, case.dtype, "out")
    met = np.isfinite(right_lse)
    assert np.allclose(to_numpy(lse)[met], right_lse[met], atol=1e-5, rtol=1e-5)
    if (np.abs(right_lse[met]) > 1e6).any():
        return  # float32 has no digits left for what tells logits from such a log-sum-exp
    dlse = np.full(arrays["dout"].shape[:-1], 0.5)
    wanted = case.call(arrays).backward(arrays["dout"], dlse)
    got = gradients(case, inputs, to_mlx(arrays["dout"], case.dtype))
    for n, x in zip(names, got, strict=True):
        tolerance = 4e-3 if case.dtype == F16 else 3e-2
        assert np.abs(x - wanted[n]).max() <= tolerance * max(1.0, np.abs(wanted[n]).max()), n


@pytest.mark.parametrize("poison", [np.inf, -np.inf])
@pytest.mark.parametrize("case", [CASES[0], BIASED[1]], ids=str)
def test_infinity_times_a_scale_of_zero(tier: str, engine: None, case: Case, poison: float) -> None:
    """It is no number: of the queries whose windows hold it, and of no other (in `pure`, a block of queries)."""
    names, _ = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    right = case.with_(scale=0.01).call(arrays).forward()[1]
    place = place_in(case, "key")
    arrays["key"][place] = 50.0
    met = case.with_(scale=0.01).call(arrays).forward()[1] != right
    arrays["key"][place] = poison
    out, lse = forward(case.with_(scale=0.0), [to_mlx(arrays[n], case.dtype) for n in names])
    assert np.isnan(lse[met]).all() and np.isnan(out[met]).all()
    assert tier == "pure" or (np.isfinite(lse[~met]).all() and np.isfinite(out[~met]).all())


@pytest.mark.parametrize("case", [CASES[0], CASES[6], CASES[11], BIASED[1], EXTRA[1]], ids=str)
def test_same_bits_on_every_run(tier: str, engine: None, case: Case) -> None:
    names, _ = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    inputs = [to_mlx(arrays[n], case.dtype) for n in names]
    dout = to_mlx(arrays["dout"], case.dtype)
    first = [*forward(case, inputs), *gradients(case, inputs, dout)]
    for _ in range(3):
        for got, wanted in zip([*forward(case, inputs), *gradients(case, inputs, dout)], first, strict=True):
            assert np.array_equal(got, wanted)


def test_logits_of_any_size(tier: str, engine: None) -> None:
    """Beyond what a weight in half precision can be, and with maxima that grow from block to block of keys."""
    length = 400
    ramp = np.linspace(-40, 40, length)
    query = np.ones((1, length, 1, 64))
    key = np.zeros((1, length, 1, 64))
    key[0, :, 0, 0] = ramp
    value = np.random.default_rng(0).standard_normal((1, length, 1, 64))
    case = Case((length,), (300,), dim=64, dtype=F16, scale=3.0)
    arrays = rounded({"query": query, "key": key, "value": value}, F16)
    inputs = [to_mlx(arrays[n], F16) for n in ("query", "key", "value")]
    _, call = attention(case)
    out, lse = call(*inputs)
    right, right_lse = case.call(arrays).forward()
    assert_half_near(out, [to_numpy(naive_attention(case)(*inputs)[0])], right, F16, "out")
    assert_near(lse, right_lse, 1e-5, "lse")
    assert all(np.isfinite(x).all() for x in gradients(case, inputs, to_mlx(value, F16)))
