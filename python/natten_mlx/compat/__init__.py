"""NATTEN's own APIs on MLX arrays: a program written for a release of NATTEN runs by changing its import.

v014, v015, v017, v020 and v021 have that release's names, argument orders, layouts, defaults and meanings;
docs/compat.md says for every name what it is here.
"""

from __future__ import annotations

import re
from types import ModuleType

from natten_mlx.compat import v014, v015, v017, v020, v021

__all__ = ["for_version", "v014", "v015", "v017", "v020", "v021"]

_NEWEST = ((0, 21), v021), ((0, 20), v020)  # from this version on
_OLDEST = ((0, 14), v014), ((0, 15), v015)  # up to this version; v017 is between


def for_version(version: str) -> ModuleType:
    """The module for a version of NATTEN, such as "0.17.4" or "0.17.1+torch230cu121".

    Up to 0.14 it is v014, up to 0.15 v015, up to 0.17 v017; above, the newest that is not newer.

    Raises:
        ValueError: what is no version.
    """
    found = (
        re.fullmatch(r"v?(\d+)\.(\d+)(?:\.\d+)*(?:[.+-]?[A-Za-z][\w.+-]*)?", version)
        if isinstance(version, str)
        else None
    )
    if found is None:
        raise ValueError(f"[for_version] expected a version of NATTEN such as '0.17.4', got {version!r}")
    wanted = int(found[1]), int(found[2])
    for last, module in _OLDEST:
        if wanted <= last:
            return module
    return next((module for first, module in _NEWEST if wanted >= first), v017)
