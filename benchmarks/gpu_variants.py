"""What waits for an hour on an NVIDIA GPU, in one command: plans that are off by default, spans and circular axes on
Hopper's warpgroup instructions, and the decode engine.

    python benchmarks/gpu_variants.py [--json open.json] [--limit 25] [--only decode spans tiles] [--cases 2d-56-k7 ...]

"decode" is one token beside its cache: the plan's choice, the same without the decode engine, and MLX's attention on
the same arrays; microseconds of a call among 16 in one compiled graph. "tiles" are cases of gpu.py with settings of
NATTEN_FAST_TILE, forward / forward and backward, milliseconds, and how far results are from those of the plan. "spans"
are calls on whole axes, on the middle half of the rows of the first axis, and with all axes circular, each with
warpgroup=1 and warpgroup=0, and how far results and gradients are from those of warpgroup=0. One process does the jobs
in turn. It is killed when nothing is heard of a job for --limit seconds, which is reported, and another goes on with
the next job. --dry-run makes every job once, small, on any machine.
"""

import argparse
import json
import math
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from gpu import CASES, median_seconds, queue_calls

WINDOWS = (64, 256, 1024, 4096, 16384, 65536)
HEADS = ((16, 16, 64), (32, 8, 128))  # of queries, of keys, channels
TYPES = ("bfloat16", "float16", "float32")
ENGINES = ("planned", "decode=0", "mlx sdpa")
TOKENS = 16  # in one graph: a call takes less than Python needs to ask for it

# Targets of forward and forward and backward, milliseconds, and what to try beside the plan's choice. Settings that
# gradients cannot have are measured forward alone.
TILES: dict[str, tuple[tuple[float | None, float | None], tuple[str, ...]]] = {
    "decoder-stage5": ((16, None), ("hold=1", "stages=6", "warpgroups=2,block=128")),
    "2d-256-k80-gna16": ((7.4, None), ("hold=1", "pingpong=0", "repeat=4")),
    "3d-30x48x80-k18x24x24-gna16x8x8": ((22, None), ("hold=1", "pingpong=0", "repeat=4")),
    "2d-56-k7": ((0.16, 0.70), ("warpgroup=1", "warpgroup=1,repeat=1")),
    "3d-30x48x80-k5x7x7": ((0.65, 2.6), ("stages=4", "repeat=1", "repeat=8")),
    "1d-32768-k2048": ((0.070, 0.35), ("hold=1", "pingpong=0")),
    "2d-128-k33": ((None, None), ("stages=4",)),
    "2d-256-k13": ((0.30, 1.4), ("stages=4",)),
}

# Batch, axes, heads, channels, window.
SPANS: dict[str, tuple[int, tuple[int, ...], int, int, tuple[int, ...]]] = {
    "2d-256-k13": (1, (256, 256), 8, 64, (13, 13)),
    "2d-256-d128-k33": (1, (256, 256), 8, 128, (33, 33)),
    "2d-64-k16": (8, (64, 64), 12, 64, (16, 16)),
    "2d-32-k7": (64, (32, 32), 8, 64, (7, 7)),
    "3d-30x48x80-k5x7x7": (1, (30, 48, 80), 8, 64, (5, 7, 7)),
    "1d-8192-k127": (4, (8192,), 8, 64, (127,)),
}
KINDS = ("plain", "middle half", "circular")


def jobs_of(only: list[str], cases: list[str]) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    if "tiles" in only:
        for name in cases:
            jobs += [{"part": "tiles", "case": name, "tile": tile} for tile in ("", *TILES[name][1])]
    if "spans" in only:
        jobs += [
            {"part": "spans", "case": name, "kind": kind, "tile": f"warpgroup={on}"}
            for name in SPANS
            for kind in KINDS
            for on in (1, 0)
        ]
    if "decode" in only:
        jobs += [
            {"part": "decode", "window": window, "heads": heads, "dtype": dtype, "engine": engine}
            for dtype in TYPES
            for heads in HEADS
            for window in WINDOWS
            for engine in ENGINES
        ]
    return jobs


def timed(call: Any, mx: Any, dry_run: bool) -> float:
    if dry_run:
        mx.eval(call())
        return math.nan
    return median_seconds(lambda n: queue_calls(mx, call, n, at_once=1))


