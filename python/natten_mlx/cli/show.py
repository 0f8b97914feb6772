"""`natten-mlx show`: draws the window of one query, as text and as a picture."""

from __future__ import annotations

import argparse
import math
import shutil
import textwrap

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import add_neighborhood, integers, neighborhood, positive
from natten_mlx.cli.drawing import draw_text, save_picture, window_keys

HELP = "draw the window of one query, as text or as a picture"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", type=integers, required=True, metavar="SHAPE", help="tokens per axis: 12 or 9,16")
    parser.add_argument("-q", "--query", type=integers, metavar="INDEX", help="position of the query (default: middle)")
    add_neighborhood(parser)
    parser.add_argument("--png", metavar="FILE", help="also write a picture (needs the extra `plots`)")


def run(args: argparse.Namespace) -> int:
    shape = positive("--shape", args.shape)
    if not 1 <= len(shape) <= 3:
        raise InputError(f"--shape needs one to three axes, got {len(shape)}")
    query = tuple(args.query) if args.query else None
    if query is not None and len(query) != len(shape):
        raise InputError(f"--query needs {len(shape)} values, one per axis of --shape, got {len(query)}")
    query, keys = window_keys(query, shape, **neighborhood(args))
    width = max(shutil.get_terminal_size().columns, 20)
    lines = [
        f"axis {axis}: query {query[axis]} attends {len(places)} keys: {' '.join(map(str, places))}"
        for axis, places in enumerate(keys)
    ]
    lines.append(f"in all {math.prod(map(len, keys))} of {math.prod(shape)} tokens (Q query, # attended, . not)")
    for line in lines:
        print(textwrap.fill(line, width, subsequent_indent="        "))
    print()
    print(draw_text(query, shape, keys, width))
    if args.png:
        save_picture(args.png, query, shape, keys)
        print(f"\nwrote {args.png}")
    return 0
