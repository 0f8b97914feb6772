"""Reads the values of a configuration file, each with a sentence that names file and key where it can't be used."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ValueError` for a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


_LONGEST = 2**31 - 1  # axis of an MLX array
_MOST_BLOCKS = 1000  # of one model; published ones have a few dozen


class Fields:
    """The keys of one configuration. Every method checks and returns the value of a key, or the default."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{source}: expected a dict of keys and values, got {type(values).__name__}")
        self.values = values
        self.source = source
        self.asked: set[str] = set()

    def error(self, key: str, expected: str) -> ValueError:
        """What to raise where the value of `key` can't be used."""
        return ValueError(f"{self.source}: {key!r} must be {expected}, got {self.values.get(key)!r}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it stands in the file."""
        self.asked.add(key)
        return self.values.get(key, default)

    def integer(self, key: str, default: int, least: int = 1, most: int | None = None) -> int:
        """An integer, not below `least` and not above `most`."""
        value = self.get(key, default)
        if not _is_integer(value) or value < least or (most is not None and value > most):
            upper = "" if most is None else f" and at most {most}"
            raise self.error(key, f"an integer of at least {least}{upper}")
        return self.size(key, value)

    def size(self, key: str, value: float) -> int:
        """`value`, which is that of `key` or follows from it, as the length of an axis."""
        if value > _LONGEST:
            raise ValueError(f"{self.source}: asks for a size that no array can have: {key!r} {self.values.get(key)!r}")
        return int(value)

    def integers(self, key: str, default: Sequence[int], count: int | None = None) -> tuple[int, ...]:
        """A list of positive integers, `count` of them if given."""
        value = self.get(key, list(default))
        right = isinstance(value, list) and all(_is_integer(item) and item >= 1 for item in value)
        if not right or not value or count not in (None, len(value)):
            raise self.error(key, f"a list of {'' if count is None else f'{count} '}positive integers")
        return tuple(self.size(key, item) for item in value)

    def depths(self, key: str, default: Sequence[int], count: int | None = None) -> tuple[int, ...]:
        """Blocks of each stage, `count` stages if given: a few, which can be built."""
        value = self.integers(key, default, count)
        if sum(value) > _MOST_BLOCKS:
            raise self.error(key, f"at most {_MOST_BLOCKS} blocks in all")
        return value

    def rows(
        self, key: str, default: Sequence[Sequence[int]], counts: Sequence[int], what: str
    ) -> tuple[tuple[int, ...], ...]:
        """A list of lists of positive integers; `counts` says how many each list must hold, `what` why."""
        value = self.get(key, [list(row) for row in default])
        right = isinstance(value, list) and all(isinstance(row, list) for row in value)
        if not right or [len(row) for row in value] != list(counts):
            raise self.error(key, f"{len(counts)} lists of {', '.join(map(str, counts))} integers, {what}")
        if not all(_is_integer(item) and item >= 1 for row in value for item in row):
            raise self.error(key, "lists of positive integers")
        return tuple(tuple(self.size(key, item) for item in row) for row in value)

    def number(self, key: str, default: float, least: float = 0.0, below: float = float("inf")) -> float:
        """A number in [least, below)."""
        value = self.get(key, default)
        if not is_number(value) or not least <= value < below:
            upper = "" if below == float("inf") else f" and below {below:g}"
            raise self.error(key, f"a number of at least {least:g}{upper}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def choice(self, key: str, default: str, choices: Collection[str]) -> str:
        """One of the words in `choices`."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, f"one of {', '.join(repr(choice) for choice in choices)}")
        return value

    def refuse_unknown(self, what: str, meaningless: Collection[str] = ()) -> None:
        """After all other methods: a key that nobody asked for is another computation than `what` does, and an error,
        but for private ones, those that are `meaningless` to it, and what is switched off."""
        for key in sorted(self.values.keys() - self.asked - set(meaningless)):
            near = difflib.get_close_matches(key, self.asked, 1, 0.8)
            if key.startswith("_") or (self.values[key] is False and not near):
                continue
            known = ", ".join(map(repr, sorted(self.asked)))
            hint = f"did you mean {near[0]!r}?" if near else f"expected some of {known}"
            raise ValueError(f"{self.source}: {key!r} is unknown to {what}, got {self.values[key]!r}; {hint}")


@contextmanager
def sizes_of(source: str) -> Iterator[None]:
    """Around making a model: sizes that no array can have, and what modules do not take, are errors of the
    configuration."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("["):
            raise
        raise ValueError(f"{source}: {error}") from None
    except OverflowError as error:
        raise ValueError(f"{source}: asks for a size that no array can have: {error}") from None


def is_number(value: Any) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
