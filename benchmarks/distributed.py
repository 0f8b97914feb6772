"""How much slower a call is when ranks of this machine share it, at the same number of threads in all.

This process times the plain call on all threads; ranks are processes that have their part of the threads and of the
field, connected by the ring backend, or by MPI, whose waiting ranks give their core away. They take turns, so that
other programs disturb both alike. The floor is what the same ranks take where each has its halo already: what is above
it is messages, and keys put next to their halo.

    python benchmarks/distributed.py [--ranks 2 4] [--threads 2] [--rounds 9] [--overlap] [--cpu] [--limit 1.15]
                                     [--backend ring|mpi]

With --late: how long rank 0 goes on computing after rank 1, which begins late, sends its halo, with and without
messages on a stream of their own. What has been computed meanwhile is overlap.
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import mlx.core as mx

import natten_mlx
from natten_mlx import distributed

# Shape of query, key and value, window, spread axis.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any], int]] = {
    "1d": ((1, 32768, 4, 64), {"kernel_size": 129}, 0),
    "1d causal": ((1, 32768, 4, 64), {"kernel_size": 129, "is_causal": True}, 0),
    "weather": ((1, 96, 192, 4, 64), {"kernel_size": 13, "is_circular": (False, True)}, 1),
    "image": ((1, 128, 128, 4, 64), {"kernel_size": 7, "dilation": 2}, 0),
    "video": ((1, 16, 48, 48, 4, 64), {"kernel_size": (5, 7, 7)}, 1),
}


def rows_of(array: mx.array, axis: int, start: int, rows: int) -> mx.array:
    """Of the spatial axis; past its ends the rows at the other one."""
    return mx.contiguous(mx.take(array, mx.arange(start, start + rows) % array.shape[1 + axis], 1 + axis))


def steps(
    name: str, na: Callable[..., Any], queries: tuple[int, int], keys: tuple[int, int]
) -> dict[str, Callable[[], Any]]:
    """The forward, and forward and backward, of first row and rows of the case's queries and keys."""
    shape, options, axis = CASES[name]
    mx.random.seed(0)
    arrays = [rows_of(mx.random.normal(shape), axis, *rows) for rows in (queries, keys, keys, queries)]
    mx.eval(arrays)
    query, key, value, cotangent = arrays

    def forward(q: mx.array, k: mx.array, v: mx.array) -> Any:
        return na(q, k, v, **options)

    def both() -> Any:
        outputs, gradients = mx.vjp(lambda *a: [forward(*a)], [query, key, value], [cotangent])
        return [*outputs, *gradients]

    return {"forward": lambda: forward(query, key, value), "both": both}


