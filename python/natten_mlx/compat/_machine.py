"""The releases' feature tests, as true statements about this machine and MLX."""

from __future__ import annotations

import mlx.core as mx

from natten_mlx._backend import backend
from natten_mlx.support_matrix import explain, get_support_matrix


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


def _on_matrix_units(dtype: mx.Dtype) -> bool:
    if not get_support_matrix()["fast_metal"]["available"]:
        return False
    shape = (1, 64, 1, 32)
    stream = mx.gpu if mx.is_available(mx.gpu) else None  # without one, the tests' emulator
    with backend("fast_metal"):
        return "matrix units" in explain(shape, shape, shape, 7, dtype=dtype, stream=stream).tile


def has_gemm(device_index: int | None = None) -> bool:
    """Whether float16 attention runs on a GPU's matrix units here."""
    return _on_matrix_units(mx.float16)


def has_fp32_gemm(device_index: int | None = None) -> bool:
    """Whether float32 attention runs on a GPU's matrix units here."""
    return _on_matrix_units(mx.float32)


def has_tf32_gemm(device_index: int | None = None) -> bool:
    """Whether float32 attention is rounded to TF32 for matrix units here: on CUDA, where MLX multiplies so."""
    return has_cuda() and has_fp32_gemm()


def has_fp64_gemm(device_index: int | None = None) -> bool:
    """Whether float64 attention runs on matrix units: it runs on the CPU."""
    return False


def get_device_cc(device_index: int | None = None) -> int:
    """The compute capability of a CUDA GPU, such as 90.

    Raises:
        RuntimeError: there is none here.
    """
    if not has_cuda():
        raise RuntimeError("[get_device_cc] only CUDA GPUs have a compute capability, and there is none here")
    info = mx.device_info(mx.Device(mx.gpu, device_index or 0))
    return 10 * int(info["compute_capability_major"]) + int(info["compute_capability_minor"])


has_fused_na = has_fna
