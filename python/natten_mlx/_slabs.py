"""A module's part of a field that is spread over ranks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from natten_mlx import _ext
from natten_mlx._arguments import index, per_axis

# Compared between ranks at each call.
_NUMBERS = ("num_heads", "num_kv_heads", "num_registers", "pad_input")
_PER_AXIS = ("kernel_size", "stride", "dilation", "is_causal", "gna_stride", "is_circular")


@dataclass(frozen=True)
class Slab:
    """Where the rows of this rank lie on a spatial axis."""

    axis: int
    index: int
    """Of this rank."""
    rows: tuple[int, ...]
    """Of every rank."""

    @property
    def start(self) -> int:
        """Position of row 0."""
        return sum(self.rows[: self.index])

    @property
    def is_last(self) -> bool:
        """Whether the axis ends with it."""
        return self.index == len(self.rows) - 1

    def offset(self, rank: int) -> Any:
        """The position of row 0 on every axis, as rope takes it."""
        return self.start if rank == 1 else tuple(self.start * (axis == self.axis) for axis in range(rank))

    def whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape [B, spatial..., ...] of the whole field, from that of the slab."""
        before, after = shape[: 1 + self.axis], shape[2 + self.axis :]
        return (*before, sum(self.rows), *after)

    def queries(self, stride: int) -> slice:
        """The rows of the whole result that are this rank's: multiples of the stride."""
        start, end = self.start, self.start + self.rows[self.index]
        return slice(-(-start // stride), -(-end // stride))

    def part(self, whole: mx.array, stride: int = 1) -> mx.array:
        """This rank's rows of [B, spatial...], of which there is one for each multiple of the stride."""
        return whole[(slice(None),) * (1 + self.axis) + (self.queries(stride),)]

    def extended(self, rows: int) -> Slab:
        """With so many rows more on the last rank."""
        return replace(self, rows=(*self.rows[:-1], self.rows[-1] + rows))


def check_group(module: Any, group: Any, shard_axis: Any) -> tuple[mx.distributed.Group | None, int | None]:
    """The group and the axis, from 0 on, that a module's arguments mean; None twice where it is not spread."""
    name = type(module).__name__
    if group is None and shard_axis is None:
        return None, None
    if group is not None and not isinstance(group, mx.distributed.Group):
        raise ValueError(f"[{name}] group must be an mlx.core.distributed.Group, got {group!r}")
    axis = index(0 if shard_axis is None else shard_axis)
    if axis is None or not -module.rank <= axis < module.rank:
        raise ValueError(
            f"[{name}] shard_axis must be a spatial axis from {-module.rank} to {module.rank - 1}, got {shard_axis!r}"
        )
    if module.attn_drop_rate > 0:
        raise ValueError(
            f"[{name}] attn_drop must be 0 with group or shard_axis, got {module.attn_drop_rate}: attention that is "
            "spread over ranks has no weights to drop"
        )
    if module.rope is not None and not takes_offset(module.rope):
        raise ValueError(
            f"[{name}] group and shard_axis need a rope that takes the keyword offset, got {module.rope!r}"
        )
    return mx.distributed.init() if group is None else group, axis % module.rank


def takes_offset(rope: Any) -> bool:
    """Whether it can be told the position of row 0."""
    return _class_takes_offset(type(rope)) if isinstance(rope, nn.Module) else _has_offset(rope)


@functools.cache
def _class_takes_offset(kind: type[nn.Module]) -> bool:
    """A step of decoding asks each time, and a signature takes longer than all other checks of it."""
    return _has_offset(kind.__call__)


def _has_offset(function: Any) -> bool:
    parameters = inspect.signature(function).parameters
    return "offset" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def slab_of(module: Any, x: mx.array, lengths: mx.array | None, rows: Sequence[int] | None) -> Slab:
    """This rank's slab of x [B, spatial..., C]. Without `rows` ranks tell each other theirs and compare arguments."""
    name, group, axis = type(module).__name__, module.group, module.shard_axis
    if rows is None:
        options = [(option, [int(getattr(module, option))]) for option in _NUMBERS]
        options += [(option, [int(v) for v in per_axis(getattr(module, option), module.rank)]) for option in _PER_AXIS]
        options.append(("rel_pos_bias", [int("rpb" in module)]))
        rows = _ext.distributed_rows(name, module.rank, x, lengths, group, axis, options)
    found, own = [index(count) for count in rows], x.shape[1 + axis] if x.ndim > 1 + axis else 0
    if len(found) != group.size() or min(count or 0 for count in found) < 1 or found[group.rank()] != own:
        raise ValueError(
            f"[{name}] rows must be at least 1 for each of {group.size()} ranks, {own} on this one, got {list(rows)}"
        )
    return Slab(axis, group.rank(), tuple(int(count) for count in rows))
