"""Rotary position embedding of one to three axes, heads last."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from natten_mlx._arguments import index
from natten_mlx.functional import Ints

Offset = int | mx.array | Sequence[int | mx.array]


class RoPE(nn.Module):
    """Rotary position embedding (Su et al., arXiv 2104.09864) of query and key in 1, 2 or 3 dimensions.

    Every axis rotates channels of its own (axial): those of the first axis come first, and channels behind the last
    axis's stay. Pair number i of an axis with c channels turns by `position * scale * base ** (-2 i / c)`. Angles are
    float32, right to 3e-7 at every position below 2^31. It has no parameters.
    """

    def __init__(self, dims: Ints, base: float = 10000.0, traditional: bool = False, scale: float = 1.0) -> None:
        """Make the embedding of as many axes as `dims` has.

        Args:
            dims: Channels that are rotated for each axis, even, 0 for an axis that is left out; an int is one axis.
            base: Of the frequencies, positive.
            traditional: Whether a pair is two neighboring channels; else channel i of an axis and i + c / 2, as in
                mlx.nn.RoPE.
            scale: Of positions.

        Raises:
            ValueError: arguments that do not fit.
        """
        super().__init__()
        values = dims if isinstance(dims, (tuple, list)) else [dims]
        self.dims = tuple(_even("dims", value) for value in values)
        if not 1 <= len(self.dims) <= 3:
            raise ValueError(f"[RoPE] dims must be of 1 to 3 axes, got {len(self.dims)}")
        self.base, self.scale = _number("base", base), _number("scale", scale)
        if self.base <= 0:
            raise ValueError(f"[RoPE] base must be positive, got {base!r}")
        if not isinstance(traditional, bool):
            raise ValueError(f"[RoPE] traditional must be bool, got {traditional!r}")
        self.traditional = traditional

    def __call__(self, query: mx.array, key: mx.array, offset: Offset = 0) -> tuple[mx.array, mx.array]:
        """Rotate query and key.

        Args:
            query, key: [B, spatial..., heads, D] of any floating type, which the results have too.
            offset: Position of row 0: an int or an integer array of one element for every axis, or one for each axis.

        Returns:
            The rotated query and key.

        Raises:
            ValueError: arrays of another number of axes or of fewer channels than `dims`, or a wrong offset.
        """
        self._check(query)
        self._check(key)
        rank, offsets = len(self.dims), _per_axis(offset, len(self.dims))
        tables = self._tables(query.shape[1 : rank + 1], offsets)
        is_same = key.shape[1 : rank + 1] == query.shape[1 : rank + 1]
        of_key = tables if is_same else self._tables(key.shape[1 : rank + 1], offsets)
        return self._turn(query, *tables), self._turn(key, *of_key)

    def rotate(self, x: mx.array, offset: Offset = 0) -> mx.array:
        """x [B, spatial..., heads, D] -> the same, rotated. See `__call__`."""
        self._check(x)
        rank = len(self.dims)
        return self._turn(x, *self._tables(x.shape[1 : rank + 1], _per_axis(offset, rank)))

    def _check(self, x: mx.array) -> None:
        rank, rotated = len(self.dims), sum(self.dims)
        if not isinstance(x, mx.array) or x.ndim != rank + 3 or not mx.issubdtype(x.dtype, mx.floating):
            got = f"{list(x.shape)} of {x.dtype}" if isinstance(x, mx.array) else repr(x)
            raise ValueError(f"[RoPE] expected a floating array [B, {rank} spatial axes, heads, D], got {got}")
        if x.shape[-1] < rotated:
            raise ValueError(f"[RoPE] expected at least {rotated} channels, which dims rotate, got {x.shape[-1]}")

    def _turn(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """All axes' channels in one pass: they are neighbors in memory, those of one axis are not."""
        wide = x.astype(mx.float64 if x.dtype == mx.float64 else mx.float32)
        rotated = sum(self.dims)
        part, *rest = mx.split(wide, [rotated], axis=-1) if rotated < x.shape[-1] else [wide]
        turned = part * cos + self._swap(part) * sin
        return (mx.concatenate([turned, *rest], axis=-1) if rest else turned).astype(x.dtype)

    def _swap(self, x: mx.array) -> mx.array:
        """The other channel of each pair, in place of each."""
        if self.traditional:
            return x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
        ends = [sum(self.dims[:axis]) + half for axis, c in enumerate(self.dims) for half in (c // 2, c)]
        halves = mx.split(x, ends[:-1], axis=-1)
        return mx.concatenate([halves[number ^ 1] for number in range(len(halves))], axis=-1)

    def _tables(self, grid: tuple[int, ...], offsets: list[mx.array]) -> tuple[mx.array, mx.array]:
        """Factors [spatial..., 1, channels] of a channel and of the other one of its pair."""
        cos, sin = [], []
        for axis, (rows, channels, offset) in enumerate(zip(grid, self.dims, offsets, strict=True)):
            angles = self._angles(rows, channels, offset)
            c, s = mx.cos(angles), mx.sin(angles)
            factors = mx.stack([c, -s, c, s])
            x = factors.reshape(2, 2, rows, channels // 2)  # (of the first, of the second), (cos, sin)
            pairs = x.transpose(1, 2, 3, 0) if self.traditional else x.transpose(1, 2, 0, 3)
            shape = [rows if a == axis else 1 for a in range(len(grid))]
            full = mx.broadcast_to(pairs.reshape(2, *shape, 1, channels), (2, *grid, 1, channels))
            cos.append(full[0])
            sin.append(full[1])
        return mx.concatenate(cos, axis=-1), mx.concatenate(sin, axis=-1)

    def _angles(self, rows: int, channels: int, offset: mx.array) -> mx.array:
        """[rows, channels / 2], from -pi to pi.

        A float32 product of position and frequency has no digits left for the angle at large positions. Turns are
        therefore counted in units of 2^-64, where 64-bit integers wrap around as angles do.
        """
        units = _units(channels, self.base, self.scale)
        positions = mx.arange(rows, dtype=mx.int64) + offset
        turns = positions.astype(mx.uint64)[:, None] * mx.array(units, mx.int64).astype(mx.uint64)
        return (turns >> 32).astype(mx.uint32).view(mx.int32).astype(mx.float32) * (2 * math.pi / 2**32)

    def _extra_repr(self) -> str:
        return f"dims={self.dims}, base={self.base}, traditional={self.traditional}, scale={self.scale}"


@functools.lru_cache
def _units(channels: int, base: float, scale: float) -> tuple[int, ...]:
    """What every pair of the channels turns from one position to the next."""
    turns = [scale * base ** (-2 * pair / channels) / (2 * math.pi) for pair in range(channels // 2)]
    return tuple(_signed(round((turn % 1.0) * 2**64)) for turn in turns)


def _signed(value: int) -> int:
    """The 64-bit integer of these bits."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def _even(name: str, value: Any) -> int:
    number = index(value)
    if number is None or number < 0 or number % 2:
        raise ValueError(f"[RoPE] {name} must be even ints from 0 on, got {value!r}")
    return number


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"[RoPE] {name} must be a finite number, got {value!r}")
    return number


def _per_axis(offset: Any, rank: int) -> list[mx.array]:
    values = list(offset) if isinstance(offset, (tuple, list)) else [offset] * rank
    if len(values) != rank:
        raise ValueError(f"[RoPE] offset must have one value or {rank}, got {len(values)}")
    return [_position(value) for value in values]


def _position(value: Any) -> mx.array:
    if isinstance(value, mx.array):
        if value.size != 1 or not mx.issubdtype(value.dtype, mx.integer):
            raise ValueError(f"[RoPE] offset must be an integer array of one element, got {value.dtype} {value.shape}")
        return value.reshape(()).astype(mx.int64)
    number = index(value)
    if number is None or abs(number) >= 2**63:
        raise ValueError(f"[RoPE] offset must be an int of 64 bits or an integer array, got {value!r}")
    return mx.array(number, mx.int64)
