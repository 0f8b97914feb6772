"""Calls that are spread over ranks: groups of processes run distributed_ranks.py, here is what they say."""

import ctypes.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import natten_mlx

HERE = Path(__file__).parent
SECONDS = 200  # for a whole group, on a busy machine


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_group(folder: Path, ranks: int, *argv: str, **environment: str) -> list[subprocess.Popen[str]]:
    """One process for each rank of a ring; one alone has none."""
    hosts = folder / f"hosts-{time.monotonic_ns()}.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(ranks)]))
    base = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "NATTEN_NUM_THREADS": "1",
    }
    if ranks > 1:
        base["MLX_HOSTFILE"] = str(hosts)
    return [
        subprocess.Popen(
            [sys.executable, *argv],
            env={**base, "MLX_RANK": str(rank), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def finish(group: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each rank. Whoever is not ready in time is killed."""
    end, results = time.monotonic() + seconds, []
    try:
        for process in group:
            try:
                out, err = process.communicate(timeout=max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                err += "\nkilled: not ready in time"
            results.append((process.returncode, out, err))
    finally:
        for process in group:
            process.kill()
    return results


def results_of(out: str) -> list[dict]:
    """The objects of JSON in ``out``. mpirun may put the end of a rank's line after the beginning of another's."""
    decoder, results = json.JSONDecoder(), []
    start = out.find("{")
    while start >= 0:
        result, end = decoder.raw_decode(out, start)
        results.append(result)
        start = out.find("{", end)
    return results


def test_results_share_a_line():
    assert results_of('a warning\n{"rank": 0}{"rank": 1, "problem": null}\n\n{"rank": 0}\n') == [
        {"rank": 0},
        {"rank": 1, "problem": None},
        {"rank": 0},
    ]


def problems_of(outs: list[str], ranks: int, least: int) -> list[str]:
    """What distributed_ranks.py printed, of all ranks: every one must have run as many cases."""
    results = [result for out in outs for result in results_of(out)]
    counts = [sum(r["rank"] == rank for r in results) for rank in range(ranks)]
    problems = [f"rank {r['rank']}, {r['case']}: {r['problem']}" for r in results if r["problem"]]
    return problems if min(counts) == max(counts) >= least else [*problems, f"cases of each rank: {counts}"]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("ranks", "backend", "carrier"),
    [
        *((ranks, backend, "neighbors") for ranks in (1, 2, 3, 4) for backend in ("pure", "nanobind")),
        (3, "pure", "gathers"),
    ],
)
def test_every_case_on_a_group(tmp_path, ranks, backend, carrier):
    if backend == "nanobind" and not natten_mlx.has_nanobind():
        pytest.skip(natten_mlx.get_support_matrix()["nanobind"]["reason"])
    # Some random calls are outside of the compiled kernels, and fall back on all ranks alike.
    environment = {"NATTEN_DISTRIBUTED_CARRIER": carrier, "NATTEN_STRICT": "0"}
    group = start_group(tmp_path, ranks, str(HERE / "distributed_ranks.py"), backend, **environment)
    results = finish(group, SECONDS)
    problems = problems_of([out for _, out, _ in results], ranks, 20)
    problems += [f"rank {rank} ended with {code}: {err[-2000:]}" for rank, (code, _, err) in enumerate(results) if code]
    assert not problems, "\n".join(problems[:8])


def test_a_group_of_mpi(tmp_path):
    """A sample of the cases. Open MPI without its development files has no libmpi.so, which MLX looks for."""
    runner, library = shutil.which("mpirun"), ctypes.util.find_library("mpi")
    if runner is None or library is None:
        pytest.skip("mpirun or libmpi is not there (Debian: openmpi-bin)")
    cases = ["random_0", "several_calls_in_one_graph", "compiled", "shard_and_gather", "modules"]
    cases += ["disagreement_raises_on_every_rank"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "NATTEN_NUM_THREADS": "1",
        "NATTEN_TEST_GROUP": "mpi",
        "MLX_MPI_LIBNAME": library,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",  # a container may forbid it
    }
    script = [sys.executable, str(HERE / "distributed_ranks.py"), "pure", *cases]
    run = subprocess.run(
        [runner, "-n", "2", *script], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert not problems_of([run.stdout], 2, len(cases))


WAITING = """
import time
import mlx.core as mx
from natten_mlx import distributed
group = mx.distributed.init(strict=True, backend="ring")
x = mx.ones((1, 8, 2, 4))
mx.eval(distributed.na1d(x, x, x, 3, group=group, rows=[8] * 3))
if group.rank() == 1:
    time.sleep(2)
start = time.process_time()
mx.eval(distributed.na1d(x, x, x, 3, group=group, rows=[8] * 3))
print(time.process_time() - start)
"""


def test_a_rank_that_waits_for_a_message_leaves_its_core_to_others(tmp_path):
    results = finish(start_group(tmp_path, 3, "-c", WAITING), 60)
    assert [code for code, _, _ in results] == [0] * 3, results
    assert max(float(out) for _, out, _ in results) < 0.5, results  # of the 2 s that the ring would spin


FAILING = """
import mlx.core as mx
from natten_mlx import distributed
group = mx.distributed.init(strict=True, backend="ring")
x = mx.ones((1, 8, 2, 4))
mx.eval(distributed.na1d(x, x, x, 3, group=group))
if group.rank() == 1:
    raise RuntimeError("a wheel came off")
mx.eval(distributed.na1d(x, x, x, 3, group=group))
"""


def test_a_rank_that_fails_ends_the_others(tmp_path):
    start = time.monotonic()
    results = finish(start_group(tmp_path, 3, "-c", FAILING), 60)
    assert [code != 0 for code, _, _ in results] == [True] * 3
    assert "a wheel came off" in results[1][2]
    assert all("lost" in results[rank][2] or "closed" in results[rank][2] for rank in (0, 2)), results
    assert time.monotonic() - start < 45  # most of it is starting Python on a busy machine


LOST = """
import sys, time
import mlx.core as mx
from natten_mlx import distributed
group = mx.distributed.init(strict=True, backend="ring")
length, circular, late = int(sys.argv[1]), sys.argv[2] == "circular", float(sys.argv[3])
rows = [length] * group.size()
def call():
    x = mx.ones((1, length, 4, 256))
    options = dict(group=group, rows=rows, stride=min(200, length), is_circular=circular)
    if circular:
        options["stride"] = 1
    mx.eval(distributed.na1d(x, x, x, 5 if circular else 2 * length - 1, **options))
call()
if group.rank() == 1:
    time.sleep(late)
    raise RuntimeError("a wheel came off")
for _ in range(2):
    try:
        call()
    except RuntimeError as error:
        print(error, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("ranks", "length", "kind", "late"),
    [(3, 400, "plain", 1), (2, 800, "plain", 0), (2, 8, "circular", 1), (3, 8, "circular", 0)],
)
def test_whoever_waits_for_a_lost_rank_is_told(tmp_path, ranks, length, kind, late):
    """In the middle of messages that no connection holds, and again at the next call."""
    arguments = ("-c", LOST, str(length), kind, str(late))
    results = finish(start_group(tmp_path, ranks, *arguments), 60)
    assert "a wheel came off" in results[1][2]
    for rank in {0, ranks - 1} - {1}:
        assert "lost" in results[rank][2] or "closed" in results[rank][2], results


LOST_TO_ALL = """
import sys
import mlx.core as mx
from natten_mlx import distributed
group = mx.distributed.init(strict=True, backend="ring")
length = int(sys.argv[2])
x = mx.ones((1, length, 2, 4))
call = {
    "arguments": lambda: distributed.na1d(x, x, x, 3, group=group),
    "gather": lambda: distributed.gather(x, 0, group, rows=[length] * group.size()),
    "sum": lambda: distributed.sum_gradients(x, group),
}[sys.argv[1]]
mx.eval(call())
if group.rank() == 1:
    raise RuntimeError("a wheel came off")
for _ in range(2):
    try:
        mx.eval(call())
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("what", "ranks", "length"),
    [("arguments", 2, 8), ("arguments", 4, 8), ("gather", 3, 100000), ("sum", 2, 8), ("sum", 4, 100000)],
)
def test_all_ranks_are_told_of_one_that_is_lost(tmp_path, what, ranks, length):
    """In gathers and sums, at each call, and also those who are not its neighbors."""
    results = finish(start_group(tmp_path, ranks, "-c", LOST_TO_ALL, what, str(length)), 30)
    assert "a wheel came off" in results[1][2]
    for rank in set(range(ranks)) - {1}:
        code, out, _ = results[rank]
        assert code == 0 and out.count("connection to a neighboring rank was lost") == 2, results


def test_the_launcher_shows_the_error_of_the_rank_that_failed(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    command = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "3", "--backend", "ring"]
    command += ["--starting-port", str(free_ports(1)[0]), "--", sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "a wheel came off" in found.stdout + found.stderr
