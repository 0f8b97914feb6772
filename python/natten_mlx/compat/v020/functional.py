"""natten.functional of NATTEN 0.20: heads last; `stride` is the stride of Generalized Neighborhood Attention.

Arguments that choose or tune kernels are accepted and have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from natten_mlx.compat import _fused
from natten_mlx.compat._arguments import Bools, Ints

__all__ = ["attention", "merge_attentions", "na1d", "na2d", "na3d", "neighborhood_attention_generic"]


def _na(rank: int | None) -> Callable[..., mx.array]:
    def na(
        query: mx.array,
        key: mx.array,
        value: mx.array,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools | None = False,
        scale: float | None = None,
        additional_keys: mx.array | None = None,
        additional_values: mx.array | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        backend: str | None = None,
        q_tile_shape: Ints | None = None,
        kv_tile_shape: Ints | None = None,
        backward_q_tile_shape: Ints | None = None,
        backward_kv_tile_shape: Ints | None = None,
        backward_kv_splits: Ints | None = None,
        backward_use_pt_reduction: bool = False,
        run_persistent_kernel: bool = True,
        kernel_schedule: object = None,
        torch_compile: bool = False,
        try_fuse_additional_kv: bool = False,
    ) -> mx.array:
        return _fused.strided(rank, attention, locals(), grouped_heads=False)[0]

    return _fused.named_na(rank, _fused.STRIDED_NA, na)


na1d, na2d, na3d = _na(1), _na(2), _na(3)
neighborhood_attention_generic = _na(None)  # the rank is query's


def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None = None,
    backend: str | None = None,
    q_tile_size: int | None = None,
    kv_tile_size: int | None = None,
    backward_q_tile_size: int | None = None,
    backward_kv_tile_size: int | None = None,
    backward_kv_splits: int | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: object = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> mx.array | tuple[mx.array, mx.array]:
    """Attention of every query to every key, [B, L, heads, D], and with `return_lse` its log-sum-exp [B, L, heads]."""
    _fused.tuning("attention", _fused.FMHA_BACKENDS, attention, locals())
    return _fused.dense("attention", query, key, value, scale=scale, return_lse=return_lse)


def merge_attentions(outputs: list[mx.array], lse_tensors: list[mx.array], torch_compile: bool = True) -> mx.array:
    """Joins attentions [B, L, heads, D] of the same queries over disjoint keys, given their lse [B, L, heads]."""
    return _fused.merge("merge_attentions", outputs, lse_tensors)[0]