def run_decode(job: dict[str, Any], dry_run: bool) -> Any:
    import mlx.core as mx

    import natten_mlx

    heads, kv_heads, dim = job["heads"]
    window, engine = min(job["window"], 64) if dry_run else job["window"], job["engine"]
    os.environ["NATTEN_FAST_TILE"] = engine if "=" in engine else ""
    mx.random.seed(0)
    dtype = getattr(mx, job["dtype"])
    key, value = (mx.random.normal((1, window, kv_heads, dim)).astype(dtype) for _ in range(2))
    queries = [mx.random.normal((1, 1, heads, dim)).astype(dtype) for _ in range(TOKENS)]
    mx.eval(key, value, queries)
    whole = 1 << 20
    span = {"query_start": whole - 1, "key_start": whole - window, "shape": whole, "is_causal": True}

    def attend(q: mx.array) -> mx.array:
        if engine != "mlx sdpa":
            return natten_mlx.na1d(q, key, value, window, **span)
        heads_first = (x.transpose(0, 2, 1, 3) for x in (q, key, value))
        return mx.fast.scaled_dot_product_attention(*heads_first, scale=dim**-0.5).transpose(0, 2, 1, 3)

    dense = mx.fast.scaled_dot_product_attention(
        *(x.astype(mx.float32).transpose(0, 2, 1, 3) for x in (queries[0], key, value)), scale=dim**-0.5
    ).transpose(0, 2, 1, 3)
    row = {"difference": difference(mx, attend(queries[0]), dense)}
    if engine != "mlx sdpa":
        explained = natten_mlx.explain(queries[0], key, value, window, **span)
        row |= {"tier": explained.tier, "plan": explained.tile}
    step = mx.compile(lambda inputs: [attend(q) for q in inputs])
    row["forward"] = timed(lambda: step(queries), mx, dry_run) / TOKENS
    yield row


def difference(mx: Any, x: Any, right: Any) -> float:
    x, right = x.astype(mx.float32), right.astype(mx.float32)
    return float(mx.max(mx.abs(x - right)) / mx.max(mx.abs(right)))


def run_tiles(job: dict[str, Any], dry_run: bool) -> Any:
    """Rows that say more and more: the gradients of a plan may fail where its forward does not."""
    import mlx.core as mx

    import natten_mlx

    case = CASES[job["case"]]
    function = getattr(natten_mlx, f"na{len(case.spatial)}d")
    kernel = tuple(min(k, 8) for k in case.kernel_size) if dry_run else case.kernel_size
    spatial = tuple(min(n, k + 1) for n, k in zip(case.spatial, kernel, strict=True)) if dry_run else case.spatial
    options = {"gna_stride": [min(s, k) for s, k in zip(case.options["gna_stride"], kernel, strict=True)]}
    shape = (1 if dry_run else case.batch, *spatial, 1 if dry_run else case.heads, case.head_dim)
    dtype = getattr(mx, case.dtypes[0])
    mx.random.seed(0)
    q, k, v, dout = (mx.random.normal(shape).astype(dtype) for _ in range(4))
    mx.eval(q, k, v, dout)

    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return function(q, k, v, kernel, scale=case.scale, **options)

    def training() -> list[mx.array]:
        out, gradients = mx.vjp(attention, [q, k, v], [dout])
        return [*out, *gradients]

    os.environ["NATTEN_FAST_TILE"] = ""
    planned = attention(q, k, v)
    mx.eval(planned)
    os.environ["NATTEN_FAST_TILE"] = job["tile"]
    explained = natten_mlx.explain(q, k, v, kernel, scale=case.scale, **options)
    row = {"tier": explained.tier, "plan": explained.tile}
    row["difference"] = difference(mx, attention(q, k, v), planned)
    del planned
    row["forward"] = timed(lambda: [attention(q, k, v)], mx, dry_run)
    yield row
    yield {"training": timed(training, mx, dry_run)}


