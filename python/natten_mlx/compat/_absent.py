"""Names of the releases that are not here: an error that says why, instead of Python's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def absent(release: str, inside: str = "", module: str | None = None) -> Callable[[str], Any]:
    """`__getattr__` of the module that stands for `natten`, or for `natten.functional` with inside="functional."; its
    own name if it is not the release's."""

    def missing(name: str) -> Any:
        from natten_mlx.compat.table import RELEASES

        wanted = f"natten.{inside}{name}"
        for entry in RELEASES[release].entries:
            full = entry.name.partition(" ")[0]
            if not entry.is_here and (full == wanted or full.startswith(f"{wanted}.")):
                raise AttributeError(f"{full} of NATTEN 0.{release[2:]} is {entry.here}")
        holder = f"natten_mlx.compat.{module or release}.{inside}".rstrip(".")
        raise AttributeError(f"module {holder!r} has no attribute {name!r}")

    return missing