def seconds_of(step: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Of one of several calls one after the other: by the clock, and of processors."""
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        mx.eval(step())
    return (time.perf_counter() - start) / repeats, (time.process_time() - start_cpu) / repeats


def steps_of_rank(
    name: str, group: mx.distributed.Group, link: mx.Stream | None
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Of the spread call, and of a call that has the rank's halo already."""
    shape, options, axis = CASES[name]
    rank, length, function = len(shape) - 3, shape[1 + axis], f"na{len(shape) - 3}d"
    rows = [length // group.size() + (i < length % group.size()) for i in range(group.size())]
    start, own = sum(rows[: group.rank()]), rows[group.rank()]
    spread = {"group": group, "axis": axis, "rows": rows, "communication_stream": link}
    starts, counts = [0] * rank, list(shape[1:-2])
    starts[axis], counts[axis] = start, own
    key_starts, key_rows = natten_mlx.key_span(query_start=starts, rows=counts, shape=shape[1:-2], **options)
    local = {"query_start": starts, "key_start": key_starts, "shape": shape[1:-2]}
    return {
        "spread": steps(name, partial(getattr(distributed, function), **spread), (start, own), (start, own)),
        "local": steps(
            name, partial(getattr(natten_mlx, function), **local), (start, own), (key_starts[axis], key_rows[axis])
        ),
    }


def rank_main(args: argparse.Namespace) -> None:
    """Times what the other end of a socket asks for, (case, kind, direction, repeats), and answers with seconds."""
    group = mx.distributed.init(strict=True, backend=args.backend)
    asked = Client(args.rank, "AF_UNIX")
    asked.send(group.rank())
    link = mx.new_stream(mx.cpu) if args.overlap else None
    made: dict[str, dict[str, dict[str, Callable[[], Any]]]] = {}
    while True:
        try:
            name, kind, direction, repeats = asked.recv()
        except EOFError:
            return
        if name not in made:
            made[name] = steps_of_rank(name, group, link)
        step = made[name][kind][direction]
        mx.eval(mx.distributed.all_sum(mx.array(0.0), group=group, stream=link or mx.cpu))  # all begin together
        if args.late:
            time.sleep(args.late * (group.rank() > 0))
            start = time.time()
            mx.eval(step())
            asked.send((start, time.time()))
        else:
            asked.send(seconds_of(step, repeats))


class Ranks:
    """Processes of this machine that wait for work."""

    def __init__(self, count: int, folder: Path, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--backend", args.backend, "--late", str(args.late)]
        command += ["--overlap"] * args.overlap + ["--rank", str(folder / "socket")]
        environment = {**os.environ, "NATTEN_NUM_THREADS": str(max(1, args.threads // count))}
        with Listener(command[-1], "AF_UNIX") as listener:
            if args.backend == "mpi":
                # Open MPI without its development files has no libmpi.so, which MLX looks for. Waiting ranks give their
                # core away; a container may forbid reading another process' memory.
                environment["MLX_MPI_LIBNAME"] = ctypes.util.find_library("mpi") or "libmpi.so"
                launch = f"mpirun -n {count} --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1"
                launch += " --bind-to none --mca btl_vader_single_copy_mechanism none"
                self.processes = [subprocess.Popen([*launch.split(), *command], env=environment)]
            else:
                hosts = folder / "hosts.json"
                hosts.write_text(json.dumps([[f"127.0.0.1:{args.port + rank}"] for rank in range(count)]))
                environment["MLX_HOSTFILE"] = str(hosts)
                self.processes = [
                    subprocess.Popen(command, env={**environment, "MLX_RANK": str(rank)}) for rank in range(count)
                ]
            signal.alarm(60)  # not waited for longer: a rank that ends before it connects
            accepted = [listener.accept() for _ in range(count)]
            signal.alarm(0)
        by_rank = {rank.recv(): rank for rank in accepted}
        self.ranks = [by_rank[rank] for rank in range(count)]

    def answers(self, *work: Any) -> list[Any]:
        """Of every rank."""
        for rank in self.ranks:
            rank.send(work)
        return [rank.recv() for rank in self.ranks]

    def seconds(self, *work: Any) -> tuple[float, float]:
        """Of the slowest by the clock, of all ranks' processors."""
        clock, processors = zip(*self.answers(*work), strict=True)
        return max(clock), sum(processors)

    def close(self) -> None:
        """End them."""
        for rank in self.ranks:
            rank.close()
        for process in self.processes:
            process.wait(30)


def measure(ranks: Ranks, name: str, direction: str, rounds: int, of_processors: bool) -> dict[str, float]:
    """Medians of seconds, and of the ratios in each round."""
    shape, _, axis = CASES[name]
    whole = (0, shape[1 + axis])
    plain = steps(name, getattr(natten_mlx, f"na{len(shape) - 3}d"), whole, whole)[direction]
    repeats = 2
    timed: dict[str, Callable[[], tuple[float, float]]] = {
        "plain": lambda: seconds_of(plain, repeats),
        "spread": lambda: ranks.seconds(name, "spread", direction, repeats),
        "local": lambda: ranks.seconds(name, "local", direction, repeats),
    }
    for measured in timed.values():
        measured()
    repeats = max(1, round(0.15 / seconds_of(plain, 1)[0]))
    found = []
    for index in range(rounds):
        order = list(timed)[:: -1 if index % 2 else 1]
        found.append({kind: timed[kind]()[of_processors] for kind in order})
    result = {kind: statistics.median(seconds[kind] for seconds in found) for kind in timed}
    result["ratio"] = statistics.median(seconds["spread"] / seconds["plain"] for seconds in found)
    result["floor"] = statistics.median(seconds["local"] / seconds["plain"] for seconds in found)
    return result


def measure_late(args: argparse.Namespace) -> None:
    """Rank 1 begins when rank 0 has had time for everything that needs no halo."""
    print(f"{'case':10} messages on         ms of rank 0 after rank 1 began, {args.late} s late")
    for overlap in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            ranks = Ranks(2, Path(folder), argparse.Namespace(**{**vars(args), "overlap": overlap}))
            try:
                for name in args.cases:
                    ranks.answers(name, "spread", "forward", 1)
                    tails = []
                    for _ in range(args.rounds):
                        (_, end), (start, _) = ranks.answers(name, "spread", "forward", 1)
                        tails.append(1e3 * (end - start))
                    where = "their own stream" if overlap else "the same stream"
                    print(f"{name:10} {where:18} {statistics.median(tails):8.1f}", flush=True)
            finally:
                ranks.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--threads", type=int, default=2, help="of the plain call, and of all ranks together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--directions", nargs="+", choices=["forward", "both"], default=["forward", "both"])
    parser.add_argument("--overlap", action="store_true", help="messages on a stream of their own")
    parser.add_argument("--cpu", action="store_true", help="time of processors, which other programs disturb less")
    parser.add_argument("--late", type=float, default=0.0, help="seconds; measures overlap instead")
    parser.add_argument("--port", type=int, default=32700)
    parser.add_argument("--limit", type=float, help="exit 1 where a ratio is above")
    parser.add_argument("--backend", choices=["ring", "mpi"], default="ring")
    parser.add_argument("--rank", metavar="SOCKET", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank_main(args)
        return 0
    if os.environ.get("NATTEN_NUM_THREADS") != str(args.threads):
        # The pool of threads is made once for a process.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "NATTEN_NUM_THREADS": str(args.threads)})
    if args.late:
        measure_late(args)
        return 0
    worst = 0.0
    print(f"{'case':10} {'direction':9} ranks  plain ms  spread ms  ratio  floor   ({args.threads} threads in all)")
    for index, count in enumerate(args.ranks):
        with tempfile.TemporaryDirectory() as folder:
            args.port += 16 * (index > 0)  # those of the ranks before may not be free yet
            ranks = Ranks(count, Path(folder), args)
            try:
                for name in args.cases:
                    for direction in args.directions:
                        found = measure(ranks, name, direction, args.rounds, args.cpu)
                        worst = max(worst, found["ratio"])
                        times = f"{1e3 * found['plain']:8.1f}  {1e3 * found['spread']:9.1f}"
                        print(
                            f"{name:10} {direction:9} {count:5}  {times}  {found['ratio']:5.2f}  {found['floor']:5.2f}",
                            flush=True,
                        )
            finally:
                ranks.close()
    if args.limit is not None and worst > args.limit:
        print(f"above the limit of {args.limit}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
