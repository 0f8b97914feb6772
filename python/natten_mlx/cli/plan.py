"""`natten-mlx plan`: what a call costs when one of its axes is spread over many machines."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import (
    DTYPES,
    add_neighborhood,
    blaming_options,
    integers,
    neighborhood,
)

HELP = "bytes, time, efficiency and memory of a call that is spread over many machines"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", type=integers, required=True, metavar="SHAPE", help="of the whole query, such as 1,721,1440,8,64"
    )
    add_neighborhood(parser)
    parser.add_argument("--ranks", type=integers, required=True, metavar="N", help="how many; several give a table")
    parser.add_argument("--axis", type=int, metavar="AXIS", help="spatial axis to cut (default: the most efficient)")
    parser.add_argument("--kv-heads", type=int, metavar="N", help="heads of key and value (default: those of query)")
    parser.add_argument("--value-dim", type=int, metavar="N", help="head dim of value (default: that of query)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--forward", action="store_true", help="without a backward")
    parser.add_argument(
        "--bandwidth", type=float, default=400.0, metavar="GB/S", help="of a link, one way (default: 400)"
    )
    parser.add_argument("--latency", type=float, default=5.0, metavar="US", help="per message (default: 5)")
    parser.add_argument(
        "--flops", type=float, default=80.0, metavar="TFLOP/S", help="useful, of one device (default: 80)"
    )
    parser.add_argument("--no-overlap", action="store_true", help="nothing is computed while messages travel")
    parser.add_argument("--gathers", action="store_true", help="the group can only gather, as NCCL in MLX")
    parser.add_argument("--json", action="store_true", help="every rank's numbers, for programs")


def run(args: argparse.Namespace) -> int:
    import mlx.core as mx

    from natten_mlx.distributed.plan import Plan, plan

    if min(args.ranks) < 1:
        raise InputError(f"--ranks must be positive, got {','.join(map(str, args.ranks))}")

    def planned(ranks: int) -> Plan:
        with blaming_options():
            return plan(
                args.shape,
                ranks=ranks,
                axis=args.axis,
                kv_heads=args.kv_heads,
                value_dim=args.value_dim,
                dtype=getattr(mx, args.dtype),
                training=not args.forward,
                bandwidth=args.bandwidth * 1e9,
                latency=args.latency * 1e-6,
                flops=args.flops * 1e12,
                overlap=not args.no_overlap,
                gathers=args.gathers,
                **neighborhood(args),
            )

    if args.json:
        plans = [planned(ranks) for ranks in args.ranks]
        print(json.dumps([{**asdict(p), "efficiency": p.efficiency, "bytes_sent": p.bytes_sent} for p in plans]))
    elif len(args.ranks) == 1:
        print(planned(args.ranks[0]))
    else:
        print(f"{'ranks':>6} {'axis':>4} {'hops':>4} {'MB sent':>10} {'ms':>9} {'efficiency':>10} {'MB held':>9}")
        for ranks in args.ranks:
            try:
                p = planned(ranks)
            except ValueError as error:
                if "ranks must share" not in str(error):
                    raise
                print(f"{ranks:>6} more ranks than rows")
                continue
            memory = max(rank.memory_bytes for rank in p.ranks)
            print(
                f"{ranks:>6} {p.axis:>4} {p.hops:>4} {p.bytes_sent / 1e6:>10.2f} {p.step_seconds * 1e3:>9.3f} "
                f"{p.efficiency:>10.3f} {memory / 1e6:>9.1f}"
            )
    return 0
