"""NATTEN's own APIs on MLX arrays: a program written for a release of NATTEN runs by changing its import.

v014, v015, v017, v020 and v021 have that release's names, argument orders, layouts, defaults and meanings; v0144, v0145
and v0210 those of earlier ones that differ from 0.14.6 and 0.21.7. docs/compat.md says for every name what it is here.
"""

from __future__ import annotations

import re
from types import ModuleType

from natten_mlx.compat import v014, v0144, v0145, v015, v017, v020, v021, v0210

__all__ = ["for_version", "v014", "v0144", "v0145", "v015", "v017", "v020", "v021", "v0210"]

_NEWEST = ((0, 21), v021), ((0, 20), v020)  # from this version on
_OLDEST = ((0, 14), v014), ((0, 15), v015)  # up to this version; v017 is between
# Up to this one of a version's releases: its calls changed in 0.14.5, 0.14.6 and 0.21.5.
_EARLIER = ((0, 14), 4, v0144), ((0, 14), 5, v0145), ((0, 21), 4, v0210)


def for_version(version: str) -> ModuleType:
    """The module for a version of NATTEN, such as "0.17.4" or "0.17.1+torch230cu121".

    Up to 0.14 it is v014, up to 0.15 v015, up to 0.17 v017; above, the newest that is not newer. But for 0.14.0 to
    0.14.4 it is v0144, for 0.14.5 v0145, and for 0.21.0 to 0.21.4 v0210.

    Raises:
        ValueError: what is no version.
    """
    found = (
        re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:\.\d+)*(?:[.+-]?[A-Za-z][\w.+-]*)?", version)
        if isinstance(version, str)
        else None
    )
    if found is None:
        raise ValueError(f"[for_version] expected a version of NATTEN such as '0.17.4', got {version!r}")
    wanted = int(found[1]), int(found[2])
    if found[3] is not None:
        for release, patch, module in _EARLIER:
            if wanted == release and int(found[3]) <= patch:
                return module
    for last, module in _OLDEST:
        if wanted <= last:
            return module
    return next((module for first, module in _NEWEST if wanted >= first), v017)
