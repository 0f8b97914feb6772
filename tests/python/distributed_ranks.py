"""What one rank of a group runs for test_distributed.py: every case, and a line of JSON about each.

python tests/python/distributed_ranks.py TIER [CASE...]
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import distributed_modules  # noqa: F401  (adds its cases)
import natten_mlx
from distributed_harness import CASES, GROUP, RANK, SIZE, Call, assert_close, assert_same, case, main, refused
from natten_mlx import _ext, distributed
from natten_mlx.distributed.plan import plan


def random_calls(first: int, count: int, **fixed: Any) -> None:
    for seed in range(first, first + count):
        call = Call(100 * SIZE + 10_000 * seed, **fixed)
        try:
            call.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}: {call.describe()}") from None


for part in range(4):
    CASES[f"random_{part}"] = lambda part=part: random_calls(12 * part, 12)


# Rows of each rank, the other axes, heads, head dim, window: one for each design of the CPU kernels, whose tiles and
# blocks the slabs cut anywhere.
DESIGNS: dict[str, tuple[list[int], tuple[int, ...], int, int, dict[str, Any]]] = {
    "direct": ([301, 67, 130, 255], (), 2, 64, {"kernel_size": 7}),
    "query lanes": ([301, 67, 130, 255], (), 2, 32, {"kernel_size": 31}),
    "two tiles of lanes": ([301, 167, 150, 255], (), 2, 32, {"kernel_size": 129, "is_causal": True}),
    "lanes in chunks": ([1301, 1067, 530, 955], (), 1, 64, {"kernel_size": 700}),
    "shift": ([31, 7, 20, 13], (37,), 2, 32, {"kernel_size": (7, 5), "is_circular": (True, False)}),
    "shift along one axis": ([131, 67, 120, 83], (), 2, 16, {"kernel_size": 9, "dilation": 2}),
    "three axes": ([11, 7, 10, 13], (9, 10), 2, 32, {"kernel_size": (3, 5, 3)}),
    "segments": ([50, 21, 30, 41], (45,), 1, 32, {"kernel_size": (41, 41)}),
}


@case
def every_design_of_the_cpu_kernels() -> None:
    if natten_mlx.get_backend() != "nanobind":
        return
    for index, (name, (rows, others, heads, dim, options)) in enumerate(DESIGNS.items()):
        for axis in range(1 + len(others)):
            shape = (1, *others[:axis], sum(rows[:SIZE]), *others[axis:], heads, dim)
            turned = {
                option: (*values[1 : axis + 1], values[0], *values[axis + 1 :]) if isinstance(values, tuple) else values
                for option, values in options.items()
            }
            for overlap in (False, True):
                call = Call(300 + index, rank=1 + len(others), rows=rows[:SIZE], dtype=mx.float32, overlap=overlap)
                call.axis, call.options, call.shared, call.queries = axis, turned, {}, call.tokens
                call.arrays = {which: mx.random.normal(shape) for which in ("query", "key", "value")}
                try:
                    call.check()
                except AssertionError as error:
                    raise AssertionError(f"{name}, {call.describe()}: {error}") from None


@case
def keys_are_not_copied() -> None:
    """CPU kernels read the slab where it lies and the halo where it came: a call allocates little but its result."""
    if natten_mlx.get_backend() != "nanobind":
        return
    mx.random.seed(16)
    slabs = [mx.random.normal((1, 24, 32, 4, 64)) for _ in range(3)]
    mx.eval(slabs)
    for axis in range(2):
        mx.eval(distributed.na2d(*slabs, 3, axis=axis, group=GROUP))
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(distributed.na2d(*slabs, 3, axis=axis, group=GROUP))
        allocated = (mx.get_peak_memory() - before) / slabs[0].nbytes
        assert allocated < 2, (axis, allocated)


@case
def slabs_are_views() -> None:
    """As of one projection, where tokens do not lie side by side."""
    call = Call(17, rank=2, rows=[5] * SIZE, dtype=mx.float32)
    call.options, call.shared, call.queries = {"kernel_size": 3}, {}, call.tokens
    shape = [2, 6, 6, 2, 8]
    shape[1 + call.axis] = 5 * SIZE
    call.arrays = {name: mx.random.normal(shape) for name in ("query", "key", "value")}
    call.check(lambda *a: call.spread(*mx.split(mx.concatenate(a, -1), 3, -1)))


@case
def windows_of_one_rank_reach_over_several() -> None:
    random_calls(1000, 6, rows=[1] * SIZE if SIZE > 2 else [2] * SIZE, dtype=mx.float32)


@case
def checkpointed() -> None:
    for seed in range(3):
        call = Call(41 + seed)
        call.check(mx.checkpoint(lambda *a, call=call: list(call.spread(*a))))


def _plain_call(seed: int, overlap: bool, causal: bool = False) -> Call:
    call = Call(seed, rank=1, rows=[7] * SIZE, dtype=mx.float32, overlap=overlap)
    call.options = {"kernel_size": 4, "is_causal": causal}
    call.arrays["value"], call.shared = call.arrays["value"].astype(mx.float32), {}
    call.queries = call.tokens
    return call


def _check_mapped(call: Call) -> None:
    whole = [mx.stack([a, 2 * a]) for a in call.whole()]
    slabs = [mx.stack([a, 2 * a]) for a in call.slabs()]
    wanted = mx.vmap(lambda *a: call.plain(*a)[0])(*whole)
    assert_close("out", mx.vmap(lambda *a: call.spread(*a)[0])(*slabs), wanted[:, :, call.queries], 1e-5)

    def gradients(function: Any, arrays: list[mx.array]) -> Any:
        return mx.vmap(mx.grad(lambda *a: function(*a)[0].square().sum(), argnums=(0, 1, 2)))(*arrays)

    for name, got, all_rows in zip("qkv", gradients(call.spread, slabs), gradients(call.plain, whole), strict=True):
        assert_close("d" + name, got, all_rows[:, :, call.tokens], 2e-5)


@case
def mapped() -> None:
    """vmap over a leading axis of everything, forward and gradient."""
    for overlap in (True, False):
        _check_mapped(_plain_call(51, overlap))


def _check_derivatives(call: Call) -> None:
    mx.random.seed(3)
    directions = [mx.random.normal(a.shape) for a in call.whole()]
    mine = [call.rows_of(a, call.tokens) for a in directions]
    _, wanted = mx.jvp(lambda *a: call.plain(*a)[0], call.whole(), directions)
    _, got = mx.jvp(lambda *a: call.spread(*a)[0], call.slabs(), mine)
    assert_close("tangent", got[0], call.rows_of(wanted[0], call.queries), 2e-5)

    def second(function: Any, arrays: list[mx.array]) -> Any:
        def norm(*a: mx.array) -> mx.array:
            found = mx.grad(lambda *b: function(*b)[0].square().sum(), argnums=(0, 1, 2))(*a)
            return sum(g.square().sum() for g in found)

        return mx.grad(norm, argnums=(0, 1, 2))(*arrays)

    for name, got, whole in zip(
        "qkv", second(call.spread, call.slabs()), second(call.plain, call.whole()), strict=True
    ):
        assert_close("dd" + name, got, call.rows_of(whole, call.tokens), 1e-4)


@case
def tangents_and_second_derivatives() -> None:
    """With causal axes too, where the first rank only sends and the last only receives."""
    for overlap, causal in itertools.product((True, False), (True, False)):
        _check_derivatives(_plain_call(61, overlap, causal))


def _net(na: Callable[..., mx.array], a: mx.array, b: mx.array) -> mx.array:
    """Calls that depend on each other, calls that do not, and results used twice."""
    left, right = na(a, a, a, 3, is_causal=True), na(b, 2 * b, b, 3)
    left = na(left, left, a, 3)
    return na(left, right, right, 5 if SIZE > 1 else 3) + left * na(right, b, left, 3, is_circular=True) + left


def _check_net(overlap: bool) -> None:
    mx.random.seed(5)
    a, b = mx.random.normal((2, 1, 6 * SIZE, 2, 4))
    mine = slice(6 * RANK, 6 * RANK + 6)

    def spread(*arrays: mx.array, **options: Any) -> mx.array:
        return distributed.na1d(*arrays, **options, group=GROUP, overlap=overlap)

    def step(na: Callable[..., mx.array]) -> Any:
        return mx.value_and_grad(lambda a, b: _net(na, a, b).square().sum(), argnums=(0, 1))

    wanted, all_gradients = step(natten_mlx.na1d)(a, b)
    for _ in range(2):
        value, gradients = step(spread)(a[:, mine], b[:, mine])
        for got, whole in zip(gradients, all_gradients, strict=True):
            assert_close("gradient", got, whole[:, mine], 5e-5)
        assert_close("loss", distributed.sum_gradients(value, GROUP), wanted, 1e-5)


@case
def several_calls_in_one_graph() -> None:
    for overlap in (True, False):
        _check_net(overlap)


@case
def compiled() -> None:
    """Calls that share no argument, and their gradients, in one compiled function. MLX compiles on a CPU with the
    system's compiler, so the graph is small."""
    mx.random.seed(15)
    x = mx.random.normal((2, 1, 6 * SIZE, 2, 4))
    mine = slice(6 * RANK, 6 * RANK + 6)

    def gradients(na: Callable[..., mx.array]) -> Callable[..., Any]:
        return mx.grad(lambda a, b: (na(a, a, a, 3) + na(b, b, b, 3)).sum(), argnums=(0, 1))

    function = mx.compile(gradients(lambda *a: distributed.na1d(*a, group=GROUP, overlap=True)))
    for turn in range(1, 4):
        wanted = gradients(natten_mlx.na1d)(*(turn * x))
        for got, whole in zip(function(*(turn * x[:, :, mine])), wanted, strict=True):
            assert_close("gradient", got, whole[:, mine], 2e-5)


