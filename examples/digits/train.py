"""Trains the classifier of model.py on scikit-learn's 8x8 handwritten digits, and writes a report.

python examples/digits/train.py --report reports/digits.png
"""

import argparse
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import natten_mlx
from model import DigitClassifier
from report import write_report


def load() -> list[np.ndarray]:
    """Training and test images [N, 8, 8] with values from -1 to 1, then training and test labels [N]."""
    digits = load_digits()
    images = (digits.images / 8 - 1).astype(np.float32)
    labels = digits.target.astype(np.int32)
    return train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)


def predict(model: DigitClassifier, images: np.ndarray) -> np.ndarray:
    return np.array(mx.argmax(model(mx.array(images)), axis=-1))


def train(model: DigitClassifier, data: list[np.ndarray], epochs: int, batch_size: int) -> list[float]:
    """Trains `model` in place; returns the test accuracy after each epoch."""
    train_images, test_images, train_labels, test_labels = data
    steps = len(train_images) // batch_size
    optimizer = optim.AdamW(learning_rate=optim.cosine_decay(2e-3, epochs * steps, 1e-4), weight_decay=0.01)

    def loss(model: DigitClassifier, images: mx.array, labels: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(images), labels, reduction="mean")

    loss_and_grad = nn.value_and_grad(model, loss)
    rng = np.random.default_rng(0)
    accuracy: list[float] = []
    columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        task = progress.add_task("", total=epochs * steps, note="")
        for _ in range(epochs):
            order = rng.permutation(len(train_images))[: steps * batch_size]
            for batch in order.reshape(steps, batch_size):
                value, gradients = loss_and_grad(model, mx.array(train_images[batch]), mx.array(train_labels[batch]))
                optimizer.update(model, gradients)
                mx.eval(model.parameters(), optimizer.state)
                progress.advance(task)
            accuracy.append(float(np.mean(predict(model, test_images) == test_labels)))
            progress.update(task, note=f"loss {value.item():.3f}, test accuracy {accuracy[-1]:.1%}")
    return accuracy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--report", type=Path, default=Path("reports/digits.png"))
    parser.add_argument("--require", type=float, default=0.95, help="exit 1 when the test accuracy is below this")
    args = parser.parse_args()

    mx.random.seed(0)
    model = DigitClassifier()
    data = load()
    start = time.perf_counter()
    accuracy = train(model, data, args.epochs, args.batch_size)
    seconds = time.perf_counter() - start

    _, test_images, _, test_labels = data
    args.report.parent.mkdir(parents=True, exist_ok=True)
    write_report(args.report, model, accuracy, test_images, test_labels, predict(model, test_images))
    print(f"test accuracy {accuracy[-1]:.1%} after {seconds:.0f} s on tier '{natten_mlx.get_backend()}'")
    print(f"report: {args.report}")
    return 0 if accuracy[-1] >= args.require else 1


if __name__ == "__main__":
    sys.exit(main())
