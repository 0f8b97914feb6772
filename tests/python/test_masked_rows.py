"""Queries all of whose logits are -inf: out 0, lse -inf, gradients 0, so that what is masked by hand can be merged."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import assert_near, attention, rounded, to_mlx, to_numpy, vjp

CASES = [
    Case((9,), (4,), heads=2, rpb=True, dim=8),
    Case((12,), (3,), heads=2, rpb=True, is_causal=(True,), dilation=(2,), stride=(3,), dim=5),
    Case((7, 8), (3, 4), heads=4, kv_heads=2, rpb=True, value_dim=3, batch=2),
    Case((6, 7), (3, 3), heads=2, rpb=True, gna_stride=(2, 1), is_causal=(False, True)),
    Case((9,), (3,), batch=2, heads=2, lengths=((5,), (9,)), rpb=True),
    Case((4, 5, 6), (3, 2, 3), heads=2, rpb=True),
    Case((9,), (4,), heads=2, rpb=True, extra=2),
    Case((64,), (31,), heads=2, rpb=True, dim=32),
    Case((24, 25), (9, 9), heads=2, rpb=True, dim=32),  # several blocks of the pure tier
    Case((40,), (7,), heads=2, rpb=True, dim=16, dtype="float16"),
    Case((40,), (7,), heads=2, rpb=True, dim=64, dtype="bfloat16"),
]


def masked(case: Case) -> dict[str, np.ndarray]:
    """Head 0 sees nothing, head 1 no key before its query: none at the end of the axis where windows are cut there."""
    arrays = rounded(case.arrays(), case.dtype)
    arrays["rpb"][0] = -np.inf
    arrays["rpb"][1][..., : case.kernel_size[-1] - 1] = -np.inf
    arrays["rpb"][1][..., case.kernel_size[-1] // 2 + case.kernel_size[-1] :] = -np.inf
    return arrays


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_rows(tier: str, case: Case) -> None:
    names, call = attention(case)
    arrays = masked(case)
    inputs = [to_mlx(arrays[name], case.dtype) for name in names]
    reference = case.call(arrays)
    expected_out, expected_lse = reference.forward()
    if case.extra is None and case.lengths is None:
        assert np.isneginf(expected_lse[..., 0]).all() and np.isfinite(expected_lse[..., 1]).any()
    out, lse = call(*inputs)
    tolerance = 1e-4 if case.dtype == "float32" else 2e-2
    assert_near(out, expected_out, tolerance, "out")
    assert_near(lse, expected_lse, tolerance, "lse")
    for cotangents in ((arrays["dout"], arrays["dlse"]), (arrays["dout"], np.zeros_like(arrays["dlse"]))):
        dout, dlse = (to_mlx(x, dtype) for x, dtype in zip(cotangents, (case.dtype, "float32"), strict=True))
        expected = reference.backward(to_numpy(dout), to_numpy(dlse))
        for name, gradient in zip(names, vjp(call, inputs, [dout, dlse]), strict=True):
            assert_near(gradient, expected[name], tolerance, name)


def test_masked_rows_can_be_merged(tier: str) -> None:
    """Two calls that see disjoint halves of a window make the call that sees all of it, forward and backward."""
    case = Case((10,), (5,), heads=2, rpb=True)
    names, call = attention(case)
    arrays = rounded(case.arrays(), "float32")
    inputs = [to_mlx(arrays[name]) for name in names]
    past = mx.array([0.0] * 4 + [-np.inf] * 5)

    def in_two(q: mx.array, k: mx.array, v: mx.array, rpb: mx.array) -> list[mx.array]:
        parts = [call(q, k, v, rpb + half) for half in (past, past[::-1], mx.full((9,), -mx.inf))]
        # The key at the query itself is in neither half.
        own = (q * k).sum(axis=-1) * 4**-0.5 + rpb[:, 4]
        parts.append([v, own])
        return list(natten_mlx.merge_attentions([out for out, _ in parts], [lse for _, lse in parts]))

    expected_out, expected_lse = case.call(arrays).forward()
    out, lse = in_two(*inputs)
    assert_near(out, expected_out, 1e-5)
    assert_near(lse, expected_lse, 1e-5)
    expected = case.call(arrays).backward(arrays["dout"], arrays["dlse"])
    cotangents = [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])]
    for name, gradient in zip(names, vjp(in_two, inputs, cotangents), strict=True):
        assert_near(gradient, expected[name], 1e-4, name)
