"""`natten-mlx explain`: which tier and kernel a call would run, and why the other tiers would not."""

from __future__ import annotations

import argparse
import math
from typing import Any

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import (
    DTYPES,
    add_neighborhood,
    blaming,
    blaming_options,
    integers,
    neighborhood,
    per_axis,
)

HELP = "show which tier would run a given call, and why not the others"

LAYOUTS = {
    "na1d": ("batch", "length", "heads", "head_dim"),
    "na2d": ("batch", "height", "width", "heads", "head_dim"),
    "na3d": ("batch", "depth", "height", "width", "heads", "head_dim"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("function", choices=tuple(LAYOUTS), help="the function called")
    parser.add_argument("--shape", type=integers, required=True, metavar="SHAPE", help="of query, such as 1,56,56,4,32")
    add_neighborhood(parser)
    parser.add_argument("--op", choices=("attention", "qk", "av"), default="attention", help="fused, or split form")
    parser.add_argument("--kv-heads", type=int, metavar="N", help="heads of key and value (default: those of query)")
    parser.add_argument("--value-dim", type=int, metavar="N", help="head dim of value (default: that of query)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rpb", action="store_true", help="with a relative position bias")
    parser.add_argument("--lengths", action="store_true", help="with samples of different lengths")
    parser.add_argument(
        "--additional-keys", type=int, default=0, metavar="N", help="with N tokens that all queries see"
    )
    group = parser.add_argument_group("span: a part of the queries and keys of whole axes")
    group.add_argument("--whole", type=integers, metavar="SHAPE", help="lengths of the whole axes (--shape is query's)")
    group.add_argument("--query-start", type=integers, default=[0], metavar="INDEX", help="position of query's row 0")
    group.add_argument("--key-start", type=integers, default=[0], metavar="INDEX", help="position of key's row 0")
    group.add_argument("--key-rows", type=integers, metavar="N", help="rows of key (default: those of query)")
    parser.add_argument(
        "--cost",
        action="store_true",
        help="also bytes, FLOPs and tile waste of each kernel, on a GPU that need not be here",
    )
    parser.add_argument("--tier", help="as if set_backend had chosen this tier (default: the current choice)")


def run(args: argparse.Namespace) -> int:
    import mlx.core as mx

    import natten_mlx

    query = tensor_shape(args)
    *outer, heads, head_dim = query
    kv_heads = heads if args.kv_heads is None else args.kv_heads
    rank = len(outer) - 1
    rows = outer[1:] if args.key_rows is None else spread(args.key_rows, rank)
    if args.key_rows and (len(rows) != rank or min(rows) < 1):
        raise InputError(f"--key-rows must hold positive numbers, one or {rank}, got {','.join(map(str, rows))}")
    key = (outer[0], *rows, kv_heads, head_dim)
    value = (outer[0], *rows, kv_heads, head_dim if args.value_dim is None else args.value_dim)
    extra: dict[str, Any] = {}
    if args.rpb and args.op == "av":
        raise InputError("--rpb: av takes none, it is part of qk's logits")
    if args.op == "qk" and args.value_dim is not None:
        raise InputError("--value-dim: qk takes no value")
    if args.rpb:
        extra["rpb"] = (heads, *(2 * k - 1 for k in spread(args.kernel_size, len(outer) - 1)))
    if args.lengths:
        extra["lengths"] = (outer[0], len(outer) - 1)[: 1 if len(outer) == 2 else 2]
    if args.additional_keys < 0 or (args.additional_keys and args.op != "attention"):
        raise InputError("--additional-keys is a number of tokens, of the fused call only")
    if args.additional_keys:
        extra["additional_keys"] = (outer[0], args.additional_keys, kv_heads, head_dim)
        extra["additional_values"] = (outer[0], args.additional_keys, kv_heads, value[-1])
    if args.op == "av":  # its first argument is attn, with one weight per slot of the window
        batch, *lengths = outer
        kernel, stride = (spread(x, rank) for x in (args.kernel_size, args.stride))
        starts = spread(args.query_start, rank)
        queries = [
            -(-(start + length) // max(s, 1)) + -start // max(s, 1)
            for length, s, start in zip(lengths, stride, starts, strict=False)
        ]
        query = (batch, *queries, heads, min(math.prod(kernel), 2**31 - 1))  # more is an error of kernel_size
    if args.tier is not None:
        with blaming("--tier"):
            natten_mlx.set_backend(args.tier)
    extra["query_start"], extra["key_start"] = per_axis(args.query_start), per_axis(args.key_start)
    extra["shape"] = per_axis(args.whole) if args.whole else None
    options = {"op": args.op, "dtype": getattr(mx, args.dtype), "cost": args.cost, **extra, **neighborhood(args)}
    with blaming_options():
        print(natten_mlx.explain(query, key, value, **options))
    return 0


def tensor_shape(args: argparse.Namespace) -> tuple[int, ...]:
    """The option `--shape` of a function's query."""
    layout, shape = LAYOUTS[args.function], tuple(args.shape)
    if len(shape) != len(layout):
        raise InputError(f"--shape of {args.function} is {','.join(layout)}: {len(layout)} values, got {len(shape)}")
    return shape


def spread(values: list[int], rank: int) -> list[int]:
    """One value for all axes, or the values as they are."""
    return values * rank if len(values) == 1 else values
