"""Writes docs/performance.md, docs/laboratory/measurements.md and the README's figures from benchmarks/results.

python scripts/draw_performance.py            (or `make docs`)
python scripts/draw_performance.py --check    exit 1 if a page or the README is out of date; draws nothing

The reports are made by:

    natten-mlx bench table --threads 1 --cpu-clock --json benchmarks/results/table.json
    natten-mlx bench compare --threads 1 --cpu-clock --json benchmarks/results/compare.json
    python benchmarks/scaling.py --json benchmarks/results/scaling.json
    python benchmarks/repeat_guardrail.py --json benchmarks/results/guardrail.json
    python benchmarks/gpu.py --json benchmarks/results/h200.json          (on that GPU; another's file: `GPU_REPORT`)
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

from natten_mlx.bench import compare, plots, report
from natten_mlx.bench.table import OK, Report, Row

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu as gpu_benchmark  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
PAGE = ROOT / "docs" / "performance.md"
LABORATORY = ROOT / "docs" / "laboratory" / "measurements.md"
NOTES = RESULTS / "notes.md"  # on measurements.md, by hand
SLOW = RESULTS / "slow.md"  # on performance.md, by hand
GPU_REPORT = RESULTS / "h200.json"  # the one whose rivals are drawn
BEGIN, END = "<!-- performance: begin (written by scripts/draw_performance.py) -->\n", "<!-- performance: end -->"

HEADLINE = "na2d_56_k7"
RIVALS = {  # as the reports call them: what a reader calls them
    "natten-mlx": "natten-mlx",
    "torch-sdpa": "PyTorch, masked attention",
    "mlx-gather": "MLX, windows gathered by hand",
    "torch-flex": "PyTorch FlexAttention",
    "mlx-sdpa": "MLX, masked attention",
    "natten": "NATTEN 0.21 from PyPI",
    "flex_attention": "PyTorch FlexAttention, compiled",
    "dense sdpa": "PyTorch, dense attention",
}
FORWARD, STEP = "forward", "training step"
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


class Time(NamedTuple):
    """Milliseconds of one way to compute a case."""

    machine: str  # CPU or GPU
    case: str
    direction: str
    by: str
    ms: float


def cpu_times(found: Report) -> list[Time]:
    """Of a report of `natten-mlx bench compare`."""
    return [
        Time("CPU", row["call"], FORWARD if row["direction"] == "forward" else STEP, row["tier"], ms)
        for row in timed(found)
        for ms in [1e3 * row["seconds"]["median"]]
    ]


def gpu_times(rows: list[dict[str, Any]]) -> list[Time]:
    """Of a report of benchmarks/gpu.py, the cases that were measured beside rivals, in float16."""
    rivalled = {row["case"] for row in rows if row["implementation"] == "flex_attention"}
    return [
        Time("GPU", gpu_benchmark.describe(row["case"]), label, row["implementation"], 1e3 * row[direction])
        for row in rows
        if row.get("case") in rivalled and row["dtype"] == "float16"
        for direction, label in (("forward", FORWARD), ("training", STEP))
        if direction in row
    ]


def panels(times: list[Time]) -> dict[tuple[str, str], list[Time]]:
    """Times by machine and direction, in the order in which they come."""
    found: dict[tuple[str, str], list[Time]] = {}
    for time in sorted(times, key=lambda time: (time.machine, time.direction)):
        found.setdefault((time.machine, time.direction), []).append(time)
    return found


def beside_table(times: list[Time]) -> str:
    """A row for each case and direction, a column for each way."""
    ways = [name for name in RIVALS if any(time.by == name for time in times)]
    rows = []
    for case, direction in dict.fromkeys((time.case, time.direction) for time in times):
        ms = {time.by: time.ms for time in times if (time.case, time.direction) == (case, direction)}
        rows.append([case, direction, *(report.number(ms.get(way)) for way in ways)])
    return report.markdown_table(("case", "ms of the", *(RIVALS[way] for way in ways)), rows, left=2)


def draw_beside(times: list[Time], path: Path) -> None:
    """A panel per machine and direction: bars of milliseconds, log scale, grouped by case."""
    from matplotlib.patches import Patch

    groups = panels(times)
    ways = [name for name in RIVALS if any(time.by == name for time in times)]
    palette = ("#d1495b", "#30638e", "#66a182", "#edae49", "#8d99ae", "#b08968", "#7b5ea7", "#444444")
    colors = dict(zip(ways, palette, strict=False))
    figure = plots.figure(figsize=(11, 7))
    for axes, ((machine, direction), mine) in zip(figure.subplots(2, 2).ravel(), groups.items(), strict=True):
        names = list(dict.fromkeys(time.case for time in mine))
        here = [way for way in ways if any(time.by == way for time in mine)]
        for time in mine:
            place = names.index(time.case) + 0.8 * (here.index(time.by) / len(here) - 0.5)
            axes.barh(place, time.ms, 0.8 / len(here), align="edge", color=colors[time.by])
        axes.set(
            xscale="log", yticks=range(len(names)), yticklabels=names, xlabel="milliseconds (log scale), less is better"
        )
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.set_title(f"{machine}, {direction}", fontsize=10)
        axes.grid(alpha=0.3, axis="x")
    handles = [Patch(color=colors[way], label=RIVALS[way]) for way in ways]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)


def range_of_advantage(times: list[Time], rival: str, direction: str) -> str:
    """`1.2 to 3`: how many times as long `rival` takes."""
    ours = {time.case: time.ms for time in times if time.by == "natten-mlx" and time.direction == direction}
    ratios = sorted(time.ms / ours[time.case] for time in times if time.by == rival and time.direction == direction)
    ends = [report.number(ratio, 2) for ratio in (ratios[0], ratios[-1])]
    return " to ".join(dict.fromkeys(ends))


def gpu_name(rows: list[dict[str, Any]]) -> str:
    return next((row["device"] for row in rows if "device" in row), GPU_REPORT.stem.upper())


def headline(results: Report, cpu: list[Time], gpu: list[Time], device: str) -> str:
    """What to expect against the alternatives, and the plot."""
    advantages = [
        (cpu, "torch-sdpa", "a CPU", "PyTorch's masked attention"),
        (cpu, "mlx-gather", "a CPU", "windows gathered by hand in MLX"),
        (gpu, "flex_attention", f"an {device} (float16)", "PyTorch's compiled FlexAttention"),
    ]
    lines = [
        f"- On {where}: **{range_of_advantage(times, rival, FORWARD)} times** as fast as {label} in the forward, "
        f"{range_of_advantage(times, rival, STEP)} times in a training step."
        for times, rival, where, label in advantages
    ]
    one_call = one(results, case=HEADLINE, direction="forward", tier=fastest(results))
    if one_call is not None:
        lines.append(
            f"- A 56x56 image, windows of 7x7, 4 heads of 32: {report.number(1e3 * one_call['seconds']['median'])} ms "
            f"on one thread ({results['machine']['processor']}), {report.number(one_call['speedup'])} times as fast as "
            "the reference in MLX operations."
        )
    picture = "![Milliseconds beside the alternatives, forward and training step, CPU and GPU](docs/images/beside.png)"
    return "\n".join(lines) + f"\n\n{picture}\n"


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


def measurements(results: Report, compared: Report | None) -> str:
    """docs/laboratory/measurements.md."""
    scaling = report.read_json(RESULTS / "scaling.json", "scaling")
    guardrail = report.read_json(RESULTS / "guardrail.json", "guardrail runs")
    return f"""# Measurements of the CPU

