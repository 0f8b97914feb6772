"""NATTEN 0.17 (0.17.0 to 0.17.5) on MLX arrays: `import natten_mlx.compat.v017 as natten`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import natten_mlx
from natten_mlx.compat._absent import absent
from natten_mlx.compat._machine import (
    has_bfloat,
    has_cuda,
    has_fna,
    has_fp32_gemm,
    has_fp64_gemm,
    has_fused_na,
    has_gemm,
    has_half,
    has_mlx,
    has_mps,
    has_tf32_gemm,
)
from natten_mlx.compat._modules import Causal
from natten_mlx.compat.v017 import experimental, flops, functional, utils
from natten_mlx.compat.v017.functional import (
    na1d,
    na1d_av,
    na1d_qk,
    na2d,
    na2d_av,
    na2d_qk,
    na3d,
    na3d_av,
    na3d_qk,
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
    "are_deterministic_algorithms_enabled",
    "disable_autotuner",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "experimental",
    "flops",
    "force_flex_attention",
    "functional",
    "get_memory_usage_preference",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_fused_na",
    "has_gemm",
    "has_half",
    "has_mlx",
    "has_mps",
    "has_tf32_gemm",
    "is_autotuner_enabled",
    "is_autotuner_enabled_for_backward",
    "is_autotuner_enabled_for_forward",
    "is_autotuner_thorough_for_backward",
    "is_autotuner_thorough_for_forward",
    "is_fna_enabled",
    "is_fused_na_enabled",
    "is_gemm_na_enabled",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "is_tf32_in_gemm_na_enabled",
    "is_tiled_na_enabled",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
    "set_memory_usage_preference",
    "use_autotuner",
    "use_deterministic_algorithms",
    "use_flex_attention",
    "use_fna",
    "use_fused_na",
    "use_gemm_na",
    "use_kv_parallelism_in_fused_na",
    "use_tf32_in_gemm_na",
    "use_tiled_na",
    "utils",
]

__version__ = "0.17.5"


class NeighborhoodAttention1D(Causal, natten_mlx.NeighborhoodAttention1D):
    """[B, L, C] -> the same shape."""


class NeighborhoodAttention2D(Causal, natten_mlx.NeighborhoodAttention2D):
    """[B, H, W, C] -> the same shape."""


class NeighborhoodAttention3D(Causal, natten_mlx.NeighborhoodAttention3D):
    """[B, D, H, W, C] -> the same shape."""


_switches = functional._switches
are_deterministic_algorithms_enabled = _switches.are_deterministic_algorithms_enabled
use_deterministic_algorithms = _switches.use_deterministic_algorithms
use_kv_parallelism_in_fused_na = _switches.use_kv_parallelism_in_fused_na
is_kv_parallelism_in_fused_na_enabled = _switches.is_kv_parallelism_in_fused_na_enabled
set_memory_usage_preference = _switches.set_memory_usage_preference
get_memory_usage_preference = _switches.get_memory_usage_preference
is_memory_usage_default = _switches.is_memory_usage_default
is_memory_usage_strict = _switches.is_memory_usage_strict
is_memory_usage_unrestricted = _switches.is_memory_usage_unrestricted
disable_gemm_na = _switches.disable_gemm_na
disable_tf32 = _switches.disable_tf32
disable_tiled_na = _switches.disable_tiled_na
enable_gemm_na = _switches.enable_gemm_na
enable_tf32 = _switches.enable_tf32
enable_tiled_na = _switches.enable_tiled_na
use_fused_na = _switches.use_fused_na
is_fused_na_enabled = _switches.is_fused_na_enabled
use_autotuner = _switches.use_autotuner
disable_autotuner = _switches.disable_autotuner
is_autotuner_enabled = _switches.is_autotuner_enabled
is_autotuner_enabled_for_forward = _switches.is_autotuner_enabled_for_forward
is_autotuner_enabled_for_backward = _switches.is_autotuner_enabled_for_backward
is_autotuner_thorough_for_forward = _switches.is_autotuner_thorough_for_forward
is_autotuner_thorough_for_backward = _switches.is_autotuner_thorough_for_backward
use_tf32_in_gemm_na = _switches.use_tf32_in_gemm_na
use_tiled_na = _switches.use_tiled_na
use_gemm_na = _switches.use_gemm_na
use_flex_attention = _switches.use_flex_attention
force_flex_attention = _switches.force_flex_attention
is_tf32_in_gemm_na_enabled = _switches.is_tf32_in_gemm_na_enabled
is_tiled_na_enabled = _switches.is_tiled_na_enabled
is_gemm_na_enabled = _switches.is_gemm_na_enabled
use_fna = use_fused_na
is_fna_enabled = is_fused_na_enabled

if not TYPE_CHECKING:
    __getattr__ = absent("v017")
