"""NATTEN 0.14.5 on MLX arrays: `import natten_mlx.compat.v0145 as natten`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from natten_mlx.compat._absent import absent
from natten_mlx.compat._machine import has_bfloat, has_cuda, has_fna, has_gemm, has_half, has_mlx, has_mps
from natten_mlx.compat.v014 import NeighborhoodAttention1D, NeighborhoodAttention2D
from natten_mlx.compat.v0145 import flops, functional
from natten_mlx.compat.v0145.functional import natten1dav, natten1dqkrpb, natten2dav, natten2dqkrpb

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
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqkrpb",
]

__version__ = "0.14.5"

if not TYPE_CHECKING:
    __getattr__ = absent("v014", module="v0145")
