"""How time and memory grow with tokens, window, head dim, batch, heads and threads, with fitted slopes.

The claim: time is linear in the tokens and in the size of the window (kernel_size ** rank), memory is linear in the
tokens and does not depend on the window. Dense attention is measured beside it, with the point where the two cross.
All of it on one thread, by the CPU clock, which other programs do not disturb; threads by the clock on the wall.

    python benchmarks/scaling.py [--tier nanobind] [--seconds 0.3] [--quick] --json scaling.json --plot scaling.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

import natten_mlx
from natten_mlx import _ext
from natten_mlx.bench import cost, memory, plots, report
from natten_mlx.bench.calls import Call, make_call, normal, parse_tiers
from natten_mlx.bench.cases import FORWARD, STEP, Case
from natten_mlx.bench.machine import Limits
from natten_mlx.bench.measure import Plan, Samples, one_round
from natten_mlx.bench.table import header

Series = dict[str, Any]


def slope(points: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Least squares in logarithms: y = exp(intercept) * x ** slope."""
    fitted = np.polyfit(np.log([p["x"] for p in points]), np.log([p["y"] for p in points]), 1)
    return float(fitted[0]), float(fitted[1])


class Study:
    """Collects series of points."""

    def __init__(self, tier: str, plan: Plan) -> None:
        self.tier, self.plan, self.limits = tier, plan, Limits(plan.cpu_clock)
        self.series: list[Series] = []

    def time(self, call: Call) -> float:
        """Milliseconds: the least of a round, which a busy machine disturbs least."""
        samples = Samples(self.plan.trim_head)
        with natten_mlx.backend(self.tier):
            for _ in range(self.plan.rounds):
                one_round(call, self.plan, samples, self.limits)
        return 1e3 * samples.statistics()["min"]

    def add(
        self,
        panel: str,
        label: str,
        x_label: str,
        points: Sequence[tuple[float, float]],
        unit: str,
        dense: bool = False,
    ) -> Series:
        """Fits and keeps a series. Points of 0 (memory below the resolution of a page) have no logarithm."""
        kept = [{"x": float(x), "y": float(y)} for x, y in points if y > 0]
        fitted, intercept = slope(kept) if len(kept) > 1 else (float("nan"), float("nan"))
        found = {
            "panel": panel,
            "label": label,
            "x_label": x_label,
            "y_label": unit,
            "dense": dense,
            "points": kept,
            "slope": fitted,
            "intercept": intercept,
        }
        self.series.append(found)
        print(
            f"{panel:34} {label:34} slope {fitted:5.2f}   {x_label} {kept[0]['x']:g} to {kept[-1]['x']:g}", flush=True
        )
        return found

    def times(self, panel: str, x_label: str, cases: Sequence[tuple[float, Case]], label: str = "") -> Series:
        """The forward and the full step of cases that grow in one respect. Returns the forward's series."""
        found = []
        for direction in (FORWARD, STEP):
            points = [(x, self.time(make_call(case, direction))) for x, case in cases]
            found.append(self.add(panel, f"{label} {direction}".strip(), x_label, points, "ms"))
        return found[0]

    def memories(self, panel: str, x_label: str, cases: Sequence[tuple[float, Case]], label: str = "") -> None:
        """Peak extra memory of the same."""
        for direction in (FORWARD, STEP):
            points = [(x, memory.measure(case, direction, self.tier) or 0.0) for x, case in cases]
            self.add(panel, f"{label} {direction}".strip(), x_label, points, "MiB of extra memory")


def line(length: int, kernel: int, **changes: Any) -> Case:
    """1-D, 4 heads of 32."""
    shape = (changes.pop("batch", 1), length, changes.pop("heads", 4), changes.pop("dim", 32))
    return Case(f"l{length}_k{kernel}", shape, kernel, **changes)


def image(side: int, kernel: int, **changes: Any) -> Case:
    """2-D, 4 heads of 32."""
    shape = (changes.pop("batch", 1), side, side, changes.pop("heads", 4), changes.pop("dim", 32))
    return Case(f"s{side}_k{kernel}", shape, kernel, **changes)


def volume(side: int, kernel: int) -> Case:
    """3-D, 4 heads of 32."""
    return Case(f"v{side}_k{kernel}", (1, side, side, side, 4, 32), kernel)


def sdpa(length: int) -> Call:
    """MLX's dense attention on the same tokens."""
    query, key, value = (normal((1, 4, length, 32), seed, "float32") for seed in range(3))
    mx.eval(query, key, value)
    return lambda: [mx.fast.scaled_dot_product_attention(query, key, value, scale=32**-0.5)]


def crossing(near: Series, dense: Series) -> dict[str, Any]:
    """Tokens at which the fitted lines meet: above, neighborhood attention is faster."""
    tokens = float(np.exp((near["intercept"] - dense["intercept"]) / (dense["slope"] - near["slope"])))
    return {"near": near["label"], "dense": dense["label"], "tokens": tokens, "measured_from": dense["points"][0]["x"]}


