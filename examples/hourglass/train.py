"""Trains model.py to draw scikit-learn's handwritten digits from noise, and writes a picture of samples.

python examples/hourglass/train.py --report reports/hourglass.png
"""

import argparse
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import natten_mlx
from model import Hourglass

_KEPT = 0.99  # of the running average of the weights, with which samples are drawn


def loss(model: Hourglass, images: mx.array, classes: mx.array) -> mx.array:
    """Rectified flow: between image and noise the velocity is their difference."""
    noise = mx.random.normal(images.shape)
    times = mx.sigmoid(mx.random.normal((images.shape[0],)))
    between = times[:, None, None]
    predicted = model((1 - between) * images + between * noise, times, classes)
    return ((predicted - (noise - images)) ** 2).mean()


def train(model: Hourglass, images: np.ndarray, classes: np.ndarray, steps: int, batch_size: int) -> list[float]:
    """Trains `model` in place and leaves the average of its weights in it; returns the losses."""
    optimizer = optim.AdamW(learning_rate=optim.cosine_decay(3e-3, steps, 1e-4), weight_decay=0.01)
    step = nn.value_and_grad(model, loss)
    rng = np.random.default_rng(0)
    average = model.parameters()
    losses = []
    columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        task = progress.add_task("", total=steps, note="")
        for number in range(steps):
            batch = rng.integers(0, len(images), batch_size)
            value, gradients = step(model, mx.array(images[batch]), mx.array(classes[batch]))
            optimizer.update(model, gradients)
            kept = min(_KEPT, number / (number + 10))
            average = tree_map(lambda a, b, kept=kept: kept * a + (1 - kept) * b, average, model.parameters())
            mx.eval(model.parameters(), optimizer.state, average)
            losses.append(value.item())
            progress.update(task, advance=1, note=f"loss {np.mean(losses[-50:]):.3f}")
    model.update(average)
    return losses


def sample(model: Hourglass, classes: mx.array, steps: int) -> mx.array:
    """Images [B, 8, 8] of the classes [B]: Euler steps from noise at time 1 to time 0."""
    images = mx.random.normal((classes.shape[0], 8, 8))
    for step in range(steps, 0, -1):
        images = images - model(images, mx.full(classes.shape, step / steps), classes) / steps
        mx.eval(images)
    return images


def write_picture(path: Path, images: np.ndarray, columns: int) -> None:
    from matplotlib.figure import Figure

    tiles = np.pad(images, ((0, 0), (1, 0), (1, 0)), constant_values=1.0).reshape(-1, columns, 9, 9)
    picture = np.pad(tiles.transpose(0, 2, 1, 3).reshape(-1, 9 * columns), ((0, 1), (0, 1)), constant_values=1.0)
    figure = Figure(figsize=(columns / 2.2, picture.shape[0] / 9 / 2.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(-picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sampling-steps", type=int, default=40)
    parser.add_argument("--each", type=int, default=8, help="samples of each digit")
    parser.add_argument("--report", type=Path, default=Path("reports/hourglass.png"))
    parser.add_argument("--require", type=float, default=0.0, help="exit 1 when fewer samples are recognised")
    args = parser.parse_args()

    mx.random.seed(0)
    digits = load_digits()
    images, classes = (digits.images / 8 - 1).astype(np.float32), digits.target.astype(np.int32)
    model = Hourglass()
    start = time.perf_counter()
    losses = train(model, images, classes, args.steps, args.batch_size)
    seconds = time.perf_counter() - start

    wanted = np.tile(np.arange(10, dtype=np.int32), args.each)
    drawn = np.array(sample(model, mx.array(wanted), args.sampling_steps))
    write_picture(args.report, drawn, columns=10)
    judge = KNeighborsClassifier(5).fit(images.reshape(len(images), -1), classes)
    recognised = float(np.mean(judge.predict(drawn.reshape(len(drawn), -1)) == wanted))
    tier, end = natten_mlx.get_backend(), np.mean(losses[-50:])
    print(f"{len(losses)} steps in {seconds:.0f} s on the tier {tier}, loss {end:.3f}")
    print(f"{recognised:.0%} of {len(drawn)} samples are recognised as the digit asked for; wrote {args.report}")
    return 0 if recognised >= args.require else 1


if __name__ == "__main__":
    sys.exit(main())
