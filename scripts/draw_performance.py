"""Writes docs/performance.md and the README's figures from the reports in benchmarks/results.

python scripts/draw_performance.py            (or `make docs`)
python scripts/draw_performance.py --check    exit 1 if the page or the README is out of date; draws nothing

The reports are made by:

    natten-mlx bench table --threads 1 --cpu-clock --json benchmarks/results/table.json
    natten-mlx bench compare --threads 1 --cpu-clock --json benchmarks/results/compare.json
    python benchmarks/scaling.py --json benchmarks/results/scaling.json
    python benchmarks/repeat_guardrail.py --json benchmarks/results/guardrail.json
"""

import argparse
import math
import sys
from pathlib import Path

from natten_mlx.bench import compare, plots, report
from natten_mlx.bench.table import OK, Report, Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
PAGE = ROOT / "docs" / "performance.md"
NOTES = RESULTS / "notes.md"
BEGIN, END = "<!-- performance: begin (written by scripts/draw_performance.py) -->\n", "<!-- performance: end -->"

HEADLINE = "na2d_56_k7"
# Percent of the multiply-add peak that a kernel should reach on one thread; of the roofline for windows of 7 in 1-D.
TARGETS = {
    ("na2d_56_k7", "forward"): 55,
    ("na2d_64_k13", "forward"): 68,
    ("na2d_128_k7_d128", "forward"): 58,
    ("na3d_16_k3", "forward"): 42,
    ("na3d_16_k5", "forward"): 58,
    ("na3d_16_k7", "forward"): 65,
    ("na1d_l1024_k7", "forward"): 50,
    ("na1d_l4096_k31", "forward"): 45,
    ("na1d_l4096_k127", "forward"): 65,
    ("na1d_l4096_k2048", "forward"): 78,
}
ROOFLINE = {"na1d_l1024_k7"}


def timed(found: Report, **fields: str) -> list[Row]:
    """Rows with figures whose fields are these."""
    return [
        row
        for row in found["rows"]
        if row["status"] == OK and "seconds" in row and all(row[name] == value for name, value in fields.items())
    ]


def one(found: Report, **fields: str) -> Row | None:
    return next(iter(timed(found, **fields)), None)


def fastest(found: Report) -> str:
    """The best tier that ran."""
    return next(name for name in ("nanobind", "fast_metal", "pure") if timed(found, tier=name))


def headline(results: Report, compared: Report | None) -> str:
    """Three numbers and a picture."""
    tier = fastest(results)
    forward, step = (one(results, case=HEADLINE, direction=d, tier=tier) for d in ("forward", "step"))
    lines = []
    if forward is not None and step is not None:
        number = report.number
        lines.append(
            f"- **{number(forward['percent_of_fma'])} %** of the processor's multiply-add peak in the forward of a "
            f"56x56 image with 7x7 windows, 4 heads of 32, on one thread "
            f"({number(1e3 * forward['seconds']['median'])} ms)"
        )
        if step["speedup"]:
            lines.append(
                f"- **{number(step['speedup'])} times** as fast as the same training step in plain MLX operations (the "
                f"tier `pure`), {number(forward['speedup'])} times in the forward"
            )
    for name, label in (("torch-sdpa", "PyTorch's masked attention"), ("mlx-sdpa", "MLX's masked attention")):
        rival = one(compared, case=HEADLINE, direction="forward", tier=name) if compared else None
        if rival is not None and rival["advantage"]:
            lines.append(f"- **{report.number(rival['advantage'])} times** as fast as {label} on the same image")
            break
    return "\n".join(lines) + "\n\n![Rates of the kernels below the limits of the machine](docs/images/roofline.png)\n"


def short_table(found: Report) -> str:
    """The main table without the rows of tiers that can't run here."""
    rows = [row for row in found["rows"] if not row.get("reason", "").startswith("unavailable")]
    return report.markdown({**found, "rows": rows})


def target_table(found: Report) -> str:
    """What was aimed at, and what is missing."""
    rows = []
    for (case, direction), target in TARGETS.items():
        row = one(found, case=case, direction=direction, tier=fastest(found))
        if row is not None:
            reached = row["percent_of_roofline" if case in ROOFLINE else "percent_of_fma"]
            of = "roofline" if case in ROOFLINE else "FMA peak"
            verdict = "reached" if reached >= target else f"{target - reached:.0f} points short"
            rows.append([case, row["call"], f"{target} % of {of}", f"{reached:.0f} %", verdict])
    return report.markdown_table(("case", "call", "aim, forward", "reached", ""), rows, left=2)


