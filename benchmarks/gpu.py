"""The JIT tier on an NVIDIA GPU against FlexAttention, dense attention and the limits of the chip, in one command.

    python benchmarks/gpu.py --json gpu.json [--cases 2d-56-k7 ...] [--dtypes float16 ...] [--no-torch] [--no-dense]

Without --cases and --dtypes each case runs in the types that its row names. "tf32" is float32 where MLX rounds its own
products (MLX_ENABLE_TF32, on by default); "float32" is without that. MLX and PyTorch run in processes of their own, one
after the other on the same GPU, after all kernels were compiled side by side. A time is the median over rounds of the
mean of calls that are queued together; --in-graph 8 evaluates eight of them at once, as MLX does with those of a
network, where each does not have an evaluation's 20 us to itself, nor its result in the cache. FlexAttention is
compiled and gets the block mask of the neighborhood, on tokens in row-major order. Each case says by how much its
results and gradients differ from the pure tier's.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ALL = ("float16", "bfloat16", "float32", "tf32")
HALF = ("float16",)


class Case(NamedTuple):
    batch: int
    spatial: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: tuple[int, ...]
    gna_stride: tuple[int, ...] = (1, 1, 1)
    scale: float | None = None
    dtypes: tuple[str, ...] = HALF
    has_rpb: bool = False
    has_rival: bool = False  # FlexAttention and dense attention are measured beside it

    @property
    def options(self) -> dict[str, Any]:
        return {"gna_stride": self.gna_stride[: len(self.spatial)], "scale": self.scale}


DECODER = (  # stages of a video decoder at 768x512, 121 frames: grid, heads, window
    ((18, 16, 24), 32, (3, 7, 7)),
    ((18, 32, 48), 16, (3, 7, 7)),
    ((35, 32, 48), 8, (3, 5, 5)),
    ((69, 64, 96), 8, (3, 5, 5)),
    ((121, 128, 192), 4, (11, 11, 11)),
)
CASES: dict[str, Case] = {
    "2d-56-k7": Case(64, (56, 56), 4, 32, (7, 7), dtypes=ALL, has_rival=True),
    "2d-256-k13": Case(1, (256, 256), 8, 64, (13, 13), dtypes=ALL, has_rival=True),
    "3d-30x48x80-k5x7x7": Case(1, (30, 48, 80), 8, 64, (5, 7, 7), dtypes=ALL, has_rival=True),
    "1d-32768-k2048": Case(1, (32768,), 1, 128, (2048,), dtypes=ALL, has_rival=True),
    "1d-32768-k2048-gna256": Case(1, (32768,), 1, 128, (2048,), (256, 1, 1)),
    "2d-256-k80": Case(1, (256, 256), 24, 128, (80, 80)),
    "2d-256-k80-gna16": Case(1, (256, 256), 24, 128, (80, 80), (16, 16, 1)),
    "3d-30x48x80-k18x24x24": Case(1, (30, 48, 80), 24, 128, (18, 24, 24)),
    "3d-30x48x80-k18x24x24-gna16x8x8": Case(1, (30, 48, 80), 24, 128, (18, 24, 24), (16, 8, 8)),
    "2d-64-k16": Case(8, (64, 64), 12, 64, (16, 16)),
    "2d-32-k7": Case(128, (32, 32), 8, 32, (7, 7)),
    "1d-8192-k127": Case(4, (8192,), 8, 64, (127,)),
    "2d-128-k33": Case(2, (128, 128), 12, 64, (33, 33)),
    **{f"2d-64-k7-d{dim}": Case(16, (64, 64), 8, dim, (7, 7)) for dim in (12, 48, 80, 96)},
    **{f"2d-64-k7-d{dim}": Case(16, (64, 64), 4, dim, (7, 7), dtypes=("float16", "tf32")) for dim in (192, 256)},
    "1d-8192-k512-d256": Case(1, (8192,), 8, 256, (512,)),
    "2d-56-k7-rpb": Case(64, (56, 56), 4, 32, (7, 7), dtypes=("float16", "tf32"), has_rpb=True),
    "2d-256-k13-rpb": Case(1, (256, 256), 8, 64, (13, 13), dtypes=("float16", "tf32"), has_rpb=True),
    **{
        f"decoder-stage{stage}": Case(1, grid, heads, 64, kernel, scale=1.0, dtypes=("bfloat16",))
        for stage, (grid, heads, kernel) in enumerate(DECODER, 1)
    },
}


def describe(name: str) -> str:
    """A case as the CPU's reports describe a call."""
    case = CASES[name]
    shape = "x".join(map(str, (case.batch, *case.spatial, case.heads, case.head_dim)))
    shared = f" gna_stride {'x'.join(map(str, case.options['gna_stride']))}" if max(case.gna_stride) > 1 else ""
    bias = " rpb" if case.has_rpb else ""
    return f"na{len(case.spatial)}d {shape} K {'x'.join(map(str, case.kernel_size))}{shared}{bias}"


