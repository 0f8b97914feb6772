"""The choice of the tier (backend) that runs a call."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from natten_mlx import _ext


def set_backend(name: str) -> None:
    """Choose the tier for every later call of this process.

    Args:
        name: "auto" (the fastest that supports the call), "pure", "fast_metal" ("fast_cuda" is the same) or "nanobind".
            A tier that cannot serve a call falls back to the next one, which is logged once per reason to the logger
            "natten_mlx"; with NATTEN_STRICT=1 in the environment the call raises RuntimeError instead.

    Raises:
        ValueError: another name.
    """
    _ext.set_backend(name)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the tier for the calls of a block: `with natten_mlx.backend("pure"): ...`, or as a decorator.

    The choice is this thread's: others, and threads that the block starts, notice nothing. At the end the tier is the
    one that was set before; set_backend inside changes the block's choice only.

    Args:
        name: As in set_backend.

    Raises:
        ValueError: another name.
    """
    outer = _ext.enter_backend(name)
    try:
        yield
    finally:
        _ext.leave_backend(outer)


def get_backend() -> str:
    """The chosen tier; for "auto" the one that would run on the default device."""
    return _ext.get_backend()


def clear_cache() -> None:
    """Forget the text and plans of the kernels that are compiled at run time, and give back the memory that the CPU
    tier keeps for its next results.

    Both are bounded anyway (`natten-mlx doctor --verbose` shows them); the next call makes its own again. What MLX has
    compiled or loaded it keeps itself, and files of compiled kernels stay: `natten-mlx cache --clear` removes those.
    """
    _ext.clear_cache()


@contextmanager
def exportable() -> Iterator[None]:
    """Make the calls of this thread, in a `with` statement, of primitives that mx.export_function can write to a file.

    with natten_mlx.exportable():
        mx.export_function("block.mlxfn", block, x)

    They run on the tier "pure", whatever is chosen, and so does the file, on any device. Gradient functions can be
    exported too, at the memory of a backward that keeps what it needs.

    Raises:
        ValueError: by a call in an export with shapeless=True.
    """
    _ext.set_exportable(True)
    try:
        yield
    finally:
        _ext.set_exportable(False)


def get_cache_memory() -> int:
    """Bytes of memory of large results of the CPU tier that is kept for the next ones.

    Memory comes back when an array dies. At most `NATTEN_CACHE_LIMIT` bytes are kept, by default an eighth of the
    machine's memory; none while little is available. MLX's allocators for GPUs keep memory themselves.
    """
    return _ext.get_cache_memory()


def has_metal() -> bool:
    """Whether this machine has a Metal GPU that MLX can use."""
    return bool(mx.metal.is_available())


def has_nanobind() -> bool:
    """Whether the compiled tier can run here."""
    return bool(_ext.support_matrix()["nanobind"]["available"])


def use_environment() -> None:
    """Check NATTEN_BACKEND and NATTEN_STRICT and load NATTEN_MLX_NANOBIND_MODULE: now, not at the first call.

    Raises:
        ImportError: an unknown tier; a NATTEN_STRICT that is neither 0 nor 1; a module that can't be imported.
        ValueError: a module that lacks a function.
    """
    load_external_module()
    try:
        _ext.get_backend(), _ext.is_strict()
    except ValueError as error:
        raise ImportError(str(error)) from error


def load_external_module() -> None:
    """Replace the compiled tier by the module that NATTEN_MLX_NANOBIND_MODULE names, if it does."""
    module = os.environ.get("NATTEN_MLX_NANOBIND_MODULE")
    if module:
        context = f"NATTEN_MLX_NANOBIND_MODULE={module}: "
        try:
            _ext.load_external_tier(importlib.import_module(module))
        except ValueError as error:
            raise ValueError(context + str(error)) from error
        except Exception as error:  # whatever the module does when it is imported
            raise ImportError(context + str(error)) from error
