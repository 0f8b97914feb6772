"""Trains a small model of the weather on a sphere of 16 latitudes and 48 longitudes, on one machine or on many.

mlx.launch -n 4 --backend ring -- python examples/distributed/train.py

Each rank holds a slab of longitudes. Model and loop are those of one machine, but for three lines: the fields are
sharded, the attention is told the group and the axis, and gradients are summed over ranks.
"""

import argparse
import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from natten_mlx import NeighborhoodAttention2D, distributed

LATITUDES, LONGITUDES = 16, 48
WINDOW = 7
AXIS = 1  # longitudes are spread over ranks


def weather(samples: int, seed: int) -> tuple[mx.array, mx.array]:
    """Smooth fields [N, latitudes, longitudes, 1], and what the wind has made of them: it blows from the west, faster
    towards the equator."""
    random = np.random.default_rng(seed)
    latitude, longitude = np.arange(LATITUDES), np.arange(LONGITUDES)
    waves = np.arange(1, 5)
    phase = random.uniform(0, 2 * np.pi, (samples, 4, 1, 1))
    tilt = random.normal(0, 0.2, (samples, 4, 1, 1))
    strength = random.normal(0, 1, (samples, 4, 1, 1)) / waves[:, None, None]

    def field(east: np.ndarray) -> mx.array:
        angle = 2 * np.pi * waves[:, None, None] * (longitude - east) / LONGITUDES + tilt * latitude[:, None] + phase
        return mx.array((strength * np.sin(angle)).sum(1)[..., None].astype(np.float32))

    wind = 3 * np.sin(np.pi * (latitude[:, None] + 0.5) / LATITUDES)
    return field(np.zeros_like(wind)), field(wind)


class Block(nn.Module):
    def __init__(self, channels: int, heads: int, group: mx.distributed.Group) -> None:
        super().__init__()
        # Longitudes go around: the first rank and the last are neighbors. The bias learns where the wind comes from.
        window = {"kernel_size": WINDOW, "is_circular": (False, True), "rel_pos_bias": True}
        self.attention = NeighborhoodAttention2D(channels, heads, **window, group=group, shard_axis=AXIS)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Forecast(nn.Module):
    def __init__(self, group: mx.distributed.Group, channels: int = 16, heads: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, channels), nn.Linear(channels, 1)
        self.blocks = [Block(channels, heads, group) for _ in range(blocks)]

    def __call__(self, field: mx.array) -> mx.array:
        latitude = mx.broadcast_to(mx.linspace(-1, 1, LATITUDES)[:, None, None], field.shape)
        x = self.embed(mx.concatenate([field, latitude], axis=-1))
        for block in self.blocks:
            x = block(x)
        return field + self.head(x)


def train(group: mx.distributed.Group, steps: int, batch_size: int) -> list[float]:
    """The mean squared error of each step, over the whole sphere."""
    mx.random.seed(0)  # the same parameters on every rank
    model = Forecast(group)
    optimizer = optim.AdamW(learning_rate=5e-3)
    points = batch_size * LATITUDES * LONGITUDES

    def loss(before: mx.array, after: mx.array) -> mx.array:
        return (model(before) - after).square().sum() / points  # this rank's part of it

    step = nn.value_and_grad(model, loss)
    losses = []
    for index in range(steps):
        before, after = (distributed.shard(field, AXIS, group) for field in weather(batch_size, index % 4))
        value, gradients = distributed.sum_gradients(step(before, after), group)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, value)
        losses.append(value.item())
        if group.rank() == 0 and (index + 1) % 20 == 0:
            print(f"{group.size()} rank(s), step {index + 1}: error {losses[-1]:.5f}", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--losses", type=Path, help="write the losses to this file (JSON)")
    args = parser.parse_args()
    group = mx.distributed.init()
    losses = train(group, args.steps, args.batch_size)
    if args.losses and group.rank() == 0:
        args.losses.write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
