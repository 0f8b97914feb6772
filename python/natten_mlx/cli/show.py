"""`natten-mlx show`: draws the window of a query or of a span, as text and as a picture; or a page to explore all."""

from __future__ import annotations

import argparse
import math
import shutil
import textwrap
from pathlib import Path
from typing import Any

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import add_neighborhood, integers, neighborhood, positive
from natten_mlx.cli.drawing import Places, draw_text, save_picture, span_keys, window_keys

MOST_TOKENS = 100_000
HELP = "draw the window of one query or of a span, as text or as a picture, or write a page that shows all of them"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", type=integers, metavar="SHAPE", help="tokens per axis: 12 or 9,16")
    parser.add_argument("-q", "--query", type=integers, metavar="INDEX", help="position of the query (default: middle)")
    parser.add_argument(
        "--rows", type=integers, metavar="N", help="a span of so many positions per axis instead of one query"
    )
    parser.add_argument(
        "--query-start", type=integers, metavar="INDEX", help="where the span begins (default: in the middle)"
    )
    add_neighborhood(parser, required=False)
    parser.add_argument("--png", metavar="FILE", help="also write a picture (needs the extra `plots`)")
    parser.add_argument(
        "--html", metavar="FILE", help="write a page for a browser instead: every window, to explore; no network needed"
    )


def run(args: argparse.Namespace) -> int:
    from natten_mlx.bench.report import count

    if args.html == "":
        raise InputError("--html needs the name of a file")
    if args.html and args.png is not None:
        raise InputError("--png and --html: a picture or a page, not both")
    if args.html and _chooses_nothing(args):
        return _write_page(args.html)
    missing = [name for name in ("shape", "kernel_size") if getattr(args, name) is None]
    if missing:
        raise InputError(f"--{missing[0].replace('_', '-')} is required")
    shape = positive("--shape", args.shape)
    if not 1 <= len(shape) <= 3:
        raise InputError(f"--shape needs one to three axes, got {len(shape)}")
    if math.prod(shape) > MOST_TOKENS and not args.html:
        raise InputError(f"--shape: {math.prod(shape)} tokens are too many to draw, at most {MOST_TOKENS} are")
    if args.png == "":
        raise InputError("--png needs the name of a file")
    if args.html:
        return _write_page(args.html, _lists(args, shape))
    if args.rows is None:
        if args.query_start is not None:
            raise InputError("--query-start needs --rows, how many positions the span has")
        queries, keys, lines = one_query(args, shape)
    else:
        queries, keys, lines = span(args, shape)
    width = max(shutil.get_terminal_size().columns, 20)
    attended = f"in all {math.prod(map(len, keys))} of {count(math.prod(shape), 'token')}"
    for line in [*lines, f"{attended} (Q query, # attended, . not)"]:
        print(textwrap.fill(line, width, subsequent_indent="        "))
    print()
    print(draw_text(queries, shape, keys, width))
    if args.png is not None:
        save_picture(args.png, queries, shape, keys)
        print(f"\nwrote {args.png}")
    return 0


def _chooses_nothing(args: argparse.Namespace) -> bool:
    """Then the page begins with an example of its own."""
    chosen = (args.shape, args.kernel_size, args.query, args.rows, args.query_start)
    numbers, flags = (args.dilation, args.stride, args.gna_stride), (args.causal, args.circular)
    return chosen == (None,) * 5 and numbers == ([1],) * 3 and flags == ([False],) * 2


def one_query(args: argparse.Namespace, shape: tuple[int, ...]) -> tuple[Places, Places, list[str]]:
    """Positions of the query and of its keys on each axis, and what to say of them."""
    from natten_mlx.bench.report import count

    query, keys = window_keys(one_per_axis("--query", args.query, shape), shape, **neighborhood(args))
    lines = [
        f"axis {axis}: query {query[axis]} attends {count(len(places), 'key')}: {' '.join(map(str, places))}"
        for axis, places in enumerate(keys)
    ]
    return [[index] for index in query], keys, lines


def span(args: argparse.Namespace, shape: tuple[int, ...]) -> tuple[Places, Places, list[str]]:
    """The same of the computed queries of a span."""
    if args.query is not None:
        raise InputError("--query and --rows: one query or a span of them, not both")
    rows = one_per_axis("--rows", args.rows, shape)
    start = one_per_axis("--query-start", args.query_start, shape)
    assert rows is not None
    for axis, (count, length) in enumerate(zip(rows, shape, strict=True)):
        if not 1 <= count <= length:
            raise InputError(f"--rows must be 1 to {length} on axis {axis} of --shape, got {count}")
    queries, keys, needed = span_keys(start, rows, shape, **neighborhood(args))
    lines = [
        f"axis {axis}: queries {of[0]}..{of[-1]} need the keys {first}..{first + held - 1}: {held} rows from there on"
        for axis, (of, (first, held)) in enumerate(zip(queries, needed, strict=True))
    ]
    return queries, keys, lines


def one_per_axis(option: str, values: list[int] | None, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if values is not None and len(values) != len(shape):
        raise InputError(f"{option} needs one value per axis of --shape, got {len(values)} and {len(shape)}")
    return None if values is None else tuple(values)


def _lists(args: argparse.Namespace, shape: tuple[int, ...]) -> dict[str, tuple[Any, ...]]:
    """A value for each axis, of shape and of every option, for the page."""
    queries, _, _ = (one_query if args.rows is None else span)(args, shape)  # with the checks
    options = neighborhood(args)
    lists = {name: value if isinstance(value, tuple) else (value,) * len(shape) for name, value in options.items()}
    if args.rows is not None:
        first = args.query_start or [
            min(places[0], length - rows) for places, length, rows in zip(queries, shape, args.rows, strict=True)
        ]
        lists |= {"query_start": tuple(first), "rows": tuple(args.rows)}
    return {"shape": shape, **lists}


def _write_page(path: str, *shown: dict[str, tuple[Any, ...]]) -> int:
    import natten_mlx
    from natten_mlx import explorer

    Path(path).write_text(explorer.page(natten_mlx.__version__, *shown), encoding="utf-8")
    print(f"wrote {path}: open it in a browser")
    return 0
