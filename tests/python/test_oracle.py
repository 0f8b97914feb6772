"""The oracle itself, on its own: windows of the definition's examples, and a naive loop over single queries.

Upstream's results (test_parity) and the pure tier, whose gradients are MLX's own (test_attention, in float64 to 1e-11;
test_merge), check all the rest of it.
"""

from __future__ import annotations

import numpy as np
import pytest

from cases import Case
from oracle import Axis

GOLDEN = [
    (Axis(7, 4), "0123 0123 0123 1234 2345 3456 3456"),
    (Axis(8, 4, gna_stride=2), "0123 0123 1234 1234 3456 3456 4567 4567"),
    (Axis(8, 4, gna_stride=4), "0123 0123 0123 0123 4567 4567 4567 4567"),
    (Axis(7, 4, gna_stride=2, is_causal=True), "0 01 012 0123 234 2345 3456"),
    (Axis(11, 4, gna_stride=2, dilation=2), "0246 1357 0246 1357 2468 3579 2468 3579 468A 3579 468A"),
    (Axis(7, 3, gna_stride=2, dilation=2, is_causal=True), "0 1 02 13 24 135 246"),
]


@pytest.mark.parametrize("axis, windows", GOLDEN)
def test_golden_windows(axis: Axis, windows: str) -> None:
    assert [axis.keys(i) for i in range(axis.length)] == [[int(c, 16) for c in window] for window in windows.split()]


SMALL = [
    Case((5, 4), (3, 2), is_causal=(False, True), heads=4, kv_heads=2, dim=3, value_dim=2, rpb=True, extra=2),
    Case((7,), (3,), stride=(2,), dilation=(2,), batch=2, heads=2, dim=2, lengths=((6,), (7,)), rpb=True),
    Case((4, 3, 3), (2, 2, 3), gna_stride=(2, 1, 1), dim=2, value_dim=3, is_causal=(True, False, False)),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_forward_against_one_query_at_a_time(case: Case) -> None:
    arrays = case.arrays()
    call = case.call(arrays)
    out, lse = call.forward()
    scale = case.dim**-0.5
    group = case.heads // case.kv_heads
    for b in range(case.batch):
        axes = call.geometry.sample_axes(b)
        for row in np.ndindex(*(len(axis.queries()) for axis in axes)):
            position = tuple(r * axis.stride for r, axis in zip(row, axes, strict=True))
            windows = [axis.keys(p) for axis, p in zip(axes, position, strict=True)]
            for h in range(case.heads):
                query = arrays["query"][(b, *position, h)]
                logits, values = [], []
                for index in np.ndindex(*map(len, windows)):
                    key = tuple(w[i] for w, i in zip(windows, index, strict=True))
                    logit = scale * (query @ arrays["key"][(b, *key, h // group)])
                    if case.rpb:
                        logit += arrays["rpb"][
                            (h, *(a.bias_index(p, j) for a, p, j in zip(axes, position, key, strict=True)))
                        ]
                    logits.append(logit)
                    values.append(arrays["value"][(b, *key, h // group)])
                for token in range(case.extra or 0):
                    logits.append(scale * (query @ arrays["additional_keys"][b, token, h // group]))
                    values.append(arrays["additional_values"][b, token, h // group])
                weights = np.exp(logits)
                np.testing.assert_allclose(out[(b, *row, h)], weights @ np.array(values) / weights.sum(), rtol=1e-12)
                np.testing.assert_allclose(lse[(b, *row, h)], np.log(weights.sum()), rtol=1e-12, atol=1e-13)