def run_spans(job: dict[str, Any], dry_run: bool) -> Any:
    """The forward, then the training step."""
    import mlx.core as mx

    import natten_mlx

    batch, spatial, heads, dim, kernel = SPANS[job["case"]]
    if dry_run:
        batch, heads, kernel = 1, 1, tuple(min(k, 6) for k in kernel)
        spatial = tuple(min(n, 4 * k) for n, k in zip(spatial, kernel, strict=True))
    function = getattr(natten_mlx, f"na{len(spatial)}d")
    rest = [0] * (len(spatial) - 1)
    start, rows = (spatial[0] // 4, *rest), (spatial[0] // 2, *spatial[1:])
    key_start, key_rows = natten_mlx.key_span(kernel, start, rows, spatial)
    keys = slice(key_start[0], key_start[0] + key_rows[0])
    queries = slice(start[0], start[0] + rows[0])
    mx.random.seed(0)
    q, k, v, dout = (mx.random.normal((batch, *spatial, heads, dim)).astype(mx.float16) for _ in range(4))
    mx.eval(q, k, v, dout)
    options: dict[str, Any] = {"is_circular": job["kind"] == "circular"}
    if job["kind"] == "middle half":  # views: nothing is copied
        q, k, v, dout = q[:, queries], k[:, keys], v[:, keys], dout[:, queries]
        options = {"query_start": start, "key_start": key_start, "shape": spatial}
        mx.eval(q, k, v, dout)

    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return function(q, k, v, kernel, **options)

    def training() -> list[mx.array]:
        out, gradients = mx.vjp(attention, [q, k, v], [dout])
        return [*out, *gradients]

    os.environ["NATTEN_FAST_TILE"] = "warpgroup=0"
    expected = training()
    mx.eval(expected)
    os.environ["NATTEN_FAST_TILE"] = job["tile"]
    explained = natten_mlx.explain(q, k, v, kernel, **options)
    row = {"tier": explained.tier, "plan": explained.tile}
    row["difference"] = max(difference(mx, x, right) for x, right in zip(training(), expected, strict=True))
    del expected
    row["forward"] = timed(lambda: [attention(q, k, v)], mx, dry_run)
    yield row
    yield {"training": timed(training, mx, dry_run)}


RUN = {"decode": run_decode, "spans": run_spans, "tiles": run_tiles}


def work(dry_run: bool) -> None:
    """Jobs from standard input, a line each; of each some lines of what was found, and an empty one at its end."""
    if not dry_run:
        import natten_mlx

        natten_mlx.set_backend("fast_cuda")
    for line in sys.stdin:
        job = json.loads(line)
        try:
            for row in RUN[job["part"]](job, dry_run):
                print(json.dumps(row), flush=True)
        except Exception as error:  # a plan that does not suit is a result to report
            print(json.dumps({"failure": f"{type(error).__name__}: {str(error)[:200]}"}), flush=True)
        print(flush=True)


class Worker:
    def __init__(self, dry_run: bool) -> None:
        flags = ["--dry-run"] if dry_run else []
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put("ended")

    def run(self, job: dict[str, Any], limit: float) -> dict[str, Any]:
        """What the job found, and why no more; the process has ended then if `self.process` says so."""
        found: dict[str, Any] = dict(job)
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            while line := self.lines.get(timeout=limit):
                if line == "ended":
                    raise BrokenPipeError(f"the process ended with {self.process.wait()}")
                found |= json.loads(line)
        except (queue.Empty, OSError, ValueError) as error:
            found["failure"] = f"more than {limit:g} s" if isinstance(error, queue.Empty) else str(error)
            self.process.kill()
            self.process.wait()
        return found


def describe(row: dict[str, Any]) -> str:
    factor, unit = (1e6, "us") if row["part"] == "decode" else (1e3, "ms")
    kinds = [kind for kind in ("forward", "training") if kind in row]
    times = " / ".join("ran" if math.isnan(row[kind]) else f"{factor * row[kind]:.3g}" for kind in kinds)
    if row["part"] == "decode":
        heads, kv_heads, dim = row["heads"]
        what = f"{row['dtype']:9}{heads:3}x{dim} on {kv_heads:<3}window {row['window']:<6}{row['engine']}"
        target = ""
    elif row["part"] == "spans":
        what = f"{row['case']:33}{row['kind']:13}{row['tile']}"
        target = ""
    else:
        what = f"{row['case']:33}{row['tile'] or 'planned'}"
        target = " / ".join("-" if x is None else f"{x:g}" for x in TILES[row["case"]][0])
    apart = f"{row['difference']:.0e}" if "difference" in row else ""
    tail = row.get("failure") or f"{row.get('tier') or ''}: {row.get('plan') or ''}".strip(": ")
    return f"{what:76}{times or '-':>16} {unit}  {f'[{target}]' if target else '':14}{apart:7} {tail}"


def summarize(rows: list[dict[str, Any]]) -> None:
    """Of spans and circular axes a line for each case."""
    if not rows:
        return
    heads = "".join(f"{kind + ', warpgroups':>30}{'not':>16}" for kind in KINDS)
    print(f"\n{'ms, forward / forward and backward':42}{heads}")
    found = {(row["case"], row["kind"], row["tile"]): row for row in rows}
    for name in SPANS:
        line = f"{name:42}"
        for kind in KINDS:
            for on, width in ((1, 30), (0, 16)):
                row = found[name, kind, f"warpgroup={on}"]
                times = (f"{1e3 * row.get(what, math.nan):.3g}" for what in ("forward", "training"))
                line += f"{' / '.join(times):>{width}}"
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the results, after each job")
    parser.add_argument("--limit", type=float, default=25, help="seconds until something is heard of a job (25)")
    parser.add_argument("--only", nargs="+", choices=tuple(RUN), default=["tiles", "spans", "decode"])
    parser.add_argument("--cases", nargs="+", choices=TILES, default=list(TILES), help="of the tiles")
    parser.add_argument("--dry-run", action="store_true", help="every job once, small, on the tier that serves it")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.dry_run)
        return 0
    rows: list[dict[str, Any]] = []
    worker = Worker(options.dry_run)
    for job in jobs_of(options.only, options.cases):
        if worker.process.poll() is not None:
            worker = Worker(options.dry_run)
        rows.append(worker.run(job, options.limit))
        print(describe(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    worker.process.kill()
    summarize([row for row in rows if row["part"] == "spans"])
    return 1 if options.dry_run and any("failure" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
