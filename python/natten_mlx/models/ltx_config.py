"""The configuration of LTX-2.5's video decoder, and the sizes that follow from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from natten_mlx.models.config import Fields

CLASS_NAME = "LTX2VideoDiffusionDecoderModel"

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
        fields.refuse_unknown("this decoder")  # diffusers writes exactly the arguments of the model
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
