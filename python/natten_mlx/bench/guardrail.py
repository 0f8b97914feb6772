"""Guardrails: each case must reach ratios that hold on a noisy machine too. They are stored in thresholds.json.

Two floors per case and direction, on one thread: the speed relative to `pure`, and useful operations relative to the
multiply-add peak, both from the same run, each as the median of the rounds' ratios. And a part of the ratios that a
release reached. They are kept for each kind of machine (processor and SIMD target) that they were measured on: Zen 4
multiplies half as fast as a Xeon with the same instructions, so that the share of its peak is twice as large, and
`pure`, which multiplying does not bind, is nearer. On another machine the lowest floors of the share of the peak are
held alone. A report says which applied. Cases that fall short are measured again when the others are done, and once
more after a pause, for machines have other users.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from natten_mlx import _ext
from natten_mlx.bench import cases as table_of_cases
from natten_mlx.bench import cost
from natten_mlx.bench.calls import REFERENCE, Reference, choice
from natten_mlx.bench.cases import FORWARD, Case
from natten_mlx.bench.machine import Limits, describe
from natten_mlx.bench.measure import Plan
from natten_mlx.bench.report import machine_line, markdown_table, why_not
from natten_mlx.bench.table import OK, Progress, Report, Row, header, measure_direction

SHORT = "too slow"
UNGUARDED = "no threshold"
RATIOS = ("vs_pure", "of_fma")
# Beyond this many operations of the forward `pure` takes seconds: it is not timed, and checks one head only.
PURE_FLOPS = 1.5e8
PAUSES = (0.0, 0.0, 30.0)
"""Seconds before each attempt."""


def directions(case: Case, wanted: str) -> list[str]:
    """Directions of a case that belong to `forward` or to `backward`."""
    return [d for d in case.directions if (d == FORWARD) == (wanted == "forward")]


def load(path: str | None = None) -> dict[str, Any]:
    """Thresholds of a file, by default the package's.

    Raises:
        ValueError: no such file, or one that does not fit the table of cases.
    """
    try:
        text = Path(path).read_text() if path else resources.files(__package__).joinpath("thresholds.json").read_text()
        stored = json.loads(text)
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(stored, dict) or not {"cases_version", "machines"} <= stored.keys():
        raise ValueError(f"{path or 'thresholds.json'} holds no thresholds: expected cases_version and machines")
    if stored["cases_version"] != table_of_cases.VERSION:
        raise ValueError(
            f"{path or 'thresholds.json'} is for version {stored['cases_version']} of the cases, "
            f"this is version {table_of_cases.VERSION}"
        )
    return dict(stored)


def _round_medians(row: Row, trim_head: int) -> list[float]:
    return [statistics.median(r[trim_head:] if len(r) > trim_head else r) for r in row["raw"]]


def ratios(row: Row, baseline: Row | None, trim_head: int) -> dict[str, float]:
    """vs_pure and of_fma of a timed row: medians over rounds."""
    own = _round_medians(row, trim_head)
    result = {"of_fma": row["flops"] / statistics.median(own) / (1e9 * row["fma_gflops"])}
    if baseline is not None and "raw" in baseline:
        pure = _round_medians(baseline, trim_head)
        result["vs_pure"] = statistics.median(p / o for p, o in zip(pure, own, strict=True))
    return result


def kind_of_machine(machine: dict[str, Any]) -> tuple[str, str]:
    """What thresholds are kept for: processor and SIMD target."""
    return machine["processor"], machine["cpu_target"]


def own_thresholds(thresholds: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any] | None:
    """Those that were measured on this kind of machine."""
    kind = kind_of_machine(machine)
    return next((stored for stored in thresholds["machines"] if kind_of_machine(stored) == kind), None)


def _of(ratios_of_tiers: dict[str, Any], row: Row) -> dict[str, float]:
    found = ratios_of_tiers.get(row["tier"], {}).get(row["case"], {}).get(row["direction"], {})
    return dict(found)


def shortfalls(row: Row, thresholds: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    """What the ratios of `row` do not reach. Fills in the floors."""
    own = own_thresholds(thresholds, machine)
    row["floors"] = _of(own["floors"], row) if own else {}
    if not row["floors"]:
        others = [_of(stored["floors"], row) for stored in thresholds["machines"]]
        shares = [floors["of_fma"] for floors in others if "of_fma" in floors]
        row["floors"] = {"of_fma": min(shares)} if shares else {}
    short = [
        f"{name} {row['ratios'][name]:.3g} < {floor:.3g}"
        for name, floor in row["floors"].items()
        if name in row["ratios"] and row["ratios"][name] < floor
    ]
    if own:
        short += [
            f"{name} {row['ratios'][name]:.3g} < {own['margin']:g} x {value:.3g} of release {own['version']}"
            for name, value in _of(own["ratios"], row).items()
            if name in row["ratios"] and row["ratios"][name] < own["margin"] * value
        ]
    return short


def run(
    chosen: Sequence[Case],
    tiers: Sequence[str],
    wanted: str,
    plan: Plan,
    thresholds: dict[str, Any],
    threads: int = 1,
    progress: Progress = lambda _: None,
) -> Report:
    """Measures `forward` or `backward` of the cases one after the other and judges them."""
    _ext.set_cpu_threads(threads)
    try:
        limits = Limits(plan.cpu_clock)
        machine = describe()
        judged: dict[tuple[str, str], list[Row]] = {}
        pending = {(case.name, direction) for case in chosen for direction in directions(case, wanted)}
        for pause in PAUSES:
            if pending:
                time.sleep(pause)
            for case in chosen:
                again = [direction for direction in directions(case, wanted) if (case.name, direction) in pending]
                if not again:
                    continue
                choices = {tier: choice(case, tier) for tier in (*tiers, REFERENCE)}
                expensive = _is_expensive(case)
                expected = Reference(case, again[-1], heads=1 if expensive else None)
                for direction in again:
                    progress(f"{case.name} {direction}")
                    timed = list(tiers) if expensive else None
                    measured = measure_direction(case, direction, choices, plan, limits, expected, timed)
                    judged[case.name, direction] = _judge(measured, plan, thresholds, machine)
            pending = {place for place, found in judged.items() if any(row["status"] == SHORT for row in found)}
        rows = [row for found in judged.values() for row in found]
        report = header("guardrail", plan, limits)
    finally:
        _ext.set_cpu_threads(0)
    return {**report, "direction": wanted, "held_to": held_to(thresholds, machine), "rows": rows}


def _is_expensive(case: Case) -> bool:
    return cost.flops(case.form, FORWARD, cost.size(case)) > PURE_FLOPS


def _judge(measured: list[Row], plan: Plan, thresholds: dict[str, Any], machine: dict[str, Any]) -> list[Row]:
    """Rows of the tiers other than `pure`, with ratios, floors and a verdict."""
    baseline = next(row for row in measured if row["tier"] == REFERENCE)
    rows = [row for row in measured if row["tier"] != REFERENCE]
    for row in rows:
        if row["status"] != OK:
            continue
        row["ratios"] = ratios(row, baseline, plan.trim_head)
        short = shortfalls(row, thresholds, machine)
        if short:
            row.update(status=SHORT, reason="; ".join(short))
        elif not row["floors"]:
            row.update(status=UNGUARDED, reason="the file of thresholds has none for it")
    return rows


def failures(report: Report) -> list[Row]:
    """Rows that must make the command fail: wrong, too slow, unguarded, or declined by a tier that is available."""
    return [
        row
        for row in report["rows"]
        if row["status"] != OK and (row["status"] != "declined" or report["tiers"][row["tier"]]["available"])
    ]


COLUMNS = ("case", "direction", "tier", "of FMA peak", "floor", "x pure", "floor", "spread", "verdict")


def cells(row: Row) -> list[str]:
    """One row of the table."""
    start = [row["case"], row["direction"], row["tier"]]
    if "ratios" not in row:
        return [*start, *["-"] * 5, why_not(row)]
    found, floors = row["ratios"], row["floors"]

    def pair(name: str) -> list[str]:
        return [f"{ratio[name]:.3g}" if name in ratio else "-" for ratio in (found, floors)]

    return [*start, *pair("of_fma"), *pair("vs_pure"), f"{100 * row['seconds']['spread']:.0f}%", row["status"]]


def markdown(report: Report) -> str:
    """The table, and what fell short."""
    short = [f"- {row['case']} {row['direction']} on {row['tier']}: {row['reason']}\n" for row in failures(report)]
    table = markdown_table(COLUMNS, [cells(row) for row in report["rows"]])
    verdict = "".join(short) or "All within their thresholds.\n"
    return f"{machine_line(report)}\n\n{table}\n{verdict}{report['held_to']}\n"


def held_to(thresholds: dict[str, Any], machine: dict[str, Any]) -> str:
    """A sentence: which thresholds applied on this machine."""
    own = own_thresholds(thresholds, machine)
    processor, target = kind_of_machine(machine)
    if own is None:
        return f"Held to the lowest floors of the share of the peak alone: none are stored for {processor}, {target}."
    release = f", and to release {own['version']}" if own["ratios"] else ""
    return f"Held to the floors{release} on {processor}, {target}; cases without any there to the lowest of others."


def thresholds_of(reports: Sequence[Report], part: float, margin: float, with_release: bool = True) -> dict[str, Any]:
    """Thresholds of one kind of machine: floors are `part` of the lowest ratio, the release's ratios are the medians.

    Reports are of guardrails or tables. Of a machine that was not idle no release's ratios should be kept.

    Raises:
        ValueError: the reports are of several kinds of machines.
    """
    kinds = sorted({kind_of_machine(report["machine"]) for report in reports})
    if len(kinds) > 1:
        raise ValueError(f"reports of several kinds of machines: {kinds}")
    collected: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    for report in reports:
        baselines = {(row["case"], row["direction"]): row for row in report["rows"] if row["tier"] == REFERENCE}
        for row in report["rows"]:
            if row["tier"] == REFERENCE:
                continue
            place = collected.setdefault(row["tier"], {}).setdefault(row["case"], {}).setdefault(row["direction"], {})
            found = row.get("ratios", {})
            if not found and "raw" in row:
                found = ratios(row, baselines.get((row["case"], row["direction"])), report["plan"]["trim_head"])
            for name, value in found.items():
                place.setdefault(name, []).append(value)

    def reduced(function: Any) -> dict[str, Any]:
        return {
            tier: {
                case: {
                    direction: {name: float(f"{function(values):.2g}") for name, values in sorted(found.items())}
                    for direction, found in by_direction.items()
                }
                for case, by_direction in by_case.items()
            }
            for tier, by_case in collected.items()
            if any(found for by_direction in by_case.values() for found in by_direction.values())
        }

    machine = reports[0]["machine"]
    return {
        "processor": machine["processor"],
        "cpu_target": machine["cpu_target"],
        "version": machine["versions"]["natten-mlx"],
        "margin": margin,
        "floors": reduced(lambda values: part * min(values)),
        "ratios": reduced(statistics.median) if with_release else {},
    }
