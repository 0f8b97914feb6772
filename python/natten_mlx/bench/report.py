"""Reports as terminal tables, Markdown and JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from natten_mlx.bench.table import OK, WRONG, Report, Row

COLUMNS = (
    "case",
    "direction",
    "tier",
    "median ms",
    "min",
    "max",
    "spread",
    "x pure",
    "GFLOP/s",
    "% FMA",
    "% copy",
    "MiB",
)


def number(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits, without an exponent; `-` for None."""
    if value is None:
        return "-"
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, digits - whole)}f}"


def count(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def why_not(row: Row) -> str:
    """Of a row without figures. That a tier is unavailable has its reason above or below the table, once."""
    if row["status"] == WRONG:
        return f"WRONG: {row['reason']}"
    return "unavailable" if row["reason"].startswith("unavailable") else row["reason"]


def cells(row: Row) -> list[str]:
    """One row of the table; of a case that was not timed, the reason."""
    start = [row["case"], row["direction"], row["tier"]]
    if row["status"] != OK:
        return [*start, why_not(row)]
    if "seconds" not in row:
        return [*start, "not timed: it would take very long"]
    seconds = row["seconds"]
    return [
        *start,
        *(number(1e3 * seconds[name]) for name in ("median", "min", "max")),
        f"{100 * seconds['spread']:.0f}%",
        number(row["speedup"]),
        number(row["gflops"]),
        number(row["percent_of_fma"]),
        number(row["percent_of_copy"]),
        number(row.get("extra_mib")),
    ]


def terminal_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Any:
    """A rich table; the last cell of a short row is spread over the columns that it lacks by being left to fold."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, overflow="fold", justify="left" if index < 3 else "right")
    for row in rows:
        table.add_row(*row, *[""] * (len(columns) - len(row)))
    return table


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 3) -> str:
    """A Markdown table, its first `left` columns aligned left."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * left + "---:|" * (len(columns) - left)]
    lines += ["| " + " | ".join([*row, *[""] * (len(columns) - len(row))]) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def machine_line(report: Report) -> str:
    """The machine and its limits in a sentence or two."""
    machine, limits = report["machine"], report["limits"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = (
        machine.get("gpu") or f"{machine['processor']}, {count(machine['threads'], 'thread')}, {machine['cpu_target']}"
    )
    return (
        f"{where}; {machine['system']}; {versions}; {machine['date']}. Limits in this run ({limits['kind']}), median "
        f"and best: {number(limits['fma_gflops']['median'])} and {number(limits['fma_gflops']['best'])} GFLOP/s, "
        f"{number(limits['copy_gbytes']['median'])} and {number(limits['copy_gbytes']['best'])} GB/s."
    )


def tier_lines(report: Report) -> list[str]:
    """A sentence for each tier that can't run here."""
    return [
        f"{name} is unavailable: {tier['reason']}" for name, tier in report["tiers"].items() if not tier["available"]
    ]


def markdown(report: Report) -> str:
    """The table with what a reader needs to judge it."""
    notes = "\n".join(f"- {line}" for line in tier_lines(report))
    return (
        f"{machine_line(report)}\n\n{markdown_table(COLUMNS, [cells(row) for row in report['rows']])}\n"
        + (f"{notes}\n" if notes else "")
        + "\nTimes are in ms; grad_query and step include the forward; spread is from the 10th to the 90th percentile, "
        "as part of the median; % FMA and % copy are useful operations and compulsory bytes against the limits measured"
        " around each case; MiB is the peak of extra memory.\n"
    )


def check_writable(*paths: str | None) -> None:
    """Raises `ValueError` before anything is measured, not after."""
    for path in filter(None, paths):
        parent = Path(path).resolve().parent
        if not parent.is_dir():
            raise ValueError(f"can't write {path}: there is no directory {Path(path).parent}")
        if Path(path).is_dir() or not os.access(path if Path(path).exists() else parent, os.W_OK):
            raise ValueError(f"can't write {path}")


def write_json(path: str, report: Report) -> None:
    """The whole report, raw samples included, with one sample list per line."""
    text = json.dumps(report, indent=1, default=str)
    text = re.sub(r"\[[-+\d.eE,\s]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    Path(path).write_text(text + "\n")


def read_json(path: str | Path, kind: str) -> Report:
    """A report that `write_json` wrote.

    Raises:
        ValueError: there is no such file, or it is no report of this kind.
    """
    try:
        report = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(report, dict) or report.get("kind") != kind:
        raise ValueError(f"{path} is no report of the kind {kind!r}")
    return report
