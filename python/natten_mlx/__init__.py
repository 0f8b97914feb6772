"""Neighborhood attention for MLX: every query attends a window of keys around it, in 1, 2 or 3 dimensions."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from natten_mlx import compat as compat
    from natten_mlx import extras as extras
    from natten_mlx import models as models

# MLX's ABI changes with every patch: another version would load and then crash, or not load at all.
_MLX_VERSION = "0.32.4"

# Why the library can't run here. The command natten-mlx keeps it for `doctor`; other programs get it when they import.
_broken: Exception | None = None


def _is_command() -> bool:
    """Whether this process is `natten-mlx` or `python -m natten_mlx`."""
    script = (sys.argv or [""])[0].replace("\\", "/").rsplit("/", 1)[-1]
    # "-m" is there while the module is looked for; it may be another one, which imports this package.
    is_module = script == "-m" and bool({"natten_mlx", "-mnatten_mlx"} & set(sys.orig_argv))
    return is_module or script.startswith("natten-mlx")


def _check_mlx() -> None:
    import mlx.core as mx

    found = getattr(mx, "__version__", "unknown").split("+")[0]
    if found != _MLX_VERSION:
        raise ImportError(
            f"natten-mlx was built for MLX {_MLX_VERSION}, but MLX {found} is installed. "
            f"Install it with: python -m pip install 'mlx=={_MLX_VERSION}' (on Linux 'mlx[cpu]=={_MLX_VERSION}')"
        )


try:
    _check_mlx()
    from natten_mlx import _backend, utils  # noqa: F401
    from natten_mlx._backend import (
        backend,
        clear_cache,
        exportable,
        get_backend,
        get_cache_memory,
        has_metal,
        has_nanobind,
        set_backend,
    )
    from natten_mlx._ext import __version__
    from natten_mlx.functional import (
        attention,
        na1d,
        na1d_av,
        na1d_qk,
        na2d,
        na2d_av,
        na2d_qk,
        na3d,
        na3d_av,
        na3d_qk,
    )
    from natten_mlx.merge import merge_attentions
    from natten_mlx.neighborhood import key_span, neighborhood_mask
    from natten_mlx.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D
    from natten_mlx.support_matrix import Explanation, explain, get_support_matrix
    from natten_mlx.utils.window import (
        compute_pb_start,
        compute_window_start_end,
        get_pb_start,
        get_window_end,
        get_window_start,
    )
    from natten_mlx.varlen import na1d_varlen, na2d_varlen, na3d_varlen
    from natten_mlx.warm import warmup

    _backend.use_environment()  # last: where only the environment is wrong, the command has everything else
except Exception as error:
    if not _is_command():
        raise
    _broken = error

__all__ = [
    "Explanation",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "__version__",
    "attention",
    "backend",
    "clear_cache",
    "compute_pb_start",
    "compute_window_start_end",
    "explain",
    "exportable",
    "get_backend",
    "get_cache_memory",
    "get_pb_start",
    "get_support_matrix",
    "get_window_end",
    "get_window_start",
    "has_metal",
    "has_nanobind",
    "key_span",
    "merge_attentions",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na1d_varlen",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na2d_varlen",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "na3d_varlen",
    "neighborhood_mask",
    "set_backend",
    "warmup",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """What few programs need is imported when it is named."""
        if name in ("compat", "extras", "models"):
            import importlib

            return importlib.import_module(f"natten_mlx.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
