"""`get_configs_for_...` of 0.20 and 0.21: tile shapes of kernels that only NATTEN has, so that there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from natten_mlx.compat._arguments import named

_TEXT = "Configurations of NATTEN's kernels that fit: an empty list, because they are not here."


def configurations(name: str) -> Callable[..., list[Any]]:
    """The function of that name."""

    def none(query: mx.array, key: mx.array, value: mx.array) -> list[Any]:
        return []

    return named(name, _TEXT, none)


def flex_configurations(name: str) -> Callable[..., list[Any]]:
    """The function of that name, for Flex Attention."""

    def none(query: mx.array, key: mx.array, value: mx.array, torch_compile: bool = False) -> list[Any]:
        return []

    return named(name, _TEXT, none)
