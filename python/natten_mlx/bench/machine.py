"""The machine: what it is, and what it can do at best, measured in the run that uses the figures."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

import natten_mlx
from natten_mlx import _ext

COPY_BYTES = 64 << 20
"""Beyond the private caches of every CPU; a large shared cache may still hold it."""
BURST_SECONDS = 2e-3


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # macOS
        found = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return found.stdout.strip() or platform.processor()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """Hardware, system and versions; nothing that names the machine or its user."""
    packages = ("mlx", "mlx-cpu", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13", "numpy", "torch", "natten")
    versions = {name: version for name in packages if (version := _version(name))}
    description: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": _ext.cpu_threads(),
        "cpu_target": _ext.cpu_target(),
        "float_lanes": _ext.float_lanes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu",
        "versions": {"natten-mlx": natten_mlx.__version__, **versions},
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if description["device"] == "gpu":
        description["gpu"] = mx.device_info().get("device_name", "")
    return description


class Limits:
    """Multiply-add peak and copy bandwidth, sampled again and again between measurements.

    On a CPU both are loops of the library, on as many threads as its kernels. On a GPU they are what MLX reaches in a
    large float32 matrix product and in a copy. `cpu_clock`: as in `measure.Plan`.
    """

    def __init__(self, cpu_clock: bool = False) -> None:
        self._cpu_clock = cpu_clock
        self.fma_rates: list[float] = []
        self.copy_rates: list[float] = []
        self._gpu = mx.default_device().type == mx.DeviceType.gpu
        if self._gpu:
            self._matrix = mx.random.normal((4096, 4096))
            self._vector = mx.zeros((COPY_BYTES // 4,))
            mx.eval(self._matrix, self._vector)
        else:
            once = 1 << 16
            self._rounds = once
            # The duration of a burst, from the fastest of a few: long enough for the clock, short enough to repeat.
            durations = []
            for _ in range(3):
                start = time.perf_counter()
                _ext.fma_rate(once)
                durations.append(time.perf_counter() - start)
            self._rounds = max(once, int(once * BURST_SECONDS / min(durations)))
        self.sample_fma()
        self.sample_copy()

    def sample_fma(self, bursts: int = 3) -> float:
        """Median of a few bursts: FLOP/s."""
        rate = statistics.median(self._fma() for _ in range(bursts))
        self.fma_rates.append(rate)
        return rate

    def sample_copy(self) -> float:
        """Bytes read and written per second, best of three passes."""
        if self._gpu:
            rate = 2 * COPY_BYTES / min(_seconds(self._vector + 1) for _ in range(3))
        else:
            rate = _ext.copy_rate(COPY_BYTES, 3)
        self.copy_rates.append(rate)
        return rate

    def _fma(self) -> float:
        if self._gpu:
            return 2.0 * 4096**3 / _seconds(self._matrix @ self._matrix)
        wall, computed = time.perf_counter(), time.process_time()
        rate = float(_ext.fma_rate(self._rounds))
        wall, computed = time.perf_counter() - wall, time.process_time() - computed
        return rate * wall / computed if self._cpu_clock else rate

    def summary(self) -> dict[str, Any]:
        """Best and median of the whole run."""
        return {
            "kind": "MLX matrix product and copy" if self._gpu else "multiply-adds in registers, memory copy",
            "fma_gflops": {"best": max(self.fma_rates) / 1e9, "median": statistics.median(self.fma_rates) / 1e9},
            "copy_gbytes": {"best": max(self.copy_rates) / 1e9, "median": statistics.median(self.copy_rates) / 1e9},
        }


def _seconds(array: mx.array) -> float:
    start = time.perf_counter()
    mx.eval(array)
    return time.perf_counter() - start
