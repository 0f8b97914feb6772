"""What one call costs before any computation: validation, choice of the tier, making of graph nodes.

Arrays are lazy, so a call that is never evaluated is exactly that. The pure tier makes dozens of nodes, a compiled
tier one, so validation and dispatch alone are timed by `explain`, which does both and makes no node.

    python benchmarks/dispatch_overhead.py [--limit 8]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import mlx.core as mx

import natten_mlx


def microseconds(call: Callable[[], object], repeats: int = 30, inner: int = 100) -> float:
    """Median time of one call."""
    samples = []
    for _ in range(repeats + 1):
        start = time.perf_counter_ns()
        for _ in range(inner):
            call()
        samples.append((time.perf_counter_ns() - start) / inner / 1000)
    return statistics.median(samples[1:])  # the first run warms up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=8, help="microseconds of validation and dispatch; exit 1 above")
    args = parser.parse_args()
    query = mx.ones((1, 8, 8, 2, 4))
    mx.eval(query)

    dense = query.reshape(1, 2, 64, 4)
    add = microseconds(lambda: query + query)
    sdpa = microseconds(lambda: mx.fast.scaled_dot_product_attention(dense, dense, dense, scale=0.5))
    print(f"{'mx.add':44}{add:8.1f} us")
    print(f"{'mx.fast.scaled_dot_product_attention':44}{sdpa:8.1f} us")
    dispatch = microseconds(lambda: natten_mlx.explain(query, query, query, 3))
    print(f"{'validation and dispatch (explain)':44}{dispatch:8.1f} us   limit {args.limit:g}")
    for tier, row in natten_mlx.get_support_matrix().items():
        if row["available"]:
            natten_mlx.set_backend(tier)
            whole = microseconds(lambda: natten_mlx.na2d(query, query, query, 3))
            print(f"{f'na2d, whole call, tier {tier}':44}{whole:8.1f} us")
    return 0 if dispatch < args.limit else 1


if __name__ == "__main__":
    sys.exit(main())
