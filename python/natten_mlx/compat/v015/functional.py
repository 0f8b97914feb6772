"""natten.functional of NATTEN 0.15: heads first, unscaled, odd kernel sizes; depth has arguments of its own in 3-D."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from natten_mlx.compat import _split
from natten_mlx.compat._absent import absent
from natten_mlx.compat._arguments import named
from natten_mlx.compat._machine import (
    get_device_cc,
    has_bfloat,
    has_cuda,
    has_fp32_gemm,
    has_fp64_gemm,
    has_gemm,
    has_half,
    has_tf32_gemm,
)
from natten_mlx.compat._modules import depth_first
from natten_mlx.compat._switches import Switches
from natten_mlx.compat.v014.functional import natten1dqkrpb, natten2dqkrpb

__all__ = [
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "get_device_cc",
    "has_bfloat",
    "has_cuda",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_gemm",
    "has_half",
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

Operation = Callable[..., mx.array]

_QK = "query.key{bias}, [B, heads, ..., prod(K) + N]: multiply query by its scale before."
_AV = "Values weighted by attn, [B, heads, ..., D]."


def _qk(rank: int) -> Operation:
    name = f"na{rank}d_qk"

    def qk(
        query: mx.array, key: mx.array, kernel_size: int, dilation: int, additional_keys: mx.array | None = None
    ) -> mx.array:
        return _split.qk(name, rank, query, key, kernel_size, dilation, additional_keys=additional_keys)

    return named(name, _QK.format(bias=""), qk)


def _qk_with_bias(rank: int) -> Operation:
    name = f"na{rank}d_qk_with_bias"

    def qk_with_bias(
        query: mx.array,
        key: mx.array,
        bias: mx.array | None,
        kernel_size: int,
        dilation: int,
        additional_keys: mx.array | None = None,
    ) -> mx.array:
        return _split.qk(name, rank, query, key, kernel_size, dilation, rpb=bias, additional_keys=additional_keys)

    return named(name, _QK.format(bias=" + bias"), qk_with_bias)


def _av(rank: int) -> Operation:
    name = f"na{rank}d_av"

    def av(
        attn: mx.array, value: mx.array, kernel_size: int, dilation: int, additional_values: mx.array | None = None
    ) -> mx.array:
        return _split.av(name, rank, attn, value, kernel_size, dilation, additional_values=additional_values)

    return named(name, _AV, av)


na1d_qk, na2d_qk = _qk(1), _qk(2)
na1d_qk_with_bias, na2d_qk_with_bias = _qk_with_bias(1), _qk_with_bias(2)
na1d_av, na2d_av = _av(1), _av(2)


def na3d_qk_with_bias(
    query: mx.array,
    key: mx.array,
    bias: mx.array | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """query.key + bias, [B, heads, D, H, W, prod(K) + N]: multiply query by its scale before."""
    name = "na3d_qk_with_bias"
    kernel = depth_first(name, "kernel_size", kernel_size, kernel_size_d)
    spacing = depth_first(name, "dilation", dilation, dilation_d)
    return _split.qk(name, 3, query, key, kernel, spacing, rpb=bias, additional_keys=additional_keys)


def na3d_qk(
    query: mx.array,
    key: mx.array,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_keys: mx.array | None = None,
) -> mx.array:
    """query.key, [B, heads, D, H, W, prod(K) + N]: multiply query by its scale before."""
    return na3d_qk_with_bias(query, key, None, kernel_size_d, kernel_size, dilation_d, dilation, additional_keys)


def na3d_av(
    attn: mx.array,
    value: mx.array,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
    additional_values: mx.array | None = None,
) -> mx.array:
    """Values weighted by attn, [B, heads, D, H, W, head dim]."""
    kernel = depth_first("na3d_av", "kernel_size", kernel_size, kernel_size_d)
    spacing = depth_first("na3d_av", "dilation", dilation, dilation_d)
    return _split.av("na3d_av", 3, attn, value, kernel, spacing, additional_values=additional_values)


def natten3dqkrpb(
    query: mx.array,
    key: mx.array,
    rpb: mx.array | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
) -> mx.array:
    """na3d_qk_with_bias without additional tokens."""
    return na3d_qk_with_bias(query, key, rpb, kernel_size_d, kernel_size, dilation_d, dilation)


natten1dqk, natten2dqk, natten3dqk = na1d_qk, na2d_qk, na3d_qk
natten1dav, natten2dav, natten3dav = na1d_av, na2d_av, na3d_av

_switches = Switches(kv_parallelism=False)
disable_gemm_na = _switches.disable_gemm_na
disable_tf32 = _switches.disable_tf32
disable_tiled_na = _switches.disable_tiled_na
enable_gemm_na = _switches.enable_gemm_na
enable_tf32 = _switches.enable_tf32
enable_tiled_na = _switches.enable_tiled_na

if not TYPE_CHECKING:
    __getattr__ = absent("v015", "functional.")
