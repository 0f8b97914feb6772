"""Writes the stubs of functional.py, varlen.py and distributed/__init__.py: what type checkers and editors see of them.

python scripts/write_stubs.py            (or `make docs`)
python scripts/write_stubs.py --check    exit 1 if a file is out of date

Signatures and docstrings are those of the functions; a function with `return_lse` gets an overload for each result.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from natten_mlx import distributed, functional, varlen

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "natten_mlx"
HEADER = '''"""{title}

Written by scripts/write_stubs.py from {source}.
"""

from collections.abc import Sequence
from typing import {typing}

import mlx.core as mx

'''
ALIASES = ("Ints", "Bools", "StreamOrDevice")
ALIAS = rf"^(?:{'|'.join(ALIASES)}) = .*$"
KEYWORD, NONE = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty


class Text(str):
    """An annotation as it is to be printed."""

    def __repr__(self) -> str:
        return str(self)


def spelled(annotation: object) -> Text:
    """As functional.py writes it."""
    for name in ALIASES:
        if annotation == getattr(functional, name):
            return Text(name)
        if annotation == getattr(functional, name) | None:
            return Text(f"{name} | None")
    return Text(inspect.formatannotation(annotation).replace("mlx.core.", "mx.").replace("collections.abc.", ""))


def overloads(signature: inspect.Signature) -> Iterator[inspect.Signature]:
    """Of a function with `return_lse`: False, True by position, True by keyword, any bool; else the signature."""
    parameters = list(signature.parameters.values())
    at = next((i for i, p in enumerate(parameters) if p.name == "return_lse"), None)
    if at is None:
        yield signature
        return
    before, lse, after = parameters[:at], parameters[at], parameters[at + 1 :]
    no, yes = (
        lse.replace(annotation=Text("Literal[False]")),
        lse.replace(annotation=Text("Literal[True]"), default=NONE),
    )
    pair = Text("tuple[mx.array, mx.array]")
    yield inspect.Signature([*before, no, *after], return_annotation=Text("mx.array"))
    if lse.kind is not KEYWORD:
        required = [p.replace(default=NONE) for p in before]
        yield inspect.Signature([*required, yes, *after], return_annotation=pair)
    keywords = [p.replace(kind=KEYWORD) for p in (yes, *after)]
    yield inspect.Signature([*before, *keywords], return_annotation=pair)
    yield signature


def declaration(name: str, signature: inspect.Signature, body: str) -> str:
    """`def` with as many parameters on a line as fit."""
    if not signature.parameters:
        return f"def {name}() -> {signature.return_annotation}:{body}\n"
    lines = [""]
    for parameter in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", re.fullmatch(r"\((.*)\) -> .*", str(signature))[1]):
        if len(lines[-1]) + len(parameter) > 114:
            lines.append("")
        lines[-1] += f"{parameter.strip()}, "
    inside = "".join(f"    {line.rstrip()}\n" for line in lines)
    return f"def {name}(\n{inside}) -> {signature.return_annotation}:{body}\n"


def stub(module: ModuleType, source: str, typing: str) -> str:
    """The whole file, of what the module itself defines."""
    text = HEADER.format(title=(module.__doc__ or "").splitlines()[0], source=source, typing=typing)
    if module is functional:
        text += "".join(f"{line}\n" for line in re.findall(ALIAS, inspect.getsource(module), re.MULTILINE))
    else:
        text += f"from natten_mlx.functional import {', '.join(sorted(ALIASES))}\n"
    for name, function in vars(module).items():
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        signature = inspect.signature(function)
        signature = signature.replace(
            parameters=[p.replace(annotation=spelled(p.annotation)) for p in signature.parameters.values()],
            return_annotation=spelled(signature.return_annotation),
        )
        variants = list(overloads(signature))
        text += "\n"
        for index, variant in enumerate(variants):
            body = f'\n    """{function.__doc__}"""' if index == 0 else " ..."
            text += ("@overload\n" if len(variants) > 1 else "") + declaration(name, variant, body)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    texts = {
        PACKAGE / "functional.pyi": stub(functional, "functional.py", "Literal, overload"),
        PACKAGE / "varlen.pyi": stub(varlen, "varlen.py", "Literal, overload"),
        PACKAGE / "distributed" / "__init__.pyi": stub(distributed, "__init__.py", "Any, Literal, overload"),
    }
    old = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in old:
        if args.check:
            print(f"{path.relative_to(PACKAGE)} is out of date; run `make docs`", file=sys.stderr)
        else:
            path.write_text(texts[path])
    return int(args.check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
