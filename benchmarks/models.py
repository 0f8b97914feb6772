"""What the models of natten_mlx.models spend their time on: attention, matrix products, convolutions, the rest.

DiNAT-mini at 224x224, batch 1, with random weights of the published shapes:

    python benchmarks/models.py dinat

LTX-2.5's video decoder, its channels divided by --narrow, one block per stage with --shallow; --tile FRAMES decodes in
tiles of that many frames and 2/3 of them apart:

    python benchmarks/models.py decoder --frames 17 --size 224
    python benchmarks/models.py decoder --frames 65 --size 224 --narrow 4 --shallow --tile 24

Its attention at the published heads, head dim and windows, on grids that are smaller in space, in turn with `na3d` on
arrays of their own of the same shapes:

    python benchmarks/models.py attention --dtype bfloat16
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import natten_mlx
from natten_mlx import functional, models
from natten_mlx.models.ltx_network import Block


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

    def decode() -> tuple[float, float]:
        start, of_processor = time.perf_counter(), time.process_time()
        for piece in model.frames(latents, key=mx.random.key(0), tiling=tiling):
            mx.eval(piece)
        return time.perf_counter() - start, time.process_time() - of_processor

    mx.reset_peak_memory()
    weights = mx.get_active_memory()
    spent, of_processor = decode()
    peak = mx.get_peak_memory() - weights
    print(f"{frames} frames of {width}x{height}, {size:.2f} megapixel-frames, {args.dtype}, tiles: {tiling}")
    mebi = peak / 2**20
    print(f"weights {weights / 2**20:.0f} MiB, peak beside them {mebi:.0f} MiB, {mebi / size:.0f} per megapixel-frame")
    print(f"per megapixel-frame {spent / size:.1f} s, {of_processor / size:.1f} s of the processor's cores", flush=True)
    print("waiting after every part, of the time:")
    parts: dict[str, float] = defaultdict(float)
    with stopwatch(parts):
        whole, _ = decode()
    print_shares(parts, whole)


# Tokens of the stages at 121 frames; at 768x512 pixels they are up to 128x192 in space.
GRIDS = ((18, 8, 12), (18, 12, 16), (35, 12, 16), (69, 12, 16), (22, 24, 24))


def in_turn(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and seconds of the processor's cores, of each call, one after the other, after one that warms up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in calls.items():
            start, of_processor = time.perf_counter(), time.process_time()
            mx.eval(call())
            if run:
                times[name].append((time.perf_counter() - start, time.process_time() - of_processor))
    return times


def attention_of(module: Any, grid: Sequence[int], dtype: mx.Dtype, runs: int) -> str:
    x = mx.random.normal((1, *grid, module.embed_dim)).astype(dtype)
    query, key, value = module.project(x)
    own = [mx.random.normal(a.shape).astype(dtype) for a in (query, key, value)]
    mx.eval(query, key, value, own)
    calls = {
        "na3d alone": lambda: functional.na3d(*own, module.kernel_size),
        "attention of the module": lambda: module.attend(query, key, value),
        "norms and rotation": lambda: module.rope(module.q_norm(own[0]), module.k_norm(own[1])),
    }
    times = in_turn(calls, runs)
    module_times, alone = times["attention of the module"], times["na3d alone"]
    ratio = median(a / b for (a, _), (b, _) in zip(module_times, alone, strict=True))
    least = min(a for _, a in module_times) / min(a for _, a in alone)  # what other programs disturb least
    parts = [f"{name} {1e3 * median(a for a, _ in spent):.1f} ms" for name, spent in times.items()]
    return f"{', '.join(parts)}; module / alone {ratio:.3f}, least time of the cores {least:.3f}"


def attention(runs: int, dtype: mx.Dtype) -> None:
    config = models.LtxDecoderConfig()
    kernels = (*config.decoder_stage_kernels, config.decoder_stage5_kernel)
    for stage, (grid, dim, kernel) in enumerate(zip(GRIDS, config.decoder_stage_channels, kernels, strict=True), 1):
        block = Block(dim, config.decoder_head_dim, kernel)
        block.set_dtype(dtype)
        heads, window = dim // config.decoder_head_dim, "x".join(map(str, kernel))
        print(f"stage {stage}, {'x'.join(map(str, grid))} x {heads} heads, windows of {window}, {dtype}: ", end="")
        print(attention_of(block.attn, grid, dtype, runs), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("dinat", "decoder", "attention"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--narrow", type=int, default=1)
    parser.add_argument("--shallow", action="store_true")
    parser.add_argument("--tile", type=int, default=0)
    args = parser.parse_args()
    if args.model == "decoder":
        decoder(args)
    elif args.model == "attention":
        attention(args.runs, getattr(mx, args.dtype))
    else:
        dinat(args.runs, args.size, getattr(mx, args.dtype))


if __name__ == "__main__":
    main()
