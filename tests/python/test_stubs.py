"""What type checkers, editors and help() see: stubs, overloads, docstrings."""

import ast
import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mypy import api

import natten_mlx
from natten_mlx import _ext, functional, neighborhood, varlen

ROOT = Path(__file__).parents[2]


def test_stubs_match_the_extension() -> None:
    stub = ast.parse((Path(natten_mlx.__file__).parent / "_ext.pyi").read_text())
    arguments = {node.name: [a.arg for a in node.args.args] for node in stub.body if isinstance(node, ast.FunctionDef)}
    functions = {name for name in dir(_ext) if callable(getattr(_ext, name)) and not name.startswith("_")}
    assert set(arguments) == functions
    for name, names in arguments.items():
        signature = getattr(_ext, name).__doc__.splitlines()[0]
        positions = [signature.index(f"{argument}: ") for argument in names]
        assert positions == sorted(positions), name


def test_the_written_stubs_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "write_stubs.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """What mypy --strict prints about sources, each a program of its own; empty when it is content."""
    cache = tmp_path_factory.mktemp("mypy")

    def check(*sources: str) -> str:
        folder = tmp_path_factory.mktemp("programs")
        for index, source in enumerate(sources):
            (folder / f"program_{index}.py").write_text(source)
        options = ["--strict", "--config-file=", "--no-error-summary", f"--cache-dir={cache}"]
        output, errors, _ = api.run([*options, *map(str, sorted(folder.iterdir()))])
        return output + errors

    return check


def test_readme_passes_mypy_strict(strict: Callable[..., str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks and strict(*blocks) == ""


def test_types_of_results(strict: Callable[..., str]) -> None:
    """`return_lse` decides, by position or by keyword, and streams are what MLX takes."""
    assert not strict(
        """
import mlx.core as mx
from typing_extensions import assert_type

import natten_mlx

x, flag = mx.zeros((1, 8, 2, 4)), bool(input())
Pair = tuple[mx.array, mx.array]
assert_type(natten_mlx.na1d(x, x, x, 3), mx.array)
assert_type(natten_mlx.na1d(x, x, x, 3, 1, 1, False, None, False), mx.array)
assert_type(natten_mlx.na1d(x, x, x, 3, return_lse=True), Pair)
assert_type(natten_mlx.na1d(x, x, x, 3, 1, 1, False, 0.5, True, None, None), Pair)
assert_type(natten_mlx.na1d(x, x, x, 3, return_lse=True, additional_keys=x, additional_values=x, rpb=x), Pair)
assert_type(natten_mlx.na1d(x, x, x, 3, return_lse=flag), mx.array | Pair)
assert_type(natten_mlx.na1d_varlen(x, x, x, x, 3), mx.array)
assert_type(natten_mlx.na2d_varlen(x, x, x, spatial_sizes=x, kernel_size=(3, 5), return_lse=True), Pair)
assert_type(natten_mlx.na1d_varlen(x, x, x, x, 3, return_lse=flag), mx.array | Pair)
assert_type(natten_mlx.na3d_qk(x, x, (3, 3, 3), is_causal=(True, False, False)), mx.array)
assert_type(natten_mlx.na1d_qk(x, x, 3, additional_keys=x), mx.array)
assert_type(natten_mlx.na1d_av(x, x, 3, additional_values=x), mx.array)
assert_type(natten_mlx.attention(x, x, x, mx.ones(2), is_causal=True), mx.array)
assert_type(natten_mlx.attention(x, x, x, None, False, True), Pair)
assert_type(natten_mlx.attention(x, x, x, return_lse=True), Pair)
assert_type(natten_mlx.attention(x, x, x, return_lse=flag), mx.array | Pair)
for stream in (mx.cpu, mx.Device(mx.cpu), mx.default_stream(mx.cpu), None):
    natten_mlx.na1d_av(x, x, 3, stream=stream)
natten_mlx.na1d(x, x, x, 3, stream=mx.cpu)
natten_mlx.NeighborhoodAttention2D(64, 4, (3, 5), qk_scale=0.5, rel_pos_bias=True)
assert_type(natten_mlx.na2d(x, x, x, 3, is_circular=(True, False), query_start=(0, 2), key_start=0, shape=9), mx.array)
assert_type(natten_mlx.na2d_qk(x, x, 3, is_circular=True, query_start=1, key_start=(-1, 0), shape=(8, 8)), mx.array)
assert_type(natten_mlx.na2d_av(x, x, 3, is_circular=True, query_start=1, shape=8), mx.array)
assert_type(natten_mlx.na2d_varlen(x, x, x, x, 3, is_circular=True, query_start=1, return_lse=True), Pair)
assert_type(natten_mlx.key_span(3, 4, 2, 20, is_circular=True), tuple[int, int])
assert_type(
    natten_mlx.key_span((3, 5), 4, 2, 20), tuple[int, int] | tuple[tuple[int, ...], tuple[int, ...]]
)
assert_type(natten_mlx.neighborhood_mask(8, 3), mx.array)
assert_type(natten_mlx.neighborhood_mask((8, 9), (3, 5), is_circular=(True, False), dtype=mx.float16), mx.array)
with natten_mlx.backend("pure"):
    pass
""",
    )


def test_types_of_modules(strict: Callable[..., str]) -> None:
    """Every option, what is public around attention, and decoding."""
    assert not strict(
        """
