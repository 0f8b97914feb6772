"""`pad_input` of the modules: zeros at the end of axes that are shorter than their window."""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from natten_mlx._arguments import ints, per_axis


def least_lengths(module: Any) -> list[int]:
    """What windows need of each axis. Those of a causal one hold the keys that exist."""
    kernel, dilation = (ints(values, module.rank) for values in (module.kernel_size, module.dilation))
    causal = per_axis(module.is_causal, module.rank)
    return [1 if c else k * d for k, d, c in zip(kernel, dilation, causal, strict=True)]


def missing_rows(module: Any, batch: int, grid: Sequence[int]) -> list[int]:
    """How many zeros each axis of [batch, grid..., C] gets; none without `pad_input`.

    Raises:
        ValueError: more tokens than an array holds.
    """
    if not module.pad_input:
        return [0] * module.rank
    least = least_lengths(module)
    padded = max(batch, 1) * math.prod(map(max, grid, least))
    if padded >= 2**31:
        raise ValueError(f"[{type(module).__name__}] the padded input must have less than 2^31 tokens, got {padded}")
    return [max(0, window - length) for length, window in zip(grid, least, strict=True)]


def computed_rows(module: Any, grid: Sequence[int]) -> list[slice]:
    """Of each axis of the output behind an input whose axes were padded: what belongs to `grid`, the input's own."""
    return [slice(-(-length // s)) for length, s in zip(grid, ints(module.stride, module.rank), strict=True)]


def with_rows(x: mx.array, missing: Sequence[int]) -> mx.array:
    """x [B, spatial..., C] with so many zeros at the end of each axis."""
    return mx.pad(x, [(0, 0), *((0, count) for count in missing), (0, 0)]) if any(missing) else x
