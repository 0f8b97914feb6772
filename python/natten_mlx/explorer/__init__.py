"""The window explorer: one page for a browser, without a network. `natten-mlx show --html` writes it.

page.html, explorer.css, explorer.js   the page
windows.wasm                           src/definition/window.h for the page, made by scripts/build_explorer
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
DEFAULT: Mapping[str, Sequence[int | bool]] = {"shape": (12, 16), "kernel_size": (5, 5)}


def page(version: str, neighborhood: Mapping[str, Sequence[int | bool]] = DEFAULT) -> str:
    """The whole page as HTML.

    Args:
        version: Of the library, which the page names.
        neighborhood: What it shows first: `shape`, and arguments of `na1d`, `na2d`, `na3d` with a value for each axis.
    """
    parts = {
        "style": (FOLDER / "explorer.css").read_text(encoding="utf-8"),
        "script": (FOLDER / "explorer.js").read_text(encoding="utf-8"),
        "wasm": base64.b64encode((FOLDER / "windows.wasm").read_bytes()).decode(),
        "initial": json.dumps({name: list(values) for name, values in neighborhood.items()}),
        "version": version,
    }
    text = (FOLDER / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text
