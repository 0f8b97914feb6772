"""NATTEN 0.14 (0.14.6) on MLX arrays: `import natten_mlx.compat.v014 as natten`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import natten_mlx
from natten_mlx.compat._absent import absent
from natten_mlx.compat._machine import has_bfloat, has_cuda, has_fna, has_gemm, has_half, has_mlx, has_mps
from natten_mlx.compat._modules import Padded
from natten_mlx.compat.v014 import flops, functional
from natten_mlx.compat.v014.functional import (
    natten1dav,
    natten1dqk,
    natten1dqkrpb,
    natten2dav,
    natten2dqk,
    natten2dqkrpb,
)

__all__ = [
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
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
]

__version__ = "0.14.6"


class NeighborhoodAttention1D(Padded, natten_mlx.NeighborhoodAttention1D):
    """[B, L, C] -> the same shape."""


class NeighborhoodAttention2D(Padded, natten_mlx.NeighborhoodAttention2D):
    """[B, H, W, C] -> the same shape."""


if not TYPE_CHECKING:
    __getattr__ = absent("v014")
