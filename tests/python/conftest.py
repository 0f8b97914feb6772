"""Every test that takes `tier` runs once on each tier that this machine has, with no fallback allowed.

Environment: NATTEN_TEST_EXAMPLES (examples of each hypothesis test), NATTEN_TEST_TIERS (comma separated, replaces the
detected tiers), NATTEN_TEST_FAST_EMULATOR=metal, cuda or hopper (run the JIT tier through its emulator, which compiles
every kernel: only tests that take `tier`, a few examples, and every NATTEN_TEST_THIN-th parameter of a test),
NATTEN_TEST_EVERY (every n-th of what is left), NATTEN_TEST_ALL (all parameters of tests marked `sampled(n)`, which
otherwise run with every n-th on each tier, or, if n is 0, not at all).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["NATTEN_STRICT"] = "1"  # before the library is imported; subprocess tests choose for themselves
# On a GPU MLX's own products (of modules, and of what kernels are compared with) round to 10 bits by default.
os.environ["MLX_ENABLE_TF32"] = "0"

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fusion  # noqa: F401 - switches it off

EMULATED = os.environ.get("NATTEN_TEST_FAST_EMULATOR") in ("metal", "cuda", "hopper")

settings.register_profile(
    "natten",
    max_examples=int(os.environ.get("NATTEN_TEST_EXAMPLES", "4" if EMULATED else "60")),
    deadline=None,
    derandomize="NATTEN_TEST_RANDOM" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("natten")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "tier" in metafunc.fixturenames:
        from harness import tiers

        metafunc.parametrize("tier", tiers(), indirect=True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sampled(n): takes minutes with all of its parameters")


def sampled_every(item: pytest.Item) -> int:
    """Of how many parameters of the item's test one runs; 0 if none does."""
    if EMULATED:
        return int(os.environ.get("NATTEN_TEST_THIN", "6")) if "tier" in getattr(item, "fixturenames", ()) else 0
    marker = item.get_closest_marker("sampled")
    return marker.args[0] if marker and "NATTEN_TEST_ALL" not in os.environ else 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seen: dict[tuple[str, str], int] = {}
    kept, left_out = [], []
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        test = (item.nodeid.split("[")[0], parameters.get("tier", ""))
        position = seen[test] = seen.get(test, -1) + 1
        every = sampled_every(item)
        (kept if every and position % every == 0 else left_out).append(item)
    every = int(os.environ.get("NATTEN_TEST_EVERY", "1"))
    items[:] = kept[::every]
    left_out += [item for place, item in enumerate(kept) if place % every]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    import natten_mlx

    with natten_mlx.backend(request.param):
        yield request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cpu_by_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """float64 exists on the CPU only, and so does the exact comparison of results. NATTEN_TEST_DEVICE=gpu: what a tier
    computes is computed on the GPU."""
    on_gpu = os.environ.get("NATTEN_TEST_DEVICE") == "gpu" and "tier" in request.fixturenames
    if mx.default_device().type == mx.DeviceType.cpu or on_gpu:
        yield
        return
    saved = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(saved)
