"""The reference: Python's from signatures and docstrings, C++'s from the headers in include/natten."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import natten_mlx
from natten_mlx import compat, distributed, functional, merge, models, neighborhood, nn, support_matrix, varlen
from natten_mlx.distributed import plan
from natten_mlx.extras import allin1
from natten_mlx.utils import window

ROOT = Path(__file__).resolve().parent.parent
NOT_HERE = ("natten.h", "version.h")  # headers without declarations
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$", re.MULTILINE)
STREAM = "mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None"
QUOTED = re.compile(r"(?<=: )'([^']*)'")  # an annotation that was not evaluated
PLACE = re.compile(r"<(?:function .*|factory)>")  # a default that has no text
ITEM = re.compile(r"^(\**\w[\w., |\[\]]*): (.*)$")


def docstring(text: str) -> str:
    """A docstring with Google's sections as Markdown."""
    first, *rest = SECTION.split(inspect.cleandoc(text))
    parts = [_markdown(first)]
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        parts.append(f"**{name}**\n\n{_items(body)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(text: str) -> str:
    """Shapes in brackets are no links, and stars no emphasis."""
    return text.strip().replace("[", "\\[").replace("*", "\\*")


def _items(body: str) -> str:
    lines: list[str] = []
    for line in inspect.cleandoc(body).splitlines():
        item = None if line.startswith(" ") else ITEM.match(line)
        if item and ". " not in item[1]:
            lines.append(f"- `{item[1]}`: {_markdown(item[2])}")
        elif lines and line.strip():
            lines[-1] += " " + _markdown(line)
        elif line.strip():
            lines.append(_markdown(line))
    return "\n".join(lines)


def signature(name: str, function: Any) -> str:
    """In lines of a readable length, without annotations of modules that everyone knows."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name != "self":
            text = PLACE.sub("...", QUOTED.sub(r"\1", str(parameter)))
            text = text.replace("mlx.core.", "mx.").replace("collections.abc.", "")
            parts.append(text.replace(STREAM, "StreamOrDevice"))
            if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
                parts.insert(-1, "*")
    text = ", ".join(parts)
    text = text if len(name) + len(text) < 100 else "\n    " + ",\n    ".join(parts) + ",\n"
    return f"```signature\n{name}({text})\n```\n"


def entry(name: str, item: Any, shown: dict[Any, str]) -> str:
    """A function, or a class with its methods; `shown` says under which class a method is already."""
    callee = item.__init__ if inspect.isclass(item) and item.__init__ is not object.__init__ else item
    try:
        head = signature(name, callee)
    except (TypeError, ValueError):
        head = ""
    parts = [f"### {name}\n", head, docstring(inspect.getdoc(item) or "")]
    if inspect.isclass(item):
        parts += [docstring(inspect.getdoc(callee) or "") if _is_ours(callee) else "", *methods(name, item, shown)]
    return "\n".join(part for part in parts if part)


def methods(name: str, item: type, shown: dict[Any, str]) -> Iterator[str]:
    """Those that say something of themselves, wherever in this package they are from: the three ranks share most."""
    shared: dict[str, list[str]] = {}
    for method, function in inspect.getmembers(item, lambda x: inspect.isfunction(x) or inspect.ismethod(x)):
        if not _is_ours(function) or (method.startswith("_") and method != "__call__"):
            continue
        first = shown.setdefault(function, name)
        if first != name:
            shared.setdefault(first, []).append(f"`{method}`")
            continue
        title = f"{name}.{method}"
        yield f"#### {title.replace('_', chr(92) + '_')}\n"
        yield signature(title, function)
        yield docstring(inspect.getdoc(function) or "")
    for first, same in shared.items():
        yield f"{', '.join(same)}: as of `{first}`.\n"


def _is_ours(function: Any) -> bool:
    return function.__module__.partition(".")[0] == "natten_mlx" and bool(function.__doc__)


def _public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [n for n, v in vars(module).items() if _belongs(v, module)]
    return [name for name in names if not name.startswith("_")]


def _belongs(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def python_page() -> str:
    """Every public function and class, by module."""
    parts = ["# Python reference\n\nWritten from the docstrings; [the guide](../api.md) explains them with examples.\n"]
    root = {name for name in dir(natten_mlx) if not name.startswith("_")}
    seen: set[str] = set()
    shown: dict[Any, str] = {}
    for module, title in (
        (functional, "Operations"),
        (varlen, "Padded samples"),
        (neighborhood, "Neighborhoods"),
        (merge, "Merging"),
        (nn, "Modules"),
        (support_matrix, "Tiers"),
    ):
        names = [name for name in _public(module) if name in root]
        parts += [f"## {title}\n", *(entry(name, getattr(natten_mlx, name), shown) for name in names)]
        seen |= set(names)
    rest = [name for name in dir(natten_mlx) if name in root - seen and inspect.isroutine(getattr(natten_mlx, name))]
    parts += [entry(name, getattr(natten_mlx, name), shown) for name in rest]
    parts += ["## natten_mlx.utils.window\n", *(entry(name, getattr(window, name), shown) for name in _public(window))]
    for module in (distributed, plan, models, compat, allin1):
        path = module.__name__.removeprefix("natten_mlx.")
        callables = {name: getattr(module, name) for name in _public(module)}
        entries = [entry(f"{path}.{name}", item, shown) for name, item in callables.items() if callable(item)]
        parts += [f"## {module.__name__}\n", docstring(inspect.getdoc(module) or ""), *entries]
    return "\n".join(parts)


def cpp_page() -> str:
    """Every header: what it says of itself, then each declaration below its comment."""
    parts = ["# C++ reference\n\nWritten from the headers. [The guide](../cpp.md) shows how to build and call.\n"]
    headers = sorted((ROOT / "include" / "natten").glob("*.h"))
    parts += [_header(header) for header in headers if header.name not in NOT_HERE]
    return "\n".join(parts)


def _header(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    about = re.match(r"((?://.*\n)+)", text)
    body = text.partition("namespace natten {\n")[2].rpartition("}  // namespace natten")[0]
    blocks = [block for block in re.split(r"\n\s*\n(?=\S)", body.strip("\n")) if not block.startswith("namespace mx")]
    lines = [f"## natten/{path.name}\n", _plain(about[1], "//") if about else ""]
    for block in blocks:
        comment = re.match(r"((?:///.*\n)+)", block)
        declaration = block[comment.end() :] if comment else block
        title = _title(declaration)
        lines.append(f"### {title}\n" if title else "")
        lines.append(_plain(comment[1], "///") if comment else "")
        lines.append(f"```cpp\n{declaration.rstrip()}\n```\n")
    return "\n".join(line for line in lines if line)


def _title(declaration: str) -> str:
    found = re.search(r"^(?:struct|class|enum class|using) (\w+)|(\w+)\(", declaration, re.MULTILINE)
    return (found[1] or found[2]) if found else ""


def _plain(comment: str, mark: str) -> str:
    lines = [line.removeprefix(mark).removeprefix(" ") for line in comment.strip().splitlines()]
    return _markdown("\n".join(lines)) + "\n"
