"""The page of results: the reports in benchmarks/results as rows, which the page filters, sorts and draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu as gpu_benchmark  # noqa: E402

Row = dict[str, Any]
DIRECTIONS = {"forward": "forward", "training": "training step", "step": "training step"}
DIRECTIONS |= {"grad_query": "gradient of query", "grad_key": "gradient of key and value"}


def rows() -> list[Row]:
    """Of every report: machine, date, case, direction, dtype, by, ms, and what else it has."""
    found: list[Row] = []
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report, list):
            found += _gpu_rows(report, path.stem)
        elif report.get("kind") in ("table", "compare"):
            found += _cpu_rows(report)
    return found


def _cpu_rows(report: dict[str, Any]) -> list[Row]:
    machine = report["machine"]
    name = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} thread, {machine['cpu_target']}"
    return [
        {
            "machine": name,
            "date": machine["date"],
            "call": row["call"],
            "direction": DIRECTIONS.get(row["direction"], row["direction"]),
            "dtype": "float32",
            "by": f"natten-mlx, {row['tier']}" if report["kind"] == "table" else row["tier"],
            "ms": 1e3 * row["seconds"]["median"],
            "gflops": row.get("gflops"),
            "percent": row.get("percent_of_fma"),
            "versions": machine["versions"],
        }
        for row in report["rows"]
        if "seconds" in row
    ]


def _gpu_rows(report: list[dict[str, Any]], stem: str) -> list[Row]:
    about = next((row for row in report if row["implementation"] == "limits"), {})
    return [
        {
            "machine": about.get("device", stem),
            "date": about.get("date", "-"),
            "call": gpu_benchmark.describe(row["case"]),
            "direction": DIRECTIONS[direction],
            "dtype": row["dtype"],
            "by": row["implementation"],
            "ms": 1e3 * row[direction],
            "gflops": 1e3 * row[f"{direction}_tflops"] if f"{direction}_tflops" in row else None,
            "percent": None,
            "versions": {"commit": about["commit"]} if "commit" in about else {},
        }
        for row in report
        if "case" in row
        for direction in ("forward", "training")
        if isinstance(row.get(direction), float)
    ]


def page() -> str:
    """A Markdown page that holds the rows and the program which shows them."""
    data = json.dumps(rows(), separators=(",", ":")).replace("</", "<\\/")
    style, script = ((HERE / f"site_results.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    return f"""---
hide: [toc]
---

# Results

Every time in `benchmarks/results`: who computed what, on which machine and when. Compare
times of one machine and day. [Performance](performance.md) says what they mean.

<style>
{style}</style>
<form id="results-filters" class="results-filters" aria-label="Filters"></form>
<p id="results-about"></p>
<div class="results-scroll"><table id="results-table" class="results" data-search-exclude></table></div>
<script type="application/json" id="results-data">{data}</script>
<script>
{script}</script>
"""
