"""What the models of natten_mlx.models spend their time on: attention, matrix products, convolutions, the rest.

DiNAT-mini at 224x224, batch 1, with random weights of the published shapes:

    python benchmarks/models.py dinat

LTX-2.5's video decoder, its channels divided by --narrow, one block per stage with --shallow; --tile FRAMES decodes in
tiles of that many frames and 2/3 of them apart:

    python benchmarks/models.py decoder --frames 17 --size 224
    python benchmarks/models.py decoder --frames 65 --size 224 --narrow 4 --shallow --tile 24

--alone: also each attention of the decoder beside the same call on other arrays of its shapes.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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


@contextmanager
def beside_alone(times: dict[str, float], runs: int) -> Iterator[None]:
    """Repeats every attention, in turn with the operation called alone on contiguous arrays of the same shapes and
    dtypes, and adds up the least time of each: of the processor, which other programs disturb least."""
    attention = functional.na3d

    def call(*args: Any, **options: Any) -> Any:
        alone = [mx.random.normal(x.shape).astype(x.dtype) if isinstance(x, mx.array) else x for x in args]
        mx.eval([x for x in (*args, *alone) if isinstance(x, mx.array)])
        least = {"in the model": float("inf"), "alone": float("inf")}
        for run in range(2 * runs):
            place, given = (("in the model", args), ("alone", alone))[run % 2]
            start = time.process_time()
            result = attention(*given, **options)
            mx.eval(result)
            least[place] = min(least[place], time.process_time() - start)
            if run == 0:
                kept = result
        for place, spent in least.items():
            times[place] += spent
        return kept

    functional.na3d = call
    try:
        yield
    finally:
        functional.na3d = attention


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
    print_shares({kind: spent / runs for kind, spent in parts.items()}, whole)


def print_shares(parts: dict[str, float], whole: float) -> None:
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


def decoder(args: argparse.Namespace) -> None:
    published = models.LtxDecoderConfig()
    config = replace(
        published,
        decoder_stage_channels=tuple(count // args.narrow for count in published.decoder_stage_channels),
        decoder_stage_depths=(1,) * 5 if args.shallow else published.decoder_stage_depths,
    )
    model = models.LtxDecoder(config)
    model.set_dtype(getattr(mx, args.dtype))
    model.eval()
    mx.eval(model.parameters())
    cells = args.size // config.spatial_compression_ratio
    latents = mx.random.normal(
        ((args.frames - 1) // config.temporal_compression_ratio + 1, cells, cells, config.latent_channels)
    )[None]
    mx.eval(latents)
    frames, height, width = model.video_shape(latents)[1:4]
    size = frames * height * width / 1e6
    tiling = models.Tiling(frames=args.tile, frames_stride=2 * args.tile // 3) if args.tile else None

    def decode() -> float:
        start = time.perf_counter()
        for piece in model.frames(latents, key=mx.random.key(0), tiling=tiling):
            mx.eval(piece)
        return time.perf_counter() - start

    mx.reset_peak_memory()
    weights = mx.get_active_memory()
    spent = decode()
    peak = mx.get_peak_memory() - weights
    print(f"{frames} frames of {width}x{height}, {size:.2f} megapixel-frames, {args.dtype}, tiles: {tiling}")
    mebi = peak / 2**20
    print(f"weights {weights / 2**20:.0f} MiB, peak beside them {mebi:.0f} MiB, {mebi / size:.0f} per megapixel-frame")
    print(f"{spent:.1f} s, {spent / size:.1f} s per megapixel-frame; waiting after every part, of the time:")
    parts: dict[str, float] = defaultdict(float)
    with stopwatch(parts):
        whole = decode()
    print_shares(parts, whole)
    if args.alone:
        with beside_alone(times := defaultdict(float), args.runs):
            decode()
        inside, alone = times["in the model"], times["alone"]
        print(f"CPU time of attention: {inside:.3f} s, the same calls alone {alone:.3f} s, ratio {inside / alone:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("dinat", "decoder"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--narrow", type=int, default=1)
    parser.add_argument("--shallow", action="store_true")
    parser.add_argument("--tile", type=int, default=0)
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()
    if args.model == "decoder":
        decoder(args)
        return
    dinat(args.runs, args.size, getattr(mx, args.dtype))


if __name__ == "__main__":
    main()
