"""The releases' feature tests, as true statements about this machine and MLX."""

from __future__ import annotations

import mlx.core as mx

from natten_mlx.support_matrix import get_support_matrix


def has_mlx() -> bool:
    """Whether arrays are MLX's: always."""
    return True


def has_mps() -> bool:
    """Whether MLX can use a Metal GPU here."""
    return bool(mx.metal.is_available())


def has_cuda() -> bool:
    """Whether MLX can use a CUDA GPU here."""
    return bool(mx.cuda.is_available())


def has_half(device_index: int | None = None) -> bool:
    """Whether float16 is supported: by every tier."""
    return True


def has_bfloat(device_index: int | None = None) -> bool:
    """Whether bfloat16 is supported: by every tier."""
    return True


def has_fna(device_index: int | None = None) -> bool:
    """Whether a tier that never stores the attention weights can run here."""
    return any(row["available"] and all(row["fusion"].values()) for row in get_support_matrix().values())


def has_gemm(device_index: int | None = None) -> bool:
    """Whether attention can run on a GPU's matrix units here: half types do on CUDA."""
    return has_cuda()


def has_tf32_gemm(device_index: int | None = None) -> bool:
    """Whether float32 attention runs on matrix units: no tier rounds float32 to TF32."""
    return False


def has_fp64_gemm(device_index: int | None = None) -> bool:
    """Whether float64 attention runs on matrix units: no."""
    return False


has_fused_na = has_fna
has_fp32_gemm = has_tf32_gemm
