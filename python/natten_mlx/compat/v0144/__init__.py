"""NATTEN 0.14.1 to 0.14.4 on MLX arrays: `import natten_mlx.compat.v0144 as natten`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import natten_mlx
from natten_mlx.compat._absent import absent
from natten_mlx.compat._machine import has_bfloat, has_cuda, has_fna, has_gemm, has_half, has_mlx, has_mps
from natten_mlx.compat._modules import KernelFirst
from natten_mlx.compat.v0144 import flops, functional
from natten_mlx.compat.v0144.functional import natten1dav, natten1dqkrpb, natten2dav, natten2dqkrpb

__all__ = [
    "NeighborhoodAttention",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "__version__",
    "flops",
    "functional",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_gemm",
    "has_half",
    "has_mlx",
    "has_mps",
    "natten1dav",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqkrpb",
]

__version__ = "0.14.4"


class NeighborhoodAttention1D(KernelFirst, natten_mlx.NeighborhoodAttention1D):
    """[B, L, C] -> the same shape."""


class NeighborhoodAttention2D(KernelFirst, natten_mlx.NeighborhoodAttention2D):
    """[B, H, W, C] -> the same shape."""


class NeighborhoodAttention(NeighborhoodAttention2D):
    """NeighborhoodAttention2D under its name before 0.13."""

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        dilation: int | str | None = None,
    ) -> None:
        super().__init__(dim, kernel_size, num_heads, qkv_bias, qk_scale, attn_drop, proj_drop, dilation)
        warnings.warn(
            "NeighborhoodAttention is called NeighborhoodAttention2D since NATTEN 0.13",
            DeprecationWarning,
            stacklevel=2,
        )


if not TYPE_CHECKING:
    __getattr__ = absent("v014", module="v0144")
