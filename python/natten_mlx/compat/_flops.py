"""`natten.flops` of the releases: operations of a call by the shapes of its arrays.

As NATTEN counts them: the two products only, dilation and causal axes change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from natten_mlx.compat._arguments import named


def na_qk_flop_count(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Of query.key in the windows; multiply-adds, of which each is two operations, with `return_macs`."""
    _check("na_qk_flop_count", kernel_size, q_shape=q_shape, k_shape=k_shape)
    if tuple(q_shape) != tuple(k_shape):
        raise ValueError(f"[na_qk_flop_count] q_shape and k_shape must match, got {q_shape} and {k_shape}")
    return _count(q_shape, kernel_size, return_macs)


def na_av_flop_count(
    a_shape: Sequence[int],
    v_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Of the values that windows weight; multiply-adds with `return_macs`."""
    _check("na_av_flop_count", kernel_size, a_shape=a_shape, v_shape=v_shape)
    if tuple(a_shape[:-1]) != tuple(v_shape[:-1]):
        raise ValueError(
            f"[na_av_flop_count] a_shape and v_shape must match but for the last axis, got {a_shape} and {v_shape}"
        )
    return _count(v_shape, kernel_size, return_macs)


def fna_flop_count(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    v_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Of both products; multiply-adds with `return_macs`."""
    _check("fna_flop_count", kernel_size, q_shape=q_shape, k_shape=k_shape, v_shape=v_shape)
    if tuple(q_shape) != tuple(k_shape) or tuple(k_shape[:-1]) != tuple(v_shape[:-1]):
        raise ValueError(
            f"[fna_flop_count] q_shape, k_shape and v_shape must match, but for the last axis of v_shape, got "
            f"{q_shape}, {k_shape} and {v_shape}"
        )
    return _count(q_shape, kernel_size, return_macs) + _count(v_shape, kernel_size, return_macs)


def _check(function: str, kernel_size: Sequence[int], **shapes: Sequence[int]) -> None:
    for name, shape in shapes.items():
        if len(shape) != len(kernel_size) + 3:
            raise ValueError(
                f"[{function}] {name} must have {len(kernel_size) + 3} axes, batch, heads, channels and those of "
                f"kernel_size {tuple(kernel_size)}, got {tuple(shape)}"
            )


def _count(shape: Sequence[int], kernel_size: Sequence[int], return_macs: bool) -> int:
    return math.prod(shape) * math.prod(kernel_size) * (1 if return_macs else 2)


def of_pytorch(name: str) -> Any:
    """What counts a PyTorch model's operations."""

    def refused(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            f"[{name}] counts the operations of a PyTorch model with fvcore; for calls on MLX arrays there are "
            "`natten-mlx profile` and natten_mlx.bench.cost"
        )

    return named(name, "NotImplementedError: it counts a PyTorch model's operations with fvcore.", refused)
