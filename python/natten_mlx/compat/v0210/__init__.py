"""NATTEN 0.21.0 and 0.21.1 on MLX arrays: `import natten_mlx.compat.v0210 as natten`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from natten_mlx.compat import v021
from natten_mlx.compat._absent import absent
from natten_mlx.compat.v021 import *  # noqa: F403
from natten_mlx.compat.v0210 import functional as functional
from natten_mlx.compat.v0210.functional import *  # noqa: F403

# 0.21.7's, the switches' states included, but for the functions that 0.21.5 changed and the varlen module it added.
__all__ = [name for name in v021.__all__ if name != "utils"]

__version__ = "0.21.1"

if not TYPE_CHECKING:
    del utils  # noqa: F821
    __getattr__ = absent("v021", module="v0210")
