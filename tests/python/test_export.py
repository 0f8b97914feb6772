"""mx.export_function: inside of `exportable()` a call is made of primitives that MLX can write to a file."""

from __future__ import annotations

import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import assert_near, attention, rounded, split_av, split_qk, succeeds, to_mlx

CASES = [
    Case((9,), (4,), heads=2, rpb=True, is_causal=(True,)),
    Case((7, 8), (3, 4), heads=4, kv_heads=2, value_dim=3, stride=(2, 1), rpb=True, batch=2),
    Case((4, 5, 6), (2, 3, 3), dilation=(2, 1, 1), gna_stride=(1, 2, 1), rpb=True),
    Case((6, 7), (3, 3), extra=3, heads=2),
    Case((9,), (3,), batch=2, lengths=((5,), (9,)), rpb=True),
    Case((24, 25), (9, 9), dim=32, rpb=True),  # several blocks
    Case((9,), (4,), heads=2, dtype="bfloat16"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradient(tier: str, case: Case, tmp_path: Path) -> None:
    names, call = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    inputs = [to_mlx(arrays[name], case.dtype) for name in names]
    dout, dlse = to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])

    def loss(*inputs: mx.array) -> mx.array:
        out, lse = call(*inputs)
        return (out * dout).sum() + (lse * dlse).sum()

    with natten_mlx.exportable():
        mx.export_function(str(tmp_path / "forward"), call, *inputs)
        mx.export_function(str(tmp_path / "gradient"), mx.grad(loss, argnums=list(range(len(names)))), *inputs)
    tolerance = 1e-4 if case.dtype == "float32" else 3e-2
    out, lse = mx.import_function(str(tmp_path / "forward"))(*inputs)
    expected_out, expected_lse = case.call(arrays).forward()
    assert_near(out, expected_out, tolerance, "out")
    assert_near(lse, expected_lse, tolerance, "lse")
    expected = case.call(arrays).backward(arrays["dout"], arrays["dlse"])
    for name, gradient in zip(names, mx.import_function(str(tmp_path / "gradient"))(*inputs), strict=True):
        assert_near(gradient, expected[name], tolerance, name)


def test_padding_reaches_nothing(tmp_path: Path) -> None:
    case = Case((9,), (3,), batch=2, lengths=((5,), (9,)), is_causal=(True,))
    names, call = attention(case)
    arrays = rounded(case.arrays(), "float32")
    for name in (*names, "dout"):
        arrays[name][0, 5:] = np.nan
    inputs = [to_mlx(arrays[name]) for name in names]
    dout, dlse = to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])
    with natten_mlx.exportable():
        mx.export_function(str(tmp_path / "f"), lambda *inputs: mx.vjp(call, inputs, [dout, dlse])[1], *inputs)
    expected = case.call(arrays).backward(arrays["dout"], arrays["dlse"])
    for name, gradient in zip(names, mx.import_function(str(tmp_path / "f"))(*inputs), strict=True):
        assert_near(gradient, expected[name], 1e-4, name)


def test_split_form(tmp_path: Path) -> None:
    case = CASES[0]
    arrays = rounded(case.arrays(), "float32")
    for (names, call), expected in (
        (split_qk(case), case.call(arrays).qk()),
        (split_av(case), case.call(arrays).av(arrays["attn"])),
    ):
        inputs = [to_mlx(arrays[name]) for name in names]
        with natten_mlx.exportable():
            mx.export_function(str(tmp_path / "f"), call, *inputs)
        assert_near(mx.import_function(str(tmp_path / "f"))(*inputs)[0], expected, 1e-5)


def test_modules_and_lengths_as_inputs(tmp_path: Path) -> None:
    """A file knows nothing of this library: another process runs it with MLX alone."""
    module = natten_mlx.NeighborhoodAttention1D(8, 2, 3, is_causal=True, rel_pos_bias=True)
    x, lengths = mx.random.normal((2, 9, 8)), mx.array([5, 9])
    mx.eval(module.parameters())
    with natten_mlx.exportable():
        mx.export_function(str(tmp_path / "block.mlxfn"), module, x, lengths)
    mx.savez(str(tmp_path / "x.npz"), x=x, lengths=lengths, y=module(x, lengths))
    succeeds(
        f"import mlx.core as mx; f = mx.load(r'{tmp_path}/x.npz'); mx.set_default_device(mx.cpu)\n"
        f"y = mx.import_function(r'{tmp_path}/block.mlxfn')(f['x'], f['lengths'])[0]\n"
        "assert mx.allclose(y, f['y'], atol=1e-5)\n"
        "import os; os._exit(0)  # MLX alone, at exit: one in forty ended with `terminate`"
    )


def test_without_it_the_error_names_it(tier: str, tmp_path: Path) -> None:
    x = mx.zeros((1, 8, 2, 4))
    with pytest.raises(ValueError, match="exportable"):
        mx.export_function(str(tmp_path / "f"), lambda x: natten_mlx.na1d(x, x, x, 3), x)


def test_shapeless_export_is_refused(tmp_path: Path) -> None:
    """The file could not refuse other shapes, and its windows would be wrong for them."""
    x = mx.zeros((1, 8, 2, 4))
    with natten_mlx.exportable(), pytest.raises(ValueError, match="shapeless"):
        mx.export_function(str(tmp_path / "f"), lambda x: natten_mlx.na1d(x, x, x, 3), x, shapeless=True)


def test_it_is_of_its_thread_nests_and_ends_with_an_error(tier: str) -> None:
    x = mx.zeros((1, 8, 2, 4))

    def tier_of_a_call() -> str:
        return natten_mlx.explain(x, x, x, 3).tier

    def tier_in_a_thread() -> str:
        found = []
        thread = threading.Thread(target=lambda: found.append(tier_of_a_call()))
        thread.start()
        thread.join()
        return found[0]

    outside, elsewhere = tier_of_a_call(), tier_in_a_thread()
    with natten_mlx.exportable():
        with natten_mlx.exportable():
            pass
        assert tier_of_a_call() == "pure"
        assert tier_in_a_thread() == elsewhere
        why = set(natten_mlx.explain((1, 8, 1, 4), (1, 8, 1, 4), (1, 8, 1, 4), 3).declined.values())
        assert why == {"calls inside exportable() are made of MLX's operations"}
    with pytest.raises(KeyError), natten_mlx.exportable():
        raise KeyError
    assert tier_of_a_call() == outside
