"""What table.py says of a release: its module, and what every name of it is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A name of a release: what the compat module makes of it, and what natten_mlx itself has for it."""

    name: str
    here: str
    native: str = "-"
    is_here: bool = True


@dataclass(frozen=True)
class Earlier:
    """A module for earlier versions of a `Release`: what differs, and names of the release that they lack."""

    module: str
    versions: str
    rule: str
    entries: tuple[Entry, ...]
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Release:
    """One module of natten_mlx.compat. `rules` are what a port must mind; `example` runs."""

    module: str
    versions: str
    rules: tuple[str, ...]
    example: str
    entries: tuple[Entry, ...]
    earlier: tuple[Earlier, ...] = ()