@case
def any_order_of_evaluation() -> None:
    mx.random.seed(6)
    x = mx.random.normal((4, 1, 5 * SIZE, 2, 4))
    mine = slice(5 * RANK, 5 * RANK + 5)
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 5):
        outs = [distributed.na1d(*(a[:, mine],) * 3, 3, group=GROUP) for a in x]
        for i in order:
            mx.eval(outs[i])
            assert_same(f"call {i}", outs[i], natten_mlx.na1d(*(x[i],) * 3, 3)[:, mine])
    outs = [distributed.na1d(*(a[:, mine],) * 3, 3, group=GROUP) for a in x]
    mx.async_eval(outs[2])
    mx.async_eval(outs[0], outs[3])
    assert_same("async", outs[1], natten_mlx.na1d(*(x[1],) * 3, 3)[:, mine])


@case
def results_that_nobody_reads() -> None:
    mx.random.seed(8)
    x = mx.random.normal((1, 4 * SIZE, 2, 4))
    mine = slice(4 * RANK, 4 * RANK + 4)
    distributed.na1d(*(x[:, mine],) * 3, 3, group=GROUP)
    out = distributed.na1d(*(x[:, mine],) * 3, 3, group=GROUP)
    assert_same("out", out, natten_mlx.na1d(*(x,) * 3, 3)[:, mine])


