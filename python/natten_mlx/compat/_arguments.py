"""What the releases ask of arguments. Each rule is written once; `function` is the name that errors begin with."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, SupportsFloat, TypeVar

import mlx.core as mx

P = ParamSpec("P")
R = TypeVar("R")

Ints = int | Sequence[int]
Bools = bool | Sequence[bool]

_AXES = {1: "L", 2: "H, W", 3: "D, H, W"}


def plain(value: Any) -> Any:
    """Numbers and lists as they are; those of an array."""
    return value.tolist() if hasattr(value, "tolist") else value


def sizes(function: str, argument: str, value: Ints | None, rank: int, least: int = 1) -> tuple[int, ...]:
    """One integer of at least `least` per axis; None is 1, as NATTEN has it for dilation and stride."""
    given = 1 if value is None else plain(value)
    try:
        items = tuple(given) if isinstance(given, Sequence) else (operator.index(given),) * rank
        if len(items) == rank and all(operator.index(x) >= least and not isinstance(x, bool) for x in items):
            return tuple(operator.index(x) for x in items)
    except TypeError:
        pass
    raise ValueError(
        f"[{function}] {argument} must be an int of at least {least}, or {rank} of them as a sequence, got {value!r}"
    )


def shared_windows(function: str, stride: Ints | None, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """The stride of 0.20 on, in whose steps windows move: at most the kernel size."""
    steps = sizes(function, "stride", stride, len(kernel_size))
    if any(s > k for s, k in zip(steps, kernel_size, strict=True)):
        raise ValueError(f"[{function}] stride must be at most kernel_size, got {steps} and {kernel_size}")
    return steps


def flags(function: str, value: Bools | None, rank: int) -> tuple[bool, ...]:
    """One bool per axis; None is False."""
    given = False if value is None else plain(value)
    items = tuple(given) if isinstance(given, Sequence) else (given,) * rank
    if len(items) != rank or not all(isinstance(x, bool) for x in items):
        raise ValueError(f"[{function}] is_causal must be a bool, or {rank} of them as a sequence, got {value!r}")
    return items


def scale(function: str, value: float | None) -> float | None:
    """A number; 0 is the default like None, as NATTEN has it."""
    if value is not None and (isinstance(value, (bool, mx.array)) or not isinstance(value, SupportsFloat)):
        raise ValueError(f"[{function}] scale must be a number or None, got {type(value).__name__}")
    return float(value) if value else None


def odd(function: str, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """Kernel sizes of operations that have odd ones only."""
    if any(k % 2 == 0 or k < 3 for k in kernel_size):
        shown = kernel_size[0] if len(set(kernel_size)) == 1 else kernel_size
        raise ValueError(f"[{function}] kernel_size must be an odd number greater than 1, got {shown}")
    return kernel_size


def no_bias_on_causal_axes(function: str, is_causal: tuple[bool, ...], has_bias: bool) -> None:
    """NATTEN defines none."""
    if has_bias and any(is_causal):
        raise NotImplementedError(
            f"[{function}] positional biases on causal axes don't exist in this release (natten_mlx itself has them)"
        )


def causal_windows_fit(
    function: str,
    axes: Sequence[int],
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    is_causal: tuple[bool, ...],
) -> None:
    """No axis is shorter than its window. natten_mlx asks that of axes that are not causal."""
    for axis, (length, kernel, spacing, causal) in enumerate(zip(axes, kernel_size, dilation, is_causal, strict=True)):
        if causal and kernel > length:
            raise ValueError(f"[{function}] kernel_size[{axis}]={kernel} must be <= input spatial size {length}")
        if causal and kernel * spacing > length:
            raise ValueError(
                f"[{function}] dilation[{axis}] * kernel_size[{axis}] = {kernel * spacing} exceeds input size {length}"
            )


def same_type(function: str, *arrays: mx.array) -> None:
    """Query, key and value of the releases from 0.20 on."""
    dtypes = [x.dtype for x in arrays]
    if len(set(dtypes)) > 1 or not mx.issubdtype(dtypes[0], mx.floating):
        shown = ", ".join(str(dtype).removeprefix("mlx.core.") for dtype in dtypes)
        raise ValueError(f"[{function}] query, key and value must be of one floating type, got {shown}")


def same_heads(function: str, **arrays: mx.array) -> None:
    """Releases without grouped heads."""
    heads = {name: array.shape[-2] for name, array in arrays.items()}
    if len(set(heads.values())) > 1:
        raise ValueError(f"[{function}] numbers of heads must match in this release, got {heads}")


def array(function: str, name: str, x: object, rank: int, heads_first: bool, last: str = "D") -> mx.array:
    """An array [B, heads, axes, last] or [B, axes, heads, last]."""
    axes = _AXES[rank]
    layout = f"[B, heads, {axes}, {last}]" if heads_first else f"[B, {axes}, heads, {last}]"
    if not isinstance(x, mx.array):
        raise ValueError(f"[{function}] {name} must be an mlx.core.array {layout}, got {type(x).__name__}")
    if x.ndim != rank + 3:
        raise ValueError(f"[{function}] {name} must be {layout}, got the shape {tuple(x.shape)}")
    return x


def additional_tokens(function: str, name: str, x: object, batch: int, heads: int, dim: int) -> mx.array:
    """Tokens [B, heads, N, D] besides those of the window."""
    layout = f"[{batch}, {heads}, N, {dim}]"
    if not isinstance(x, mx.array):
        raise ValueError(f"[{function}] {name} must be an mlx.core.array {layout}, got {type(x).__name__}")
    if x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != (batch, heads, dim):
        raise ValueError(f"[{function}] {name} must be {layout}, got the shape {tuple(x.shape)}")
    return x


def check_slots(function: str, attn: mx.array, kernel_size: tuple[int, ...], additional: int) -> None:
    """attn must hold the weights of a window and of additional tokens."""
    wanted = math.prod(kernel_size) + additional
    if attn.shape[-1] != wanted:
        more = f" and {additional} additional tokens" if additional else ""
        raise ValueError(
            f"[{function}] attn must hold {wanted} weights per query for kernel_size {kernel_size}{more}, got "
            f"{attn.shape[-1]}"
        )


def named(name: str, text: str, function: Callable[P, R]) -> Callable[P, R]:
    """`function`, one of those of several ranks, as the public `name`."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function
