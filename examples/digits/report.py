"""The picture that `train.py` leaves behind."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from model import DigitClassifier


def write_report(
    path: Path,
    model: DigitClassifier,
    accuracy: list[float],
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
) -> None:
    """Accuracy curve, confusion matrix, and what one pixel of one test image attends."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curve, confusion, window = figure.subplots(1, 3)

    epochs = range(1, len(accuracy) + 1)
    curve.plot(epochs, accuracy, marker="o")
    curve.axhline(0.95, color="gray", linestyle=":")
    curve.set(xlabel="epoch", ylabel="test accuracy", title=f"accuracy: {accuracy[-1]:.1%}", ylim=(0, 1.02))

    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (labels, predictions), 1)
    confusion.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if count > counts.max() / 2 else "black"
            confusion.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    confusion.set(xticks=range(10), yticks=range(10), xlabel="predicted", ylabel="digit", title="confusion matrix")

    row, column = 3, 4
    weights = np.array(model.attention_of_pixel(mx.array(images[0]), row, column))
    window.imshow(images[0], cmap="gray_r")
    # An interior pixel's 3x3 window is centered on it.
    for (i, j), weight in np.ndenumerate(weights):
        y, x = row - 1 + i, column - 1 + j
        window.add_patch(_square(x, y, edge="tab:orange"))
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        window.text(x, y, f"{weight:.2f}", ha="center", va="center", fontsize=8, color="tab:red", bbox=box)
    window.add_patch(_square(column, row, edge="tab:red"))
    window.set(xticks=[], yticks=[], title=f"attention of pixel ({row}, {column}), a {labels[0]}")

    figure.savefig(path, dpi=120)


def _square(x: float, y: float, edge: str) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=edge, linewidth=2)
