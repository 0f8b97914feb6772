"""Pictures of reports. Needs the extra `plots`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from natten_mlx.bench.table import OK, Report

MARKERS = {"forward": "o", "grad_query": "s", "step": "^", "grad_key": "D"}
COLORS = {"pure": "#9aa3ad", "nanobind": "#d1495b", "fast_metal": "#30638e", "fast_cuda": "#30638e"}


def figure(**options: Any) -> Any:
    """A matplotlib figure without a global state.

    Raises:
        ValueError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'natten-mlx[plots]'") from None
    return Figure(layout="constrained", **options)


def check_format(path: str) -> None:
    """Raises `ValueError` where a picture of that name can't be drawn."""
    formats = figure().canvas.get_supported_filetypes()
    suffix = Path(path).suffix[1:].lower()
    if suffix and suffix not in formats:
        raise ValueError(f"can't draw {path}: the formats are {', '.join(sorted(formats))}")


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high; where they are fewer than two, rounder or finer numbers between them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ([1.0], [1.0, 2.0, 5.0], range(1, 10), [tenths / 10 for tenths in range(10, 100)]):
        inside = [tick for power in powers for factor in factors if low <= (tick := factor * 10.0**power) <= high]
        if len(inside) > 1:
            break
    return inside[:: -(-len(inside) // 6)]


def label_log_axis(axis: Any) -> None:
    """Plain numbers at a few ticks: matplotlib labels powers of ten only, of which an axis may hold none."""
    ticks = log_ticks(*axis.get_view_interval())
    axis.set_ticks(ticks, [f"{tick:g}" if tick < 1e4 else f"{tick / 1e3:g}k" for tick in ticks])
    axis.set_minor_formatter("")


def scaling(report: Report, path: str) -> None:
    """One panel per axis of the study, log-log, with fitted slopes; dense attention dashed."""
    panels = list(dict.fromkeys(series["panel"] for series in report["series"]))
    columns = 3
    drawn = figure(figsize=(4.4 * columns, 3.4 * -(-len(panels) // columns)))
    grid = drawn.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        mine = [series for series in report["series"] if series["panel"] == panel]
        for index, series in enumerate(mine):
            xs, ys = zip(*((point["x"], point["y"]) for point in series["points"]), strict=True)
            label = f"{series['label']}: slope {series['slope']:.2f}"
            style = "--" if series["dense"] else "-"
            axes.plot(xs, ys, style, marker="o", markersize=3, color=f"C{index}", label=label)
        axes.set(xscale="log", yscale="log", xlabel=mine[0]["x_label"], ylabel=mine[0]["y_label"])
        if mine[0]["slope"] < 0:  # falling lines have both ends where a legend would stand
            axes.margins(y=0.25)
        for axis in (axes.xaxis, axes.yaxis):
            label_log_axis(axis)
        axes.set_title(panel, fontsize=9)
        axes.legend(fontsize=6)
        axes.grid(alpha=0.3, which="both")
    drawn.savefig(path, dpi=110)


def roofline(report: Report, path: str) -> None:
    """Rates of every timed row against operations per byte, below the limits of the machine."""
    drawn = figure(figsize=(8.5, 5))
    axes = drawn.subplots()
    fma, copy = (report["limits"][name]["median"] for name in ("fma_gflops", "copy_gbytes"))
    rows = [row for row in report["rows"] if row["status"] == OK and "seconds" in row]
    intensities = [row["flops"] / row["bytes"] for row in rows] or [1.0]
    left, right = min(intensities) / 2, max(*intensities, fma / copy) * 2
    axes.plot([left, fma / copy, right], [left * copy, fma, fma], color="black", linewidth=1.2)
    axes.annotate(f"multiply-adds {fma:.0f} GFLOP/s", (right, fma), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"copy {copy:.1f} GB/s", (left, left * copy), ha="left", va="bottom", fontsize=8)
    labelled = set()
    for row, intensity in zip(rows, intensities, strict=False):
        label = f"{row['tier']}, {row['direction']}"
        axes.scatter(
            intensity,
            row["gflops"],
            marker=MARKERS[row["direction"]],
            color=COLORS.get(row["tier"], "#444444"),
            s=26,
            label=None if label in labelled else label,
        )
        labelled.add(label)
    axes.set(xscale="log", yscale="log", xlabel="useful operations per compulsory byte", ylabel="useful GFLOP/s")
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3)
    drawn.savefig(path, dpi=130)