Written by `scripts/draw_performance.py` from the reports in `benchmarks/results`; nothing on this page is typed by hand
but the notes. Percentages and ratios are of limits and rivals measured in the same run: absolute times of a shared
machine drift, so compare those of one run only. What a user needs of it is on [performance](../performance.md).

![Rates of the kernels below the limits of the machine](../images/roofline.png)

## Every case

{short_table(results)}
## What was aimed at

Percent of the multiply-add peak of one core that the design of the CPU kernels should reach on an idle machine:

{target_table(results)}
{NOTES.read_text()}
## Beside the alternatives

{compared_text(compared)}
## How it grows

{report.machine_line(scaling)}

![Time and memory against tokens, window, head dim, batch, heads and threads](../images/scaling.png)

{scaling_text(scaling)}
## Guardrails

`make guardrail` holds every case to ratios within one run: speed over `pure`, useful operations over the multiply-add
peak, both on one thread by the CPU clock. Thresholds are kept for each kind of machine (processor and SIMD target):
beside `pure`, 2-D K 7 with a stride and dilation is 55 times as fast on a Xeon and 20 on a busy Zen 4, which multiplies
half as fast. Those of Zen 4 are 0.3 of one idle run of the table. Elsewhere the lowest floors of the share of the peak
are held. Thirteen floors of the Xeon are 0.7 of what it reached in a slow quarter of an hour, when the same binaries
took up to twice as long as two hours before, at the same peak, and one case failed. How often it failed although
nothing had changed, on a machine with a load of 10 to 17 on two cores, judged by thresholds made of other runs alike:

