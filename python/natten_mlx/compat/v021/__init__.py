"""NATTEN 0.21 (0.21.7) on MLX arrays: `import natten_mlx.compat.v021 as natten`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import natten_mlx
from natten_mlx.compat._absent import absent
from natten_mlx.compat._configurations import configurations, flex_configurations
from natten_mlx.compat._machine import has_bfloat, has_cuda, has_fna, has_gemm, has_half, has_mlx, has_mps
from natten_mlx.compat._modules import Strided
from natten_mlx.compat._switches import Switches
from natten_mlx.compat.v021 import functional, utils
from natten_mlx.compat.v021.functional import (
    attention,
    merge_attentions,
    na1d,
    na2d,
    na3d,
    neighborhood_attention_generic,
)

__all__ = [
    "HAS_LIBNATTEN",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "__version__",
    "allow_flex_compile",
    "allow_flex_compile_backprop",
    "are_deterministic_algorithms_enabled",
    "attention",
    "disable_flex_compile",
    "disable_flex_compile_backprop",
    "functional",
    "get_bwd_configs_for_cutlass_blackwell_fmha",
    "get_bwd_configs_for_cutlass_blackwell_fna",
    "get_bwd_configs_for_cutlass_fmha",
    "get_bwd_configs_for_cutlass_fna",
    "get_bwd_configs_for_cutlass_hopper_fmha",
    "get_bwd_configs_for_cutlass_hopper_fna",
    "get_configs_for_cutlass_blackwell_fmha",
    "get_configs_for_cutlass_blackwell_fna",
    "get_configs_for_cutlass_fmha",
    "get_configs_for_cutlass_fna",
    "get_configs_for_cutlass_hopper_fmha",
    "get_configs_for_cutlass_hopper_fna",
    "get_configs_for_flex_fmha",
    "get_configs_for_flex_fna",
    "get_memory_usage_preference",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_gemm",
    "has_half",
    "has_mlx",
    "has_mps",
    "is_flex_compile_allowed",
    "is_flex_compile_backprop_allowed",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention_generic",
    "set_memory_usage_preference",
    "use_deterministic_algorithms",
    "use_kv_parallelism_in_fused_na",
    "utils",
]

__version__ = "0.21.7"
HAS_LIBNATTEN = False


class NeighborhoodAttention1D(Strided, natten_mlx.NeighborhoodAttention1D):
    """[B, L, C] -> the same shape."""


class NeighborhoodAttention2D(Strided, natten_mlx.NeighborhoodAttention2D):
    """[B, H, W, C] -> the same shape."""


class NeighborhoodAttention3D(Strided, natten_mlx.NeighborhoodAttention3D):
    """[B, D, H, W, C] -> the same shape."""


_switches = Switches(kv_parallelism=True)
are_deterministic_algorithms_enabled = _switches.are_deterministic_algorithms_enabled
use_deterministic_algorithms = _switches.use_deterministic_algorithms
use_kv_parallelism_in_fused_na = _switches.use_kv_parallelism_in_fused_na
is_kv_parallelism_in_fused_na_enabled = _switches.is_kv_parallelism_in_fused_na_enabled
set_memory_usage_preference = _switches.set_memory_usage_preference
get_memory_usage_preference = _switches.get_memory_usage_preference
is_memory_usage_default = _switches.is_memory_usage_default
is_memory_usage_strict = _switches.is_memory_usage_strict
is_memory_usage_unrestricted = _switches.is_memory_usage_unrestricted
is_flex_compile_allowed = _switches.is_flex_compile_allowed
is_flex_compile_backprop_allowed = _switches.is_flex_compile_backprop_allowed
allow_flex_compile = _switches.allow_flex_compile
allow_flex_compile_backprop = _switches.allow_flex_compile_backprop
disable_flex_compile = _switches.disable_flex_compile
disable_flex_compile_backprop = _switches.disable_flex_compile_backprop

get_bwd_configs_for_cutlass_fmha = configurations("get_bwd_configs_for_cutlass_fmha")
get_bwd_configs_for_cutlass_fna = configurations("get_bwd_configs_for_cutlass_fna")
get_configs_for_cutlass_blackwell_fmha = configurations("get_configs_for_cutlass_blackwell_fmha")
get_configs_for_cutlass_blackwell_fna = configurations("get_configs_for_cutlass_blackwell_fna")
get_configs_for_cutlass_fmha = configurations("get_configs_for_cutlass_fmha")
get_configs_for_cutlass_fna = configurations("get_configs_for_cutlass_fna")
get_configs_for_cutlass_hopper_fmha = configurations("get_configs_for_cutlass_hopper_fmha")
get_configs_for_cutlass_hopper_fna = configurations("get_configs_for_cutlass_hopper_fna")
get_configs_for_flex_fmha = flex_configurations("get_configs_for_flex_fmha")
get_configs_for_flex_fna = flex_configurations("get_configs_for_flex_fna")
get_bwd_configs_for_cutlass_blackwell_fmha = configurations("get_bwd_configs_for_cutlass_blackwell_fmha")
get_bwd_configs_for_cutlass_blackwell_fna = configurations("get_bwd_configs_for_cutlass_blackwell_fna")
get_bwd_configs_for_cutlass_hopper_fmha = configurations("get_bwd_configs_for_cutlass_hopper_fmha")
get_bwd_configs_for_cutlass_hopper_fna = configurations("get_bwd_configs_for_cutlass_hopper_fna")

if not TYPE_CHECKING:
    __getattr__ = absent("v021")
