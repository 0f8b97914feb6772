"""The oracle itself: golden vectors, a naive loop over single queries, and central differences of every gradient."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

import oracle
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


def test_last_query_of_an_even_window_sees_the_border() -> None:
    assert Axis(8, 4).keys(7) == [4, 5, 6, 7]


def test_causal_slots_end_at_the_query() -> None:
    axis = Axis(7, 4, is_causal=True)
    assert [axis.slot(1, key) for key in axis.keys(1)] == [2, 3]
    assert [axis.slot(5, key) for key in axis.keys(5)] == [0, 1, 2, 3]


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


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_split_form_composes_to_attention(case: Case) -> None:
    case = case.with_(extra=None)
    call = case.call(case.arrays())
    logits = call.qk()
    live = call.geometry.tables()[0].any(axis=2).reshape(case.batch, *case.output)
    weights = np.where(live[..., None, None], np.exp(logits), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(call.av(weights / np.where(total == 0, 1, total)), call.forward()[0], atol=1e-13)


def central_difference(function, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        saved = x[index]
        x[index] = saved + step
        high = function()
        x[index] = saved - step
        gradient[index] = (high - function()) / (2 * step)
        x[index] = saved
    return gradient


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_attention_gradients(case: Case) -> None:
    arrays = case.arrays()

    def value() -> float:
        out, lse = case.call(arrays).forward()
        return (out * arrays["dout"]).sum() + (lse * arrays["dlse"]).sum()

    grads = case.call(arrays).backward(arrays["dout"], arrays["dlse"])
    assert set(grads) == set(case.shapes())
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, central_difference(value, arrays[name]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_split_gradients(case: Case) -> None:
    case = case.with_(extra=None)
    arrays = case.arrays()

    def logits() -> float:
        slots = case.call(arrays).qk()
        return (np.where(np.isfinite(slots), slots, 0.0) * arrays["dlogits"]).sum()

    def output() -> float:
        return (case.call(arrays).av(arrays["attn"]) * arrays["dout"]).sum()

    for name, gradient in case.call(arrays).qk_backward(arrays["dlogits"]).items():
        np.testing.assert_allclose(gradient, central_difference(logits, arrays[name]), rtol=1e-6, atol=1e-8)
    for name, gradient in case.call(arrays).av_backward(arrays["attn"], arrays["dout"]).items():
        np.testing.assert_allclose(gradient, central_difference(output, arrays[name]), rtol=1e-6, atol=1e-8)


def test_merge_is_joint_attention_and_its_gradient() -> None:
    rng = np.random.default_rng(0)
    logits, values = rng.standard_normal((4, 9)), rng.standard_normal((9, 3))
    parts = [slice(0, 2), slice(2, 5), slice(5, 9)]
    weights = [np.exp(logits[:, part]) for part in parts]
    outputs = [w @ values[part] / w.sum(axis=1, keepdims=True) for w, part in zip(weights, parts, strict=True)]
    lses = [np.log(w.sum(axis=1)) for w in weights]
    out, lse = oracle.merge(outputs, lses)
    joint = np.exp(logits)
    np.testing.assert_allclose(out, joint @ values / joint.sum(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(lse, np.log(joint.sum(axis=1)), rtol=1e-12)

    dout, dlse = rng.standard_normal(out.shape), rng.standard_normal(lse.shape)

    def value() -> float:
        merged, merged_lse = oracle.merge(outputs, lses)
        return (merged * dout).sum() + (merged_lse * dlse).sum()

    douts, dlses = oracle.merge_backward(outputs, lses, dout, dlse)
    for x, gradient in zip([*outputs, *lses], [*douts, *dlses], strict=True):
        np.testing.assert_allclose(gradient, central_difference(value, x), rtol=1e-6, atol=1e-8)


def test_merge_of_nothing_is_zero() -> None:
    out, lse = oracle.merge([np.ones((2, 3))] * 2, [np.full(2, -np.inf)] * 2)
    assert np.all(out == 0) and np.all(np.isneginf(lse))


def test_number_of_slots() -> None:
    case = SMALL[0]
    assert case.call(case.arrays()).qk().shape[-1] == prod(case.kernel_size)
