"""The operations of the music-structure model all-in-one: heads last, in two halves, 1-D and 2-D.

`mx.softmax` of the first half's result is what the second half takes.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from natten_mlx import functional
from natten_mlx.functional import Ints

Operation = Callable[..., mx.array]


def _qk_rpb(rank: int) -> Operation:
    operation = getattr(functional, f"na{rank}d_qk")

    def qk_rpb(
        query: mx.array,
        key: mx.array,
        rpb: mx.array | None,
        kernel_size: Ints,
        dilation: Ints = 1,
        scale: float | None = None,
    ) -> mx.array:
        logits: mx.array = operation(query, key, kernel_size, dilation, scale=scale, rpb=rpb)
        return logits

    qk_rpb.__name__ = qk_rpb.__qualname__ = f"na{rank}d_qk_rpb"
    qk_rpb.__doc__ = "scale * query.key + rpb, [B, ..., heads, prod(K)]; scale defaults to D ** -0.5."
    return qk_rpb


def _av_fused(rank: int) -> Operation:
    operation = getattr(functional, f"na{rank}d_av")

    def av_fused(attn: mx.array, value: mx.array, kernel_size: Ints, dilation: Ints = 1) -> mx.array:
        out: mx.array = operation(attn, value, kernel_size, dilation)
        return out

    av_fused.__name__ = av_fused.__qualname__ = f"na{rank}d_av_fused"
    av_fused.__doc__ = "Values weighted by attn, [B, ..., heads, D]."
    return av_fused


na1d_qk_rpb, na2d_qk_rpb = _qk_rpb(1), _qk_rpb(2)
na1d_av_fused, na2d_av_fused = _av_fused(1), _av_fused(2)
