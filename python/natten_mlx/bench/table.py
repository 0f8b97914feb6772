"""Measures cases on tiers: the work behind `natten-mlx bench table`, which the other benchmarks share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import natten_mlx
from natten_mlx.bench import cases as table_of_cases
from natten_mlx.bench import cost, memory
from natten_mlx.bench.calls import REFERENCE, Call, Choice, Reference, choice, make_call, support_rows
from natten_mlx.bench.cases import Case
from natten_mlx.bench.machine import Limits, describe
from natten_mlx.bench.measure import Plan, Samples, one_round, plan_options

OK, WRONG, DECLINED = "ok", "wrong", "declined"
Row = dict[str, Any]
Report = dict[str, Any]
Progress = Callable[[str], None]


def header(kind: str, plan: Plan, limits: Limits) -> Report:
    """What every report starts with."""
    tiers = {name: {"available": row["available"], "reason": row["reason"]} for name, row in support_rows().items()}
    return {
        "kind": kind,
        "cases_version": table_of_cases.VERSION,
        "machine": describe(),
        "limits": limits.summary(),
        "tiers": tiers,
        "plan": plan_options(plan),
    }


def measure_direction(
    case: Case,
    direction: str,
    choices: dict[str, Choice],
    plan: Plan,
    limits: Limits,
    expected: Reference,
    timed: Sequence[str] | None = None,
) -> list[Row]:
    """Checks, then times one direction of a case on each tier, the tiers taking turns in every round.

    `timed` are the tiers to time (default: all).
    """
    rows: list[Row] = []
    calls: dict[str, tuple[Row, Call, Samples]] = {}
    for tier, chosen in choices.items():
        row: Row = {"case": case.name, "call": case.describe(), "direction": direction, "tier": tier}
        rows.append(row)
        if chosen.declined:
            row.update(status=DECLINED, reason=chosen.declined)
            continue
        row.update(status=OK, kernel=chosen.kernel, tile=chosen.tile)
        with natten_mlx.backend(tier):
            call = make_call(case, direction)
            if tier != REFERENCE or case.dtype != "float32":
                verdict = expected.check(call(), direction, case.dtype)
                row["error"] = verdict.error
                if verdict.wrong:
                    row.update(status=WRONG, reason=verdict.wrong)
                    continue
        if timed is None or tier in timed:
            calls[tier] = row, call, Samples(plan.trim_head)
    for _ in range(plan.rounds):
        for tier, (_, call, samples) in calls.items():
            with natten_mlx.backend(tier):
                one_round(call, plan, samples, limits)
    baseline = calls[REFERENCE][2].statistics()["median"] if REFERENCE in calls else None
    for row, _, samples in calls.values():
        row.update(figures(case, direction, samples, limits, baseline))
    return rows


def figures(case: Case, direction: str, samples: Samples, limits: Limits, baseline: float | None) -> Row:
    """Everything that follows from the samples. Percentages are of the limits sampled around them."""
    seconds = samples.statistics()
    size = cost.size(case)
    operations = cost.flops(case.form, direction, size)
    moved = cost.compulsory_bytes(case.form, direction, size)
    fma, copy = statistics.median(samples.fma_rates), statistics.median(limits.copy_rates)
    roof = cost.roofline(operations, moved, fma, copy)
    return {
        "seconds": seconds,
        "untrimmed": samples.statistics(trim=False),
        "raw": [[round(sample, 9) for sample in samples_of_round] for samples_of_round in samples.rounds],
        "flops": operations,
        "bytes": moved,
        "gflops": operations / seconds["median"] / 1e9,
        "fma_gflops": fma / 1e9,
        "percent_of_fma": cost.percent(operations / seconds["median"], fma),
        "percent_of_copy": cost.percent(moved / seconds["median"], copy),
        "percent_of_roofline": cost.percent(roof.seconds, seconds["median"]),
        "bound": roof.bound,
        "speedup": baseline / seconds["median"] if baseline else None,
    }


def run(
    chosen: Sequence[Case],
    tiers: Sequence[str],
    plan: Plan,
    directions: Sequence[str] | None = None,
    with_memory: bool = True,
    pure_limit: float = math.inf,
    progress: Progress = lambda _: None,
) -> Report:
    """The performance table of `chosen` cases on `tiers`. `progress` hears of each measurement before it starts.

    Cases whose largest direction has more than `pure_limit` operations are checked on one head, and `pure` isn't timed.
    """
    limits = Limits(plan.cpu_clock)
    rows: list[Row] = []
    for case in chosen:
        choices = {tier: choice(case, tier) for tier in tiers}
        wanted = [d for d in case.directions if directions is None or d in directions]
        if not wanted:
            continue
        limits.sample_copy()
        expensive = cost.flops(case.form, case.directions[-1], cost.size(case)) > pure_limit
        expected = Reference(case, wanted[-1], heads=1 if expensive else None)
        timed = [tier for tier in tiers if tier != REFERENCE] if expensive else None
        for direction in wanted:
            progress(f"{case.name} {direction}")
            measured = measure_direction(case, direction, choices, plan, limits, expected, timed)
            for row in measured:
                if with_memory and "seconds" in row:
                    row["extra_mib"] = memory.measure(case, direction, row["tier"])
            rows += measured
    return {**header("table", plan, limits), "rows": rows}


def count(chosen: Sequence[Case], directions: Sequence[str] | None = None) -> int:
    """How often `run` will call `progress`."""
    return sum(directions is None or d in directions for case in chosen for d in case.directions)


def has_wrong(report: Report) -> bool:
    """Whether some result disagreed with the reference."""
    return any(row["status"] == WRONG for row in report["rows"])
