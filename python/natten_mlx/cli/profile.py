"""`natten-mlx profile`: what one call costs, what it must cost, and what would make it faster."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import natten_mlx
from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import DTYPES, add_neighborhood, blaming, blaming_options, integers, neighborhood
from natten_mlx.cli.bench import progress_bar, use_device
from natten_mlx.cli.explain import LAYOUTS, tensor_shape

HELP = "measure one call: tier, kernel, operations, bytes, bound, time per stage, and hints"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("function", choices=tuple(LAYOUTS), help="the function called")
    parser.add_argument("--shape", type=integers, required=True, metavar="SHAPE", help="of query, such as 1,56,56,4,32")
    add_neighborhood(parser)
    parser.add_argument("--split", action="store_true", help="qk, softmax and av instead of the fused call")
    parser.add_argument("--kv-heads", type=int, metavar="N", help="heads of key and value (default: those of query)")
    parser.add_argument("--value-dim", type=int, metavar="N", help="head dim of value (default: that of query)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--tier", help="measure on this tier (default: the current choice)")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: MLX's")
    parser.add_argument("--seconds", type=float, default=5.0, help="for all measurements: what doesn't fit is left out")


def run(args: argparse.Namespace) -> int:
    from natten_mlx.bench.calls import parse_tiers
    from natten_mlx.bench.cases import Case
    from natten_mlx.bench.profile import profile, stage_count

    shape = tensor_shape(args)
    if not args.seconds > 0:
        raise InputError(f"--seconds expects a positive number, got {args.seconds:g}")
    use_device(args.device)
    options = neighborhood(args)
    with blaming("--tier"):
        tier = args.tier if args.tier in (None, "auto") else parse_tiers([args.tier])[0]
    form = "split" if args.split else "fused"
    case = Case("profile", shape, dtype=args.dtype, form=form, **options)
    choice = nullcontext() if tier is None else natten_mlx.backend(tier)
    with choice, blaming_options(), progress_bar(stage_count(case)) as progress:
        found = profile(case, args.kv_heads, args.value_dim, args.seconds, progress)
    _print(found)
    return 0


def _print(found: Any) -> None:
    from natten_mlx.bench.report import number

    print(f"call    {found.case.describe()}")
    print(found.explanation)
    print(f"waste   {100 * found.waste:.0f}% of the window's slots are empty; a border shifts or cuts the windows of")
    print(f"        {100 * found.border:.0f}% of the queries")
    print(f"machine {found.fma_rate / 1e9:.0f} GFLOP/s, {found.copy_rate / 1e9:.1f} GB/s, measured in this run\n")
    print(f"{'stage':42}{'measured':>11}{'predicted':>11}  {'bound':9}{'GFLOP':>8}{'MB':>8}{'of bound':>10}")
    for stage in found.stages:
        seconds = stage.seconds
        line = f"{stage.name:42}" + ("   left out" if seconds is None else f"{number(1e6 * seconds):>8} us")
        if stage.bound is not None:
            part = "-" if seconds is None else f"{100 * stage.bound.seconds / seconds:.0f}%"
            line += f"{number(1e6 * stage.bound.seconds):>8} us  {stage.bound.bound:9}"
            line += f"{number(stage.flops / 1e9):>8}{number(stage.bytes / 1e6):>8}{part:>10}"
        print(line)
    print()
    for hint in found.hints:
        print(f"hint    {hint}")
