"""An hourglass diffusion transformer (Crowson et al., arXiv 2401.11605) for 8x8 images, small enough for a CPU.

Pixels attend windows of 7x7 with cosine attention, a learned scale and rotary positions; four pixels then become one
token of a coarser level, and come back.
"""

import math

import mlx.core as mx
import mlx.nn as nn

import natten_mlx


def rotate(x: mx.array, frequencies: mx.array) -> mx.array:
    """Rotary positions: pairs of channels of x [B, H, W, heads, D] turn by row or column; frequencies [heads, D/4]."""
    height, width = x.shape[1:3]
    rows = mx.linspace(-1, 1, height)[:, None, None, None] * frequencies
    columns = mx.linspace(-1, 1, width)[None, :, None, None] * frequencies
    grid = (height, width, *frequencies.shape)
    angles = mx.concatenate([mx.broadcast_to(rows, grid), mx.broadcast_to(columns, grid)], axis=-1)
    first, second = mx.split(x, 2, axis=-1)
    cos, sin = mx.cos(angles), mx.sin(angles)
    return mx.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


class Attention(nn.Module):
    """Cosine attention: the logits are the cosines of query and key, times a learned scale per head."""

    def __init__(self, dim: int, heads: int, kernel_size: int):
        super().__init__()
        self.heads, self.kernel_size = heads, kernel_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.log_scale = mx.full((heads,), math.log(10.0))
        steps = mx.linspace(math.log(math.pi), math.log(10 * math.pi), heads * (dim // heads // 4) + 1)[:-1]
        self.log_frequencies = steps.reshape(-1, heads).T
        self.freeze(keys=["log_frequencies"], recurse=False)

    def __call__(self, x: mx.array) -> mx.array:  # [batch, height, width, dim], in and out
        query, key, value = mx.moveaxis(self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1), -3, 0)
        query, key = (a * mx.rsqrt((a * a).sum(axis=-1, keepdims=True) + 1e-6) for a in (query, key))
        frequencies = mx.exp(self.log_frequencies)
        # The scale is an array with a gradient: half of its logarithm goes to either side.
        root = mx.exp(0.5 * self.log_scale)[:, None]
        query, key = rotate(query * root, frequencies), rotate(key * root, frequencies)
        out = natten_mlx.na2d(query, key, value, min(self.kernel_size, x.shape[1]), scale=1.0)
        return self.proj(out.reshape(x.shape))


class Block(nn.Module):
    """Attention and a gated MLP behind norms whose gains depend on the condition."""

    def __init__(self, dim: int, heads: int, kernel_size: int, condition: int):
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.gains = nn.Linear(condition, 2 * dim, bias=False)
        self.gains.weight = mx.zeros_like(self.gains.weight)
        self.attention = Attention(dim, heads, kernel_size)
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
        self.middle = [Block(wide, 4, 7, condition) for _ in range(2)]  # 4x4 tokens: all of them
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
