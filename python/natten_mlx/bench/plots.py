"""Pictures of reports. Needs the extra `plots`."""

from __future__ import annotations

from typing import Any

from natten_mlx.bench.table import OK, Report

MARKERS = {"forward": "o", "grad_query": "s", "step": "^", "grad_key": "D"}
COLORS = {"pure": "#9aa3ad", "nanobind": "#d1495b", "fast_metal": "#30638e"}


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
