"""natten.functional of NATTEN 0.14: 1-D and 2-D, heads first, unscaled, odd kernel sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from natten_mlx.compat import _split
from natten_mlx.compat._absent import absent
from natten_mlx.compat._arguments import named

Operation = Callable[..., mx.array]

_QK = "query.key{bias}, [B, heads, ..., prod(K)]: multiply query by its scale before."
_AV = "Values weighted by attn, [B, heads, ..., D]."


def _qkrpb(rank: int) -> Operation:
    name = f"natten{rank}dqkrpb"

    def qkrpb(query: mx.array, key: mx.array, rpb: mx.array | None, kernel_size: int, dilation: int) -> mx.array:
        return _split.qk(name, rank, query, key, kernel_size, dilation, rpb=rpb)

    return named(name, _QK.format(bias=" + rpb"), qkrpb)


def _qk(rank: int) -> Operation:
    name = f"natten{rank}dqk"

    def qk(query: mx.array, key: mx.array, kernel_size: int, dilation: int) -> mx.array:
        return _split.qk(name, rank, query, key, kernel_size, dilation)

    return named(name, _QK.format(bias=""), qk)


def _av(rank: int) -> Operation:
    name = f"natten{rank}dav"

    def av(attn: mx.array, value: mx.array, kernel_size: int, dilation: int) -> mx.array:
        return _split.av(name, rank, attn, value, kernel_size, dilation)

    return named(name, _AV, av)


natten1dqkrpb, natten2dqkrpb = _qkrpb(1), _qkrpb(2)
natten1dqk, natten2dqk = _qk(1), _qk(2)
natten1dav, natten2dav = _av(1), _av(2)

if not TYPE_CHECKING:
    __getattr__ = absent("v014", "functional.")