def _check_bytes(call: Call) -> None:
    query, key, value = call.arrays.values()
    window = {name: each for name, each in call.options.items() if name != "scale"}
    heads = {"kv_heads": key.shape[-2], "value_dim": value.shape[-1], "dtype": key.dtype}
    wanted = plan(query.shape, ranks=call.rows, axis=call.axis, **heads, **window).ranks[RANK]
    before = distributed.bytes_sent()
    mx.eval(call.spread(*call.slabs()))
    forward = distributed.bytes_sent() - before
    cotangents = [call.rows_of(c, call.queries) for c in call.cotangents()]
    mx.eval(mx.vjp(lambda *a: list(call.spread(*a)), call.slabs(), cotangents))
    both = distributed.bytes_sent() - before - forward
    assert forward == wanted.bytes_forward, f"{forward} bytes, planned {wanted.bytes_forward}: {call.describe()}"
    assert both == wanted.bytes_forward + wanted.bytes_backward, f"{both} bytes: {call.describe()}"


@case
def bytes_are_those_of_the_halo() -> None:
    """To the byte those of the plan, forward and backward."""
    if os.environ.get("NATTEN_DISTRIBUTED_CARRIER") == "gathers":
        return
    for seed in range(70, 82):
        call = Call(seed)
        call.options.pop("lengths", None)
        if call.arrays["key"].dtype == call.arrays["value"].dtype:
            _check_bytes(call)


