"""Blocks like a music-structure model's (Kim and Nam, arXiv 2307.16425): stems that attend themselves and others.

Along time a stem attends windows of five frames, dilated by 1, 2, 4, ... 32, so that a few blocks span seconds; a
second attention looks at five frames of every stem at once.
"""

import mlx.core as mx
import mlx.nn as nn

from natten_mlx import NeighborhoodAttention1D, NeighborhoodAttention2D


class Block(nn.Module):
    """[batch, stems, frames, dim], in and out."""

    def __init__(self, dim: int, heads: int, dilation: int):
        super().__init__()
        options = {"rel_pos_bias": True, "pad_input": True}  # four stems are fewer than a window
        self.norm_time = nn.LayerNorm(dim)
        self.time = NeighborhoodAttention1D(dim, heads, 5, dilation=dilation, **options)
        self.norm_stems = nn.LayerNorm(dim)
        self.stems = NeighborhoodAttention2D(dim, heads, 5, dilation=(1, dilation), **options)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def __call__(self, x: mx.array) -> mx.array:
        each = self.norm_time(x).reshape(-1, *x.shape[2:])
        x = x + self.time(each).reshape(x.shape)
        x = x + self.stems(self.norm_stems(x))
        return x + self.mlp(self.norm_mlp(x))


class BeatTracker(nn.Module):
    """Loudness of stems [batch, stems, frames, bands] to logits [batch, frames, 2]: a beat here, a bar begins here."""

    def __init__(self, bands: int, dim: int = 24, heads: int = 2, blocks: int = 6):
        super().__init__()
        self.tokens = nn.Linear(2 * bands, dim)
        self.stem = 0.1 * mx.random.normal((4, 1, dim))
        self.blocks = [Block(dim, heads, 2**number) for number in range(blocks)]
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 2)

    def __call__(self, features: mx.array) -> mx.array:
        before = mx.pad(features, [(0, 0), (0, 0), (1, 0), (0, 0)])[:, :, :-1]
        x = self.tokens(mx.concatenate([features, features - before], axis=-1)) + self.stem
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(axis=1)))
