"""`natten-mlx warmup`: compiles the GPU kernels of a list of calls, for the processes that will make the calls."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import DTYPES
from natten_mlx.cli.progress import progress_bar

HELP = "compile the GPU kernels of a list of calls, before they are made"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help='JSON list of calls as for natten_mlx.explain, such as [{"query": [1, 56, 56, 4, 32], "kernel_size": 7, '
        '"dtype": "float16"}]; key and value are as query if left out; - reads standard input',
    )
    parser.add_argument("--no-gradients", action="store_true", help="only the kernels of the forward")


def run(args: argparse.Namespace) -> int:
    import natten_mlx

    calls = [_call(call) for call in _read(args.file)]
    with progress_bar("kernels") as progress:
        kernels, compiled = natten_mlx.warmup(calls, gradients=not args.no_gradients, progress=progress)
    if kernels == 0:
        print("these calls need no kernels that are compiled at run time")
    else:
        print(f"{kernels} kernels are ready, of which {compiled} were compiled now")
    return 0


def _read(name: str) -> list[Any]:
    try:
        if name == "-":
            calls = json.load(sys.stdin)
        else:
            with open(name, encoding="utf-8") as file:
                calls = json.load(file)
    except ValueError as error:  # no JSON, or no text
        raise InputError(f"{name}: {error}") from None
    if not isinstance(calls, list):
        raise InputError(f"{name} must hold a list of calls, got {type(calls).__name__}")
    return calls


def _call(call: Any) -> Any:
    import mlx.core as mx

    if not isinstance(call, dict):
        return call  # the library says what is wrong
    call = dict(call)
    if "dtype" in call:
        if call["dtype"] not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {call['dtype']!r}")
        call["dtype"] = getattr(mx, call["dtype"])
    for name in ("key", "value"):
        call.setdefault(name, call.get("query"))
    return call