@case
def messages_on_a_stream_of_their_own() -> None:
    """What needs no halo is computed meanwhile, on the CPU device too."""
    stream = mx.new_stream(mx.cpu)
    for seed in range(200, 206):
        call = Call(seed, rows=[9] * SIZE, overlap=None)
        call.check(lambda *a, call=call: call.spread(*a, communication_stream=stream))
        mx.synchronize(stream)  # the next call's is MLX's own


@case
def rows_are_sent_from_where_they_lie() -> None:
    """More runs of memory than the system takes at a time, side by side or not, beside some that are copied first."""
    mx.random.seed(19)
    for dims in ((64, 64), (64, 4)):  # runs of 1 KB, and values of 64 bytes
        whole = [mx.random.normal((1, 300, 5 * SIZE, 4, dim)) for dim in (64, *dims)]
        for views in (False, True):
            slabs = [a[:, :, 5 * RANK : 5 * RANK + 5] for a in whole]
            slabs = slabs if views else [mx.contiguous(a) for a in slabs]
            mx.eval(slabs)
            out = distributed.na2d(*slabs, (3, 5), axis=1, group=GROUP, rows=[5] * SIZE)
            wanted = natten_mlx.na2d(*whole, (3, 5))[:, :, 5 * RANK : 5 * RANK + 5]
            assert_same(f"{dims}, views: {views}", out, wanted)


