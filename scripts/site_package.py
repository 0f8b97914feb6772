"""Import this before natten_mlx where nothing was built, as for the site: what it documents is written in Python."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.findall(r'VERSION "(.+)"', (ROOT / "include" / "natten" / "version.h").read_text())[0]


class Extension(ModuleType):
    """Has every function that is asked for. Importing natten_mlx calls some; nothing looks at what they answer."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: ""


def _stand_in() -> Extension:
    extension = Extension("natten_mlx._ext")
    extension.__version__ = VERSION
    return extension


sys.modules["natten_mlx._ext"] = _stand_in()
