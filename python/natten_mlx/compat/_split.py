"""The split form of 0.14 to 0.17: heads first, unscaled, causal slots from the window's first key on.

Changes of layout are views. Only slots on causal axes are moved, of the queries whose window has empty ones.
"""

from __future__ import annotations

import math
from functools import lru_cache

import mlx.core as mx
import numpy as np

from natten_mlx import functional
from natten_mlx.compat import _arguments as arguments
from natten_mlx.compat._arguments import Bools, Ints


def heads_last(x: mx.array) -> mx.array:
    """[B, heads, axes, D] -> [B, axes, heads, D]."""
    return mx.moveaxis(x, 1, -2)


def heads_first(x: mx.array) -> mx.array:
    """[B, axes, heads, D] -> [B, heads, axes, D]."""
    return mx.moveaxis(x, -2, 1)


@lru_cache(maxsize=64)
def _held(length: int, kernel_size: int, dilation: int) -> np.ndarray:
    """Keys that the causal window of each query of an axis holds."""
    return np.minimum(np.arange(length) // dilation + 1, kernel_size)


def _roll_slots(
    x: mx.array, kernel_size: tuple[int, ...], dilation: tuple[int, ...], is_causal: tuple[bool, ...], to_left: bool
) -> mx.array:
    """x [B, axes, heads, prod(K) + N]: moves slots of causal axes from right-aligned (here) to left-aligned (NATTEN,
    empty ones last), or back. Both are rotations by the number of slots that are empty, of the queries that have some,
    which are written into a copy of x: a third of the time of moving all of them. The last N stay."""
    rank, slots = len(kernel_size), math.prod(kernel_size)
    for axis in range(rank):
        kernel, spacing = kernel_size[axis], dilation[axis]
        near = min(x.shape[1 + axis], (kernel - 1) * spacing)
        if not is_causal[axis] or not near:
            continue
        held = _held(near, kernel, spacing)[:, None]
        source = (np.arange(kernel) + (-held if to_left else held)) % kernel
        index = mx.array(source.astype(np.int32)).reshape(
            1, *(near if a == axis else 1 for a in range(rank)), 1, *(kernel if a == axis else 1 for a in range(rank))
        )
        moved = (*[slice(None)] * (1 + axis), slice(near), ..., slice(slots))
        part = x[moved]
        spread = part.reshape(*part.shape[:-1], *kernel_size)
        turned = mx.take_along_axis(spread, mx.broadcast_to(index, spread.shape), axis=rank + 2 + axis)
        x[moved] = turned.reshape(part.shape)
    return x


def _additional(function: str, name: str, tokens: mx.array | None, of: mx.array) -> mx.array | None:
    """Tokens [B, heads, N, D] besides those of `of` [B, heads, axes, D], heads last."""
    if tokens is None:
        return None
    batch, heads, *_, dim = of.shape
    return heads_last(arguments.additional_tokens(function, name, tokens, batch, heads, dim))


def qk(
    function: str,
    rank: int,
    query: mx.array,
    key: mx.array,
    kernel_size: Ints,
    dilation: Ints | None,
    *,
    rpb: mx.array | None = None,
    additional_keys: mx.array | None = None,
    is_causal: Bools | None = False,
) -> mx.array:
    """query.key + rpb of each window, [B, heads, axes, prod(K) + N]; logits of additional tokens come last."""
    kernel = arguments.odd(function, arguments.sizes(function, "kernel_size", kernel_size, rank))
    spacing = arguments.sizes(function, "dilation", dilation, rank)
    causal = arguments.flags(function, is_causal, rank)
    arguments.no_bias_on_causal_axes(function, causal, rpb is not None)
    for name, x in (("query", query), ("key", key)):
        arguments.array(function, name, x, rank, heads_first=True)
    if query.shape[1] != key.shape[1]:
        raise ValueError(f"[{function}] numbers of heads must match, got {query.shape[1]} and {key.shape[1]}")
    arguments.causal_windows_fit(function, query.shape[2:-1], kernel, spacing, causal)
    more = _additional(function, "additional_keys", additional_keys, query)
    operation = getattr(functional, f"na{rank}d_qk")
    options = {"is_causal": causal, "scale": 1.0, "rpb": rpb, "additional_keys": more}
    logits = operation(heads_last(query), heads_last(key), kernel, spacing, **options)
    return heads_first(_roll_slots(logits, kernel, spacing, causal, to_left=True))


def kernel_of_bias(function: str, rank: int, rpb: mx.array) -> int:
    """The kernel size that a bias [heads, 2K - 1, ...] is for."""
    side = rpb.shape[-1] if isinstance(rpb, mx.array) and rpb.ndim == rank + 1 else 0
    if side % 4 != 1 or side < 5 or set(rpb.shape[1:]) != {side}:
        got = f"the shape {tuple(rpb.shape)}" if isinstance(rpb, mx.array) else type(rpb).__name__
        layout = ", ".join(["2 * K - 1"] * rank)
        raise ValueError(
            f"[{function}] rpb must be an mlx.core.array [heads, {layout}], whose odd kernel size K > 1 is that of the "
            f"windows in this release, got {got}"
        )
    return (side + 1) // 2


def kernel_of_slots(function: str, rank: int, attn: mx.array) -> int:
    """The kernel size that as many weights per query belong to."""
    slots = arguments.array(function, "attn", attn, rank, heads_first=True, last="slots").shape[-1]
    kernel = slots if rank == 1 else math.isqrt(slots)
    if kernel**rank != slots or kernel % 2 == 0 or kernel < 3:
        raise ValueError(
            f"[{function}] attn must hold K{'' if rank == 1 else f' ** {rank}'} weights per query, whose odd kernel "
            f"size K > 1 is that of the windows in this release, got {slots}"
        )
    return kernel


def av(
    function: str,
    rank: int,
    attn: mx.array,
    value: mx.array,
    kernel_size: Ints,
    dilation: Ints | None,
    *,
    additional_values: mx.array | None = None,
    is_causal: Bools | None = False,
) -> mx.array:
    """Values weighted by the slots of `qk`, [B, heads, axes, D] in value's dtype."""
    kernel = arguments.odd(function, arguments.sizes(function, "kernel_size", kernel_size, rank))
    spacing = arguments.sizes(function, "dilation", dilation, rank)
    causal = arguments.flags(function, is_causal, rank)
    arguments.array(function, "attn", attn, rank, heads_first=True, last="slots")
    arguments.array(function, "value", value, rank, heads_first=True)
    if attn.shape[1] != value.shape[1]:
        raise ValueError(f"[{function}] numbers of heads must match, got {attn.shape[1]} and {value.shape[1]}")
    arguments.causal_windows_fit(function, value.shape[2:-1], kernel, spacing, causal)
    more = _additional(function, "additional_values", additional_values, value)
    arguments.check_slots(function, attn, kernel, 0 if more is None else more.shape[1])

    operation = getattr(functional, f"na{rank}d_av")
    weights = _roll_slots(heads_last(attn.astype(value.dtype)), kernel, spacing, causal, to_left=False)
    out = operation(weights, heads_last(value), kernel, spacing, is_causal=causal, additional_values=more)
    return heads_first(out)
