"""`natten-mlx doctor`: everything a bug report needs. It says what is broken, so it relies on nothing that may be."""

from __future__ import annotations

import argparse
import os
import platform
import textwrap
from collections.abc import Callable
from importlib import metadata
from typing import Any

import natten_mlx
from natten_mlx.cli import library_version
from natten_mlx.cli.cache import summary

HELP = "show versions, devices, environment, and each tier with the reason why it can or can't run"

WIDTH = 100


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="also show where the files are, and what is cached")


class Report:
    """Lines of a table, each printed as soon as it is known."""

    def __init__(self) -> None:
        self.failures = 0

    def line(self, label: str, text: str) -> None:
        """A fact."""
        first, *rest = textwrap.wrap(text, WIDTH - 29, break_long_words=False, break_on_hyphens=False) or [""]
        print(f"{label:<27}  {first}".rstrip())
        for line in rest:
            print(" " * 29 + line)

    def fail(self, label: str, text: str) -> None:
        """What makes the exit code 1."""
        self.failures += 1
        self.line(label, f"WRONG: {text}")

    def check(self, label: str, say: Callable[[], object]) -> bool:
        """The line that `say` gives, or what it raises."""
        try:
            self.line(label, str(say()))
            return True
        except Exception as error:
            self.fail(label, str(error) or type(error).__name__)
            return False


def run(args: argparse.Namespace) -> int:
    report = Report()
    report.line("natten-mlx", library_version())
    report.line("python", f"{platform.python_version()} on {platform.platform()}")
    report.line("processor", f"{platform.machine()}, {_usable_cores()} of {os.cpu_count()} cores usable")
    works = report.check("mlx", _mlx) and report.check("extension", lambda: _extension(args.verbose))
    for name, check in ENVIRONMENT.items():
        if name in os.environ:
            _environment(report, name, check if works else None)
    if works and not all(hasattr(natten_mlx, name) for name in natten_mlx.__all__):  # its import ended in the middle
        report.fail("package", str(natten_mlx._broken))
    elif works:
        _tiers(report, args.verbose)
    are = "is" if report.failures == 1 else "are"
    print(f"{report.failures} of these lines {are} wrong" if report.failures else "nothing is wrong")
    return 1 if report.failures else 0


def _tiers(report: Report, verbose: bool) -> None:
    import mlx.core as mx

    from natten_mlx import _ext

    report.check("compiled kernels", lambda: f"{_ext.cpu_target()}, threads: {_ext.cpu_threads()}")
    report.check("default device", mx.default_device)
    report.line("GPU", "Metal" if mx.metal.is_available() else "CUDA" if mx.cuda.is_available() else "none")
    if verbose:
        report.line("mlx library", os.path.dirname(mx.__file__))
    for row in natten_mlx.get_support_matrix().values():
        report.line(f"tier {row['name']}", "can run here" if row["available"] else f"can't run here: {row['reason']}")
    report.check("selected tier", natten_mlx.get_backend)
    report.check("kernel compiler", _ext.kernel_compiler)
    report.check("kernel files", lambda: summary(_ext.kernel_files()))
    report.check("a 2-D call", _call)
    if verbose:  # after the call, which may have compiled one
        report.check("kernel cache", _cache)
        report.check("kept memory", _kept_memory)


def _cache() -> str:
    """Of kernels compiled at run time, in this process."""
    from natten_mlx import _ext

    info = _ext.kernel_cache_info()
    kept, limit = info["bytes"] / 2**20, info["limit"] / 2**20
    return f"kernels: {info['kernels']}, {kept:.1f} of at most {limit:.0f} MiB"


def _kept_memory() -> str:
    """Of results of the CPU tier, in this process."""
    from natten_mlx import _ext

    return f"{_ext.get_cache_memory() / 2**20:.0f} of at most {_ext.cache_limit() / 2**20:.0f} MiB"


def _mlx() -> str:
    natten_mlx._check_mlx()
    names = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal")  # what brings MLX's library
    flavors = ", ".join(name for name in names if _version(name)) or "built from source"
    return f"{natten_mlx._MLX_VERSION} ({flavors})"


def _extension(verbose: bool) -> str:
    from natten_mlx import _ext

    return str(_ext.__file__) if verbose else "loaded"


def _call() -> str:
    """The proof that matters."""
    import mlx.core as mx

    query = mx.ones((1, 64, 64, 4, 8))
    out: Any = natten_mlx.na2d(query, query, query, kernel_size=7)
    if not mx.allclose(out, query).item():
        raise ArithmeticError("the result is not what it must be")
    return "gives the right result"


def _environment(report: Report, name: str, check: Callable[[], object] | None) -> None:
    """What a variable says. One that is wrong is dropped, so that the rest can be looked at."""
    value = os.environ[name]
    try:
        if check is not None:
            check()
        report.line(name, value)
    except Exception as error:
        message = str(error)
        report.fail(name, f"{message if value in message else f'{value}: {message}'} (ignored in what follows)")
        del os.environ[name]


def _check_backend() -> None:
    from natten_mlx import _ext

    _ext.get_backend()


def _check_strict() -> None:
    from natten_mlx import _ext

    if not _ext.is_strict() or os.environ.get("NATTEN_BACKEND", "auto") in ("", "auto"):
        return
    chosen = _ext.get_backend()
    for row in _ext.support_matrix().values():
        if row["name"] == chosen and not row["available"]:
            raise RuntimeError(f"tier '{chosen}' is chosen and can't run here, so that every call raises")


def _check_module() -> None:
    from natten_mlx import _backend

    _backend.load_external_module()


def _check_target() -> None:
    from natten_mlx import _ext

    _ext.cpu_target()


def _check_threads() -> None:
    from natten_mlx import _ext

    _ext.cpu_threads()


def _check_cache_limit() -> None:
    from natten_mlx import _ext

    _ext.cache_limit()


def _check_tile() -> None:
    from natten_mlx import _ext

    _ext.support_matrix()  # plans kernels, as calls do


def _check_nvrtc() -> None:
    if os.environ["NATTEN_NVRTC"] not in ("", "0", "1"):
        raise ValueError("must be 0 (MLX compiles) or 1 (this library does)")


def _check_cache_dir() -> None:
    folder = os.environ["NATTEN_CACHE_DIR"]
    if os.path.exists(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError("this folder can't be read")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise NotADirectoryError("this is no folder")


ENVIRONMENT: dict[str, Callable[[], object]] = {
    "NATTEN_BACKEND": _check_backend,
    "NATTEN_STRICT": _check_strict,
    "NATTEN_MLX_NANOBIND_MODULE": _check_module,
    "NATTEN_CPU_TARGET": _check_target,
    "NATTEN_NUM_THREADS": _check_threads,
    "NATTEN_CACHE_LIMIT": _check_cache_limit,
    "NATTEN_FAST_TILE": _check_tile,
    "NATTEN_NVRTC": _check_nvrtc,
    "NATTEN_CACHE_DIR": _check_cache_dir,
}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
