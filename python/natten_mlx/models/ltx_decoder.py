"""The diffusion video decoder of LTX-2.5: latents to frames, through three-dimensional neighborhood attention.

Four stages turn the latents into a volume of context; a fifth, a small diffusion model, turns noise into pixels. The
network is in `ltx_network`, its keys of config.json in `ltx_config`, tiles are in `ltx_tiles`.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn

from natten_mlx.models import arguments
from natten_mlx.models.files import Checkpoint, fill
from natten_mlx.models.ltx_config import LtxDecoderConfig
from natten_mlx.models.ltx_network import Decoder, hub_names
from natten_mlx.models.ltx_tiles import Canvas, Progress, Tiling, decode_tiles


class LtxDecoder(nn.Module):
    """The decoder with the statistics of its latents, as one model folder holds it."""

    def __init__(self, config: LtxDecoderConfig) -> None:
        super().__init__()
        arguments.config(type(self).__name__, config, LtxDecoderConfig)
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
        """[B, F, H, W, C] -> of the video: [B, (F - 1) * 8 + 1, H * 32, W * 32, 3] with LTX-2.5's ratios.

        Raises `ValueError` for latents of another shape, or smaller than a window.
        """
        self._check(latents)
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
        expected = list(self.video_shape(latents))
        if noise is not None:
            arguments.array(name, "noise", noise, str(expected))
            if list(noise.shape) != expected:
                raise ValueError(f"[{name}] noise must have the video's shape {expected}, got {list(noise.shape)}")
        if key is not None and not (isinstance(key, mx.array) and key.shape == (2,) and key.dtype == mx.uint32):
            raise ValueError(f"[{name}] key must be a key of mx.random.key(seed), got {key!r}")
        if tiling is not None and not isinstance(tiling, (bool, Tiling)):
            raise ValueError(f"[{name}] tiling must be a Tiling, True, False or None, got {tiling!r}")
        dtype = self.decoder.conv_in.weight.dtype
        latents = latents.astype(dtype)
        canvas = Canvas(tuple(expected), dtype, noise, key)
        if not tiling:
            return self._whole(latents, canvas, steps, progress)
        tiling = Tiling() if tiling is True else tiling
        return decode_tiles(self.decoder, latents, canvas, steps, tiling, progress)

    def _whole(self, latents: mx.array, canvas: Canvas, steps: int, progress: Progress | None) -> Iterator[mx.array]:
        context = self.decoder.context(self.decoder.features(latents))
        yield self.decoder.denoise(context, canvas.frames(0, canvas.shape[1]), steps)
        if progress is not None:
            progress(1, 1)

    def _check(self, latents: mx.array) -> None:
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


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def load_ltx_decoder(checkpoint: Checkpoint, config: LtxDecoderConfig) -> LtxDecoder:
    """The decoder that a checkpoint with the hub's names holds."""
    model = LtxDecoder(config)
    fill(model, checkpoint, hub_names)
    return model
