"""Argument types shared by the subcommands: `5`, `5,7` and `5x7` all denote per-axis values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from natten_mlx.cli import InputError

T = TypeVar("T")

DTYPES = ("float32", "float16", "bfloat16", "float64")
MODEL_DTYPES = DTYPES[:3]
_TRUE = {"1", "true", "t", "yes"}
_FALSE = {"0", "false", "f", "no"}


def _bool(text: str) -> bool:
    lowered = text.lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError
    return lowered in _TRUE


def _list(kind: Callable[[str], T], what: str) -> Callable[[str], list[T]]:
    def parse(text: str) -> list[T]:
        try:
            return [kind(part) for part in text.strip().strip("()").replace("x", ",").split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}") from None

    return parse


integers = _list(int, "integers such as 7 or 7,7 or 7x7")
booleans = _list(_bool, "true or false for each axis, such as true,false")


def per_axis(values: list[T]) -> T | tuple[T, ...]:
    """One value stays a scalar, which the library spreads over the axes."""
    return values[0] if len(values) == 1 else tuple(values)


def add_neighborhood(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the options that describe a neighborhood; `neighborhood(args)` collects them."""
    group = parser.add_argument_group("neighborhood (one value, or one per axis)")
    group.add_argument("-k", "--kernel-size", type=integers, required=required, metavar="K", help="window size")
    group.add_argument("-d", "--dilation", type=integers, default=[1], metavar="D", help="gap between attended keys")
    group.add_argument("-s", "--stride", type=integers, default=[1], metavar="S", help="compute every S-th query")
    group.add_argument(
        "-u", "--gna-stride", type=integers, default=[1], metavar="U", help="U neighboring queries share one window"
    )
    group.add_argument(
        "-c",
        "--causal",
        type=booleans,
        nargs="?",
        const=[True],
        default=[False],
        metavar="BOOL",
        help="no keys after the query; alone: on every axis",
    )
    group.add_argument(
        "--circular",
        type=booleans,
        nargs="?",
        const=[True],
        default=[False],
        metavar="BOOL",
        help="windows wrap around; alone: on every axis",
    )


OPTIONS = {
    "kernel_size": "--kernel-size",
    "gna_stride": "--gna-stride",
    "stride": "--stride",
    "dilation": "--dilation",
    "is_causal": "--causal",
    "additional_keys": "--additional-keys",
    "additional_values": "--additional-keys",
    "key/value heads": "--kv-heads",
    "is_circular": "--circular",
    "queries": "--query-start",
    "keys": "--key-start",
    "query": "--shape",
    "attn": "--shape",
    "key": "--kv-heads",
    "value": "--value-dim",
}


@contextmanager
def blaming_options() -> Iterator[None]:
    """Puts the option before what the library says of the argument that came from it."""
    try:
        yield
    except ValueError as error:
        names = re.findall(rf"\b({'|'.join(OPTIONS)})\b", str(error))
        if isinstance(error, InputError) or not names:
            raise
        # Both counts of heads are named where they do not fit, of which this is the one with an option.
        name = "key/value heads" if "key/value heads" in names else names[0]
        raise InputError(f"{OPTIONS[name]}: {error}") from None


@contextmanager
def blaming(option: str) -> Iterator[None]:
    """Puts the option before what is said of its value."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{option}: {error}") from None


def positive(option: str, values: list[int]) -> tuple[int, ...]:
    """`values` as a shape.

    Raises:
        InputError: one that is not positive.
    """
    if min(values) < 1:
        raise InputError(f"{option} must hold positive numbers, got {','.join(map(str, values))}")
    return tuple(values)


def neighborhood(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `na1d`, `na2d`, `na3d` that `add_neighborhood` read."""
    return {
        "kernel_size": per_axis(args.kernel_size),
        "stride": per_axis(args.stride),
        "dilation": per_axis(args.dilation),
        "is_causal": per_axis(args.causal),
        "gna_stride": per_axis(args.gna_stride),
        "is_circular": per_axis(args.circular),
    }
