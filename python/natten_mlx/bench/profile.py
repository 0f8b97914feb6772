"""One call taken apart: what runs it, what it must cost, what it does cost, and what would make it faster."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx

import natten_mlx
from natten_mlx import _ext
from natten_mlx.bench import cost
from natten_mlx.bench.calls import Call, differentiated, function, inputs, normal
from natten_mlx.bench.cases import FORWARD, GRAD_QUERY, STEP, Case
from natten_mlx.bench.machine import Limits
from natten_mlx.bench.measure import once

DOMINATED = 0.5
"""A part of the time from which a hint is given."""


@dataclass(frozen=True)
class Stage:
    """One part of a call, in seconds (median; None: there was no time), with what the machine's limits would allow."""

    name: str
    seconds: float | None
    bound: cost.Roofline | None = None
    flops: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Profile:
    """Everything that `natten-mlx profile` prints."""

    case: Case
    explanation: natten_mlx.support_matrix.Explanation
    fma_rate: float
    copy_rate: float
    waste: float
    """Part of the window's slots that hold no key (causal windows near the start or with a GNA stride)."""
    border: float
    """Part of the queries whose window is shifted or cut by a border."""
    stages: list[Stage]
    hints: list[str] = field(default_factory=list)


class Budget:
    """Seconds that all measurements of a profile share."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def median(self, call: Callable[[], object], part: float, expected: float = 0.0) -> float | None:
        """Of as many runs as fit into `part` of what is left, 200 at most; None where not even one is expected to fit.

        The first run warms up; it counts where there is no time for another.
        """
        begin = time.perf_counter()
        left = self._end - begin
        if expected > left or left <= 0:
            return None
        samples: list[float] = []
        while len(samples) <= 200:
            start = time.perf_counter()
            call()
            end = time.perf_counter()
            samples.append(end - start)
            if end - begin + min(samples) > part * left:
                break
        return statistics.median(samples[1:] or samples)


def _evaluated(call: Call) -> Callable[[], object]:
    return lambda: once(call)


def _calls(case: Case, arrays: list[mx.array]) -> dict[str, Call]:
    """A call for each direction."""
    run = function(case)
    out = run(*arrays)
    cotangent = normal(out.shape, len(arrays), case.dtype)
    mx.eval(arrays, cotangent)
    return {direction: differentiated(run, arrays, direction, cotangent) for direction in case.directions}


def _smallest(case: Case) -> Case:
    """The same call on the least input: all that is left is its fixed cost."""
    dilation = case.dilation if isinstance(case.dilation, tuple) else (case.dilation,) * case.rank
    spatial = tuple(k * d for k, d in zip((1,) * case.rank, dilation, strict=True))
    return Case("smallest", (1, *spatial, 1, 1), 1, dilation=case.dilation, dtype=case.dtype, form=case.form)


def stage_count(case: Case) -> int:
    """How often `profile` announces what it does."""
    return 3 + len(case.directions) + (3 if case.form == "split" else 0)


def profile(
    case: Case,
    kv_heads: int | None = None,
    value_dim: int | None = None,
    seconds: float = 5.0,
    progress: Callable[[str], None] = lambda stage: None,
) -> Profile:
    """Measures the case on the chosen tier. The forward is measured in any case, the rest as far as `seconds` reach."""
    *outer, heads, dim = case.shape
    key = (*outer, heads if kv_heads is None else kv_heads, dim)
    value = (*key[:-1], dim if value_dim is None else value_dim)
    options = {"dtype": getattr(mx, case.dtype), **case.neighborhood()}
    natten_mlx.explain(case.shape, key, value, **options)  # validates
    op = "attention" if case.form == "fused" else "qk"
    explanation = natten_mlx.explain(case.shape, key, value, op=op, **options)
    if not case.shape[0]:
        raise ValueError(f"[{case.function}] a batch of 0 has nothing to measure")
    budget = Budget(seconds)
    progress("inputs")
    arrays = inputs(case, kv_heads, value_dim)
    size = cost.size(case, kv_heads, value_dim)
    limits = Limits()

    progress("fixed cost, machine")
    smallest = _calls(_smallest(case), inputs(_smallest(case)))
    fixed = {direction: budget.median(_evaluated(call), 0.02) for direction, call in smallest.items()}
    limits.sample_fma()
    limits.sample_copy()
    calls = _calls(case, arrays)
    operations = {direction: cost.flops(case.form, direction, size) for direction in calls}
    whole: dict[str, float | None] = {}
    for direction, call in calls.items():
        progress(direction)
        limits.sample_fma()
        done = whole.get(FORWARD)
        if done is None:
            whole[direction] = budget.median(_evaluated(call), 0.2) or once(call)
        else:
            whole[direction] = budget.median(_evaluated(call), 0.4, done * operations[direction] / operations[FORWARD])
    progress("graph")
    stages = [Stage("graph: validation, choice of tier, nodes", budget.median(calls[FORWARD], 0.1))]
    fma, copy = statistics.median(limits.fma_rates), statistics.median(limits.copy_rates)

    labels = {FORWARD: "forward", GRAD_QUERY: "forward and dquery", STEP: "forward and every gradient"}
    for direction, measured in whole.items():
        moved = cost.compulsory_bytes(case.form, direction, size)
        bound = cost.roofline(operations[direction], moved, fma, copy, fixed[direction] or 0.0)
        stages.append(Stage(labels.get(direction, direction), measured, bound, operations[direction], moved))
    stages += _split_stages(case, arrays, budget, whole[FORWARD] or 0.0, progress)

    slots = math.prod(case.kernel) * size.queries
    result = Profile(case, explanation, fma, copy, 1.0 - size.pairs / slots, cost.border(case), stages)
    result.hints.extend(_hints(result, size))
    return result


def _split_stages(
    case: Case, arrays: list[mx.array], budget: Budget, forward: float, progress: Callable[[str], None]
) -> list[Stage]:
    """The split form tells its parts."""
    if case.form != "split":
        return []
    options = case.neighborhood()
    qk, av = (getattr(natten_mlx, f"{case.function}_{name}") for name in ("qk", "av"))
    logits = qk(*arrays[:2], **options)
    weights = mx.softmax(logits, axis=-1, precise=True)
    mx.eval(logits, weights)
    parts: dict[str, Call] = {
        "  of the forward: qk": lambda: [qk(*arrays[:2], **options)],
        "  of the forward: softmax": lambda: [mx.softmax(logits, axis=-1, precise=True)],
        "  of the forward: av": lambda: [av(weights, arrays[2], **options)],
    }
    stages = []
    for name, part in parts.items():
        progress(name.strip())
        stages.append(Stage(name, budget.median(_evaluated(part), 0.3, forward)))
    return stages


def _hints(found: Profile, size: cost.Size) -> list[str]:
    """What would make this call faster, most weighty first."""
    case, tier = found.case, found.explanation.tier
    hints = [f"{name} declined: {reason}" for name, reason in found.explanation.declined.items()]
    forward = next(stage for stage in found.stages if stage.name == "forward")
    if tier == "pure":
        hints.append("the tier pure is plain MLX operations; a compiled tier is many times faster where it can run")
    if any(stage.seconds is None for stage in found.stages):
        hints.append("not everything fitted into the time: --seconds gives it more")
    if forward.bound is not None and forward.bound.dispatch > DOMINATED * (forward.seconds or 0.0):
        hints.append("the fixed cost of a call dominates: put more samples or heads into one call")
    if mx.default_device().type == mx.DeviceType.cpu:
        lanes = _ext.float_lanes()
        for name, dim in (("head dim", size.head_dim), ("value dim", size.value_dim)):
            if dim % lanes:
                hints.append(f"{name} {dim} is no multiple of the {lanes} vector lanes: pad it, or choose another")
        if case.dtype == "float64":
            hints.append("float64 runs on the tier pure only")
    if case.form == "split":
        hints.append("the split form writes and reads its logits and weights: the fused call does not")
    if found.waste > 0.1:
        hints.append(
            f"{100 * found.waste:.0f}% of the window's slots hold no key: causal axes near the start, or a GNA stride"
        )
    if found.border > DOMINATED:
        hints.append(f"{100 * found.border:.0f}% of the queries are near a border: the kernel is large here")
    covers = all(k * d == n for k, d, n in zip(case.kernel, _spread(case), case.shape[1:-2], strict=True))
    if covers and not case.is_causal and all(d == 1 for d in _spread(case)):
        hints.append("the window covers the whole input: this is dense attention")
    if forward.bound is not None and forward.bound.bound == "memory" and case.dtype == "float32":
        hints.append("bound by memory: float16 or bfloat16 inputs halve the bytes")
    return hints or ["nothing stands out"]


def _spread(case: Case) -> tuple[int, ...]:
    return case.dilation if isinstance(case.dilation, tuple) else (case.dilation,) * case.rank
