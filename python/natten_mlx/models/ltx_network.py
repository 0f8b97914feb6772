"""The network of LTX-2.5's video decoder, channels last: stages of neighborhood attention turn latents into a volume of
context, a small diffusion model turns noise into pixels.

Parameters have the names of diffusers' `LTX2VideoDiffusionDecoderModel`, whose results these are, but for those of
attention (`hub_names`).
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from natten_mlx.models.ltx_config import LtxDecoderConfig, Size
from natten_mlx.nn import NeighborhoodAttention3D, RoPE

_EPS = 1e-6
_ROPE_BASE = 10000.0
_MLP_RATIO = 4
_MLP_TOKENS = (
    4096  # of one tile: the hidden layer is four times as wide as everything else, and MLX starts some 7 tiles
)
_TIME_CHANNELS = 256
_MODULATIONS = 7  # of which four are used: scale and shift before attention and before the MLP


def attention(dim: int, head_dim: int, kernel_size: tuple[int, ...]) -> NeighborhoodAttention3D:
    """Neighborhood attention with normed and rotated query and key, [B, T, H, W, C] -> the same."""
    return NeighborhoodAttention3D(
        dim,
        dim // head_dim,
        kernel_size,
        qk_norm=(nn.RMSNorm(head_dim, eps=_EPS), nn.RMSNorm(head_dim, eps=_EPS)),
        # Places count from the array's own start, also in a tile: logits depend on their differences only.
        rope=RoPE(rope_dims(head_dim), _ROPE_BASE, traditional=True),
    )


def rope_dims(head_dim: int) -> Size:
    """The channels of a head that the place in time, height and width rotates."""
    time = head_dim // 4 // 2 * 2
    space = (head_dim - time) // 2
    return (time, space, space) if space % 2 == 0 else (time - 2, space + 1, space + 1)


class SwiGlu(nn.Module):
    """A gated MLP, token by token, in tiles of tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = (dim * _MLP_RATIO + 15) // 16 * 16
        self.w_up = nn.Linear(dim, hidden, bias=False)
        self.w_gate = nn.Linear(dim, hidden, bias=False)
        self.w_down = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """[..., C] -> [..., C]"""
        tokens = x.reshape(-1, x.shape[-1])
        done: list[mx.array] = []
        for tile in mx.split(tokens, range(_MLP_TOKENS, tokens.shape[0], _MLP_TOKENS)):
            # MLX takes what does not depend on each other in turn: without this, some 20 tiles are under way.
            (tile,) = mx.depends([tile], done[-1:]) if done else [tile]
            done.append(self.w_down(nn.silu(self.w_gate(tile)) * self.w_up(tile)))
        return mx.concatenate(done).reshape(x.shape)


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and on a residual branch."""

    def __init__(self, dim: int, head_dim: int, kernel_size: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.norm1 = nn.RMSNorm(dim, eps=_EPS)
        self.attn = attention(dim, head_dim, kernel_size)
        self.norm2 = nn.RMSNorm(dim, eps=_EPS)
        self.mlp = SwiGlu(dim)

    def __call__(self, x: mx.array, frames: slice = slice(None)) -> mx.array:
        """[B, T, H, W, C] -> the same, or those frames of it"""
        x, attended = x[:, frames], self.attn(self.norm1(x))[:, frames]
        x = x + attended
        return x + self.mlp(self.norm2(x))


class DiffusionBlock(Block):
    """A block that also sees the context, and whose norms are modulated by the time of the diffusion."""

    def __init__(self, dim: int, head_dim: int, kernel_size: tuple[int, ...]) -> None:
        super().__init__(dim, head_dim, kernel_size)
        self.context_proj = nn.Linear(dim, dim)
        self.scale_shift_table = mx.zeros((_MODULATIONS, dim))

    def __call__(self, x: mx.array, context: mx.array, modulation: mx.array) -> mx.array:  # type: ignore[override]
        """x, context [B, T, H, W, C], modulation [B, 7, C] -> [B, T, H, W, C]"""
        modulation = (modulation + self.scale_shift_table)[:, :, None, None, None]
        x = x + self.context_proj(context)
        x = x + self.attn(self.norm1(x) * (1 + modulation[:, 0]) + modulation[:, 1])
        return x + self.mlp(self.norm2(x) * (1 + modulation[:, 3]) + modulation[:, 4])


class Upsample(nn.Module):
    """A projection to more channels, which become frames, rows and columns."""

    def __init__(self, dim: int, stride: tuple[int, ...], reduction: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Linear(dim, math.prod(stride) * dim // reduction)

    @property
    def leading(self) -> int:
        """Frames at the video's start that the projection makes too many: the first latent frame is one frame."""
        return self.stride[0] - 1

    def __call__(self, x: mx.array, frames: slice = slice(None)) -> mx.array:
        """[B, T, H, W, C] -> those frames of [B, T * stride, H * stride, W * stride, C']"""
        batch, *grid, _ = x.shape
        x = self.proj(x).reshape(batch, *grid, -1, *self.stride).transpose(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(batch, *(n * s for n, s in zip(grid, self.stride, strict=True)), -1)[:, frames]


class TimestepEmbedder(nn.Module):
    """Sines and cosines of the time, and two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = {"linear_1": nn.Linear(_TIME_CHANNELS, dim), "linear_2": nn.Linear(dim, dim)}

    def __call__(self, time: mx.array) -> mx.array:
        """[B] -> [B, C]"""
        half = _TIME_CHANNELS // 2
        frequencies = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(10000.0) / half))
        angles = time.astype(mx.float32)[:, None] * frequencies
        first, second = self.timestep_embedder["linear_1"], self.timestep_embedder["linear_2"]
        waves = mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1).astype(first.weight.dtype)
        return second(nn.silu(first(waves)))


class Decoder(nn.Module):
    """The network itself, channels last, part by part; `LtxDecoder` puts the parts together."""

    def __init__(self, config: LtxDecoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, head_dim = config.decoder_stage_channels, config.decoder_head_dim
        pixels = config.out_channels * config.patch_size**2
        self.conv_in = nn.Linear(config.latent_channels, channels[0])
        self.det_stages = [
            [Block(dim, head_dim, kernel) for _ in range(depth)]
            for dim, depth, kernel in zip(
                channels[:-1], config.decoder_stage_depths[:-1], config.decoder_stage_kernels, strict=True
            )
        ]
        self.upsamples = [
            Upsample(dim, stride, reduction)
            for dim, stride, reduction in zip(
                channels[:-1], config.decoder_upsample_strides, config.decoder_upsample_channel_reductions, strict=True
            )
        ]
        self.t_embedder = TimestepEmbedder(config.decoder_t_emb_dim)
        self.conv_in_x_t = nn.Linear(pixels, channels[-1])
        self.shared_adaln = {"proj": nn.Linear(config.decoder_t_emb_dim, _MODULATIONS * channels[-1])}
        self.diff_blocks = [
            DiffusionBlock(channels[-1], head_dim, config.decoder_stage5_kernel)
            for _ in range(config.decoder_stage_depths[-1])
        ]
        self.norm_out = nn.RMSNorm(channels[-1], eps=_EPS)
        self.conv_out = nn.Linear(channels[-1], pixels)

    def features(self, latents: mx.array) -> mx.array:
        """Every stage before the last of those that are not diffusion: latents [B, F, H, W, C] -> [B, T, H', W', C'],
        the ghosts of the last frame included."""
        ghosts = mx.repeat(latents[:, -1:], self.config.ghosts, axis=1)
        x = self.conv_in(mx.concatenate([latents, ghosts], axis=1))
        for blocks, upsample in zip(self.det_stages[:-1], self.upsamples[:-1], strict=True):
            for block in blocks:
                x = block(x)
            x = upsample(x, slice(upsample.leading, None))
        return x

    def context(self, features: mx.array, first: bool = True, last: bool = True) -> mx.array:
        """The last of these stages: features, or a tile of them, -> [B, T, H, W, C].

        Args:
            features: What `features` returns.
            first: Whether they begin where the video begins, with a frame that is one frame.
            last: Whether they end behind the video's end, with the ghosts.
        """
        for block in self.det_stages[-1]:
            features = block(features)
        upsample, ghosts = self.upsamples[-1], self.config.ghosts * self.config.temporal_compression_ratio
        return upsample(features, slice(upsample.leading if first else 0, -ghosts if last and ghosts else None))

    def predict(self, context: mx.array, noisy: mx.array, time: mx.array) -> mx.array:
        """What the diffusion model says: context [B, T, H, W, C], pixels [B, T, H p, W p, 3], time [B] -> pixels."""
        patch = self.config.patch_size
        embedded = self.t_embedder(self.config.decoder_timestep_scale_multiplier * time)
        modulation = self.shared_adaln["proj"](nn.silu(embedded)).reshape(time.shape[0], _MODULATIONS, -1)
        x = self.conv_in_x_t(patchify(noisy, patch))
        for block in self.diff_blocks:
            x = block(x, context, modulation)
        return unpatchify(self.conv_out(self.norm_out(x)), patch)

    def denoise(self, context: mx.array, noise: mx.array, steps: int) -> mx.array:
        """Noise [B, T, H p, W p, 3] -> pixels, in Euler steps from time 1 to 0."""
        batch, predicts_pixels = context.shape[0], self.config.decoder_model_output_type == "x0"
        if steps == 1 and predicts_pixels:
            return self.predict(context, noise, mx.ones((batch,)))
        x = noise
        for step in range(steps, 0, -1):
            predicted = self.predict(context, x, mx.full((batch,), step / steps)).astype(mx.float32)
            at = x.astype(mx.float32)
            velocity = (at - predicted) * (steps / step) if predicts_pixels else predicted
            x = (at - velocity / steps).astype(noise.dtype)
        return x


def patchify(pixels: mx.array, patch: int) -> mx.array:
    """[B, T, H p, W p, C] -> [B, T, H, W, C p p], the packed channels ordered (channel, column, row)."""
    batch, time, height, width, channels = pixels.shape
    x = pixels.reshape(batch, time, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(batch, time, height // patch, width // patch, -1)


def unpatchify(x: mx.array, patch: int) -> mx.array:
    """The inverse of `patchify`."""
    batch, time, height, width, _ = x.shape
    x = x.reshape(batch, time, height, width, -1, patch, patch).transpose(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(batch, time, height * patch, width * patch, -1)


_HUB_NAMES = {
    "qkv": ("to_q", "to_k", "to_v"),
    "q_norm": ("norm_q",),
    "k_norm": ("norm_k",),
    "proj": ("to_out.0",),
}


def hub_names(name: str) -> tuple[str, ...]:
    """Names of diffusers' checkpoints for the parts of a parameter."""
    block, found, rest = name.partition(".attn.")
    if not found:
        return (name,)
    part, _, kind = rest.partition(".")
    return tuple(f"{block}.attn.{stored}.{kind}" for stored in _HUB_NAMES[part])
