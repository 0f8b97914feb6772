"""The diffusion video decoder of LTX-2.5: latents to frames, through three-dimensional neighborhood attention.

Four stages turn the latents into a volume of context; a fifth, a small diffusion model, turns noise into pixels.
Parameters have the names of diffusers' `LTX2VideoDiffusionDecoderModel`, whose results these are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from natten_mlx import functional
from natten_mlx.models import arguments
from natten_mlx.models.config import Fields
from natten_mlx.models.files import Checkpoint, fill

CLASS_NAME = "LTX2VideoDiffusionDecoderModel"
_EPS = 1e-6
_ROPE_BASE = 10000.0
_MLP_RATIO = 4
_MLP_TOKENS = 16384  # of one tile: the hidden layer is four times as wide as everything else
_TIME_CHANNELS = 256
_MODULATIONS = 7  # of which four are used: scale and shift before attention and before the MLP

Size = tuple[int, int, int]  # time, height, width


@dataclass(frozen=True)
class LtxDecoderConfig:
    """The keys of config.json under their names on the hub. The defaults are LTX-2.5's."""

    out_channels: int = 3
    latent_channels: int = 128
    patch_size: int = 4
    scaling_factor: float = 1.0
    decoder_head_dim: int = 64
    decoder_stage_channels: tuple[int, ...] = (2048, 1024, 512, 512, 256)
    decoder_stage_depths: tuple[int, ...] = (4, 6, 4, 2, 8)
    decoder_stage_kernels: tuple[tuple[int, ...], ...] = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5))
    decoder_upsample_strides: tuple[tuple[int, ...], ...] = ((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2))
    decoder_upsample_channel_reductions: tuple[int, ...] = (2, 2, 1, 2)
    decoder_stage5_kernel: tuple[int, ...] = (11, 11, 11)
    decoder_t_emb_dim: int = 384
    decoder_timestep_scale_multiplier: float = 1000.0
    decoder_model_output_type: str = "x0"
    decoder_num_inference_steps: int = 1
    spatial_compression_ratio: int = 32
    temporal_compression_ratio: int = 8

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config.json") -> LtxDecoderConfig:
        """Reads and checks the content of a config.json; `source` names it in errors (`ValueError`)."""
        fields = Fields(values, source)
        fields.choice("_class_name", CLASS_NAME, (CLASS_NAME,))
        channels = fields.integers("decoder_stage_channels", cls.decoder_stage_channels)
        if len(channels) < 2:
            raise fields.error("decoder_stage_channels", "a list of at least two stages")
        stages = len(channels) - 1
        axes, what = [3] * stages, "time, height and width for each stage but the last"
        head_dim = fields.integer("decoder_head_dim", 64)
        if head_dim % 8:
            raise fields.error("decoder_head_dim", "a multiple of 8")
        if any(count % head_dim for count in channels):
            raise fields.error("decoder_stage_channels", f"multiples of decoder_head_dim, {head_dim}")
        reductions = fields.integers("decoder_upsample_channel_reductions", (2, 2, 1, 2), stages)
        for stage, reduction in enumerate(reductions):
            if channels[stage] // reduction != channels[stage + 1]:
                raise fields.error(
                    "decoder_upsample_channel_reductions", f"the steps of decoder_stage_channels, {list(channels)}"
                )
        strides = fields.rows("decoder_upsample_strides", cls.decoder_upsample_strides, axes, what)
        if any(stride[0] > 2 for stride in strides):
            raise fields.error("decoder_upsample_strides", "1 or 2 in time")
        patch = fields.integer("patch_size", 4)
        ratios = {
            "temporal_compression_ratio": math.prod(stride[0] for stride in strides),
            "spatial_compression_ratio": math.prod(stride[1] for stride in strides) * patch,
        }
        for key, ratio in ratios.items():
            if fields.integer(key, ratio) != ratio:
                raise fields.error(key, f"{ratio}, to which patch_size and decoder_upsample_strides multiply")
        config = cls(
            out_channels=fields.integer("out_channels", 3),
            latent_channels=fields.integer("latent_channels", 128),
            patch_size=patch,
            scaling_factor=fields.number("scaling_factor", 1.0, least=1e-30),
            decoder_head_dim=head_dim,
            decoder_stage_channels=channels,
            decoder_stage_depths=fields.depths("decoder_stage_depths", (4, 6, 4, 2, 8), stages + 1),
            decoder_stage_kernels=fields.rows("decoder_stage_kernels", cls.decoder_stage_kernels, axes, what),
            decoder_upsample_strides=strides,
            decoder_upsample_channel_reductions=reductions,
            decoder_stage5_kernel=fields.integers("decoder_stage5_kernel", (11, 11, 11), 3),
            decoder_t_emb_dim=fields.integer("decoder_t_emb_dim", 384),
            decoder_timestep_scale_multiplier=fields.number("decoder_timestep_scale_multiplier", 1000.0),
            decoder_model_output_type=fields.choice("decoder_model_output_type", "x0", ("x0", "v")),
            decoder_num_inference_steps=fields.integer("decoder_num_inference_steps", 1),
            **ratios,
        )
        unknown = fields.unknown(())
        if unknown:  # diffusers writes exactly the arguments of the model: another one is another computation
            raise ValueError(f"{source}: {unknown[0]!r} is unknown to this decoder, got {values[unknown[0]]!r}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json."""
        return {"_class_name": CLASS_NAME, **asdict(self)}

    @property
    def ghosts(self) -> int:
        """How often the last latent frame is repeated, so that stages 1 to 4 have their border behind the video."""
        return self.decoder_stage_kernels[0][0] // 2 * 2

    def grids(self, frames: int, height: int, width: int) -> list[Size]:
        """The tokens of each stage for latents of this size, ghosts included up to the last stage but one."""
        grid = (frames + self.ghosts, height, width)
        grids = [grid]
        for time, *space in self.decoder_upsample_strides:
            grid = (grid[0] * time - (time - 1), grid[1] * space[0], grid[2] * space[1])
            grids.append(grid)
        grids[-1] = (grid[0] - self.ghosts * self.temporal_compression_ratio, *grid[1:])
        return grids


class Attention(nn.Module):
    """Neighborhood attention with normed and rotated query and key."""

    def __init__(self, dim: int, head_dim: int, kernel_size: tuple[int, ...]) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.kernel_size = kernel_size
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = [nn.Linear(dim, dim)]
        self.norm_q = nn.RMSNorm(head_dim, eps=_EPS)
        self.norm_k = nn.RMSNorm(head_dim, eps=_EPS)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, T, H, W, C] -> [B, T, H, W, C]"""
        heads = (*x.shape[:-1], -1, self.head_dim)
        query = rotate(self.norm_q(self.to_q(x).reshape(heads)))
        key = rotate(self.norm_k(self.to_k(x).reshape(heads)))
        value = self.to_v(x).reshape(heads)
        out = functional.na3d(query, key, value, self.kernel_size, scale=self.head_dim**-0.5)
        return self.to_out[0](out.reshape(x.shape))


def rotate(x: mx.array) -> mx.array:
    """Rotary embedding of [B, T, H, W, heads, D] by place in time, height and width, in a part of D each.

    Places count from the array's own start: logits depend on their differences only.
    """
    time = x.shape[-1] // 4 // 2 * 2
    space = (x.shape[-1] - time) // 2
    if space % 2:
        time, space = time - 2, space + 1
    parts = mx.split(x, [time, time + space], axis=-1)
    return mx.concatenate([_rotate_axis(part, axis) for axis, part in enumerate(parts, 1)], axis=-1)


def _rotate_axis(x: mx.array, axis: int) -> mx.array:
    pairs = x.astype(mx.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    count = even.shape[-1]
    frequencies = mx.array([_ROPE_BASE ** (-pair / count) for pair in range(count)], mx.float32)
    angles = mx.arange(x.shape[axis], dtype=mx.float32)[:, None] * frequencies
    angles = angles.reshape([x.shape[axis] if a == axis else 1 for a in range(x.ndim - 1)] + [count])
    cos, sin = mx.cos(angles), mx.sin(angles)
    return mx.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)


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
        tiles = mx.split(tokens, range(_MLP_TOKENS, tokens.shape[0], _MLP_TOKENS))
        return mx.concatenate([self.w_down(nn.silu(self.w_gate(t)) * self.w_up(t)) for t in tiles]).reshape(x.shape)


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and on a residual branch."""

    def __init__(self, dim: int, head_dim: int, kernel_size: tuple[int, ...]) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=_EPS)
        self.attn = Attention(dim, head_dim, kernel_size)
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


