"""natten.functional of NATTEN 0.21.0 and 0.21.1: 0.20's, without `try_fuse_additional_kv`.

Arguments that choose or tune kernels are accepted and have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from natten_mlx.compat import _fused
from natten_mlx.compat._arguments import Bools, Ints
from natten_mlx.compat.v020.functional import attention, merge_attentions

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
    ) -> mx.array:
        return _fused.strided(rank, attention, locals(), grouped_heads=False)[0]

    return _fused.named_na(rank, _fused.STRIDED_NA, na)


na1d, na2d, na3d = _na(1), _na(2), _na(3)
neighborhood_attention_generic = _na(None)  # the rank is query's
