"""An hourglass diffusion transformer (Crowson et al., arXiv 2401.11605) for 8x8 images, small enough for a CPU.

Pixels attend windows of 7x7 with cosine attention, a learned scale and rotary positions; four pixels then become one
token of a coarser level, and come back.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from natten_mlx import NeighborhoodAttention2D
from natten_mlx.nn import RoPE


def cosine(x: mx.array) -> mx.array:
    """Query or key [..., head_dim] of length 1: their products are cosines then."""
    return x * mx.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)


def attention(dim: int, heads: int, kernel_size: int) -> NeighborhoodAttention2D:
    """Cosine attention with a learned scale per head, and rotary positions: half of a head's channels turn by row, half
    by column."""
    half = dim // heads // 2
    return NeighborhoodAttention2D(
        dim,
        heads,
        kernel_size,
        qkv_bias=False,
        qk_norm=cosine,
        qk_scale=mx.full((heads,), 10.0),
        rope=RoPE((half, half), base=10.0),  # images of a few pixels: no slow frequencies
    )


class Block(nn.Module):
    """Attention and a gated MLP behind norms whose gains depend on the condition."""

    def __init__(self, dim: int, heads: int, kernel_size: int, condition: int):
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.gains = nn.Linear(condition, 2 * dim, bias=False)
        self.gains.weight = mx.zeros_like(self.gains.weight)
        self.attention = attention(dim, heads, kernel_size)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(2 * dim, dim, bias=False)

    def __call__(self, x: mx.array, condition: mx.array) -> mx.array:
        first, second = mx.split(1 + self.gains(condition)[:, None, None], 2, axis=-1)
        x = x + self.attention(self.norm(x) * first)
        gate, value = mx.split(self.up(self.norm(x) * second), 2, axis=-1)
        return x + self.down(nn.gelu(gate) * value)


class Hourglass(nn.Module):
    """Noisy images [B, 8, 8], times [B] and classes [B] to velocities [B, 8, 8]."""

    def __init__(self, dim: int = 32, wide: int = 64, condition: int = 64, classes: int = 10):
        super().__init__()
        self.times = 0.5 * mx.random.normal((condition // 2,))
        self.freeze(keys=["times"], recurse=False)
        self.classes = nn.Embedding(classes, condition)
        self.mapping = nn.Sequential(
            nn.Linear(condition, condition), nn.GELU(), nn.Linear(condition, condition), nn.GELU()
        )
        self.tokens = nn.Linear(1, dim)
        self.down_blocks = [Block(dim, 2, 7, condition)]
        self.merge = nn.Linear(4 * dim, wide, bias=False)
        self.middle = [Block(wide, 4, 4, condition) for _ in range(2)]  # 4x4 tokens: all of them
        self.split = nn.Linear(wide, 4 * dim, bias=False)
        self.skip = mx.array(0.5)
        self.up_blocks = [Block(dim, 2, 7, condition)]
        self.norm = nn.RMSNorm(dim)
        self.pixels = nn.Linear(dim, 1)
        self.pixels.weight = mx.zeros_like(self.pixels.weight)

    def __call__(self, images: mx.array, times: mx.array, classes: mx.array) -> mx.array:
        angles = 2 * math.pi * times[:, None] * self.times
        waves = mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)
        condition = self.mapping(waves + self.classes(classes))
        x = self.tokens(images[..., None])
        for block in self.down_blocks:
            x = block(x, condition)
        batch, height, width, dim = x.shape
        fours = x.reshape(batch, height // 2, 2, width // 2, 2, dim).swapaxes(2, 3)
        coarse = self.merge(fours.reshape(batch, height // 2, width // 2, 4 * dim))
        for block in self.middle:
            coarse = block(coarse, condition)
        fours = self.split(coarse).reshape(batch, height // 2, width // 2, 2, 2, dim).swapaxes(2, 3)
        x = x + self.skip * (fours.reshape(x.shape) - x)
        for block in self.up_blocks:
            x = block(x, condition)
        return self.pixels(self.norm(x))[..., 0]
