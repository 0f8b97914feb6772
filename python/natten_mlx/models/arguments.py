"""What the models ask of arguments. Each rule is written once; `function` is the name that errors begin with."""

from __future__ import annotations

import json
import operator
import os
from pathlib import Path
from typing import Any

import mlx.core as mx


def integer(function: str, argument: str, value: Any, least: int | None = None) -> int:
    """Anything that is an integer, NumPy's included, not below `least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"[{function}] {argument} must be an integer{bound}, got {value!r}")
    return number


def array(function: str, argument: str, value: Any, layout: str) -> None:
    """An MLX array; `layout` says of which shape it should be."""
    if not isinstance(value, mx.array):
        raise ValueError(
            f"[{function}] {argument} must be an mlx.core.array of shape {layout}, got {type(value).__name__}"
        )


def config(function: str, value: Any, kind: Any) -> None:
    """A configuration of this kind that one from a file could be: those that a program makes are not checked yet."""
    if not isinstance(value, kind):
        raise ValueError(f"[{function}] config must be a {kind.__name__}, got {type(value).__name__}")
    try:
        values = json.loads(json.dumps(value.to_dict()))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"[{function}] {kind.__name__}: a value that config.json can't hold: {error}") from None
    kind.from_dict(values, f"[{function}] {kind.__name__}")


def path(function: str, argument: str, value: Any, what: str) -> Path:
    """A path that is not empty; `what` says of what."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"[{function}] {argument} must be {what}, got {value!r}")
    return Path(value)
