"""NATTEN 0.15 (0.15.1) on MLX arrays: `import natten_mlx.compat.v015 as natten`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import natten_mlx
from natten_mlx.compat._absent import absent
from natten_mlx.compat._machine import has_fna, has_mlx, has_mps
from natten_mlx.compat._modules import Padded, PaddedDepth
from natten_mlx.compat.v015 import flops, functional
from natten_mlx.compat.v015.functional import (
    disable_gemm_na,
    disable_tf32,
    disable_tiled_na,
    enable_gemm_na,
    enable_tf32,
    enable_tiled_na,
    has_bfloat,
    has_cuda,
    has_fp32_gemm,
    has_fp64_gemm,
    has_gemm,
    has_half,
    has_tf32_gemm,
    na1d_av,
    na1d_qk,
    na1d_qk_with_bias,
    na2d_av,
    na2d_qk,
    na2d_qk_with_bias,
    na3d_av,
    na3d_qk,
    na3d_qk_with_bias,
    natten1dav,
    natten1dqk,
    natten1dqkrpb,
    natten2dav,
    natten2dqk,
    natten2dqkrpb,
    natten3dav,
    natten3dqk,
    natten3dqkrpb,
)

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "__version__",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "flops",
    "functional",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_gemm",
    "has_half",
    "has_mlx",
    "has_mps",
    "has_tf32_gemm",
    "na1d_av",
    "na1d_qk",
    "na1d_qk_with_bias",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "na3d_av",
    "na3d_qk",
    "na3d_qk_with_bias",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
]

__version__ = "0.15.1"


class NeighborhoodAttention1D(Padded, natten_mlx.NeighborhoodAttention1D):
    """[B, L, C] -> the same shape."""


class NeighborhoodAttention2D(Padded, natten_mlx.NeighborhoodAttention2D):
    """[B, H, W, C] -> the same shape."""


class NeighborhoodAttention3D(PaddedDepth, natten_mlx.NeighborhoodAttention3D):
    """[B, D, H, W, C] -> the same shape."""


if not TYPE_CHECKING:
    __getattr__ = absent("v015")
