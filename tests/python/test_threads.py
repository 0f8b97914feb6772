"""The native tier among threads, streams and processes, and short of memory. Each in a fresh process."""

import sys

import pytest

import natten_mlx
from harness import succeeds

pytestmark = pytest.mark.skipif(
    not natten_mlx.get_support_matrix()["nanobind"]["available"], reason="this installation has no native tier"
)

# Large enough for the thread pool; three threads also where there is one core.
SETUP = """
    import hashlib
    import os
    import mlx.core as mx
    import natten_mlx

    mx.set_default_device(mx.cpu)

    def gradients(seed, stream=mx.cpu):
        with mx.stream(stream):
            keys = mx.random.split(mx.random.key(seed), 3)
            inputs = [mx.random.normal((1, 40, 40, 2, 32), key=key) for key in keys]
            loss = lambda *x: (natten_mlx.na2d(*x, 7) ** 2).sum()
            value, result = mx.value_and_grad(loss, argnums=(0, 1, 2))(*inputs)
            mx.eval(value, result)
            return [bytes(memoryview(x)) for x in (value, *result)]
"""
NATIVE = {"NATTEN_BACKEND": "nanobind", "NATTEN_STRICT": "1", "NATTEN_NUM_THREADS": "3"}


def test_several_streams_of_several_threads_at_once() -> None:
    code = """
    from concurrent.futures import ThreadPoolExecutor

    def work(seed):
        stream = mx.new_stream(mx.cpu)
        return [gradients(seed, stream) for _ in range(4)]

    expected = [gradients(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        for seed, results in enumerate(threads.map(work, range(6))):
            assert all(result == expected[seed] for result in results), seed
    """
    succeeds(SETUP + code, **NATIVE)


def test_forked_child_that_has_not_used_mlx_before() -> None:
    code = """
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.write(writer, hashlib.sha256(b"".join(gradients(1))).digest())
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 32) == hashlib.sha256(b"".join(gradients(1))).digest()
    os.wait()
    """
    succeeds(SETUP + code, **NATIVE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces a limit of the address space")
def test_ring_that_cannot_be_allocated_is_an_exception_of_the_evaluation() -> None:
    code = """
    import resource

    gradients(1)  # starts every thread
    layer = natten_mlx.NeighborhoodAttention1D(1024, 8, 1 << 17, is_causal=True)
    x = mx.zeros((1, 1, 1024))
    ring = mx.broadcast_to(mx.zeros((1, 1, 1, 8, 128)), (1, 1, 1 << 17, 8, 128))  # 512 MiB where it is copied
    cache = layer.make_cache(1)
    cache["keys"] = cache["values"] = ring
    mx.eval(layer.parameters(), x, cache)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20), resource.RLIM_INFINITY))
    try:
        mx.eval(layer.step(x, cache))
    except (MemoryError, RuntimeError) as error:
        assert str(error) == "std::bad_alloc", error
    else:
        raise AssertionError
    """
    succeeds(SETUP + code, **NATIVE)


@pytest.mark.sampled(0)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces a limit of the address space")
def test_failed_allocation_is_an_exception_of_the_evaluation() -> None:
    """Of the output, in the evaluating thread; with room for that, of scratch memory, in tasks of the thread pool."""
    code = """
    import resource

    def call():
        out = natten_mlx.na2d(*inputs, 3)  # packs rows of channels, as short windows along one axis do not
        mx.eval(out)
        return out

    def size():
        return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

    gradients(1)  # starts every thread
    mx.set_cache_limit(0)
    inputs = [mx.random.normal((1, 8, 8, 1, 1 << 18)) for _ in range(3)]  # 64 MiB: more than malloc keeps
    mx.eval(inputs)
    expected = call()
    failures = []
    for mebibytes in range(0, 512, 32):
        resource.setrlimit(resource.RLIMIT_AS, (size() + (mebibytes << 20), resource.RLIM_INFINITY))
        try:
            out = call()
        except (MemoryError, RuntimeError) as error:
            failures.append((mebibytes, str(error)))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert mx.array_equal(call(), expected)  # nothing is left of the failure
    assert failures[0] == (0, "std::bad_alloc"), failures
    assert any(room > 80 and error == "std::bad_alloc" for room, error in failures), failures
    assert failures[-1][0] < 480, failures
    """
    succeeds(SETUP + code, **NATIVE)
