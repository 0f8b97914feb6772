"""What half of the rows, and axes that wrap, cost relative to the plain call on the whole axes.

The middle half of the rows of the first axis should take at most 0.55 of the whole, its halo included; circular axes at
most 1.1 from 32 tokens per axis on. Calls are timed in turns, in an order drawn anew for each (what ran before leaves
the caches to a call), on the CPU, forward and with all gradients; in processor time with one thread, which a busy
machine disturbs less. Least times and medians.

    python benchmarks/spans.py [--threads 2] [--only 2-D]
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

import natten_mlx
from natten_mlx import _ext

# Shape, kernel size, heads, channels.
CASES: tuple[tuple[tuple[int, ...], int, int, int], ...] = (
    ((32,), 13, 4, 32),
    ((32,), 31, 4, 32),
    ((48,), 31, 4, 32),
    ((64,), 31, 4, 32),
    ((64,), 63, 4, 64),
    ((128,), 31, 4, 32),
    ((512,), 7, 4, 32),
    ((256,), 127, 8, 64),
    ((4096,), 31, 4, 32),
    ((32768,), 7, 4, 64),
    ((32, 32), 7, 4, 32),
    ((56, 56), 7, 4, 32),
    ((64, 64), 13, 4, 64),
    ((128, 128), 7, 4, 32),
    ((128, 128), 13, 4, 32),
    ((32, 32, 32), 5, 2, 32),
)


def calls_of(shape: tuple[int, ...], kernel: int, heads: int, dim: int) -> list[Callable[[], None]]:
    """Plain, half and circular, forward; the same with gradients."""
    rank = len(shape)
    function = getattr(natten_mlx, f"na{rank}d")
    start, rows = (shape[0] // 4, *[0] * (rank - 1)), (shape[0] // 2, *shape[1:])
    key_start, key_rows = natten_mlx.key_span(kernel, start, rows, shape)
    whole = [mx.random.normal((1, *shape, heads, dim)) for _ in range(3)]
    keys = (key_start[0], key_rows[0])
    spans = ((start[0], rows[0]), keys, keys)
    mx.eval(whole)
    half = [x[:, first : first + count] for x, (first, count) in zip(whole, spans, strict=True)]
    mx.eval(half)  # views, so that no call finds its inputs in the caches because another one has read them
    span = {"query_start": start, "key_start": key_start, "shape": shape}
    kinds: list[tuple[list[mx.array], dict[str, Any]]] = [(whole, {}), (half, span), (whole, {"is_circular": True})]

    def forward(inputs: list[mx.array], options: dict[str, Any]) -> Callable[[], None]:
        return lambda: mx.eval(function(*inputs, kernel, **options))

    def training(inputs: list[mx.array], options: dict[str, Any]) -> Callable[[], None]:
        gradient = mx.grad(lambda *x: function(*x, kernel, **options).sum(), argnums=(0, 1, 2))
        return lambda: mx.eval(gradient(*inputs))

    return [make(*kind) for make in (forward, training) for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a case, about")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name has this")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    _ext.set_cpu_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter

    def seconds(call: Callable[[], None]) -> float:
        start = clock()
        call()
        return clock() - start

    columns = ("half", "with gradients", "circular", "with gradients")
    print(f"{'least / median, of the plain call':40}" + "".join(f"{column:>16}" for column in columns))
    for shape, kernel, heads, dim in CASES:
        name = f"{len(shape)}-D {'x'.join(map(str, shape))} K {kernel}, {heads} heads of {dim}"
        if args.only not in name:
            continue
        calls = calls_of(shape, kernel, heads, dim)
        first = sum(seconds(call) for _ in range(2) for call in calls) / 2
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(min(max(int(args.seconds / first), 5), 400)):
            for i in random.sample(range(len(calls)), len(calls)):
                times[i].append(seconds(calls[i]))
        least = [min(of_call) for of_call in times]
        median = [statistics.median(of_call) for of_call in times]
        print(f"{name:40}", end="")
        for call, plain in ((1, 0), (4, 3), (2, 0), (5, 3)):
            ratios = f"{least[call] / least[plain]:.2f} / {median[call] / median[plain]:.2f}"
            print(f"{ratios:>16}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
