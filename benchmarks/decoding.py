"""What a step of decoding costs, relative to copying its cache: the attention and the cache alone, without projections.

A step reads every key and value of its window once, so the time of a copy of the cache, into memory that is there, is
what to compare with. Steps of several rows multiply more than that: beside stands the percentage of the bound, the
larger of that time and of the multiply-adds at the peak of the same run. It may be above 100: a step doesn't write what
it reads. Steps and copies are timed alternately, on the CPU; in processor time with one thread, which a busy machine
disturbs less.

    python benchmarks/decoding.py [--threads 2] [--limit 1.1] [--only bfloat16]
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

import natten_mlx
from natten_mlx import _ext
from natten_mlx._decoding import attend_next

BF16 = {"dtype": mx.bfloat16}
# Windows of text and of frames of a video: name, rank, grid, rows of a step, options.
CASES: tuple[tuple[str, int, tuple[int, ...], int, dict[str, Any]], ...] = (
    ("window 64, 16 heads of 64", 1, (), 1, {"heads": 16, "dim": 64, "kernel_size": 64}),
    ("window 256, 16 heads of 64", 1, (), 1, {"heads": 16, "dim": 64, "kernel_size": 256}),
    ("window 1024, 16 heads of 64", 1, (), 1, {"heads": 16, "dim": 64, "kernel_size": 1024}),
    ("window 4096, 16 heads of 64", 1, (), 1, {"heads": 16, "dim": 64, "kernel_size": 4096}),
    ("window 4096, 16 heads of 64, bfloat16", 1, (), 1, {"heads": 16, "dim": 64, "kernel_size": 4096, **BF16}),
    ("window 4096, 16 heads of 128 on 4", 1, (), 1, {"heads": 16, "dim": 128, "kernel_size": 4096, "num_kv_heads": 4}),
    (
        "window 4096, 16 heads of 128 on 4, bfloat16",
        1,
        (),
        1,
        {"heads": 16, "dim": 128, "kernel_size": 4096, "num_kv_heads": 4, **BF16},
    ),
    (
        "window 4096, 32 heads of 128 on 8, bfloat16",
        1,
        (),
        1,
        {"heads": 32, "dim": 128, "kernel_size": 4096, "num_kv_heads": 8, **BF16},
    ),
    ("window 4096, 32 heads of 128, bfloat16", 1, (), 1, {"heads": 32, "dim": 128, "kernel_size": 4096, **BF16}),
    ("window 512, dilation 4", 1, (), 1, {"heads": 16, "dim": 64, "kernel_size": 512, "dilation": 4}),
    ("window 4096, 4 rows", 1, (), 4, {"heads": 16, "dim": 64, "kernel_size": 4096}),
    ("window 1024, 64 rows", 1, (), 64, {"heads": 16, "dim": 64, "kernel_size": 1024}),
    ("window 4x5x5, frames of 24x32, 8 heads of 32", 3, (24, 32), 1, {"heads": 8, "dim": 32, "kernel_size": (4, 5, 5)}),
)


class Prepared:
    """A module whose projections are done: what is timed is the cache and the attention."""

    def __init__(
        self, rank: int, grid: tuple[int, ...], rows: int, heads: int, dim: int, dtype: mx.Dtype, **options: Any
    ) -> None:
        causal = (True, *[False] * (rank - 1))
        kind = getattr(natten_mlx, f"NeighborhoodAttention{rank}D")
        self.module = kind(heads * dim, heads, is_causal=causal, **options)
        self.cache = self.module.make_cache(1, dtype, grid=grid)
        kv_heads = options.get("num_kv_heads") or heads
        projected = [mx.random.normal((1, rows, *grid, n, dim)).astype(dtype) for n in (heads, kv_heads, kv_heads)]
        self.module.project = lambda x, offset=None: projected
        self.x = mx.zeros((1, rows, *grid, heads * dim), dtype)
        window = math.prod(options["kernel_size"]) if rank > 1 else options["kernel_size"]
        self.flops = 4.0 * rows * math.prod(grid) * heads * window * dim
        self.read = min(rows / options.get("dilation", 1), 1.0)  # part of the cache
        self.cache["position"] = mx.array(2**20, mx.int64)  # everything is written
        mx.eval(projected, self.x, self.cache)

    def compiled(self) -> Callable[[], mx.array]:
        step = mx.compile(
            lambda: attend_next(self.module, self.x, self.cache), inputs=[self.cache], outputs=[self.cache]
        )
        return lambda: mx.eval(step(), self.cache)

    def eager(self) -> Callable[[], mx.array]:
        return lambda: mx.eval(attend_next(self.module, self.x, self.cache), self.cache)

    def copy(self) -> Callable[[], None]:
        source = np.ones(sum(self.cache[kept].nbytes for kept in ("keys", "values")), np.uint8)
        target = np.ones_like(source)
        return lambda: np.copyto(target, source)


def _evaluation_alone() -> Callable[[], None]:
    """As many results and as much state as a step has, with nothing to compute."""
    state = [mx.zeros(()) for _ in range(3)]

    def counted() -> mx.array:
        state[:] = [x + 1 for x in state]
        return state[0] + 1

    step = mx.compile(counted, inputs=[state], outputs=[state])

    def evaluated() -> None:
        mx.eval(step(), state)

    return evaluated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, help="of steps of one row and caches above 4 MB; exit 1 above")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name has this")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    _ext.set_cpu_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter

    def seconds(call: Callable[[], Any]) -> float:
        start = clock()
        call()
        return clock() - start

    small = sorted(map(seconds, [_evaluation_alone()] * 300))
    print(f"MLX's evaluation of four small results, which every step pays: {1e6 * small[150]:.0f} us")
    print(f"{'cache':46}{'MB':>8}{'copy':>10}{'compiled':>12}{'eager':>10}{'of bound':>10}")
    worst = 0.0
    for name, rank, grid, rows, options in CASES:
        if args.only not in name:
            continue
        prepared = Prepared(rank, grid, rows, **{"dtype": mx.float32, **options})
        calls = [prepared.copy(), prepared.compiled(), prepared.eager()]
        rate = statistics.median(_ext.fma_rate(1 << 16) for _ in range(9))  # not among the rounds: it cools the caches
        for call in calls:
            call()
        rounds = [list(map(seconds, calls)) for _ in range(args.rounds)]
        copy = statistics.median(r[0] for r in rounds)
        ratios = [statistics.median(r[i] / r[0] for r in rounds) for i in (1, 2)]
        percent = statistics.median(100 * max(prepared.read * r[0], prepared.flops / rate) / r[1] for r in rounds)
        megabytes = sum(prepared.cache[kept].nbytes for kept in ("keys", "values")) / 1e6
        line = f"{name:46}{megabytes:8.1f}{1e6 * copy:7.0f} us{ratios[0]:11.2f}x{ratios[1]:9.2f}x{percent:9.0f}%"
        print(line, flush=True)
        if rank == 1 and rows == 1 and megabytes > 4:
            worst = max(worst, ratios[0])
    return 1 if args.limit and worst > args.limit else 0


if __name__ == "__main__":
    sys.exit(main())
