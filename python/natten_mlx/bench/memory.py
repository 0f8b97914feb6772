"""Peak extra memory of one call: how far it raises the highest resident size of a fresh process.

Outputs and gradients count, inputs do not. Only a fresh process tells: a warm one has memory to reuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

import natten_mlx
from natten_mlx.bench.calls import make_call
from natten_mlx.bench.cases import Case


def peak_bytes() -> int:
    """Highest resident size of this process so far, or since the peak was last reset."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return mx.get_peak_memory()
    with contextlib.suppress(OSError):  # macOS
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def reset_peak() -> None:
    """Makes the present size the peak, where the system can."""
    mx.clear_cache()
    if mx.default_device().type == mx.DeviceType.gpu:
        mx.reset_peak_memory()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries than glibc
        ctypes.CDLL(None).malloc_trim(0)  # what lies free in the heap would hide what the call needs
    with contextlib.suppress(OSError):  # macOS
        Path("/proc/self/clear_refs").write_text("5")


def extra_bytes(case: Case, direction: str, tier: str) -> int:
    """Runs the case once in this process."""
    small = Case("warm", (1, *case.kernel, 1, case.shape[-1]), case.kernel_size, dtype=case.dtype, form=case.form)
    with natten_mlx.backend(tier):
        mx.eval(make_call(small, direction)())  # loads what is loaded once
        call = make_call(case, direction)
        reset_peak()
        before = peak_bytes()
        results = call()
        mx.eval(results)
        return max(0, peak_bytes() - before)


def measure(case: Case, direction: str, tier: str, timeout: float = 30) -> float | None:
    """MiB, in a process of its own; None where it fails or takes too long."""
    command = [sys.executable, "-m", "natten_mlx.bench.memory", json.dumps(asdict(case)), direction, tier]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
        return int(done.stdout) / 2**20
    except (subprocess.SubprocessError, ValueError):
        return None


if __name__ == "__main__":
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[1]).items()
    }
    print(extra_bytes(Case(**fields), *sys.argv[2:]))
