"""natten.functional of NATTEN 0.14.1 to 0.14.4: the kernel size follows from rpb, and from attn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from natten_mlx.compat import _split
from natten_mlx.compat._absent import absent
from natten_mlx.compat._arguments import named
from natten_mlx.compat.v014.functional import Operation
from natten_mlx.compat.v0145.functional import natten1dav, natten2dav

__all__ = ["natten1dav", "natten1dqkrpb", "natten2dav", "natten2dqkrpb"]


def _qkrpb(rank: int) -> Operation:
    name = f"natten{rank}dqkrpb"

    def qkrpb(query: mx.array, key: mx.array, rpb: mx.array, dilation: int) -> mx.array:
        return _split.qk(name, rank, query, key, _split.kernel_of_bias(name, rank, rpb), dilation, rpb=rpb)

    text = "query.key + rpb, [B, heads, ..., prod(K)], K from rpb's shape: multiply query by its scale before."
    return named(name, text, qkrpb)


natten1dqkrpb, natten2dqkrpb = _qkrpb(1), _qkrpb(2)

if not TYPE_CHECKING:
    __getattr__ = absent("v014", "functional.", "v0144")
