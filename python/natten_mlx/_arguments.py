"""Arguments of modules as plain values."""

import operator
from typing import Any


def per_axis(values: Any, rank: int) -> list[Any]:
    """One value for each axis."""
    if isinstance(values, int):  # without the exception, which takes longer than all else here
        return [values] * rank
    try:
        return [values[axis] for axis in range(len(values))]
    except TypeError:
        return [values] * rank


def ints(values: Any, rank: int) -> list[int]:
    """The same of integers, whatever has them: numpy's and MLX's have other arithmetic."""
    return [operator.index(value) for value in per_axis(values, rank)]


def index(value: Any) -> int | None:
    """The integer that operator.index makes of it; None of a bool and of anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def count(module: str, name: str, value: Any, least: int = 0) -> int:
    """An integer that MLX's dimensions hold. Raises `ValueError`."""
    number = index(value)
    if number is None or number < least:
        raise ValueError(f"[{module}] {name} must be an int from {least} on, got {value!r}")
    if number >= 2**31:
        raise ValueError(f"[{module}] {name} must be at most {2**31 - 1}, got {value!r}")
    return number
