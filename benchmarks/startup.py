"""How long a process waits for kernels: the first call of one, and the first training step of a network of five.

    python benchmarks/startup.py [--json startup.json]

On an NVIDIA GPU. Each figure is a process of its own. "MLX compiles" is with NATTEN_NVRTC=0; "cold" is with an empty
cache folder, "warm" with what the cold one left there; NVRTC's own cache, by text, is off. The clock runs from before
the call to its result, after MLX and the GPU have done a small product; a later call of the same is there for
comparison.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import mlx.core as mx

CALLS: dict[str, dict[str, Any]] = {  # those of the training step: five plans
    "2-D 56x56 K7 D32 float16": {"shape": (8, 56, 56, 4, 32), "kernel_size": 7, "dtype": "float16"},
    "2-D 28x28 K13 D64 float16": {"shape": (8, 28, 28, 8, 64), "kernel_size": 13, "dtype": "float16"},
    "1-D 2048 K127 D64 bfloat16": {"shape": (2, 2048, 8, 64), "kernel_size": 127, "dtype": "bfloat16"},
    "3-D 16x32x32 K3x5x5 D64 bfloat16": {
        "shape": (1, 16, 32, 32, 8, 64),
        "kernel_size": (3, 5, 5),
        "dtype": "bfloat16",
    },
    "2-D 28x28 K7 D32 float32": {"shape": (8, 28, 28, 4, 32), "kernel_size": 7, "dtype": "float32"},
}
LIMITS = {"call cold": 1.5, "call warm": 0.05, "step cold": 8.0, "step warm": 1.0}  # seconds


def function_and_input(name: str) -> tuple[Any, mx.array]:
    import natten_mlx

    call = CALLS[name]
    function = {4: natten_mlx.na1d, 5: natten_mlx.na2d, 6: natten_mlx.na3d}[len(call["shape"])]
    x = mx.random.normal(call["shape"]).astype(getattr(mx, call["dtype"]))
    return lambda a: function(a, a, a, kernel_size=call["kernel_size"]), x


def seconds(run: Any) -> float:
    start = time.perf_counter()
    mx.eval(run())
    mx.synchronize()
    return time.perf_counter() - start


def measure(what: str) -> dict[str, float]:
    """In a fresh process: the first and the second time of a call, or of a step over all calls."""
    pairs = [function_and_input(name) for name in ([what] if what in CALLS else CALLS)]
    matrix = mx.random.normal((256, 256))
    mx.eval(matrix @ matrix, [x for _, x in pairs])
    mx.synchronize()
    if what in CALLS:
        function, x = pairs[0]
        return {"first": seconds(lambda: function(x)), "second": seconds(lambda: function(x))}
    loss = mx.grad(lambda arrays: sum(f(x).sum() for (f, _), x in zip(pairs, arrays, strict=True)))
    arrays = [x for _, x in pairs]
    return {"first": seconds(lambda: loss(arrays)), "second": seconds(lambda: loss(arrays))}


def in_process(what: str, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, os.path.abspath(__file__), "--measure", what]
    environment = os.environ | environment | {"CUDA_CACHE_DISABLE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--no-mlx", action="store_true", help="leave out what MLX compiles")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return 0
    if not mx.cuda.is_available():
        print("startup.py: needs an NVIDIA GPU", file=sys.stderr)
        return 2
    results: dict[str, Any] = {}
    worst = dict.fromkeys(LIMITS, 0.0)
    print(f"{'first time, seconds':<36} {'cold':>7} {'warm':>7} {'MLX':>7} {'second':>7}", flush=True)
    for what in [*CALLS, "training step of all five"]:
        with tempfile.TemporaryDirectory() as folder:
            ours = {"NATTEN_NVRTC": "1", "NATTEN_CACHE_DIR": folder}
            row = {"cold": in_process(what, ours), "warm": in_process(what, ours)}
            if not args.no_mlx:
                row["mlx"] = in_process(what, {"NATTEN_NVRTC": "0"})
        results[what] = row
        kind = "call" if what in CALLS else "step"
        for temperature in ("cold", "warm"):
            limit = f"{kind} {temperature}"
            worst[limit] = max(worst[limit], row[temperature]["first"])
        mlx = f"{row['mlx']['first']:7.3f}" if "mlx" in row else f"{'-':>7}"
        cold, warm = row["cold"]["first"], row["warm"]["first"]
        print(f"{what:<36} {cold:7.3f} {warm:7.3f} {mlx} {row['warm']['second']:7.3f}", flush=True)
    for limit, value in worst.items():
        print(f"{limit}: at most {value:.3f} s, {'within' if value <= LIMITS[limit] else 'ABOVE'} {LIMITS[limit]} s")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"device": mx.device_info(), "results": results, "worst": worst}, file, indent=2, default=str)
    return 0


if __name__ == "__main__":
    sys.exit(main())
