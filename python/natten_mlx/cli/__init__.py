"""The command `natten-mlx`. One module per subcommand; each has `HELP`, `configure(parser)` and `run(args) -> int`.

Exit codes: 0 success, 1 a check failed, 2 bad input (with a sentence on stderr).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

import natten_mlx

COMMANDS = (
    "doctor",
    "matrix",
    "explain",
    "show",
    "bench",
    "profile",
    "plan",
    "warmup",
    "cache",
    "classify",
    "decode",
    "convert",
)


def library_version() -> str:
    """Also where the library can't be loaded."""
    found = getattr(natten_mlx, "__version__", None)
    try:
        return str(found or metadata.version("natten-mlx"))
    except metadata.PackageNotFoundError:
        return "of unknown version"


class InputError(ValueError):
    """What the user typed can't be used. The message is all that they see."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="natten-mlx", description="Neighborhood attention for MLX.")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"natten_mlx.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: `sys.argv`) and returns its exit code."""
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as exit:  # argparse has printed its message
        return exit.code if isinstance(exit.code, int) else 2
    if args.version:
        print(f"natten-mlx {library_version()}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    if natten_mlx._broken is not None and args.command != "doctor":
        print(f"natten-mlx {args.command}: error: {natten_mlx._broken}", file=sys.stderr)
        print("natten-mlx doctor says more", file=sys.stderr)
        return 1
    try:
        if args.command != "doctor":
            # A bad variable is an error before any work.
            natten_mlx._ext.cpu_target(), natten_mlx._ext.cpu_threads(), natten_mlx._ext.cache_limit()
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `natten-mlx matrix | head`: without a traceback, also from the interpreter's last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # InputError, what the library says of arguments and environment, and files that can't be written.
    except (ValueError, RuntimeError, OSError) as error:
        print(f"natten-mlx {args.command}: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
