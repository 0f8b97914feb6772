"""The JIT tier on an NVIDIA GPU against FlexAttention, dense attention and the limits of the chip, in one command.

    python benchmarks/gpu.py --json gpu.json [--cases 2d-56-k7 ...] [--dtypes float16 ...] [--no-torch] [--no-dense]

MLX and PyTorch run in processes of their own, one after the other on the same GPU, after all kernels were compiled side
by side (both libraries keep them on disk). A time is the median over rounds of the mean of calls that are queued
together. FlexAttention is compiled and gets the block mask of the neighborhood, on tokens in row-major order. Each case
says by how much its results and gradients differ from the pure tier's.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# name: (batch, spatial, heads, head_dim, kernel_size)
CASES: dict[str, tuple[int, tuple[int, ...], int, int, tuple[int, ...]]] = {
    "1d-32768-k2048": (1, (32768,), 1, 128, (2048,)),
    "2d-56-k7": (64, (56, 56), 4, 32, (7, 7)),
    "2d-256-k13": (1, (256, 256), 8, 64, (13, 13)),
    "3d-30x48x80-k5x7x7": (1, (30, 48, 80), 8, 64, (5, 7, 7)),
}
DTYPES = ("float16", "bfloat16", "float32")
ROUNDS = 7
ROUND_SECONDS = 0.15
compile_only = False  # of this process
MOST_SECONDS = 1.0  # of one measurement, after which three rounds are enough


def useful_flops(case: tuple, backward: bool) -> float:
    """4 * tokens * heads * prod(K) * D forward, 10 times that product backward."""
    batch, spatial, heads, dim, kernel = case
    return (14 if backward else 4) * batch * math.prod(spatial) * heads * math.prod(kernel) * dim


def median_seconds(run_many: Any) -> float:
    """run_many(n) runs n calls to their end; grows n until a round is long enough to be timed."""
    run_many(1)
    if compile_only:
        return math.nan
    start = time.perf_counter()
    run_many(1)
    count = max(1, min(200, int(ROUND_SECONDS / max(time.perf_counter() - start, 1e-6))))
    rounds: list[float] = []
    begin = time.perf_counter()
    while len(rounds) < ROUNDS and (len(rounds) < 3 or time.perf_counter() - begin < MOST_SECONDS):
        start = time.perf_counter()
        run_many(count)
        rounds.append((time.perf_counter() - start) / count)
    return statistics.median(rounds)


def run_mlx(names: list[str], dtypes: list[str]) -> list[dict[str, Any]]:
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # of the pure tier, which results are compared with
    import mlx.core as mx

    import natten_mlx

    natten_mlx.set_backend("fast_cuda")
    rows = []
    for name in names:
        batch, spatial, heads, dim, kernel = CASES[name]
        attention = getattr(natten_mlx, f"na{len(spatial)}d")
        for dtype in dtypes:
            mx.random.seed(0)
            q, k, v, dout = (
                mx.random.normal((batch, *spatial, heads, dim)).astype(getattr(mx, dtype)) for _ in range(4)
            )
            mx.eval(q, k, v, dout)

            def forward(q=q, k=k, v=v, attention=attention, kernel=kernel):
                return [attention(q, k, v, kernel)]

            def training(q=q, k=k, v=v, dout=dout, attention=attention, kernel=kernel):
                out, grads = mx.vjp(lambda q, k, v: attention(q, k, v, kernel), [q, k, v], [dout])
                return [*out, *grads]

            row: dict[str, Any] = {"implementation": "natten-mlx", "case": name, "dtype": dtype}
            try:
                explained = natten_mlx.explain(q, k, v, kernel)
                row |= {"tier": explained.tier, "kernel": explained.kernel, "tile": explained.tile}
                row |= relative_errors(mx, natten_mlx, attention, [q, k, v, dout], kernel)
                for label, function in (("forward", forward), ("training", training)):

                    def run_many(n, function=function):
                        for _ in range(n):
                            mx.async_eval(function())
                        mx.synchronize()

                    row[label] = median_seconds(run_many)
            except Exception as error:  # a kernel that fails is a result to report, not the end of the run
                row["failure"] = f"{type(error).__name__}: {error}"
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def relative_errors(
    mx: Any, natten_mlx: Any, attention: Any, arrays: list, kernel: tuple[int, ...]
) -> dict[str, float]:
    """Largest differences from the pure tier relative to the largest value, on a crop of one sample and one head: of
    the result, and of the gradients of query, key and value."""
    cut = (slice(0, 1), *(slice(0, min(3 * size, size + 512)) for size in kernel), slice(0, 1))
    *inputs, dout = (x[cut] for x in arrays)
    results = []
    for backend in ("fast_cuda", "pure"):
        natten_mlx.set_backend(backend)
        out, gradients = mx.vjp(lambda q, k, v: attention(q, k, v, kernel), inputs, [dout])
        results.append([x.astype(mx.float32) for x in (*out, *gradients)])
    natten_mlx.set_backend("fast_cuda")
    found = [float(mx.max(mx.abs(x - y)) / mx.max(mx.abs(y))) for x, y in zip(*results, strict=True)]
    return {"error": found[0], "gradient_error": max(found[1:])}


def run_torch(names: list[str], dtypes: list[str], dense: bool) -> list[dict[str, Any]]:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = torch.device("cuda")
    torch._dynamo.config.recompile_limit = 100  # beyond its default of 8 the rest would run uncompiled
    flex = torch.compile(flex_attention, dynamic=False)
    rows = [] if compile_only else [limits(torch)]
    print(json.dumps(rows), flush=True)
    for name in names:
        batch, spatial, heads, dim, kernel = CASES[name]
        tokens = math.prod(spatial)

        def in_window(b, h, query, key, spatial=spatial, kernel=kernel):
            inside = None
            for n, k in zip(reversed(spatial), reversed(kernel), strict=True):
                start = torch.clamp(query % n - k // 2, 0, n - k)
                offset = key % n - start
                here = (offset >= 0) & (offset < k)
                inside = here if inside is None else inside & here
                query, key = query // n, key // n
            return inside

        mask = create_block_mask(in_window, None, None, tokens, tokens, device=device, _compile=True)
        for dtype in dtypes:
            q, k, v, dout = (
                torch.randn(batch, heads, tokens, dim, device=device, dtype=getattr(torch, dtype)) for _ in range(4)
            )
            implementations = {"flex_attention": lambda q, k, v, mask=mask: flex(q, k, v, block_mask=mask)}
            if dense:
                implementations["dense sdpa"] = torch.nn.functional.scaled_dot_product_attention
            for label, attend in implementations.items():
                row: dict[str, Any] = {"implementation": label, "case": name, "dtype": dtype}
                try:

                    def forward(n, attend=attend, q=q, k=k, v=v):
                        with torch.no_grad():
                            for _ in range(n):
                                attend(q, k, v)
                        torch.cuda.synchronize()

                    def training(n, attend=attend, q=q, k=k, v=v, dout=dout):
                        for _ in range(n):
                            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                            torch.autograd.grad(attend(*leaves), leaves, dout)
                        torch.cuda.synchronize()

                    row["forward"] = median_seconds(forward)
                    row["training"] = median_seconds(training)
                except Exception as error:  # out of memory or an unsupported type: reported
                    row["failure"] = f"{type(error).__name__}: {str(error)[:300]}"
                    torch.cuda.empty_cache()
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def limits(torch: Any) -> dict[str, Any]:
    """Copy bandwidth and matrix rates of the chip, as PyTorch reaches them."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)

    def timed(function):
        def run_many(n):
            for _ in range(n):
                function()
            torch.cuda.synchronize()

        return median_seconds(run_many)

    row: dict[str, Any] = {"implementation": "limits", "device": torch.cuda.get_device_name()}
    row["copy_bytes_per_second"] = 2 * x.numel() / timed(lambda: y.copy_(x))
    for dtype in ("float32", "bfloat16"):
        a = torch.randn(8192, 8192, device="cuda", dtype=getattr(torch, dtype))
        row[f"matmul_{dtype}_flops"] = 2 * 8192**3 / timed(lambda a=a: a @ a)
    return row


