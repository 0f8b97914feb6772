"""What the models of natten_mlx.models spend their time on: attention, matrix products, convolutions, the rest.

DiNAT-mini at 224x224, batch 1, with random weights of the published shapes:

    python benchmarks/models.py dinat
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import natten_mlx
from natten_mlx import functional, models


def seconds(call: Callable[[], Any], runs: int) -> float:
    """Median time of a call, after one that warms up."""
    mx.eval(call())
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        mx.eval(call())
        times.append(time.perf_counter() - start)
    return median(times)


@contextmanager
def stopwatch(times: dict[str, float]) -> Iterator[None]:
    """Adds up the time inside of attention, matrix products and convolutions, each waited for on its own."""

    def timed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            mx.eval([x for x in args if isinstance(x, mx.array)])
            start = time.perf_counter()
            result = function(*args, **options)
            mx.eval(result)
            times[kind] += time.perf_counter() - start
            return result

        return call

    places = [
        (functional, "na2d", "attention"),
        (functional, "na3d", "attention"),
        (nn.Linear, "__call__", "matrix products"),
        (nn.Conv2d, "__call__", "convolutions"),
    ]
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, kind in places:
        setattr(owner, name, timed(kind, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, function in saved:
            setattr(owner, name, function)


def shares(call: Callable[[], Any], runs: int) -> None:
    """Prints the time of a call and the parts of it."""
    total = seconds(call, runs)
    parts: dict[str, float] = defaultdict(float)
    with stopwatch(parts):
        start = time.perf_counter()
        for _ in range(runs):
            mx.eval(call())
        whole = (time.perf_counter() - start) / runs
    print(f"{1e3 * total:.0f} ms; waiting after every part {1e3 * whole:.0f} ms, of which")
    parts = {kind: spent / runs for kind, spent in parts.items()}
    for kind, spent in [*parts.items(), ("the rest", whole - sum(parts.values()))]:
        print(f"  {kind:16} {1e3 * spent:8.1f} ms  {100 * spent / whole:5.1f} %")


def dinat(runs: int, size: int, dtype: mx.Dtype) -> None:
    labels = {index: str(index) for index in range(1000)}
    model = models.Dinat(models.DinatConfig(id2label=labels))
    model.set_dtype(dtype)
    model.eval()
    images = mx.random.normal((1, size, size, 3))
    for tier in ("nanobind", "pure") if mx.default_device() == mx.Device(mx.cpu) else ("fast_metal", "pure"):
        natten_mlx.set_backend(tier)
        print(f"DiNAT-mini, {size}x{size}, batch 1, {dtype}, {tier}: ", end="")
        shares(lambda: model(images), runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("dinat",))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    dinat(args.runs, args.size, getattr(mx, args.dtype))


if __name__ == "__main__":
    main()