def optional(name: str, kind: str) -> Report | None:
    """A report that need not be there."""
    path = RESULTS / name
    return report.read_json(path, kind) if path.exists() else None


def compared_text(found: Report | None) -> str:
    if found is None:
        return "Not measured on this machine: `natten-mlx bench compare` does it.\n"
    return (
        "Same inputs, process and run, one thread; every alternative is checked against `pure` before it is timed.\n\n"
        + compare.markdown(found)
    )


def scaling_text(found: Report) -> str:
    def late(points: list[dict[str, float]]) -> str:
        """The exponent between the middle and the end, where fixed costs count less."""
        first, last = points[len(points) // 2], points[-1]
        if len(points) < 4:
            return "-"
        return f"{math.log(last['y'] / first['y']) / math.log(last['x'] / first['x']):.2f}"

    rows = [
        [
            s["panel"],
            s["label"],
            s["x_label"],
            f"{s['points'][0]['x']:g} to {s['points'][-1]['x']:g}",
            f"{s['slope']:.2f}",
            late(s["points"]),
        ]
        for s in found["series"]
    ]
    columns = ("series", "what", "grows with", "from, to", "fitted exponent", "of the second half")
    text = report.markdown_table(columns, rows, left=3)
    for crossing in found["crossings"]:
        dense = crossing["dense"].partition(",")[0]
        least = crossing["measured_from"]
        if crossing["tokens"] < least:
            where = f"at every length measured, from {least:g} tokens on"
        else:
            where = f"from {crossing['tokens']:.0f} tokens on"
        text += f"\nThe forward of a window of 31 is faster than {dense} {where}.\n"
    return text


def guardrail_text(found: Report) -> str:
    rows = [[direction, str(r["runs"]), str(r["failed"])] for direction, r in found["directions"].items()]
    return report.markdown_table(("direction", "runs", "failed"), rows, left=1)


def page() -> tuple[str, str]:
    """docs/performance.md and the README's part."""
    results = report.read_json(RESULTS / "table.json", "table")
    compared = optional("compare.json", "compare")
    scaling = report.read_json(RESULTS / "scaling.json", "scaling")
    guardrail = report.read_json(RESULTS / "guardrail.json", "guardrail runs")
    summary = headline(results, compared)
    text = f"""# Performance

Written by `scripts/draw_performance.py` from the reports in `benchmarks/results`; nothing on this page is typed by hand
but the section on what is slow. Percentages and ratios are of limits and rivals measured in the same run: absolute
times of a shared machine drift, so compare those of one run only.

{summary.replace("docs/images/", "images/")}
## Every case

{short_table(results)}
## What was aimed at

Percent of the multiply-add peak of one core that the design of the CPU kernels should reach on an idle machine:

{target_table(results)}
{NOTES.read_text() if NOTES.exists() else ""}
## Beside what you would use instead

{compared_text(compared)}
## How it grows

{report.machine_line(scaling)}

![Time and memory against tokens, window, head dim, batch, heads and threads](images/scaling.png)

{scaling_text(scaling)}
## Guardrails

`make guardrail` holds every case to ratios within one run: speed over `pure`, useful operations over the multiply-add
peak, both on one thread by the CPU clock. How often it failed although nothing had changed, on a machine with a load of
10 to 17 on two cores, judged by thresholds made of other runs in the same way:

{guardrail_text(guardrail)}
"""
    return text, summary


def draw() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    plots.roofline(report.read_json(RESULTS / "table.json", "table"), str(IMAGES / "roofline.png"))
    plots.scaling(report.read_json(RESULTS / "scaling.json", "scaling"), str(IMAGES / "scaling.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    try:
        text, summary = page()
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = old.split(BEGIN)[0] + BEGIN + summary + END + old.split(END)[1] if BEGIN in old else old
    if args.check:
        current = PAGE.exists() and PAGE.read_text() == text and new == old
        if not current:
            print("docs/performance.md or README.md is out of date; run `make docs`", file=sys.stderr)
        return int(not current)
    PAGE.write_text(text)
    readme.write_text(new)
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