def run(study: Study, quick: bool) -> list[dict[str, Any]]:
    """Every series; returns the crossings."""

    def some(values: Sequence[int]) -> Sequence[int]:
        return values[:3] if quick else values

    kernel = 31
    lengths = some([256, 512, 1024, 2048, 4096, 8192, 16384, 32768])
    near = study.times("tokens, 1-D K 31", "tokens", [(n, line(n, kernel)) for n in lengths])
    short = some([256, 512, 1024, 2048])
    ours = [(n, study.time(make_call(line(n, n), FORWARD))) for n in short]
    whole = study.add("tokens, 1-D K 31", "dense: window = all, forward", "tokens", ours, "ms", dense=True)
    theirs = [(n, study.time(sdpa(n))) for n in short]
    other = study.add("tokens, 1-D K 31", "dense: MLX SDPA, forward", "tokens", theirs, "ms", dense=True)
    crossings = [crossing(near, whole), crossing(near, other)]
    study.times("tokens, 2-D K 7", "tokens", [(s * s, image(s, 7)) for s in some([16, 32, 64, 128, 256])])

    kernels = some([7, 15, 31, 63, 127, 255, 511])
    study.times("window, 1-D 4096 tokens", "keys of a window", [(k, line(4096, k)) for k in kernels])
    study.times("window, 2-D 64x64", "keys of a window", [(k**2, image(64, k)) for k in some([3, 5, 7, 9, 13, 17, 25])])
    study.times("window, 3-D 16x16x16", "keys of a window", [(k**3, volume(16, k)) for k in some([3, 5, 7, 9])])

    study.times("head dim, 2-D 56x56 K 7", "head dim", [(d, image(56, 7, dim=d)) for d in some([16, 32, 64, 128, 256])])
    study.times("batch, 2-D 28x28 K 7", "batch", [(b, image(28, 7, batch=b)) for b in some([1, 2, 4, 8, 16, 32])])
    study.times("heads, 2-D 28x28 K 7", "heads", [(h, image(28, 7, heads=h)) for h in some([1, 2, 4, 8, 16, 32])])
    threads(study)

    sides = some([32, 64, 128, 256])
    study.memories("memory, 2-D K 13", "tokens", [(s * s, image(s, 13)) for s in sides])
    study.memories("memory, 2-D 128x128", "keys of a window", [(k * k, image(128, k)) for k in some([3, 7, 13, 25])])
    return crossings


def threads(study: Study) -> None:
    """Time against threads, up to what this process may use."""
    _ext.set_cpu_threads(0)
    most, plan = _ext.cpu_threads(), study.plan
    study.plan = replace(plan, cpu_clock=False, rounds=4 * plan.rounds)
    cases: list[tuple[str, Callable[[], Case]]] = [
        ("2-D 128x128 K 13", lambda: image(128, 13)),
        ("one head", lambda: image(128, 13, heads=1)),
    ]
    counts = [1]
    while 2 * counts[-1] <= most:
        counts.append(2 * counts[-1])
    for label, case in cases:
        for direction in (FORWARD, STEP):
            points = []
            for count in counts:
                _ext.set_cpu_threads(count)
                points.append((count, study.time(make_call(case(), direction))))
            study.add("threads", f"{label} {direction}", "threads", points, "ms")
    _ext.set_cpu_threads(1)
    study.plan = plan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default=natten_mlx.get_backend())
    parser.add_argument("--seconds", type=float, default=0.3, help="of one point at most")
    parser.add_argument("--quick", action="store_true", help="only the first three points of each series")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    try:
        report.check_writable(args.json, args.plot)
        if args.plot:
            plots.figure()
        (tier,) = parse_tiers([args.tier])
        plan = Plan(warmup=2, trials=15, trim_head=0, rounds=2, seconds=args.seconds, cpu_clock=True)
        if not natten_mlx.get_support_matrix()[tier]["available"]:
            raise ValueError(f"{tier} is unavailable: {natten_mlx.get_support_matrix()[tier]['reason']}")
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    _ext.set_cpu_threads(1)
    study = Study(tier, plan)
    crossings = run(study, args.quick)
    for found in crossings:
        print(f"{found['near']} is faster than {found['dense']} from {found['tokens']:.0f} tokens on")
    result = {**header("scaling", plan, study.limits), "tier": tier, "series": study.series, "crossings": crossings}
    peak = cost.percent(study.limits.summary()["fma_gflops"]["median"], study.limits.summary()["fma_gflops"]["best"])
    print(f"the machine gave {peak:.0f}% of its best peak, in the median of this run")
    if args.json:
        report.write_json(args.json, result)
    if args.plot:
        plots.scaling(result, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
