"""`natten-mlx explain`: which tier and kernel a call would run, and why the other tiers would not."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import DTYPES, add_neighborhood, integers, neighborhood

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
    parser.add_argument("--cost", action="store_true", help="also bytes, FLOPs and tile waste of each kernel")
    parser.add_argument("--tier", help="as if set_backend had chosen this tier (default: the current choice)")


def run(args: argparse.Namespace) -> int:
    import mlx.core as mx

    import natten_mlx

    query, layout = tuple(args.shape), LAYOUTS[args.function]
    if len(query) != len(layout):
        raise InputError(f"--shape of {args.function} is {','.join(layout)}: {len(layout)} values, got {len(query)}")
    *outer, heads, head_dim = query
    kv_heads = heads if args.kv_heads is None else args.kv_heads
    key = (*outer, kv_heads, head_dim)
    value = (*outer, kv_heads, head_dim if args.value_dim is None else args.value_dim)
    if args.op == "av":  # its first argument is attn, with one weight per slot of the window
        batch, *lengths = outer
        kernel, stride = (x * len(lengths) if len(x) == 1 else x for x in (args.kernel_size, args.stride))
        queries = [-(-length // max(s, 1)) for length, s in zip(lengths, stride, strict=False)]
        query = (batch, *queries, heads, math.prod(kernel))
    if args.tier is not None:
        natten_mlx.set_backend(args.tier)
    dtype = getattr(mx, args.dtype)
    explanation = natten_mlx.explain(query, key, value, op=args.op, dtype=dtype, **neighborhood(args))
    print(explanation if args.cost else replace(explanation, cost=""))
    return 0