@case
def messages_larger_than_a_connection_takes() -> None:
    """Beside small ones, which are sent first: no order of them ends in a circle of ranks that wait."""
    if SIZE == 1 or os.environ.get("NATTEN_DISTRIBUTED_CARRIER") == "gathers":
        return
    mx.random.seed(18)
    for sizes in ([650, 650], [40, 1300], [1300, 40]):  # rows of 8 KB; a connection on this machine takes 2 MB or so
        rows = [sizes[rank % 2] for rank in range(SIZE)]
        start, stop = sum(rows[:RANK]), sum(rows[: RANK + 1])
        key = mx.random.normal((1, sum(rows), 4, 256))
        query, options = key[..., :1, :], {"kernel_size": min(1201, sum(rows)), "stride": 400}
        query = mx.broadcast_to(query, key.shape)
        before = distributed.bytes_sent()
        spread = [
            distributed.na1d(*(a[:, start:stop] for a in (query, key, key + turn)), group=GROUP, rows=rows, **options)
            for turn in range(2)
        ]
        for turn, out in enumerate(spread):
            whole = natten_mlx.na1d(query, key, key + turn, **options)
            assert_close(f"call {turn}", out, whole[:, -(-start // 400) : -(-stop // 400)], 1e-5)  # few queries
        assert sizes != [650, 650] or distributed.bytes_sent() - before > 2 * 2**20


@case
def rows_may_be_given() -> None:
    call = Call(81)
    call.check(lambda *a: call.spread(*a, rows=call.rows))
    if SIZE > 1:
        refused(lambda: call.spread(*call.slabs(), rows=[1] * (SIZE + 1)), "rows must have one value")


@case
def shard_and_gather() -> None:
    mx.random.seed(9)
    x = mx.random.normal((2, 3, 4 * SIZE + 1, 5))
    weights = mx.random.normal((SIZE, *x.shape))
    slab = distributed.shard(x, 1, GROUP)
    rows = _ext.equal_rows(x.shape[2], SIZE)
    start = sum(rows[:RANK])
    assert_same("slab", slab, x[:, :, start : start + rows[RANK]])
    assert_same("whole", distributed.gather(slab, 1, GROUP), x)
    found = mx.grad(lambda a: (distributed.gather(a, 1, GROUP) * weights[RANK]).sum())(slab)
    assert_close("dslab", found, weights.sum(axis=0)[:, :, start : start + rows[RANK]], 1e-5)
    found = mx.grad(lambda a: (distributed.shard(a, 1, GROUP) ** 2).sum())(x)
    assert_close("dx", distributed.sum_gradients(found, GROUP), 2 * x, 1e-6)
    if SIZE > 1:
        refused(lambda: distributed.shard(x[:, :, : SIZE - 1], 1, GROUP), "must have a row for each")
    refused(lambda: distributed.shard(x, -1, GROUP), "axis must count from")


@case
def gradients_are_summed() -> None:
    tree = {"a": mx.full((3, 2), RANK + 1.0), "b": [mx.full((2,), RANK, mx.float16), mx.array(1.0)]}
    total = distributed.sum_gradients(tree, GROUP)
    assert_close("a", total["a"], mx.full((3, 2), SIZE * (SIZE + 1) / 2), 0)
    assert_close("b", total["b"][0], mx.full((2,), SIZE * (SIZE - 1) / 2), 0)
    assert total["b"][0].dtype == mx.float16 and total["b"][1].item() == SIZE
    types = (mx.float32, mx.bfloat16, mx.complex64, mx.int32, mx.int64, mx.uint8)
    for count, dtype in itertools.product((0, 1, SIZE - 1, 3 * SIZE + 1), types):
        found = distributed.sum_gradients((mx.arange(count) + RANK).astype(dtype), GROUP)
        wanted = (SIZE * mx.arange(count) + SIZE * (SIZE - 1) // 2).astype(dtype)
        assert_same(f"{count} of {dtype}", found, wanted)
    mx.random.seed(20)
    parts = mx.random.normal((SIZE, 1000)).astype(mx.bfloat16)
    found = distributed.sum_gradients(parts[RANK], GROUP)
    assert_close("sum", found, parts.astype(mx.float32).sum(0), 3e-2)
    every = distributed.gather(found[None, :, None], 0, GROUP)[0, :, 0].reshape(SIZE, -1)
    assert mx.all(every == found), "ranks have other bits"


@case
def sums_in_traces() -> None:
    def total(a: mx.array) -> mx.array:
        return distributed.sum_gradients(a * a, GROUP)

    x = mx.arange(6.0).reshape(2, 3) + RANK
    wanted = sum((mx.arange(6.0).reshape(2, 3) + rank) ** 2 for rank in range(SIZE))
    assert_close("mapped", mx.vmap(total)(x), wanted, 1e-6)
    assert_close("compiled", mx.compile(total)(x), wanted, 1e-6)
    _, tangents = mx.jvp(total, [x], [mx.ones((2, 3))])
    assert_close("tangent", tangents[0], sum(2 * (mx.arange(6.0).reshape(2, 3) + rank) for rank in range(SIZE)), 1e-6)
    assert_close("gradient", mx.grad(lambda a: total(a).sum())(x), 2 * x, 1e-6)


@case
def training() -> None:
    """A few steps of a model with two calls, on slabs and on the whole."""
    mx.random.seed(11)
    x, target = mx.random.normal((2, 4 * SIZE, 8)), mx.random.normal((2, 4 * SIZE, 8))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

        def __call__(self, x: mx.array, na: Callable[..., mx.array]) -> mx.array:
            for causal in (False, True):
                q, k, v = (a.reshape(*x.shape[:2], 2, 4) for a in mx.split(self.qkv(x), 3, -1))
                x = x + self.proj(na(q, k, v, 3, is_causal=causal).reshape(x.shape))
            return x

    def losses(spread: bool) -> list[float]:
        mx.random.seed(12)
        model = Model()
        if spread:
            inputs = distributed.shard(x, 0, GROUP), distributed.shard(target, 0, GROUP)
            na = lambda *a, **o: distributed.na1d(*a, **o, group=GROUP)  # noqa: E731
        else:
            inputs, na = (x, target), natten_mlx.na1d
        step = nn.value_and_grad(model, lambda a, b: (model(a, na) - b).square().sum() / x.size)
        found = []
        for _ in range(3):
            loss, gradients = step(*inputs)
            if spread:
                loss, gradients = distributed.sum_gradients((loss, gradients), GROUP)
            model.update(nn.utils.tree_map(lambda p, g: p - 0.1 * g, model.parameters(), gradients))
            mx.eval(model.parameters(), loss)
            found.append(loss.item())
        return found

    assert np.allclose(losses(True), losses(False), rtol=1e-5), (losses(True), losses(False))


@case
def disagreement_raises_on_every_rank() -> None:
    if SIZE == 1:
        return
    x = mx.zeros((1, 6, 2, 4))
    last = RANK == SIZE - 1

    def na(**changed: Any) -> mx.array:
        options = {"kernel_size": 3, **(changed if last else {})}
        return distributed.na1d(x, x, x, group=GROUP, **options)

    refused(lambda: na(kernel_size=5), "kernel_size", f"got 3 on rank 0 and 5 on rank {SIZE - 1}")
    refused(lambda: na(is_causal=True), "is_causal")
    refused(lambda: na(scale=0.5), "scale", "none on rank 0 and 0.5")
    refused(lambda: na(rpb=mx.zeros((2, 5))), "rpb")
    refused(lambda: na(axis=-1), "axis")
    y = mx.zeros((1, 6, 2, 8) if last else (1, 6, 2, 4))
    refused(lambda: distributed.na1d(y, y, y, 3, group=GROUP), "shape of query")
    y = x.astype(mx.float16) if last else x
    refused(lambda: distributed.na1d(x, y, x, 3, group=GROUP), "dtype of key", "float16")
    y = mx.zeros((1, 5 if last else 6, 2, 4))
    refused(lambda: distributed.na1d(x, y, x, 3, group=GROUP), "rows that key and value have")
    # What is wrong on all ranks, they all say; and nothing is left in the way of the next call.
    refused(lambda: distributed.na1d(x, x, x, 6 * SIZE + 1, group=GROUP), "kernel_size[0]")
    refused(lambda: distributed.na1d(x, x, x, 3, group=GROUP, axis=1), "axis must be")
    refused(lambda: distributed.na1d(x, x, x, 3, group=GROUP, rows=3), "rows must be a sequence of int, got 3")
    assert_same("out", distributed.na1d(x, x, x, 3, group=GROUP), x)


@case
def a_query_stride_may_leave_a_rank_without_queries() -> None:
    if SIZE == 1:
        return
    call = Call(91, rank=1, rows=[2] * SIZE, dtype=mx.float32)
    call.options = {"kernel_size": min(4, 2 * SIZE), "stride": min(4, 2 * SIZE)}
    call.shared = {}
    call.queries = slice(-(-call.tokens.start // 4), -(-call.tokens.stop // 4))
    call.check()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
