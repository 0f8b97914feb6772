"""natten-mlx beside what a user would pick instead: same inputs, same process, same run.

Every alternative is checked against `pure` before it is timed, and skipped with a reason where it can't run: not
installed, or a mask that would not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from natten_mlx import _ext
from natten_mlx.bench import cost
from natten_mlx.bench.calls import Reference
from natten_mlx.bench.cases import Case
from natten_mlx.bench.machine import Limits
from natten_mlx.bench.measure import Plan, Samples, one_round
from natten_mlx.bench.report import machine_line, markdown_table, number, why_not
from natten_mlx.bench.rivals import RIVALS, Skip, set_torch_threads
from natten_mlx.bench.table import DECLINED, OK, WRONG, Progress, Report, Row, header

COLUMNS = (
    "case",
    "direction",
    "attention by",
    "median ms",
    "min",
    "spread",
    "natten-mlx is",
    "GFLOP/s",
    "% FMA",
    "error",
)
OURS = "natten-mlx"


def parse_rivals(names: Sequence[str] | None) -> list[str]:
    """Names of `RIVALS`, natten-mlx first.

    Raises:
        ValueError: an unknown name.
    """
    for name in names or ():
        if name not in RIVALS:
            raise ValueError(f"unknown alternative {name!r}. Expected some of {list(RIVALS)}")
    return [OURS, *(name for name in RIVALS if name != OURS and (names is None or name in names))]


def run(
    chosen: Sequence[Case],
    rivals: Sequence[str],
    plan: Plan,
    directions: Sequence[str] | None,
    threads: int,
    progress: Progress,
) -> Report:
    """Checks and times every alternative in every case; they take turns in every round. `threads` 0: all."""
    _ext.set_cpu_threads(threads)
    try:
        set_torch_threads(_ext.cpu_threads())
        limits = Limits(plan.cpu_clock)
        rows = _rows(chosen, rivals, plan, directions, limits, progress)
        return {**header("compare", plan, limits), "rows": rows}
    finally:
        _ext.set_cpu_threads(0)


def _rows(
    chosen: Sequence[Case],
    rivals: Sequence[str],
    plan: Plan,
    directions: Sequence[str] | None,
    limits: Limits,
    progress: Progress,
) -> list[Row]:
    rows: list[Row] = []
    for case in chosen:
        wanted = [d for d in case.directions if directions is None or d in directions]
        if not wanted:
            continue
        # One head shows whether the same thing is computed; for all of them the reference may take minutes.
        expected = Reference(case, wanted[-1], heads=1)
        for direction in wanted:
            progress(f"{case.name} {direction}")
            rows += _one(case, direction, rivals, plan, limits, expected)
    return rows


def _one(
    case: Case, direction: str, rivals: Sequence[str], plan: Plan, limits: Limits, expected: Reference
) -> list[Row]:
    rows: list[Row] = []
    ready: list[tuple[Row, Any, Samples]] = []
    for name in rivals:
        row: Row = {"case": case.name, "call": case.describe(), "direction": direction, "tier": name}
        rows.append(row)
        try:
            call = RIVALS[name](case, direction)
            verdict = expected.check(call.results(), direction, case.dtype)
        except Skip as reason:
            row.update(status=DECLINED, reason=f"skipped: {reason}")
            continue
        row["error"] = verdict.error
        if verdict.wrong:
            row.update(status=WRONG, reason=verdict.wrong)
            continue
        row.update(status=OK)
        ready.append((row, call.run, Samples(plan.trim_head)))
    for _ in range(plan.rounds):
        for _, run_call, samples in ready:
            one_round(run_call, plan, samples, limits)
    operations = cost.flops(case.form, direction, cost.size(case))
    ours = next((samples.statistics()["median"] for row, _, samples in ready if row["tier"] == OURS), None)
    for row, _, samples in ready:
        seconds = samples.statistics()
        row.update(
            seconds=seconds,
            raw=[[round(sample, 9) for sample in samples_of_round] for samples_of_round in samples.rounds],
            gflops=operations / seconds["median"] / 1e9,
            percent_of_fma=cost.percent(operations / seconds["median"], max(samples.fma_rates)),
            advantage=seconds["median"] / ours if ours else None,
        )
    return rows


def cells(row: Row) -> list[str]:
    """One row of the table."""
    start = [row["case"], row["direction"], row["tier"]]
    if row["status"] != OK:
        return [*start, why_not(row)]
    seconds, advantage = row["seconds"], row["advantage"]
    beside = "-" if row["tier"] == OURS or not advantage else f"{number(advantage)}x as fast"
    return [
        *start,
        number(1e3 * seconds["median"]),
        number(1e3 * seconds["min"]),
        f"{100 * seconds['spread']:.0f}%",
        beside,
        number(row["gflops"]),
        number(row["percent_of_fma"]),
        f"{row['error']:.1g}",
    ]


def markdown(report: Report) -> str:
    """The table and the machine."""
    return f"{machine_line(report)}\n\n{markdown_table(COLUMNS, [cells(row) for row in report['rows']])}"