@dataclass(frozen=True)
class Tiling:
    """Sizes of the tiles that a video is decoded in, and from one tile's start to the next's, in frames and pixels.

    What two tiles share is blended linearly. The defaults are those of the public implementation.
    """

    frames: int = 80
    height: int = 768
    width: int = 768
    frames_stride: int = 56
    height_stride: int = 704
    width_stride: int = 704

    def __post_init__(self) -> None:
        for field in fields_of(self):
            value = arguments.integer("Tiling", field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def cells(self, scale: Size) -> tuple[Size, Size]:
        """Sizes and strides in cells of the grid that is tiled, `scale` frames and pixels each. Raises `ValueError`."""
        sizes, strides = [], []
        for axis, unit in zip(("frames", "height", "width"), scale, strict=True):
            size, stride = getattr(self, axis) // unit, getattr(self, f"{axis}_stride") // unit
            if not 1 <= stride <= size:
                raise ValueError(
                    f"[Tiling] {axis} and {axis}_stride must be at least {unit}, what one cell of the tiled grid "
                    f"decodes to, and the stride not above the size, got {getattr(self, axis)} and "
                    f"{getattr(self, f'{axis}_stride')}"
                )
            sizes.append(size)
            strides.append(stride)
        return (sizes[0], sizes[1], sizes[2]), (strides[0], strides[1], strides[2])


Progress = Callable[[int, int], None]  # tiles decoded, tiles in all


class LtxDecoder(nn.Module):
    """The decoder with the statistics of its latents, as one model folder holds it."""

    def __init__(self, config: LtxDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.latents_mean = mx.zeros((config.latent_channels,))
        self.latents_std = mx.ones((config.latent_channels,))
        self.freeze(keys=["latents_mean", "latents_std"], recurse=False)

    def denormalize(self, latents: mx.array) -> mx.array:
        """Latents [..., C] as a diffusion transformer makes them -> as the decoder takes them."""
        name, channels = type(self).__name__, self.config.latent_channels
        arguments.array(name, "latents", latents, f"[..., {channels}]")
        if latents.ndim == 0 or latents.shape[-1] != channels:
            raise ValueError(f"[{name}] expected latents of shape [..., {channels}], got {list(latents.shape)}")
        return latents * self.latents_std / self.config.scaling_factor + self.latents_mean

    def video_shape(self, latents: mx.array) -> tuple[int, int, int, int, int]:
        """[B, F, H, W, C] -> of the video: [B, (F - 1) * 8 + 1, H * 32, W * 32, 3] with LTX-2.5's ratios."""
        time, height, width = self.config.grids(*latents.shape[1:4])[-1]
        patch = self.config.patch_size
        return latents.shape[0], time, height * patch, width * patch, self.config.out_channels

    def __call__(
        self,
        latents: mx.array,
        noise: mx.array | None = None,
        steps: int | None = None,
        key: mx.array | None = None,
        *,
        tiling: Tiling | bool | None = None,
        progress: Progress | None = None,
    ) -> mx.array:
        """Decodes latents into a video, whose pixels are about -1 to 1.

        Args:
            latents: [B, F, H, W, C], denormalised (see `denormalize`).
            noise: [B, F', H', W', 3] of the video's shape, where the diffusion starts; default: drawn with `key`.
            steps: Of the diffusion; default: the configuration's.
            key: Of the noise. A frame's noise depends on key and frame only: not on how the video is cut into tiles.
            tiling: Decode tile by tile, and blend the tiles. The memory it takes does not grow with the video then,
                but for the result; `frames` does not keep that either. `True`: the default `Tiling`.
            progress: Called after each tile with the numbers of tiles that are done and in all.

        Returns:
            [B, F', H', W', 3] in the dtype of the weights.

        Raises:
            ValueError: latents or noise of another shape, or latents smaller than a window.
        """
        return mx.concatenate(list(self.frames(latents, noise, steps, key, tiling=tiling, progress=progress)), axis=1)

    def frames(
        self,
        latents: mx.array,
        noise: mx.array | None = None,
        steps: int | None = None,
        key: mx.array | None = None,
        *,
        tiling: Tiling | bool | None = True,
        progress: Progress | None = None,
    ) -> Iterator[mx.array]:
        """The same video in pieces [B, frames, H', W', 3], in the order of time, none of which is kept."""
        name = type(self).__name__
        steps = self.config.decoder_num_inference_steps if steps is None else arguments.integer(name, "steps", steps, 1)
        self._check(latents, noise, key)
        if tiling is not None and not isinstance(tiling, (bool, Tiling)):
            raise ValueError(f"[{name}] tiling must be a Tiling, True, False or None, got {tiling!r}")
        dtype = self.decoder.conv_in.weight.dtype
        latents = latents.astype(dtype)
        canvas = Canvas(self.video_shape(latents), dtype, noise, key)
        if not tiling:
            return self._whole(latents, canvas, steps, progress)
        from natten_mlx.models.ltx_tiles import decode_tiles

        return decode_tiles(self.decoder, latents, canvas, steps, Tiling() if tiling is True else tiling, progress)

    def _whole(self, latents: mx.array, canvas: Canvas, steps: int, progress: Progress | None) -> Iterator[mx.array]:
        context = self.decoder.context(self.decoder.features(latents))
        yield self.decoder.denoise(context, canvas.frames(0, canvas.shape[1]), steps)
        if progress is not None:
            progress(1, 1)

    def _check(self, latents: mx.array, noise: mx.array | None, key: mx.array | None) -> None:
        name, config = type(self).__name__, self.config
        channels = config.latent_channels
        arguments.array(name, "latents", latents, f"[B, frames, height, width, {channels}]")
        if latents.ndim != 5 or latents.shape[-1] != channels or 0 in latents.shape:
            raise ValueError(
                f"[{name}] expected latents of shape [B, frames, height, width, {channels}], got {list(latents.shape)}"
            )
        if not mx.issubdtype(latents.dtype, mx.floating):
            raise ValueError(f"[{name}] expected latents of a floating type, got {latents.dtype}")
        kernels = (*config.decoder_stage_kernels, config.decoder_stage5_kernel)
        for stage, (grid, kernel) in enumerate(zip(config.grids(*latents.shape[1:4]), kernels, strict=True), 1):
            if any(length < window for length, window in zip(grid, kernel, strict=True)):
                size = _by(latents.shape[1:4])
                raise ValueError(
                    f"[{name}] latents of {size} (frames, height, width) are too small: stage {stage} attends windows "
                    f"of {_by(kernel)} on a grid of {_by(grid)}"
                )
        expected = list(self.video_shape(latents))
        if noise is not None:
            arguments.array(name, "noise", noise, str(expected))
            if list(noise.shape) != expected:
                raise ValueError(f"[{name}] noise must have the video's shape {expected}, got {list(noise.shape)}")
        if key is not None and not (isinstance(key, mx.array) and key.shape == (2,) and key.dtype == mx.uint32):
            raise ValueError(f"[{name}] key must be a key of mx.random.key(seed), got {key!r}")


class Canvas:
    """The noise that a decode starts from, given or drawn frame by frame when it is asked for."""

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype, noise: mx.array | None, key: mx.array | None) -> None:
        self.shape, self.dtype, self.noise = shape, dtype, noise
        if noise is None:
            key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32) if key is None else key
            self.keys = mx.random.split(key, shape[1])

    def frames(self, start: int, stop: int) -> mx.array:
        """[B, stop - start, H', W', 3]"""
        if self.noise is not None:
            return self.noise[:, start:stop].astype(self.dtype)
        batch, _, *rest = self.shape
        drawn = [mx.random.normal((batch, *rest), key=self.keys[frame]) for frame in range(start, stop)]
        return mx.stack(drawn, axis=1).astype(self.dtype)


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def load_ltx_decoder(checkpoint: Checkpoint, config: LtxDecoderConfig) -> LtxDecoder:
    """The decoder that a checkpoint with the hub's names holds."""
    model = LtxDecoder(config)
    fill(model, checkpoint, lambda name: (name,))
    return model