ROUNDS = 7
ROUND_SECONDS = 0.15
compile_only = False  # of this process
in_graph = 1  # calls of one evaluation, in this process
MOST_SECONDS_PER_CASE = 40
MOST_SECONDS_TO_COMPILE = 120
MOST_SECONDS = 1.0  # of one measurement, after which three rounds are enough


def useful_flops(case: Case, backward: bool) -> float:
    """4 * tokens * heads * prod(K) * D forward, 10 times that product backward."""
    pairs = case.batch * math.prod(case.spatial) * case.heads * math.prod(case.kernel_size)
    return (14 if backward else 4) * pairs * case.head_dim


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


def queue_calls(mx: Any, call: Any, n: int, at_once: int) -> None:
    """Runs n calls to their end, `at_once` of them in one evaluation."""
    for start in range(0, n, at_once):
        mx.async_eval([call() for _ in range(min(at_once, n - start))])
    mx.synchronize()


def calls_at_once(result_bytes: int) -> int:
    """As many as are asked for and have their results in 4 GiB: they live until the evaluation ends."""
    return max(1, min(in_graph, (4 << 30) // result_bytes))


def run_mlx(pairs: list[tuple[str, str]], tf32: bool) -> list[dict[str, Any]]:
    os.environ["MLX_ENABLE_TF32"] = str(int(tf32))  # also of the pure tier, which results are compared with
    import mlx.core as mx

    import natten_mlx

    natten_mlx.set_backend("fast_cuda")
    rows = []
    for name, dtype in pairs:
        case = CASES[name]
        function_of_rank = getattr(natten_mlx, f"na{len(case.spatial)}d")

        def attention(q, k, v, *rpb, call=function_of_rank, case=case):
            return call(q, k, v, case.kernel_size, rpb=rpb[0] if rpb else None, **case.options)

        mx.random.seed(0)
        shape = (case.batch, *case.spatial, case.heads, case.head_dim)
        kind = mx.float32 if dtype == "tf32" else getattr(mx, dtype)
        q, k, v, dout = (mx.random.normal(shape).astype(kind) for _ in range(4))
        inputs = [q, k, v]
        if case.has_rpb:
            inputs.append(mx.random.normal((case.heads, *(2 * size - 1 for size in case.kernel_size))))
        mx.eval(inputs, dout)
        at_once = calls_at_once(4 * q.nbytes)

        def forward(inputs=inputs, attention=attention):
            return [attention(*inputs)]

        def training(inputs=inputs, dout=dout, attention=attention):
            out, grads = mx.vjp(attention, inputs, [dout])
            return [*out, *grads]

        row: dict[str, Any] = {"implementation": "natten-mlx", "case": name, "dtype": dtype}
        try:
            rpb = inputs[3] if case.has_rpb else None
            explained = natten_mlx.explain(q, k, v, case.kernel_size, rpb=rpb, **case.options)
            row |= {"tier": explained.tier, "kernel": explained.kernel, "tile": explained.tile}
            row |= relative_errors(mx, natten_mlx, attention, [*inputs, dout], case.kernel_size)
            for label, function in (("forward", forward), ("training", training)):
                row[label] = median_seconds(lambda n, call=function, m=at_once: queue_calls(mx, call, n, m))
        except Exception as error:  # a kernel that fails is a result to report, not the end of the run
            row["failure"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return rows


def relative_errors(
    mx: Any, natten_mlx: Any, attention: Any, arrays: list, kernel: tuple[int, ...]
) -> dict[str, float]:
    """Largest differences from the pure tier relative to the largest value, on a crop of one sample and one head: of
    the result, and of the gradients of what it is made of."""
    if compile_only:
        return {}
    beyond = 512 if math.prod(kernel) < 4096 else 4  # the pure tier gathers every window
    cut = (slice(0, 1), *(slice(0, min(3 * size, size + beyond)) for size in kernel), slice(0, 1))
    *inputs, dout = (x[:1] if i == 3 < len(arrays) - 1 else x[cut] for i, x in enumerate(arrays))  # the fourth: a bias
    results = []
    for backend in ("fast_cuda", "pure"):
        natten_mlx.set_backend(backend)
        out, gradients = mx.vjp(attention, inputs, [dout])
        results.append([x.astype(mx.float32) for x in (*out, *gradients)])
    natten_mlx.set_backend("fast_cuda")
    found = [float(mx.max(mx.abs(x - y)) / mx.max(mx.abs(y))) for x, y in zip(*results, strict=True)]
    return {"error": found[0], "gradient_error": max(found[1:])}


def run_torch(pairs: list[tuple[str, str]], dense: bool) -> list[dict[str, Any]]:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = torch.device("cuda")
    torch._dynamo.config.recompile_limit = 100  # beyond its default of 8 the rest would run uncompiled
    flex = torch.compile(flex_attention, dynamic=False)
    rows = [] if compile_only else [limits(torch)]
    for name, dtype in pairs:
        batch, spatial, heads, dim, kernel = CASES[name][:5]
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


def child(part: str, cases: list[str], dtypes: list[str], *flags: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--part", part, "--cases", *cases, "--dtypes", *dtypes, *flags]
    return subprocess.Popen(command, text=True, **options)


def measure_mlx(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """A process for each case and type, because MLX keeps no compiled kernel: they compile side by side, and measure
    one after the other."""
    running = [
        child("mlx", [name], [dtype], "--wait", f"--in-graph={in_graph}", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name, dtype in pairs
    ]
    for process in running:
        process.stdout.readline()  # it has compiled, or ended
    rows = []
    for (name, dtype), process in zip(pairs, running, strict=True):
        try:
            output, _ = process.communicate("measure\n", timeout=MOST_SECONDS_PER_CASE)
            rows += json.loads(output)
        except (subprocess.TimeoutExpired, json.JSONDecodeError, BrokenPipeError) as error:
            process.kill()
            rows.append({"implementation": "natten-mlx", "case": name, "dtype": dtype, "failure": repr(error)[:200]})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_torch(pairs: list[tuple[str, str]], dense: bool) -> list[dict[str, Any]]:
    """In one process, after others have compiled what PyTorch keeps on disk; a case that fails there fails again."""
    for process in [
        child("torch", [name], [dtype], "--compile-only", "--no-dense", stdout=subprocess.DEVNULL)
        for name, dtype in pairs
    ]:
        process.wait()
    rows = []
    for dtype in sorted({dtype for _, dtype in pairs}):
        names = [name for name, of_case in pairs if of_case == dtype]
        flags = [] if dense else ["--no-dense"]
        process = child("torch", names, [dtype], *flags, stdout=subprocess.PIPE)
        output, _ = process.communicate()
        rows += json.loads(output) if process.returncode == 0 else [{"implementation": "torch", "failure": dtype}]
    return rows


def main() -> int:
    global compile_only, in_graph
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=ALL, help="of every case; otherwise those of its row")
    parser.add_argument("--in-graph", type=int, default=in_graph, help="calls that MLX evaluates at once")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-dense", action="store_true", help="leave dense attention out, which takes minutes")
    parser.add_argument("--part", choices=("mlx", "torch"), help="run one library in this process, print its rows")
    parser.add_argument("--compile-only", action="store_true", help="with --part: run every call once, measure nothing")
    parser.add_argument("--wait", action="store_true", help="with --part: compile, and wait for a line to measure")
    options = parser.parse_args()
    pairs = [(name, dtype) for name in options.cases for dtype in options.dtypes or CASES[name].dtypes]
    compile_only = options.compile_only or options.wait
    in_graph = options.in_graph
    if options.part == "mlx":
        tf32 = options.dtypes == ["tf32"]
        if options.wait:
            signal.alarm(MOST_SECONDS_TO_COMPILE)
            run_mlx(pairs, tf32)
            signal.alarm(0)
            compile_only = False
            print("compiled", flush=True)
            sys.stdin.readline()
        print(json.dumps(run_mlx(pairs, tf32)))
        return 0
    if options.part == "torch":
        print(json.dumps(run_torch(pairs, not options.no_dense)))
        return 0
    if options.json is None:
        parser.error("--json is needed")
    rows = measure_mlx(pairs)
    if not options.no_torch:
        rivals = [(name, dtype) for name, dtype in pairs if CASES[name].has_rival and dtype != "tf32"]
        rows += measure_torch(rivals, not options.no_dense)
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
