"""Memory of the native tier's results, kept from one call to the next. Each in a fresh process."""

import sys

import mlx.core as mx
import pytest

import natten_mlx
from harness import succeeds

pytestmark = [
    pytest.mark.skipif(
        not natten_mlx.get_support_matrix()["nanobind"]["available"], reason="this installation has no native tier"
    ),
    pytest.mark.skipif(mx.metal.is_available() or mx.cuda.is_available(), reason="MLX keeps memory itself"),
]

NATIVE = {"NATTEN_BACKEND": "nanobind", "NATTEN_STRICT": "1"}
SETUP = """
    import mlx.core as mx
    import numpy as np
    import natten_mlx

    def tensor(seed, length=40000):
        return mx.array(np.random.default_rng(seed).random((1, length, 4, 64), np.float32))

    def attention(q, k, v):
        return natten_mlx.na1d(q, k, v, 7)

    inputs = [tensor(seed) for seed in range(3)]
    cotangent = tensor(3)
    mx.eval(inputs, cotangent)

    def step():
        outputs, gradients = mx.vjp(attention, inputs, [cotangent])
        mx.eval(outputs, gradients)
        return outputs + gradients
"""


@pytest.mark.skipif(sys.platform == "win32", reason="counts page faults")
def test_a_training_step_takes_no_new_pages() -> None:
    code = """
    import resource

    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        step()
    before = faults()
    for _ in range(5):
        step()
    # Four results of 10,000 pages each; and lse with what MLX makes of it, 150 pages each.
    assert (faults() - before) / 5 < 1000, (faults() - before) / 5
    """
    succeeds(SETUP + code, **NATIVE)


def test_memory_comes_back_is_counted_and_can_be_given_back() -> None:
    code = """
    assert natten_mlx.get_cache_memory() == 0
    results = step()
    size = results[0].nbytes
    assert natten_mlx.get_cache_memory() < size
    del results
    kept = natten_mlx.get_cache_memory()
    assert 4 * size <= kept < 4.2 * size, kept
    results = step()
    assert natten_mlx.get_cache_memory() < 0.2 * size
    del results
    natten_mlx.clear_cache()
    assert natten_mlx.get_cache_memory() == 0
    """
    succeeds(SETUP + code, **NATIVE)


@pytest.mark.parametrize("limit", [0, 60_000_000])
def test_limit(limit: int) -> None:
    code = f"""
    for _ in range(2):
        results = step()
        del results
        kept = natten_mlx.get_cache_memory()
        assert kept <= {limit}, kept
        assert kept > 0 or {limit} == 0
    """
    succeeds(SETUP + code, NATTEN_CACHE_LIMIT=str(limit), **NATIVE)


@pytest.mark.parametrize("limit", ["-1", "1e9", "1 GB", "99999999999999999999999"])
def test_bad_limit(limit: str) -> None:
    code = """
    try:
        step()
    except ValueError as error:
        print(error)
    else:
        raise AssertionError
    """
    assert f"NATTEN_CACHE_LIMIT must be a number of bytes, got '{limit}'" in succeeds(
        SETUP + code, NATTEN_CACHE_LIMIT=limit, **NATIVE
    )


def test_no_result_is_overwritten_while_anybody_sees_it() -> None:
    # Views, donated buffers and NumPy arrays keep the memory of the array they come from.
    code = """
    kept, copies = [], []

    def keep(x):
        kept.append(x)
        copies.append(np.array(x, copy=True))

    for seed in range(6):
        out = attention(*(tensor(10 * seed + i, 5000 + 100 * seed) for i in range(3)))
        keep(out[:, 3000:3100])
        keep((out + 1.0) * 2.0)
        out = attention(*(tensor(10 * seed + i, 5000) for i in range(3)))
        mx.eval(out)
        keep(np.asarray(out, copy=False))
        del out
        mx.eval(attention(*(tensor(10 * seed + i + 3, 5000) for i in range(3))))
    for x, copy in zip(kept, copies):
        assert np.array_equal(np.array(x), copy)
    """
    succeeds(SETUP + code, **NATIVE)


def test_threads_with_streams_of_their_own() -> None:
    code = """
    from concurrent.futures import ThreadPoolExecutor

    def work(seed):
        stream = mx.new_stream(mx.cpu)
        with mx.stream(stream):
            results = []
            for _ in range(4):
                out = attention(*(tensor(seed + i, 5000) for i in range(3)))
                mx.eval(out)
                results.append(bytes(memoryview(out)))
            return results

    expected = [work(10 * seed)[0] for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for seed, results in enumerate(threads.map(lambda s: work(10 * s), range(4))):
            assert all(result == expected[seed] for result in results), seed
    """
    succeeds(SETUP + code, **NATIVE)


def test_arrays_that_outlive_everything_else() -> None:
    code = """
    import builtins
    builtins.kept = step()
    print("last line")
    """
    assert "last line" in succeeds(SETUP + code, **NATIVE)
