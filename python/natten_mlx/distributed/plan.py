"""What a neighborhood attention that is spread over ranks costs, before there are machines: bytes, time, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from natten_mlx import _ext
from natten_mlx.functional import Bools, Ints
from natten_mlx.neighborhood import key_span

# Multiply-adds of the backward over those of the forward: five products of tensors instead of two.
_BACKWARD_WORK = 2.5


@dataclass(frozen=True)
class RankCost:
    """One rank's part of a step."""

    rows: int
    """Rows of the axis that it holds."""
    halo: tuple[int, int]
    """Rows of its neighbors that it needs, before and after its own."""
    messages: int
    """Sent in a forward; as many in a backward."""
    bytes_forward: int
    """Of keys and values that it sends."""
    bytes_backward: int
    """Of their gradients that it sends."""
    compute_seconds: float
    communication_seconds: float
    step_seconds: float
    """With what is computed while messages travel."""
    memory_bytes: int
    """Query, key, value, result and halo; of training also their gradients."""

    @property
    def halo_rows(self) -> int:
        """Before and after."""
        return sum(self.halo)


@dataclass(frozen=True)
class Plan:
    """The cost of one call on all ranks. `str()` of it is a table."""

    axis: int
    hops: int
    """Messages a row travels at most: 1 where slabs are no smaller than the halo."""
    training: bool
    single_seconds: float
    """Of the plain call on one device."""
    ranks: tuple[RankCost, ...]

    @property
    def step_seconds(self) -> float:
        """Of the slowest rank."""
        return max(rank.step_seconds for rank in self.ranks)

    @property
    def efficiency(self) -> float:
        """Seconds of the plain call over ranks times those of the slowest."""
        return self.single_seconds / (len(self.ranks) * self.step_seconds)

    @property
    def bytes_sent(self) -> int:
        """By all ranks in a step."""
        return sum(rank.bytes_forward + (rank.bytes_backward if self.training else 0) for rank in self.ranks)

    def __str__(self) -> str:
        """Totals and the ranks that stand out."""
        worst = max(range(len(self.ranks)), key=lambda r: self.ranks[r].step_seconds)
        cost, rows = self.ranks[worst], [rank.rows for rank in self.ranks]
        step = "forward and backward" if self.training else "forward"
        lines = [
            f"ranks               {len(self.ranks)}, axis {self.axis} cut into slabs of {_span(rows)} rows",
            f"halo                {_span([r.halo_rows for r in self.ranks])} rows, {self.hops} hop(s)",
            f"sent per step       {_bytes(self.bytes_sent)} in all, "
            f"{_bytes(max(r.bytes_forward + (r.bytes_backward if self.training else 0) for r in self.ranks))} "
            f"by one rank at most ({step})",
            f"time per step       {_seconds(self.step_seconds)} on rank {worst}: computing "
            f"{_seconds(cost.compute_seconds)}, messages {_seconds(cost.communication_seconds)}; "
            f"one device {_seconds(self.single_seconds)}",
            f"efficiency          {self.efficiency:.3f}",
            f"memory per rank     {_bytes(max(r.memory_bytes for r in self.ranks))} at most",
        ]
        return "\n".join(lines)


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _spread(values: Any, rank: int) -> list[Any]:
    return list(values) if isinstance(values, Sequence) else [values] * rank


