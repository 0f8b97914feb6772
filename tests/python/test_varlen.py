"""Padded variable lengths: with every other option, with poison in the padding, and with illegal lengths."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import natten_mlx
from cases import Case, calls
from harness import (
    assert_near,
    attention,
    check_split_form,
    function,
    lengths_array,
    rounded,
    succeeds,
    to_mlx,
    to_numpy,
    vjp,
)

OPTIONS = [
    Case((9,), (3,), batch=3, lengths=((3,), (9,), (6,))),
    Case((11,), (4,), batch=2, lengths=((5,), (11,)), is_causal=(True,), heads=2, kv_heads=1),
    Case((11,), (3,), batch=2, lengths=((7,), (9,)), stride=(2,), dilation=(2,), rpb=True),
    Case((11,), (4,), batch=2, lengths=((7,), (8,)), gna_stride=(3,), value_dim=7),
    Case((6, 7), (3, 2), batch=2, lengths=((6, 4), (3, 7)), is_causal=(True, False), rpb=True),
    Case((6, 7), (3, 3), batch=2, lengths=((5, 3), (6, 6)), stride=(1, 2), gna_stride=(2, 1), heads=2),
    Case((6, 7), (3, 2), batch=2, lengths=((4, 7), (6, 3)), extra=3, heads=2, kv_heads=1),
    Case((5, 5, 5), (2, 3, 2), batch=2, lengths=((2, 3, 4), (5, 5, 3)), is_causal=(False, True, False)),
    Case((20, 18), (5, 3), batch=2, lengths=((17, 16), (5, 18)), dim=16),
    Case((9,), (4,), batch=3, lengths=((1,), (9,), (3,)), is_causal=(True,), rpb=True),  # shorter than the kernel
    Case((18,), (5,), batch=3, span=((6, 8, 0, 18),), lengths=((9,), (18,), (5,)), rpb=True, extra=2),
    Case((18,), (5,), batch=2, span=((4, 9, 0, 15),), lengths=((9,), (6,)), is_causal=(True,), stride=(2,)),
    Case((6, 12), (3, 5), batch=2, lengths=((6, 12), (4, 10)), dilation=(1, 2), is_circular=(False, True)),
]


ROWS = {"query": "queries", "key": "keys", "value": "keys"}  # others have a row for each computed query


def padding_of(case: Case, name: str, sample: int) -> list[tuple[slice, ...]]:
    """For each axis the rows of an array that lie past the sample's length."""
    geometry, result = case.geometry(), []
    for axis, (a, span) in enumerate(zip(geometry.axes, geometry.spans, strict=True)):
        start = {"queries": span.query_start, "keys": span.key_start}.get(ROWS.get(name, ""))
        length = case.lengths[sample][axis]
        first = sum(q < length for q in span.queries(a)) if start is None else max(0, length - start)
        result.append((sample, *[slice(None)] * axis, slice(first, None)))
    return result


def poisoned(case: Case, arrays: dict[str, np.ndarray], poison: float) -> dict[str, np.ndarray]:
    """The same arrays with `poison` at every position past a sample's lengths."""
    result = {name: x.copy() for name, x in arrays.items()}
    for name, x in result.items():
        if name in (*ROWS, "dout", "dlse", "dlogits", "attn"):
            for sample in range(case.batch):
                for padding in padding_of(case, name, sample):
                    x[padding] = poison
    return result


def check_padding(case: Case, poison: float) -> None:
    clean = rounded(case.arrays(), "float32")
    arrays = poisoned(case, clean, poison)
    names, call = attention(case)
    inputs = [to_mlx(arrays[name]) for name in names]
    reference = case.call(clean)
    expected_out, expected_lse = reference.forward()
    out, lse = call(*inputs)
    assert_near(out, expected_out, 1e-5, "out")
    assert_near(lse, expected_lse, 1e-5, "lse")
    live = reference.geometry.tables()[0].any(axis=2).reshape(case.batch, *case.output)
    assert np.all(to_numpy(out)[~live] == 0) and np.all(to_numpy(lse)[~live] == 0)

    expected = reference.backward(clean["dout"], clean["dlse"])
    grads = vjp(call, inputs, [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])])
    for name, gradient in zip(names, grads, strict=True):
        assert_near(gradient, expected[name], 1e-4, f"gradient of {name}")
    for sample in range(case.batch):
        for name, gradient in zip(names[:3], grads[:3], strict=True):
            for padding in padding_of(case, name, sample):
                assert np.all(to_numpy(gradient)[padding] == 0), "gradient in the padding"


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 7.0])
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_padding_reaches_nothing(tier: str, case: Case, poison: float) -> None:
    check_padding(case, poison)


