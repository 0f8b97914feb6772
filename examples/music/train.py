"""Trains model.py to find beats and the beginnings of bars in synthesised songs, and draws one that it has not heard.

python examples/music/train.py --report reports/music.png
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

import natten_mlx
from model import BeatTracker
from synth import BANDS, FRAMES_PER_SECOND, Song, make_song

_TOLERANCE = 0.07  # seconds, the usual one


def targets(song: Song) -> np.ndarray:
    """[frames, 2]: 1 at beats and bars, 0.5 beside them."""
    wanted = np.zeros((song.features.shape[1], 2), np.float32)
    for column, times in enumerate((song.beats, song.bars)):
        for frame in np.round(times * FRAMES_PER_SECOND).astype(int):
            for offset, value in ((-1, 0.5), (1, 0.5), (0, 1.0)):
                if 0 <= frame + offset < len(wanted):
                    wanted[frame + offset, column] = max(wanted[frame + offset, column], value)
    return wanted


def train(model: BeatTracker, steps: int, batch_size: int) -> None:
    """Trains `model` in place, on songs that are heard once."""
    optimizer = optim.AdamW(learning_rate=optim.cosine_decay(4e-3, steps, 1e-4), weight_decay=0.01)

    def loss(model: BeatTracker, features: mx.array, wanted: mx.array) -> mx.array:
        weights = 1 + 4 * wanted
        return (weights * nn.losses.binary_cross_entropy(model(features), wanted, reduction="none")).mean()

    step = nn.value_and_grad(model, loss)
    rng = np.random.default_rng(1)
    columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        task = progress.add_task("", total=steps, note="")
        for _ in range(steps):
            songs = [make_song(rng) for _ in range(batch_size)]
            features = mx.array(np.stack([song.features for song in songs]))
            value, gradients = step(model, features, mx.array(np.stack([targets(song) for song in songs])))
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            progress.update(task, advance=1, note=f"loss {value.item():.3f}")


def peaks(chances: np.ndarray) -> np.ndarray:
    """Seconds of the frames that are likelier than half and than their neighbors within 0.1 s."""
    reach = int(0.1 * FRAMES_PER_SECOND)
    padded = np.pad(chances, reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return np.flatnonzero((chances >= windows.max(axis=1)) & (chances > 0.5)) / FRAMES_PER_SECOND


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """F-measure: the harmonic mean of how many of the found are right and how many of the wanted are found."""
    if not len(found) or not len(wanted):
        return float(len(found) == len(wanted))
    near = np.abs(found[:, None] - wanted) <= _TOLERANCE
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def write_picture(path: Path, song: Song, chances: np.ndarray) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    rows = figure.subplots(5, sharex=True)
    seconds = song.features.shape[1] / FRAMES_PER_SECOND
    for axes, name, stem in zip(rows, ("drums", "bass", "chords", "melody"), song.features, strict=False):
        axes.imshow(stem.T, aspect="auto", origin="lower", extent=(0, seconds, 0, BANDS), cmap="magma")
        axes.set(ylabel=name, yticks=[])
    frames = np.arange(len(chances)) / FRAMES_PER_SECOND
    for column, (name, times, color) in enumerate((("beat", song.beats, "#7aa6da"), ("bar", song.bars, "#d1495b"))):
        rows[4].plot(frames, chances[:, column], color=color, label=name)
        rows[4].vlines(times, 1.05, 1.25, color=color)
    rows[4].set(ylim=(0, 1.3), xlim=(0, seconds), xlabel="seconds; above: where they are", yticks=[0, 1])
    rows[4].legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--songs", type=int, default=20, help="that it is judged by")
    parser.add_argument("--report", type=Path, default=Path("reports/music.png"))
    parser.add_argument("--require", type=float, default=0.0, help="exit 1 when beats are found worse than this")
    args = parser.parse_args()

    mx.random.seed(0)
    model = BeatTracker(BANDS)
    start = time.perf_counter()
    train(model, args.steps, args.batch_size)
    seconds = time.perf_counter() - start

    rng = np.random.default_rng(0)
    songs = [make_song(rng) for _ in range(args.songs)]
    judged = []
    for song in songs:
        chances = np.array(mx.sigmoid(model(mx.array(song.features[None]))[0]))
        judged.append([agreement(peaks(chances[:, 0]), song.beats), agreement(peaks(chances[:, 1]), song.bars)])
    write_picture(args.report, songs[-1], chances)
    beats, bars = np.mean(judged, axis=0)
    print(f"{args.steps} steps in {seconds:.0f} s on the tier {natten_mlx.get_backend()}")
    print(f"{len(songs)} new songs: F-measure of beats {beats:.2f}, of bars {bars:.2f}; wrote {args.report}")
    return 0 if beats >= args.require else 1


if __name__ == "__main__":
    sys.exit(main())
