"""MLX's fusion on the CPU, off in tests: the system's compiler takes two seconds for each new chain of operations.

NATTEN_TEST_FUSION=1 leaves it on; `make test-fused` runs what compiles so.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import mlx.core as mx

NO_FUSE = 2  # mlx::core::CompileMode


def leave_out_fusion() -> None:
    """`mx.compile` still traces, simplifies and caches. Python cannot ask for that, MLX's C++ function can."""
    if sys.platform != "linux" or os.environ.get("NATTEN_TEST_FUSION") == "1":
        return
    library = ctypes.CDLL(str(Path(mx.__file__).parent / "lib" / "libmlx.so"))
    library["_ZN3mlx4core16set_compile_modeENS0_11CompileModeE"](NO_FUSE)


leave_out_fusion()
