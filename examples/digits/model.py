"""A small image classifier built on neighborhood attention."""

import mlx.core as mx
import mlx.nn as nn

import natten_mlx


class Block(nn.Module):
    """A transformer block whose attention looks at a window around each pixel instead of at the whole image."""

    def __init__(self, dim: int, heads: int, kernel_size: int, dilation: int = 1):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = natten_mlx.NeighborhoodAttention2D(
            dim, heads, kernel_size=kernel_size, dilation=dilation, rel_pos_bias=True
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def __call__(self, x: mx.array) -> mx.array:  # [batch, height, width, dim], in and out
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitClassifier(nn.Module):
    """Images [batch, 8, 8] to logits [batch, 10]: every pixel is a token."""

    def __init__(self, dim: int = 16, heads: int = 2):
        super().__init__()
        self.tokenizer = nn.Conv2d(1, dim, kernel_size=3, padding=1)
        self.position = 0.02 * mx.random.normal((8, 8, dim))
        self.blocks = [
            Block(dim, heads, kernel_size=3),
            # The same nine keys, spread over 5x5 pixels: depth and dilation widen what a pixel knows.
            Block(dim, heads, kernel_size=3, dilation=2),
        ]
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(8 * 8 * dim, 10)

    def tokens(self, images: mx.array) -> mx.array:
        """[batch, 8, 8] to [batch, 8, 8, dim]."""
        return self.tokenizer(images[..., None]) + self.position

    def __call__(self, images: mx.array) -> mx.array:
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).flatten(1))

    def attention_of_pixel(self, image: mx.array, row: int, column: int) -> mx.array:
        """How the first block spreads one pixel's attention: weights [3, 3] of its window, averaged over heads."""
        block = self.blocks[0]
        layer = block.attention
        qkv = layer.qkv(block.norm1(self.tokens(image[None])))
        query, key, _ = mx.moveaxis(qkv.reshape(1, 8, 8, 3, layer.num_heads, -1), 3, 0)
        # The split form hands out the logits, which the fused na2d never stores.
        logits = natten_mlx.na2d_qk(query, key, kernel_size=3, rpb=layer.rpb)  # [1, 8, 8, heads, 9]
        return mx.softmax(logits, axis=-1)[0, row, column].mean(axis=0).reshape(3, 3)
