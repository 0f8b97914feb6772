"""natten.functional of NATTEN 0.17: the split form heads first and unscaled, the fused form heads last and scaled.

The names that 0.17.5 dropped (`natten2dqkrpb`, ...) are those of 0.17.0 to 0.17.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from natten_mlx.compat import _arguments as arguments
from natten_mlx.compat import _fused, _split
from natten_mlx.compat._absent import absent
from natten_mlx.compat._arguments import Bools, Ints, named
from natten_mlx.compat._machine import has_fp32_gemm, has_fp64_gemm, has_gemm, has_tf32_gemm
from natten_mlx.compat._switches import Switches, without_effect
from natten_mlx.compat.v014.functional import (
    natten1dav,
    natten1dqk,
    natten1dqkrpb,
    natten2dav,
    natten2dqk,
    natten2dqkrpb,
)
from natten_mlx.compat.v015 import functional as v015
from natten_mlx.compat.v015.functional import natten3dqkrpb

__all__ = [
    "disable_gemm_na",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tiled_na",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_gemm",
    "has_tf32_gemm",
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
]

Operation = Callable[..., mx.array]

_QK = """query.key + rpb, [B, heads, ..., prod(K) + N]: multiply query by its scale before.

    On a causal axis slots count from the window's first key on; empty ones (-inf) come last."""
_AV = "Values weighted by attn, [B, heads, ..., D]."
_NA = "Neighborhood attention [B, ..., heads, D], heads last, scaled by D ** -0.5 unless `scale` is given."


def _qk(rank: int) -> Operation:
    name = f"na{rank}d_qk"

    def qk(
        query: mx.array,
        key: mx.array,
        kernel_size: Ints,
        dilation: Ints = 1,
        additional_keys: mx.array | None = None,
        is_causal: Bools | None = False,
        rpb: mx.array | None = None,
    ) -> mx.array:
        return _split.qk(
            name,
            rank,
            query,
            key,
            kernel_size,
            dilation,
            rpb=rpb,
            additional_keys=additional_keys,
            is_causal=is_causal,
        )

    return named(name, _QK, qk)


def _av(rank: int) -> Operation:
    name = f"na{rank}d_av"

    def av(
        attn: mx.array,
        value: mx.array,
        kernel_size: Ints,
        dilation: Ints = 1,
        additional_values: mx.array | None = None,
        is_causal: Bools | None = False,
    ) -> mx.array:
        return _split.av(
            name,
            rank,
            attn,
            value,
            kernel_size,
            dilation,
            additional_values=additional_values,
            is_causal=is_causal,
        )

    return named(name, _AV, av)


def _na(rank: int) -> Operation:
    name = f"na{rank}d"

    def na(
        query: mx.array,
        key: mx.array,
        value: mx.array,
        kernel_size: Ints,
        dilation: Ints = 1,
        is_causal: Bools | None = False,
        rpb: mx.array | None = None,
        scale: float | None = None,
        additional_keys: mx.array | None = None,
        additional_values: mx.array | None = None,
        xformers_kwargs: dict[str, Any] | None = None,
    ) -> mx.array:
        kernel = arguments.sizes(name, "kernel_size", kernel_size, rank, least=2)
        arguments.no_bias_on_causal_axes(name, arguments.flags(name, is_causal, rank), rpb is not None)
        if xformers_kwargs:
            without_effect("the argument xformers_kwargs")
        out, _ = _fused.attention(
            name,
            rank,
            query,
            key,
            value,
            arguments.odd(name, kernel) if rpb is not None else kernel,
            dilation=dilation,
            is_causal=is_causal,
            scale=scale,
            additional_keys=additional_keys,
            additional_values=additional_values,
            rpb=rpb,
        )
        return out

    return named(name, _NA, na)


na1d_qk, na2d_qk, na3d_qk = _qk(1), _qk(2), _qk(3)
na1d_av, na2d_av, na3d_av = _av(1), _av(2), _av(3)
na1d, na2d, na3d = _na(1), _na(2), _na(3)


def natten3dqk(
    query: mx.array, key: mx.array, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> mx.array:
    """na3d_qk under its name and with its arguments in 0.15."""
    return natten3dqkrpb(query, key, None, kernel_size_d, kernel_size, dilation_d, dilation)


def natten3dav(
    attn: mx.array, value: mx.array, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> mx.array:
    """na3d_av under its name and with its arguments in 0.15."""
    return v015.na3d_av(attn, value, kernel_size_d, kernel_size, dilation_d, dilation)


# What the release's documentation imports from here.
_switches = Switches(kv_parallelism=False)
disable_gemm_na = _switches.disable_gemm_na
disable_tiled_na = _switches.disable_tiled_na
enable_gemm_na = _switches.enable_gemm_na
enable_tiled_na = _switches.enable_tiled_na

if not TYPE_CHECKING:
    __getattr__ = absent("v017", "functional.")