def compile_side_by_side(parts: list[str], options: argparse.Namespace) -> None:
    """One process for each case and type; what fails here fails again, and is reported, when it is measured."""
    processes = []
    for part in parts:
        for case in options.cases:
            for dtype in options.dtypes:
                command = [sys.executable, __file__, "--part", part, "--compile-only", "--no-dense"]
                command += ["--json", os.devnull, "--cases", case, "--dtypes", dtype]
                processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for process in processes:
        process.wait()


def main() -> int:
    global compile_only
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the results")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-dense", action="store_true", help="leave dense attention out, which takes minutes")
    parser.add_argument("--part", choices=("mlx", "torch"), help="run one library in this process")
    parser.add_argument("--compile-only", action="store_true", help="with --part: run every call once, measure nothing")
    options = parser.parse_args()
    compile_only = options.compile_only
    if options.part:
        if options.part == "mlx":
            rows = run_mlx(options.cases, options.dtypes)
        else:
            rows = run_torch(options.cases, options.dtypes, not options.no_dense)
        options.json.write_text(json.dumps(rows))
        return 0
    rows = []
    parts = ["mlx"] if options.no_torch else ["mlx", "torch"]
    compile_side_by_side(parts, options)
    for part in parts:
        path = options.json.with_suffix(f".{part}.json")
        command = [sys.executable, __file__, "--part", part, "--json", str(path)]
        command += ["--cases", *options.cases, "--dtypes", *options.dtypes]
        command += ["--no-dense"] if options.no_dense else []
        result = subprocess.run(command, check=False)
        if result.returncode == 0:
            rows += json.loads(path.read_text())
            path.unlink()
        else:
            rows.append({"implementation": part, "failure": f"exit code {result.returncode}"})
    for row in rows:
        if "case" in row:
            for label in ("forward", "training"):
                if label in row:
                    row[f"{label}_tflops"] = useful_flops(CASES[row["case"]], label == "training") / row[label] / 1e12
    options.json.write_text(json.dumps(rows, indent=1))
    failed = [row for row in rows if row.get("implementation") == "natten-mlx" and ("failure" in row)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
