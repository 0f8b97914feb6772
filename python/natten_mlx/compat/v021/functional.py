"""natten.functional of NATTEN 0.21: 0.20 with grouped heads, log-sum-exp, causal and packed dense attention.

Signatures are those of 0.21.7: `attention` got `is_causal` before `scale`, and `merge_attentions` a second result, in
0.21.5. Arguments that choose or tune kernels are accepted and have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from natten_mlx.compat import _fused
from natten_mlx.compat._arguments import Bools, Ints
from natten_mlx.compat.v021.utils.varlen import sequences

__all__ = ["attention", "merge_attentions", "na1d", "na2d", "na3d", "neighborhood_attention_generic"]

Result = mx.array | tuple[mx.array, mx.array]

_NA = """{rank} neighborhood attention [B, ..., heads, D], heads last, and with `return_lse` its log-sum-exp.

    Neighboring queries share windows by `stride`; query may have more heads than key and value."""


def _na(rank: int | None) -> Callable[..., Result]:
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
        return_lse: bool = False,
    ) -> Result:
        out, lse = _fused.strided(rank, attention, locals(), grouped_heads=True)
        return (out, lse) if return_lse else out

    return _fused.named_na(rank, _NA, na)


na1d, na2d, na3d = _na(1), _na(2), _na(3)
neighborhood_attention_generic = _na(None)  # the rank is query's


def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: mx.array | None = None,
    seqlens_KV: mx.array | None = None,
    cumulative_seqlen_Q: mx.array | None = None,
    cumulative_seqlen_KV: mx.array | None = None,
    max_seqlen_Q: int | None = None,
    max_seqlen_KV: int | None = None,
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
) -> Result:
    """Attention of every query to every key, [B, L, heads, D], and with `return_lse` its log-sum-exp [B, L, heads].

    Causal: query i attends the keys 0 to i. With lengths, a batch of 1 holds sequences one after the other: they are
    computed one by one.
    """
    _fused.tuning("attention", _fused.FMHA_BACKENDS, attention, locals())
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "return_lse": return_lse, "grouped_heads": True}
    packed = sequences(
        query,
        key,
        value,
        seqlens_Q,
        seqlens_KV,
        cumulative_seqlen_Q,
        cumulative_seqlen_KV,
        max_seqlen_Q,
        max_seqlen_KV,
    )
    if packed is None:
        return _fused.dense("attention", query, key, value, **options)
    parts = [_fused.dense("attention", query[:, q], key[:, k], value[:, k], **options) for q, k in packed]
    return _fused.joined(parts)


def merge_attentions(
    outputs: list[mx.array], lse_tensors: list[mx.array], torch_compile: bool = True, use_autograd_fix: bool = True
) -> tuple[mx.array, mx.array]:
    """Joins attentions [B, L, heads, D] of the same queries over disjoint keys, given their lse: (out, lse)."""
    return _fused.merge("merge_attentions", outputs, lse_tensors)
