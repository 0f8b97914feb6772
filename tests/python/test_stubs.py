"""The type stubs of the extension list what it has."""

import ast
from pathlib import Path

import natten_mlx
from natten_mlx import _ext


def test_stubs_match_the_extension() -> None:
    stub = ast.parse((Path(natten_mlx.__file__).parent / "_ext.pyi").read_text())
    arguments = {node.name: [a.arg for a in node.args.args] for node in stub.body if isinstance(node, ast.FunctionDef)}
    functions = {name for name in dir(_ext) if callable(getattr(_ext, name)) and not name.startswith("_")}
    assert set(arguments) == functions
    for name, names in arguments.items():
        signature = getattr(_ext, name).__doc__.splitlines()[0]
        positions = [signature.index(f"{argument}: ") for argument in names]
        assert positions == sorted(positions), name
