"""`natten-mlx cache`: the files of compiled GPU kernels, which later processes read."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "show the files of compiled GPU kernels, or remove them"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clear", action="store_true", help="remove them, and nothing else in their folder")


def run(args: argparse.Namespace) -> int:
    from natten_mlx import _ext

    if args.clear:
        gone = _ext.clear_kernel_files()
        print(f"removed {_count(gone)}, {gone['bytes'] / 2**20:.1f} MiB")
    print(summary(_ext.kernel_files()))
    return 0


def summary(files: dict[str, Any]) -> str:
    """Of what `_ext.kernel_files` says, as one line."""
    if not files["folder"]:
        return "nothing is kept: NATTEN_CACHE_DIR is empty, or there is no home folder"
    kept, limit = files["bytes"] / 2**20, files["limit"] / 2**20
    return f"{_count(files)}, {kept:.1f} of at most {limit:.0f} MiB, in {files['folder']}"


def _count(files: dict[str, Any]) -> str:
    return f"{files['files']} kernel" + ("" if files["files"] == 1 else "s")
