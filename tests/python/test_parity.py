"""Upstream NATTEN's own results (tests/data/golden): a required gate on every tier."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import assert_near, attention, split_av, split_qk, to_mlx, to_numpy, vjp

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
ENTRIES = json.loads((GOLDEN / "manifest.json").read_text())["cases"]


def heads_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -2)


def right_aligned(slots: np.ndarray, case: Case, empty: float) -> np.ndarray:
    """Upstream counts causal slots from the window's first key; here the last slot is the query itself."""
    spread = slots.reshape(*slots.shape[:-1], *case.kernel_size)
    result = np.full_like(spread, empty)
    for position in np.ndindex(*case.spatial):
        source, target = [], []
        for place, kernel, dilation, causal in zip(
            position, case.kernel_size, case.dilation, case.is_causal, strict=True
        ):
            held = min(kernel, place // dilation + 1) if causal else kernel
            source.append(slice(0, held))
            target.append(slice(kernel - held, kernel))
        at = (slice(None), *position, slice(None))
        result[(*at, *target)] = spread[(*at, *source)]
    return result.reshape(slots.shape)


@cache
def load(file: str) -> tuple[Case, dict[str, np.ndarray]]:
    entry = next(entry for entry in ENTRIES if entry["file"] == file)
    case = Case(
        spatial=tuple(entry["spatial"]),
        kernel_size=tuple(entry["kernel_size"]),
        dilation=tuple(entry["dilation"]),
        is_causal=tuple(entry["is_causal"]),
        batch=entry["batch"],
        heads=entry["heads"],
        dim=entry["dim"],
        scale=entry["scale"],
        rpb=entry["has_rpb"],
    )
    with np.load(GOLDEN / file) as stored:
        arrays = {name: stored[name] for name in stored}
    upstream = {name: x if name in ("rpb", "drpb") else heads_last(x) for name, x in arrays.items()}
    renamed = {"q": "query", "k": "key", "v": "value"}
    upstream = {renamed.get(name, name): x for name, x in upstream.items()}
    for name, empty in (("logits", -np.inf), ("probs", 0.0), ("dlogits", 0.0), ("dprobs", 0.0)):
        upstream[name] = right_aligned(upstream[name], case, empty)
    return case, upstream


FILES = [entry["file"] for entry in ENTRIES]


def test_every_file_is_listed() -> None:
    assert len(FILES) == 62
    assert sorted(FILES) == sorted(path.name for path in GOLDEN.glob("*.npz"))


@pytest.mark.parametrize("file", FILES)
def test_oracle_agrees(file: str) -> None:
    case, golden = load(file)
    tolerance = 1e-10 if "float64" in file else 2e-6
    call = case.call(golden)
    assert_near(call.forward()[0], golden["out"], tolerance, "out")
    assert_near(call.qk(), golden["logits"], tolerance, "logits")
    grads = call.backward(golden["dout"])
    for name, upstream in (("query", "dq"), ("key", "dk"), ("value", "dv"), ("rpb", "drpb")):
        if upstream in golden:
            assert_near(grads[name], golden[upstream], tolerance, upstream)


def check_fused(case: Case, golden: dict[str, np.ndarray], dtype: str, forward: float, backward: float) -> None:
    names, call = attention(case)
    inputs = [to_mlx(golden[name], dtype) for name in names]
    out, lse = call(*inputs)
    assert_near(out, golden["out"], forward, "out")
    grads = vjp(call, inputs, [to_mlx(golden["dout"], dtype), mx.zeros_like(lse)])
    for name, gradient in zip(names, grads, strict=True):
        upstream = {"query": "dq", "key": "dk", "value": "dv", "rpb": "drpb"}[name]
        assert_near(gradient, golden[upstream], backward, upstream)


def check_split(case: Case, golden: dict[str, np.ndarray], dtype: str, forward: float, backward: float) -> None:
    """logits, probabilities and the gradients of each step, chained as upstream chains them."""
    names, qk = split_qk(case)
    inputs = [to_mlx(golden[name], dtype) for name in names]
    (logits,) = qk(*inputs)
    assert_near(logits, golden["logits"], forward, "logits")
    weights = np.exp(to_numpy(logits))
    assert_near(weights / weights.sum(axis=-1, keepdims=True), golden["probs"], forward, "probs")
    grads = vjp(qk, inputs, [to_mlx(golden["dlogits"], dtype)])
    for name, gradient in zip(names, grads, strict=True):
        upstream = {"query": "dq", "key": "dk", "rpb": "drpb"}[name]
        assert_near(gradient, golden[upstream], backward, upstream)

    _, av = split_av(case)
    inputs = [to_mlx(golden[name], dtype) for name in ("probs", "value")]
    assert_near(av(*inputs)[0], golden["out"], forward, "out of av")
    dprobs, dv = vjp(av, inputs, [to_mlx(golden["dout"], dtype)])
    assert_near(dprobs, golden["dprobs"], backward, "dprobs")
    assert_near(dv, golden["dv"], backward, "dv")


@pytest.mark.parametrize("file", FILES)
def test_upstream(tier: str, file: str) -> None:
    case, golden = load(file)
    check_fused(case, golden, "float32", 1e-5, 1e-4)
    check_split(case, golden, "float32", 1e-5, 1e-4)


@pytest.mark.parametrize("file", [file for file in FILES if "float64" in file])
def test_upstream_in_float64(file: str) -> None:
    case, golden = load(file)
    with natten_mlx.backend("pure"):
        check_fused(case, golden, "float64", 1e-10, 1e-10)
        check_split(case, golden, "float64", 1e-10, 1e-10)


def test_realignment_is_not_idle() -> None:
    """A causal file whose slots need moving; guards the test above against comparing nothing."""
    _, golden = load("v0.17.1_na1d_s12_k5_d1_cT_nob_b1h2e4_float64.npz")
    logits = golden["logits"][0]  # [L, heads, slots]
    assert np.isneginf(logits[0, :, :4]).all() and np.isfinite(logits[0, :, 4]).all()
    assert np.isfinite(logits[4:]).all()
