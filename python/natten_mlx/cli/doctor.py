"""`natten-mlx doctor`: everything a bug report needs."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata

HELP = "show versions, devices, environment, and each tier with the reason why it can or can't run"

ENVIRONMENT = (
    "NATTEN_BACKEND",
    "NATTEN_STRICT",
    "NATTEN_CPU_TARGET",
    "NATTEN_NUM_THREADS",
    "NATTEN_MLX_NANOBIND_MODULE",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="also show where the files are")


def run(args: argparse.Namespace) -> int:
    import mlx.core as mx
    from rich.console import Console
    from rich.table import Table

    import natten_mlx
    from natten_mlx import _ext

    console = Console()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("natten-mlx", natten_mlx.__version__)
    facts.add_row("mlx", f"{_version('mlx')} ({_mlx_flavor()})")
    facts.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    facts.add_row("processor", f"{platform.machine()}, {_usable_cores()} of {os.cpu_count()} cores usable")
    facts.add_row("compiled kernels", f"{_ext.cpu_target()}, {_ext.cpu_threads()} threads")
    facts.add_row("default device", str(mx.default_device()))
    facts.add_row("GPU", _gpu())
    for name in ENVIRONMENT:
        if name in os.environ:
            facts.add_row(name, os.environ[name])
    if args.verbose:
        facts.add_row("package", os.path.dirname(natten_mlx.__file__))
        facts.add_row("mlx library", os.path.dirname(mx.__file__))
    console.print(facts, highlight=False)

    tiers = Table(title="tiers", title_justify="left")
    tiers.add_column("tier")
    tiers.add_column("can run here")
    tiers.add_column("why not", overflow="fold")
    for name, row in natten_mlx.get_support_matrix().items():
        tiers.add_row(name, "yes" if row["available"] else "no", "" if row["available"] else str(row["reason"]))
    console.print(tiers, highlight=False)
    console.print(f"selected tier: {natten_mlx.get_backend()}", highlight=False)

    # The proof that matters: one real call.
    query = mx.ones((1, 8, 8, 1, 4))
    out = natten_mlx.na2d(query, query, query, kernel_size=3)
    worked = isinstance(out, mx.array) and mx.allclose(out, query).item()
    console.print("a 2-D call gives the right result" if worked else "[red]a 2-D call gives a WRONG result[/]")
    return 0 if worked else 1


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _mlx_flavor() -> str:
    """The package that brings MLX's library."""
    names = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal")
    return ", ".join(name for name in names if _version(name) != "not installed") or "built from source"


def _gpu() -> str:
    import mlx.core as mx

    if mx.metal.is_available():
        return "Metal"
    return "CUDA" if mx.cuda.is_available() else "none"


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