@given(case=calls(with_lengths=True), poison=st.sampled_from([np.nan, np.inf, 5.0]))
def test_padding_reaches_nothing_random(tier: str, case: Case, poison: float) -> None:
    check_padding(case, poison)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("case", [case for case in OPTIONS if case.extra is None], ids=str)
def test_padding_reaches_nothing_in_the_split_form(tier: str, case: Case, poison: float) -> None:
    clean = rounded(case.arrays(), "float32")
    arrays = poisoned(case, clean, poison)
    check_split_form(case, clean, 1e-5, 1e-4, lambda name: to_mlx(arrays[name]))


@pytest.mark.parametrize("case", [case for case in OPTIONS if case.extra is None and not case.span], ids=str)
def test_each_sample_is_the_call_on_its_slice(tier: str, case: Case) -> None:
    """Without the oracle: a padded sample gives what its unpadded slice gives."""
    arrays = case.arrays()
    names, call = attention(case)
    out, lse = call(*(to_mlx(arrays[name]) for name in names))
    for b, lengths in enumerate(case.lengths):
        alone = replace(case, spatial=lengths, batch=1, lengths=None)
        window = tuple(slice(0, length) for length in lengths)
        slices = [to_mlx(arrays[n] if n == "rpb" else arrays[n][(slice(b, b + 1), *window)]) for n in names]
        small, small_lse = attention(alone)[1](*slices)
        kept = tuple(slice(0, -(-length // s)) for length, s in zip(lengths, case.stride, strict=True))
        assert_near(out[(slice(b, b + 1), *kept)], to_numpy(small), 1e-5)
        assert_near(lse[(slice(b, b + 1), *kept)], to_numpy(small_lse), 1e-5)


@pytest.mark.parametrize("dtype", [mx.int32, mx.int64])
@pytest.mark.parametrize("case", [case for case in OPTIONS if case.extra is None and not case.rpb], ids=str)
def test_varlen_functions(tier: str, case: Case, dtype: mx.Dtype) -> None:
    arrays = case.arrays()
    q, k, v = (to_mlx(arrays[name]) for name in ("query", "key", "value"))
    call = function(case, "_varlen")
    names = case.parameters() | case.placement()
    kernel_size, dilation = names.pop("kernel_size"), names.pop("dilation")
    lengths = lengths_array(case, dtype)
    out, lse = call(q, k, v, lengths, kernel_size, dilation, 0.5, return_lse=True, **names)
    expected, expected_lse = case.with_(scale=0.5).call(rounded(arrays, "float32")).forward()
    assert_near(out, expected, 1e-5)
    assert_near(lse, expected_lse, 1e-5)
    keyword = "seq_lens" if case.rank == 1 else "spatial_sizes"
    out = call(q, k, v, kernel_size=kernel_size, dilation=dilation, **{keyword: lengths}, **names)
    assert_near(out, case.call(rounded(arrays, "float32")).forward()[0], 1e-5)


def test_full_lengths_change_nothing(tier: str) -> None:
    case = Case((6, 7), (3, 2), batch=2, heads=2)
    arrays = case.arrays()
    inputs = [to_mlx(arrays[name]) for name in ("query", "key", "value")]
    full = mx.array([[6, 7], [6, 7]])
    plain = natten_mlx.na2d(*inputs, (3, 2))
    assert_near(natten_mlx.na2d(*inputs, (3, 2), lengths=full), to_numpy(plain), 1e-6)


ILLEGAL = [2, 0, -1, -(2**31), 10, 2**31 - 1]


@pytest.mark.parametrize("shapeless", [False, True])
@pytest.mark.parametrize("length", ILLEGAL)
def test_illegal_lengths_under_compile_zero_their_sample(tier: str, length: int, shapeless: bool) -> None:
    case = Case((9,), (3,), batch=3, heads=2, rpb=True, lengths=((6,), (length,), (9,)))
    arrays = rounded(case.arrays(), "float32")
    names = list(case.shapes())

    def call(lengths: mx.array, *inputs: mx.array) -> list[mx.array]:
        q, k, v, rpb = inputs
        return list(natten_mlx.na1d(q, k, v, 3, rpb=rpb, lengths=lengths, return_lse=True))

    def gradients(lengths: mx.array, dout: mx.array, dlse: mx.array, *inputs: mx.array) -> list[mx.array]:
        return vjp(lambda *args: call(lengths, *args), list(inputs), [dout, dlse])

    inputs = [to_mlx(arrays[name]) for name in names]
    lengths = mx.array([6, length, 9], dtype=mx.int32)
    try:
        out, lse = mx.compile(call, shapeless=shapeless)(lengths, *inputs)
        grads = mx.compile(gradients, shapeless=shapeless)(
            lengths, to_mlx(arrays["dout"]), to_mlx(arrays["dlse"]), *inputs
        )
        mx.eval(out, lse, grads)
    except (ValueError, RuntimeError):
        assert shapeless, "only a shapeless trace may be refused"
        return
    expected_out, expected_lse = case.call(arrays).forward()
    assert np.all(to_numpy(out)[1] == 0) and np.all(to_numpy(lse)[1] == 0)
    assert_near(out, expected_out, 1e-5)
    assert_near(lse, expected_lse, 1e-5)
    expected = case.call(arrays).backward(arrays["dout"], arrays["dlse"])
    for name, gradient in zip(names, grads, strict=True):
        assert_near(gradient, expected[name], 1e-4, name)
        assert name == "rpb" or np.all(to_numpy(gradient)[1] == 0)


@pytest.mark.parametrize("sizes", [(2, 7), (7, 7), (6, -5), (6, 8)])
def test_illegal_sizes_under_compile_zero_their_sample_in_two_dimensions(tier: str, sizes: tuple[int, int]) -> None:
    case = Case((6, 7), (3, 2), batch=2, lengths=(sizes, (5, 6)))
    arrays = rounded(case.arrays(), "float32")
    inputs = [to_mlx(arrays[name]) for name in ("query", "key", "value")]
    neighborhood = case.parameters()

    def everything(lengths: mx.array, *inputs: mx.array) -> list[mx.array]:
        q, k, v = inputs
        logits = natten_mlx.na2d_qk(q, k, **neighborhood, lengths=lengths)
        attn = to_mlx(arrays["attn"])
        return [
            natten_mlx.na2d(q, k, v, **neighborhood, lengths=lengths),
            logits,
            natten_mlx.na2d_av(attn, v, **neighborhood, lengths=lengths),
        ]

    out, logits, product = mx.compile(everything)(mx.array([sizes, (5, 6)]), *inputs)
    for result, expected in (
        (out, case.call(arrays).forward()[0]),
        (logits, case.call(arrays).qk()),
        (product, case.call(arrays).av(arrays["attn"])),
    ):
        assert np.all(to_numpy(result)[0] == 0)
        assert_near(result, expected, 1e-5)


def test_lengths_in_a_compiled_training_step(tier: str) -> None:
    """One trace serves every legal choice of lengths."""
    case = Case((9,), (3,), batch=2, heads=2)
    arrays = rounded(case.arrays(), "float32")
    inputs = [to_mlx(arrays[name]) for name in ("query", "key", "value")]

    @mx.compile
    def gradient(lengths: mx.array, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        def loss(q: mx.array) -> mx.array:
            return (natten_mlx.na1d(q, k, v, 3, lengths=lengths) * to_mlx(arrays["dout"])).sum()

        return mx.grad(loss)(q)

    for lengths in ((9, 3), (4, 8), (9, 9)):
        padded = case.with_(lengths=tuple((length,) for length in lengths))
        padded_arrays = {**arrays}
        result = gradient(mx.array(lengths), *inputs)
        assert_near(result, padded.call(padded_arrays).backward(arrays["dout"])["query"], 1e-4)


@pytest.mark.parametrize("poison", [np.nan, -np.inf])
def test_keys_that_no_query_attends_reach_nothing(tier: str, poison: float) -> None:
    """With stride and dilation 3 queries see every third key; the last token before the padding sees another."""
    case = Case((10,), (3,), batch=1, lengths=((9,),), stride=(3,), dilation=(3,))
    arrays = rounded(case.arrays(), "float32")
    unseen = {name: arrays[name].copy() for name in ("key", "value")}
    for x in unseen.values():
        x[:, [1, 2, 4, 5, 7, 8]] = poison
    names, call = attention(case)
    cotangents = [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])]
    results = []
    for given_arrays in (arrays, arrays | unseen):
        inputs = [to_mlx(given_arrays[name]) for name in names]
        results.append([*call(*inputs), *vjp(call, inputs, cotangents)])
    for expected, result in zip(*results, strict=True):
        assert_near(result, to_numpy(expected), 1e-6)


def test_half_types(tier: str) -> None:
    for dtype in ("float16", "bfloat16"):
        case = Case((9, 8), (3, 3), batch=2, lengths=((4, 8), (9, 3)), dim=8, dtype=dtype)
        clean = rounded(case.arrays(), dtype)
        arrays = poisoned(case, clean, np.nan)
        names, call = attention(case)
        out, lse = call(*(to_mlx(arrays[name], dtype) for name in names))
        assert lse.dtype == mx.float32
        assert_near(out, case.call(clean).forward()[0], {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype])
        assert_near(lse, case.call(clean).forward()[1], 1e-5)


def test_lengths_behind_a_deep_graph() -> None:
    """Whether they are known is found without recursion: 200,000 lazy additions once overflowed the stack."""
    succeeds(
        "import mlx.core as mx, natten_mlx\n"
        "mx.set_default_device(mx.cpu)\n"
        "lengths = mx.array([0])\n"
        "for _ in range(200_000): lengths = lengths + 0\n"
        "q = mx.zeros((1, 8, 1, 4))\n"
        "try: natten_mlx.na1d_varlen(q, q, q, lengths, 3)\n"
        "except ValueError as error: assert 'seq_lens[0]=0' in str(error), error\n"
        "else: raise AssertionError\n"
        "natten_mlx.na1d_varlen(q, q, q, lengths + 8, 3)\n"
    )


@pytest.mark.parametrize(
    "call",
    [
        "na1d_varlen(q, q, q, lengths, 3)",
        "na1d_qk(q, q, 3, lengths=lengths)",
        "neighborhood_mask(8, 3, lengths=lengths)",
    ],
)
def test_other_threads_of_python_run_while_lengths_are_computed(call: str) -> None:
    """They are evaluated without the interpreter's lock."""
    succeeds(
        "import threading, time, mlx.core as mx, natten_mlx\n"
        "mx.set_default_device(mx.cpu)\n"
        "ticks = 0\n"
        "def tick():\n"
        "    global ticks\n"
        "    while True: time.sleep(1e-3); ticks += 1\n"
        "threading.Thread(target=tick, daemon=True).start()\n"
        "q, work, seconds = mx.zeros((1, 8, 1, 4)), 10, 0\n"
        "while seconds < 0.3:\n"
        "    x = mx.ones((1 << 18,))\n"
        "    for _ in range(work): x = mx.sin(x)\n"
        "    lengths = (0 * x.sum()).astype(mx.int32).reshape(1) + 8\n"
        "    before, start = ticks, time.perf_counter()\n"
        f"    natten_mlx.{call}\n"
        "    seconds, work = time.perf_counter() - start, 2 * work\n"
        "assert ticks - before >= 5, f'{ticks - before} in {seconds} s'\n"
    )
