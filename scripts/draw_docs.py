"""Redraws what the documentation shows: pictures of windows, and the support matrix in the README.

python scripts/draw_docs.py            (or `make docs`)
python scripts/draw_docs.py --check    exit 1 if the README's matrix is out of date
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import natten_mlx
from natten_mlx.cli.drawing import draw_axes, window_keys

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- matrix: begin (written by scripts/draw_docs.py) -->\n", "<!-- matrix: end -->"

DEFAULTS: dict[str, Any] = {"kernel_size": 5, "stride": 1, "dilation": 1, "is_causal": False, "gna_stride": 1}


def panel(axes: Any, title: str, query: tuple[int, ...], shape: tuple[int, ...], **options: Any) -> None:
    _, keys = window_keys(query, shape, **(DEFAULTS | options))
    draw_axes(axes, [[index] for index in query], shape, keys, title)


def draw_windows() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.subplots(2, 4).ravel()
    shape = (11, 11)
    panel(grid[0], "kernel_size=5", (5, 5), shape)
    panel(grid[1], "at a border the window is shifted inside", (1, 9), shape)
    panel(grid[2], "kernel_size=(3, 7)", (5, 5), shape, kernel_size=(3, 7))
    panel(grid[3], "kernel_size=4: two left, one right", (5, 5), shape, kernel_size=4)
    panel(grid[4], "dilation=2", (5, 5), shape, dilation=2)
    panel(grid[5], "is_causal=(True, False)", (5, 5), shape, is_causal=(True, False))
    panel(grid[6], "is_causal=True, near the corner", (2, 1), shape, is_causal=True)
    panel(grid[7], "kernel_size=3, dilation=(1, 3)", (5, 5), shape, kernel_size=3, dilation=(1, 3))
    figure.savefig(IMAGES / "windows.png", dpi=110)


def draw_strides() -> None:
    """One row per query of a 1-D axis, for no stride, a query stride and a GNA stride."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    length = 12
    figure = Figure(figsize=(11, 4), layout="constrained")
    cases = [
        ("stride=1: every query, its own window", {}),
        ("stride=3: queries 0, 3, 6, 9 only", {"stride": 3}),
        ("gna_stride=3: three queries share a window", {"gna_stride": 3}),
    ]
    for axes, (title, options) in zip(figure.subplots(1, 3), cases, strict=True):
        for index in range(0, length, options.get("stride", 1)):
            _, (keys,) = window_keys((index,), (length,), **(DEFAULTS | options))
            for key in range(length):
                color = "#d1495b" if key == index else "#7aa6da" if key in keys else "#eceff4"
                axes.add_patch(Rectangle((key, index), 1, 1, facecolor=color, edgecolor="white"))
        axes.set(xlim=(0, length), ylim=(length, 0), aspect="equal", xticks=[], yticks=[], xlabel="keys")
        axes.set_ylabel("queries")
        axes.set_title(title, fontsize=9)
    figure.savefig(IMAGES / "strides.png", dpi=110)


def matrix_markdown() -> str:
    """Coverage as declared: the same on every machine."""

    def names(value: Any) -> str:
        covered = [name for name, covers in value.items() if covers]
        return "everything" if len(covered) == len(value) else ", ".join(covered) or "-"

    matrix = natten_mlx.get_support_matrix()
    rows = {
        "forward": [names(row["forward"]) for row in matrix.values()],
        "backward": [names(row["backward"]) for row in matrix.values()],
        "fused, attention never stored": ["yes" if all(row["fusion"].values()) else "no" for row in matrix.values()],
        "variable lengths": [names(row["varlen"]) for row in matrix.values()],
        "devices": [", ".join(row["devices"]) for row in matrix.values()],
        "dtypes": [", ".join(row["dtypes"]) for row in matrix.values()],
        "not supported": ["; ".join(row["constraints"]) or "-" for row in matrix.values()],
    }
    lines = ["| | " + " | ".join(f"`{name}`" for name in matrix) + " |", "|---" * (len(matrix) + 1) + "|"]
    lines += [f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    current = before + BEGIN + matrix_markdown() + END + after
    if args.check:
        if current != text:
            print("README.md: the support matrix is out of date; run `make docs`", file=sys.stderr)
        return int(current != text)
    readme.write_text(current)
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_windows()
    draw_strides()
    return 0


if __name__ == "__main__":
    sys.exit(main())
