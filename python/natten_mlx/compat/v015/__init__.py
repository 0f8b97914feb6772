"""NATTEN 0.15 (0.15.1) on MLX arrays: `import natten_mlx.compat.v015 as natten`."""

from __future__ import annotations

import natten_mlx
from natten_mlx.compat._machine import (
    has_bfloat,
    has_cuda,
    has_fna,
    has_fp32_gemm,
    has_fp64_gemm,
    has_gemm,
    has_half,
    has_mlx,
    has_mps,
    has_tf32_gemm,
)
from natten_mlx.compat._modules import Padded, PaddedDepth
from natten_mlx.compat._switches import Switches
from natten_mlx.compat.v015 import functional
from natten_mlx.compat.v015.functional import (
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


_switches = Switches(kv_parallelism=False)
disable_gemm_na = _switches.disable_gemm_na
disable_tf32 = _switches.disable_tf32
disable_tiled_na = _switches.disable_tiled_na
enable_gemm_na = _switches.enable_gemm_na
enable_tf32 = _switches.enable_tf32
enable_tiled_na = _switches.enable_tiled_na
