"""Mistakes seen in other implementations of neighborhood attention, one test each."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import natten_mlx
from cases import Case
from harness import (
    assert_half_near,
    assert_near,
    attention,
    available_gib,
    check_split_form,
    naive_attention,
    rounded,
    to_mlx,
    to_numpy,
    vjp,
)


def check(case: Case, backward: bool = True) -> None:
    names, call = attention(case)
    arrays = rounded(case.arrays(), "float32")
    inputs = [to_mlx(arrays[name]) for name in names]
    out, lse = case.call(arrays).forward()
    result, result_lse = call(*inputs)
    assert_near(result, out, 1e-5, "out")
    assert_near(result_lse, lse, 1e-5, "lse")
    if backward:
        grads = vjp(call, inputs, [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])])
        expected = case.call(arrays).backward(arrays["dout"], arrays["dlse"])
        for name, gradient in zip(names, grads, strict=True):
            assert_near(gradient, expected[name], 1e-4, f"gradient of {name}")


@pytest.mark.parametrize("kernel", [2, 4, 6, 8])
def test_01_even_kernel_keeps_the_last_token_at_the_right_border(tier: str, kernel: int) -> None:
    """Query L-1 sees the last K tokens; a value of 1 on the last token alone must show in its output."""
    length = 8
    value = np.zeros((1, length, 1, 1))
    value[0, -1] = 1
    zero = mx.zeros((1, length, 1, 1))
    out = to_numpy(natten_mlx.na1d(zero, zero, to_mlx(value), kernel))[0, :, 0, 0]
    assert out[-1] == pytest.approx(1 / kernel)
    assert (out > 0).sum() == sum(length - 1 in Case((length,), (kernel,)).geometry().axes[0].keys(i) for i in range(8))
    check(Case((length,), (kernel,), heads=2))


@pytest.mark.parametrize("kernel", [(7, 2), (2, 7), (1, 5), (5, 1)])
def test_02_backward_of_a_non_square_kernel(tier: str, kernel: tuple[int, int]) -> None:
    check(Case((9, 8), kernel, heads=2))
    check(Case((5, 9, 8), (3, *kernel)))


@pytest.mark.parametrize(
    "case",
    [Case((150,), (127,), dim=4), Case((24, 23), (21, 19), dim=2), Case((200,), (100,), gna_stride=(50,), dim=2)],
    ids=str,
)
def test_03_every_contributor_of_a_large_kernel_is_in_the_gradient(tier: str, case: Case) -> None:
    """A key in the middle is attended by K queries per axis, at a border by more."""
    check(case)


@pytest.mark.parametrize("dim", [255, 256, 257, 320, 513])
def test_04_head_dim_above_a_fixed_thread_array(tier: str, dim: int) -> None:
    if tier == "fast_metal" and dim > 512:  # refused before launch, with the reason
        with pytest.raises(RuntimeError, match="head dim 513 is above 512"):
            check(Case((9,), (3,), dim=dim))
        return
    check(Case((9,), (3,), dim=dim))
    check(Case((5, 6), (3, 2), dim=4, value_dim=dim))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_05_half_products_are_widened_before_they_are_added(tier: str, dtype: str) -> None:
    """A logit is one large product and many that a half sum would drop: 128 + 255 * 0.0625 (ulp of 128 is 0.125 in
    float16, 1 in bfloat16); and a window of 511 values of equal weight."""
    query = np.ones((1, 3, 1, 256))
    key = np.full((1, 3, 1, 256), 0.0625)
    key[..., 0] = 128.0
    logits = natten_mlx.na1d_qk(to_mlx(query, dtype), to_mlx(key, dtype), 3, scale=1.0)
    exact = 128.0 + 255 * 0.0625
    assert_near(logits, np.full((1, 3, 1, 3), exact), {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype])

    length = 511
    zeros, values = np.zeros((1, length, 1, 1)), np.full((1, length, 1, 1), 0.5)
    values[0, 0] = 512.0
    inputs = [to_mlx(zeros, dtype), to_mlx(zeros, dtype), to_mlx(values, dtype)]
    out = natten_mlx.na1d(*inputs, length)
    expected = np.full((1, length, 1, 1), values.mean())
    assert_near(out, expected, {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype] * 1.01)

    case = Case((40,), (31,), dim=128, dtype=dtype)
    names, call = attention(case)
    arrays = rounded(case.arrays(), dtype)
    given = [to_mlx(arrays[name], dtype) for name in names]
    rough = [to_numpy(naive_attention(case)(*given)[0])]
    assert_half_near(call(*given)[0], rough, case.call(arrays).forward()[0], dtype, "out")


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_06_grouped_heads_in_the_split_form(tier: str, kv_heads: int) -> None:
    case = Case((7, 6), (3, 3), heads=6, kv_heads=kv_heads)
    arrays = rounded(case.arrays(), "float32")
    check_split_form(case, arrays, 1e-5, 1e-4)
    if kv_heads == 3:
        four = mx.zeros((1, 7, 6, 4, 4))
        with pytest.raises(ValueError, match="must be divisible by"):
            natten_mlx.na2d_qk(to_mlx(arrays["query"]), four, 3)
        with pytest.raises(ValueError, match="must be divisible by"):
            natten_mlx.na2d_av(to_mlx(arrays["attn"]), four, 3)


def test_07_additional_keys_with_stride(tier: str) -> None:
    check(Case((9, 8), (3, 4), stride=(2, 3), extra=3, heads=2))
    check(Case((9,), (3,), stride=(3,), is_causal=(True,), extra=2, batch=2, lengths=((5,), (9,))))


def test_07_module_with_lengths_keeps_causal_stride_and_dropout(tier: str) -> None:
    mx.random.seed(0)
    options = {"kernel_size": 3, "stride": 2, "is_causal": True}
    module = natten_mlx.NeighborhoodAttention1D(8, 2, **options, attn_drop=0.5)
    x, full = mx.random.normal((2, 9, 8)), mx.array([9, 9])
    module.eval()
    assert module(x, full).shape == (2, 5, 8)
    assert_near(module(x, full), to_numpy(module(x)), 1e-6)
    acausal = natten_mlx.NeighborhoodAttention1D(8, 2, kernel_size=3, stride=2)
    acausal.update(module.parameters())
    assert np.abs(to_numpy(acausal(x, full) - module(x, full))).max() > 1e-3
    module.train()
    assert np.abs(to_numpy(module(x, full) - module(x, full))).max() > 1e-3


def test_08_a_failing_kernel_raises_and_disables_nothing() -> None:
    """The external tier of this test fails for one head dimension: that call raises, the others still run on it."""
    code = """
        import mlx.core as mx, natten_mlx
        import external_module
        natten_mlx.set_backend("nanobind")
        def call(dim):
            x = mx.ones((1, 8, 1, dim))
            out = natten_mlx.na1d(x, x, x, 3)
            mx.eval(out)
            return out
        before = len(external_module.CALLS)
        call(4)
        assert len(external_module.CALLS) > before
        try:
            call(external_module.FAILING_HEAD_DIM)
        except RuntimeError as error:
            assert "deliberate failure" in str(error), error
        else:
            raise AssertionError("the failure was swallowed")
        before = len(external_module.CALLS)
        call(4)
        assert len(external_module.CALLS) > before, "the tier was disabled"
        assert natten_mlx.get_support_matrix()["nanobind"]["available"]
        print("ok")
    """
    environment = {
        **os.environ,
        "NATTEN_MLX_NANOBIND_MODULE": "external_module",
        "NATTEN_STRICT": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0 and "ok" in result.stdout, result.stderr


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_09_lse_is_float32_for_half_inputs(tier: str, dtype: str) -> None:
    """Large logits make a half-precision lse wrong by more than 0.1."""
    case = Case((16,), (5,), dim=32, scale=10.0, dtype=dtype)
    arrays = rounded(case.arrays(), dtype)
    names, call = attention(case)
    _, lse = call(*(to_mlx(arrays[name], dtype) for name in names))
    expected = case.call(arrays).forward()[1]
    assert lse.dtype == mx.float32
    assert np.abs(expected).max() > 100
    assert_near(lse, expected, 1e-6)
    extra = mx.zeros((1, 2, 1, 32), to_mlx(0.0, dtype).dtype)
    inputs = [to_mlx(arrays[name], dtype) for name in names]
    _, lse = natten_mlx.na1d(*inputs, 5, scale=10.0, return_lse=True, additional_keys=extra, additional_values=extra)
    assert lse.dtype == mx.float32
    assert_near(lse, np.logaddexp(expected, np.log(2)), 1e-6)


needs_five_gib = pytest.mark.skipif(
    available_gib() < 7 or bool(os.environ.get("NATTEN_TEST_FAST_EMULATOR")),  # which keeps a record of every byte
    reason=f"needs 5 GiB of memory and 2 GiB to spare, {available_gib():.1f} GiB are available, and no emulator",
)


@needs_five_gib
def test_10_strides_past_32_bits(tier: str) -> None:
    """Query, key and value are columns of a matrix of 2^31 + 2^16 elements, read where they are."""
    tokens, width, dim = 2**15 + 1, 2**16, 4
    # Mantissas of numbers from 1 to 2, five bits from the row and five from the column: made in a second or two.
    rows = (mx.random.randint(0, 32, (tokens, 1), key=mx.random.key(0)).astype(mx.uint16) << 5) | 0x3C00
    columns = mx.random.randint(0, 32, (1, width), key=mx.random.key(1)).astype(mx.uint16)
    matrix = (rows | columns).view(mx.float16)
    mx.eval(matrix)
    assert matrix.size > 2**31
    starts = (0, width // 2, width - dim)
    views = [matrix[None, :, None, start : start + dim] for start in starts]
    dense = [(rows | columns[:, start : start + dim]).view(mx.float16)[None, :, None] for start in starts]

    def results(inputs: list[mx.array]) -> list[mx.array]:
        def loss(*arrays: mx.array) -> mx.array:
            return natten_mlx.na1d(*arrays, 5, stride=5).astype(mx.float32).sum()

        return [natten_mlx.na1d(*inputs, 5), *mx.grad(loss, argnums=(0, 1, 2))(*inputs)]

    for got, expected in zip(results(views), results(dense), strict=True):
        assert mx.array_equal(got, expected)


@needs_five_gib
def test_10_more_than_two_to_the_31_elements(tier: str) -> None:
    """The output has 2^31 + 2^16 elements; the inputs are broadcast."""
    if tier == "pure":
        pytest.skip("the reference tier takes minutes here; native and fast tiers index by hand")
    if tier == "fast_metal":
        pytest.skip("head dims of GPU kernels end at 512")
    tokens, dim = 2**15 + 1, 2**16
    row = mx.random.normal((dim,), key=mx.random.key(0)).astype(mx.float16)
    value = mx.broadcast_to(row, (1, tokens, 1, dim))
    query = mx.zeros((1, tokens, 1, 1), mx.float16)
    out = natten_mlx.na1d(query, query, value, 1)
    mx.eval(out)
    assert out.size > 2**31
    for token in (0, 1, tokens // 2, tokens - 2, tokens - 1):
        assert mx.array_equal(out[0, token, 0], row), token


@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("causal", [(True, False), (True, True)])
def test_11_partial_tiles_with_stride_and_causal(tier: str, length: int, causal: tuple[bool, bool]) -> None:
    check(Case((length, 17), (4, 5), stride=(3, 2), is_causal=causal, heads=2, dim=8))
    check(Case((length,), (7,), stride=(7,), is_causal=causal[:1], dim=8))
    check(Case((length, 9), (5, 3), gna_stride=(4, 2), is_causal=causal, dim=8))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_12_subclasses_show_every_parameter(rank: int, grouped: bool) -> None:
    base = getattr(natten_mlx, f"NeighborhoodAttention{rank}D")

    class Named(base):  # type: ignore[misc, valid-type]
        _kind = "named"

        def __init__(self) -> None:
            super().__init__(8, 4, 3, num_kv_heads=2 if grouped else None, rel_pos_bias=True)
            self._note = 1

    names = {name for name, _ in tree_flatten(Named().parameters())}
    projections = ("q_proj", "kv_proj", "proj") if grouped else ("qkv", "proj")
    assert names == {"rpb", *(f"{p}.{kind}" for p in projections for kind in ("weight", "bias"))}
    gradients = {name for name, _ in tree_flatten(Named().trainable_parameters())}
    assert gradients == names
