"""natten.functional of NATTEN 0.14.5: 0.14.6's, but that the kernel size of `av` follows from attn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from natten_mlx.compat import _split
from natten_mlx.compat._absent import absent
from natten_mlx.compat._arguments import named
from natten_mlx.compat.v014.functional import Operation, natten1dqkrpb, natten2dqkrpb

__all__ = ["natten1dav", "natten1dqkrpb", "natten2dav", "natten2dqkrpb"]


def _av(rank: int) -> Operation:
    name = f"natten{rank}dav"

    def av(attn: mx.array, value: mx.array, dilation: int) -> mx.array:
        return _split.av(name, rank, attn, value, _split.kernel_of_slots(name, rank, attn), dilation)

    return named(name, "Values weighted by attn, [B, heads, ..., D]; its last axis says how large windows are.", av)


natten1dav, natten2dav = _av(1), _av(2)

if not TYPE_CHECKING:
    __getattr__ = absent("v014", "functional.", "v0145")
