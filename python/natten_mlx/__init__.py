"""Neighborhood attention for MLX: every query attends a window of keys around it, in 1, 2 or 3 dimensions."""

import mlx.core as mx

# MLX's ABI changes with every patch: another version would load and then crash, or not load at all.
_MLX_VERSION = "0.32.4"
_found = getattr(mx, "__version__", "unknown").split("+")[0]
if _found != _MLX_VERSION:
    raise ImportError(
        f"natten-mlx was built for MLX {_MLX_VERSION}, but MLX {_found} is installed. "
        f"Install it with: python -m pip install 'mlx=={_MLX_VERSION}' (on Linux 'mlx[cpu]=={_MLX_VERSION}')"
    )

from natten_mlx._backend import clear_cache, get_backend, has_metal, has_nanobind, set_backend  # noqa: E402
from natten_mlx._ext import __version__  # noqa: E402
from natten_mlx.functional import (  # noqa: E402
    na1d,
    na1d_av,
    na1d_qk,
    na1d_varlen,
    na2d,
    na2d_av,
    na2d_qk,
    na2d_varlen,
    na3d,
    na3d_av,
    na3d_qk,
    na3d_varlen,
)
from natten_mlx.merge import merge_attentions  # noqa: E402
from natten_mlx.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D  # noqa: E402
from natten_mlx.support_matrix import Explanation, explain, get_support_matrix  # noqa: E402

__all__ = [
    "Explanation",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "__version__",
    "clear_cache",
    "explain",
    "get_backend",
    "get_support_matrix",
    "has_metal",
    "has_nanobind",
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
    "set_backend",
]
