"""The choice of the tier (backend) that runs a call."""

import importlib
import os

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


def get_backend() -> str:
    """The chosen tier; for "auto" the one that would run on the default device."""
    return _ext.get_backend()


def clear_cache() -> None:
    """Forget the text and plans of the kernels that are compiled at run time.

    They are bounded anyway (`natten-mlx doctor --verbose` shows them); the next call makes its own again. What MLX has
    compiled from them it keeps itself.
    """
    _ext.clear_cache()


def has_metal() -> bool:
    """Whether this machine has a Metal GPU that MLX can use."""
    return bool(mx.metal.is_available())


def has_nanobind() -> bool:
    """Whether the compiled tier can run here."""
    return bool(_ext.support_matrix()["nanobind"]["available"])


def _initialise() -> None:
    module = os.environ.get("NATTEN_MLX_NANOBIND_MODULE")
    if module:
        context = f"NATTEN_MLX_NANOBIND_MODULE={module}: "
        try:
            _ext.load_external_tier(importlib.import_module(module))
        except ImportError as error:
            raise ImportError(context + str(error)) from error
        except ValueError as error:
            raise ValueError(context + str(error)) from error
    _ext.get_backend()  # an unknown NATTEN_BACKEND is an error now, not at the first call


_initialise()