def plan(
    shape: Sequence[int],
    kernel_size: Ints,
    ranks: int | Sequence[int],
    *,
    axis: int | None = None,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    gna_stride: Ints = 1,
    is_circular: Bools = False,
    kv_heads: int | None = None,
    value_dim: int | None = None,
    dtype: mx.Dtype = mx.bfloat16,
    training: bool = True,
    bandwidth: float = 400e9,
    latency: float = 5e-6,
    flops: float = 80e12,
    overlap: bool = True,
    gathers: bool = False,
) -> Plan:
    """What one call costs when its axis is spread over ranks. Nothing is computed or sent.

    A rank sends and receives one message after the other, each in `latency` + bytes / `bandwidth`; what needs no halo
    is computed meanwhile. Computing takes useful operations / `flops`, and 2.5 times that in the backward.

    Args:
        shape: Of the whole query: B, 1 to 3 spatial axes, heads, head dim.
        kernel_size, stride, dilation, is_causal, gna_stride, is_circular: See na1d.
        ranks: How many, which share the axis as equally as possible; or the rows of each.
        axis: Spatial axis that is cut; default: the one that is most efficient.
        kv_heads, value_dim: Heads of key and value, head dim of value; default: the query's.
        dtype: Of all tensors and their gradients.
        training: Whether a step has a backward.
        bandwidth: Bytes per second of a rank's link, one way.
        latency: Seconds per message.
        flops: Useful operations per second of one device on this attention.
        overlap: Whether computing goes on while messages travel, as on a GPU.
        gathers: Whether the group has no messages between two ranks (NCCL in MLX): every rank then gets what all
            ranks send, ranks - 1 blocks of the longest rank's bytes.

    Raises:
        ValueError: arguments that do not fit, or more ranks than rows on every axis that may be cut.
    """
    rank = len(shape) - 3
    if rank not in (1, 2, 3):
        raise ValueError(f"[plan] shape must be B, 1 to 3 spatial axes, heads, head dim, got {tuple(shape)}")
    for name, number in (("bandwidth", bandwidth), ("flops", flops)):
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"[plan] {name} must be positive, got {number}")
    if not (latency >= 0 and math.isfinite(latency)):
        raise ValueError(f"[plan] latency must not be negative, got {latency}")
    *outer, heads, head_dim = shape
    kv = (*outer, heads if kv_heads is None else kv_heads)
    value = (*kv, head_dim if value_dim is None else value_dim)
    window: dict[str, Any] = {
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "is_causal": is_causal,
        "gna_stride": gna_stride,
        "is_circular": is_circular,
    }
    if min(*shape, *value) < 1 or heads % kv[-1]:
        raise ValueError(
            "[plan] expected positive dimensions and heads that are divisible by kv_heads, got "
            f"{tuple(shape)} and {kv[-1]}"
        )
    # Validates, whether or not a tier of this machine could run the call.
    key_span(query_start=[0] * rank, rows=outer[1:], shape=outer[1:], **window)
    axes = {index: [_spread(values, rank)[index] for values in window.values()] for index in range(rank)}
    whole = [_ext.slab_plan([shape[1 + index]], *axes[index])["slabs"][0] for index in range(rank)]

    def cut(index: int) -> Plan | None:
        length = shape[1 + index]
        rows = _ext.equal_rows(length, ranks) if isinstance(ranks, int) else list(ranks)
        if min(rows, default=0) < 1 or sum(rows) != length:
            return None
        slabs = _ext.slab_plan(rows, *axes[index])
        outside = math.prod(w["pairs"] for i, w in enumerate(whole) if i != index)
        tokens = math.prod(n for i, n in enumerate(outer) if i != 1 + index)  # of a row, over the batch
        queries = shape[0] * math.prod(w["outputs"] for i, w in enumerate(whole) if i != index)
        kv_row = tokens * kv[-1] * (head_dim + value[-1]) * dtype.size
        work = shape[0] * heads * 2 * (head_dim + value[-1]) * outside / flops  # seconds per pair of the axis
        factor = 1 + _BACKWARD_WORK if training else 1.0
        messages = [[(hop["to_right"][r], hop["to_left"][r]) for hop in slabs["hops"]] for r in range(len(rows))]
        received = [
            [(hop["to_right"][r - 1], hop["to_left"][(r + 1) % len(rows)]) for hop in slabs["hops"]]
            for r in range(len(rows))
        ]
        costs = []
        for r, slab in enumerate(slabs["slabs"]):
            sent = sum(map(sum, messages[r]))
            both = [n for hops in (messages[r], received[r]) for hop in hops for n in hop if n]
            forward = sum(latency + n * kv_row / bandwidth for n in both)
            bytes_forward, bytes_backward = sent * kv_row, sum(map(sum, received[r])) * kv_row
            if gathers:
                blocks = [max(map(sum, zip(hop["to_right"], hop["to_left"], strict=True))) for hop in slabs["hops"]]
                bytes_forward = bytes_backward = (len(rows) - 1) * sum(blocks) * kv_row
                forward = len(blocks) * latency + bytes_forward / bandwidth
            compute = work * slab["pairs"]
            border = slabs["left_border"] + slabs["right_border"]
            interior = compute * (1 - border / slab["rows"]) if border and overlap else 0.0
            step = max(forward, interior) + compute - interior
            halo = slab["left"] + slab["right"]
            held = slab["rows"] * (tokens * heads * head_dim * dtype.size + kv_row) + halo * kv_row
            held += slab["outputs"] * queries * heads * value[-1] * dtype.size
            communication, computing = forward, compute
            if training:
                back = compute * _BACKWARD_WORK
                hidden = interior * _BACKWARD_WORK
                step += max(forward, hidden) + back - hidden
                communication, computing, held = 2 * forward, compute * factor, 2 * held
            costs.append(
                RankCost(
                    rows=slab["rows"],
                    halo=(slab["left"], slab["right"]),
                    messages=sum(1 for hop in messages[r] for n in hop if n),
                    bytes_forward=bytes_forward,
                    bytes_backward=bytes_backward,
                    compute_seconds=computing,
                    communication_seconds=communication,
                    step_seconds=step,
                    memory_bytes=held,
                )
            )
        single = work * whole[index]["pairs"] * factor
        return Plan(axis=index, hops=len(slabs["hops"]), training=training, single_seconds=single, ranks=tuple(costs))

    if axis is not None and not -rank <= axis < rank:
        raise ValueError(f"[plan] axis must be a spatial axis from {-rank} to {rank - 1}, got {axis}")
    plans = [found for index in ([axis % rank] if axis is not None else range(rank)) if (found := cut(index))]
    if not plans:
        raise ValueError(
            f"[plan] ranks must share the rows of an axis, at least one each: got ranks={ranks} for axes of "
            f"{', '.join(map(str, outer[1:]))}" + (f" (axis {axis})" if axis is not None else "")
        )
    return max(plans, key=lambda found: found.efficiency)