{guardrail_text(guardrail)}
"""


def performance(summary: str, compared: Report | None, cpu: list[Time], gpu: list[Time], gpu_line: str) -> str:
    """docs/performance.md."""
    machine = report.machine_line(compared).partition(". Limits")[0] if compared else ""
    return f"""# Performance

{summary.replace("docs/images/", "images/")}
## CPU

{machine}. float32, milliseconds;
a training step is the forward and all gradients, and `-` is what can't be done there.

{beside_table(cpu)}
## GPU

{gpu_line}. float16, milliseconds. More types, cases and cards: [the laboratory](laboratory/fast-tier.md).

{beside_table(gpu)}
{SLOW.read_text()}
## Measure yourself

```sh
natten-mlx profile na2d --shape 1,56,56,4,32 --kernel-size 7    # what limits this call here
natten-mlx bench table --json table.json                        # every case on every tier
```

Every case, what was aimed at, how time and memory grow: [measurements](laboratory/measurements.md).
"""


def pages() -> tuple[dict[Path, str], str, list[Time]]:
    """The pages, the README's part, and the times of the plot."""
    results = report.read_json(RESULTS / "table.json", "table")
    compared = optional("compare.json", "compare")
    rows = json.loads(GPU_REPORT.read_text())
    cpu, gpu, device = cpu_times(compared) if compared else [], gpu_times(rows), gpu_name(rows)
    summary = headline(results, cpu, gpu, device)
    gpu_line = "; ".join([device, *[row["date"] for row in rows if "date" in row]])
    texts = {PAGE: performance(summary, compared, cpu, gpu, gpu_line), LABORATORY: measurements(results, compared)}
    return texts, summary, cpu + gpu


def draw(times: list[Time]) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_beside(times, IMAGES / "beside.png")
    plots.roofline(report.read_json(RESULTS / "table.json", "table"), str(IMAGES / "roofline.png"))
    plots.scaling(report.read_json(RESULTS / "scaling.json", "scaling"), str(IMAGES / "scaling.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    try:
        texts, summary, times = pages()
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = old.split(BEGIN)[0] + BEGIN + summary + END + old.split(END)[1] if BEGIN in old else old
    if args.check:
        texts[readme] = new
        stale = [
            path.relative_to(ROOT) for path, text in texts.items() if not path.exists() or path.read_text() != text
        ]
        for path in stale:
            print(f"{path} is out of date; run `make docs`", file=sys.stderr)
        return int(bool(stale))
    for path, text in texts.items():
        path.write_text(text)
    readme.write_text(new)
    draw(times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