import mlx.core as mx
from mlx.nn.layers.normalization import RMSNorm
from typing_extensions import assert_type

from natten_mlx import NeighborhoodAttention1D, NeighborhoodAttention3D
from natten_mlx.nn import DecodingCache, RoPE

module = NeighborhoodAttention3D(
    64, 4, (3, 5, 5), is_causal=(True, False, False), qk_scale=mx.ones(4), qk_norm=RMSNorm(16), num_registers=2,
    rope=RoPE((4, 6, 6), base=100.0, traditional=True), is_circular=(False, False, True), pad_input=True,
)
x = mx.zeros((1, 4, 8, 8, 64))
assert_type(module.num_registers, int)
query, key, value = module.project(x, offset=(mx.array(3), 0, 0))
assert_type(query, mx.array)
assert_type(module.attend(query, key, value, None, query_start=0, shape=(4, 8, 8)), mx.array)
cache = module.make_cache(1, mx.bfloat16, grid=(8, 8))
assert_type(cache, DecodingCache)
assert_type(cache.copy(), DecodingCache)
assert_type(cache["keys"], mx.array)
assert_type(module.step(x, cache), mx.array)


def swapped(query: mx.array, key: mx.array, offset: int | mx.array = 0) -> tuple[mx.array, mx.array]:
    return key, query


norms = (RMSNorm(16), mx.tanh)
line = NeighborhoodAttention1D(64, 4, 7, is_causal=True, qk_norm=norms, rope=swapped, is_circular=False)
assert_type(line.step(mx.zeros((1, 1, 64)), line.make_cache(batch=1)), mx.array)
assert_type(RoPE(8).rotate(x, (1, 2, 3)), mx.array)
""",
    )


def test_types_of_spread_calls(strict: Callable[..., str]) -> None:
    assert not strict(
        """
import mlx.core as mx
from typing_extensions import assert_type

import natten_mlx
from natten_mlx import distributed

x, group = mx.zeros((1, 8, 2, 4)), mx.distributed.init()
assert_type(distributed.na1d(x, x, x, 3, group=group), mx.array)
assert_type(distributed.na1d(x, x, x, 3, return_lse=True, axis=-1, rows=[8]), tuple[mx.array, mx.array])
assert_type(distributed.shard(x, 0, group), mx.array)
layer = natten_mlx.NeighborhoodAttention1D(8, 2, 3, group=group, shard_axis=0)
layer(x, rows=[8])
""",
    )


def test_wrong_arguments_are_type_errors(strict: Callable[..., str]) -> None:
    output = strict(
        "import natten_mlx\nnatten_mlx.NeighborhoodAttention2D(dim=64, num_heads=4, kernel_size=3)\n",
        "import natten_mlx\nnatten_mlx.na1d(1, 2, 3, 4)\n",
        "import natten_mlx\nnatten_mlx.NeighborhoodAttention1D(8, 2, 3, rope=8)\n",
        "import natten_mlx\nm = natten_mlx.NeighborhoodAttention1D(8, 2, 3)\nm.step(1, m.make_cache('1'))\n",
        "import natten_mlx\nnatten_mlx.neighborhood_mask('8', 3, dtype='bool')\n",
    )
    assert 'program_0.py:2: error: Unexpected keyword argument "dim"' in output
    assert "program_1.py:2: error: No overload variant" in output
    assert 'program_2.py:2: error: Argument "rope"' in output
    assert 'program_3.py:3: error: Argument 1 to "step"' in output
    assert 'program_3.py:3: error: Argument 1 to "make_cache"' in output
    assert 'program_4.py:2: error: Argument 1 to "neighborhood_mask"' in output


NAMES = [n for n in natten_mlx.__all__ if n.startswith(("na1d", "na2d", "na3d"))]
FUNCTIONS = {n: varlen if n.endswith("_varlen") else functional for n in NAMES}
FUNCTIONS |= {"attention": functional, "key_span": neighborhood, "neighborhood_mask": neighborhood}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_of_functions(name: str) -> None:
    """Whether templates make docstrings or not: functions that can be told apart in tracebacks and can be pickled."""
    module = FUNCTIONS[name]
    function = getattr(module, name)
    assert function is getattr(natten_mlx, name)
    assert (function.__name__, function.__qualname__, function.__module__) == (name, name, module.__name__)
    text = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert "{" not in text
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ {{8,}}(\w+, )*{argument}\b[\w, ]*: ", text, re.MULTILINE), argument
    assert "ValueError: " in text and f'"[{name}]"' in text
    assert name == "key_span" or "[B" in text  # layouts


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_help_of_modules(rank: int) -> None:
    """Docstrings stand literally in the source, where editors find them too."""
    module = getattr(natten_mlx, f"NeighborhoodAttention{rank}D")
    text = pydoc.render_doc(module, renderer=pydoc.plaintext)
    assert f"NeighborhoodAttention{rank}D(embed_dim: int, num_heads: int, kernel_size:" in text
    for argument in inspect.signature(module).parameters:
        assert re.search(rf"^ \| {{10}}(\w+, )*{argument}\b[\w, ]*: ", text, re.MULTILINE), argument
    source = ast.parse(inspect.getsource(module))
    assert f"over [B, {('L', 'H, W', 'D, H, W')[rank - 1]}, C]" in (ast.get_docstring(source.body[0]) or "")
