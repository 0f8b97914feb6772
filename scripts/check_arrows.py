"""Checks that folders include each other one way only: each may use itself and those named for it.

python scripts/check_arrows.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USES = {
    "src/definition": "",
    "src/graph": "definition natten mlx",
    "src/ops": "definition graph natten mlx",
    "src/native/cpu": "definition",
    "src/native": "definition graph ops native/cpu mlx",
    "src/fast": "definition graph ops natten mlx",
    "src/pure": "definition graph ops mlx",
    "src/api": "definition graph ops pure fast native natten mlx",
    "src/distributed": "definition graph ops api natten mlx",
    "src/probe": "native/cpu",
    "src/explorer": "definition",
    "python/bindings": "definition graph ops native native/cpu api distributed probe natten mlx",
}
FOLDERS = sorted({name for uses in USES.values() for name in uses.split()} | {f[4:] for f in USES if f[:4] == "src/"})
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def folder_of(path: str) -> str | None:
    """The longest of FOLDERS that holds `path`; None for what lies beside the including file, and other libraries."""
    return max((name for name in FOLDERS if path.startswith(name + "/")), key=len, default=None)


def wrong_arrows() -> list[str]:
    wrong = []
    for file in sorted(path for top in ("src", "python") for path in (ROOT / top).rglob("*.[hc]*")):
        name = file.relative_to(ROOT).as_posix()
        own = max((folder for folder in USES if name.startswith(folder + "/")), key=len, default=None)
        if file.suffix not in (".h", ".cpp") or own is None:
            continue
        for included in INCLUDE.findall(file.read_text()):
            folder = folder_of(included)
            if folder is not None and "src/" + folder != own and folder not in USES[own].split():
                wrong.append(f"{name} includes {included}: {own} may include {USES[own] or 'nothing else'}")
    return wrong


if __name__ == "__main__":
    found = wrong_arrows()
    print("\n".join(found))
    sys.exit(1 if found else 0)
