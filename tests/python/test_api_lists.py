"""Lists of the API agree: what the package exports, what docs/api.md describes, what functions take."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import natten_mlx

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()


def documented(name: str) -> bool:
    """By itself, or as one of `na1d | na2d | na3d` and `NeighborhoodAttention1D | 2D | 3D`."""
    short = re.sub(r"^NeighborhoodAttention(?=[23]D$)", "", name)
    return re.search(rf"\b{short}\b", PAGE) is not None


@pytest.mark.parametrize("name", [name for name in natten_mlx.__all__ if not name.startswith("__")])
def test_every_exported_name_is_documented(name: str) -> None:
    assert hasattr(natten_mlx, name) and documented(name)


def test_all_is_what_the_package_imports() -> None:
    tree = ast.parse(Path(natten_mlx.__file__).read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("natten_mlx.")
        for alias in node.names
    }
    assert imported == set(natten_mlx.__all__)


@pytest.mark.parametrize("name", [n for n in natten_mlx.__all__ if n.startswith(("na1d", "na2d", "na3d", "Neigh"))])
def test_every_argument_is_documented(name: str) -> None:
    arguments = inspect.signature(getattr(natten_mlx, name)).parameters
    assert not [argument for argument in arguments if not re.search(rf"\b{argument}\b", PAGE)]
