"""The check of the documentation finds what it is for, and the documentation passes it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def check_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_docs", SCRIPTS / "check_docs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_block_runs_alone(check_docs: ModuleType) -> None:
    page = check_docs.ROOT / "docs" / "page.md"
    together = "```python\nx = 1\n```\ntext\n```python\nassert x == 1\n```\n"
    (problem,) = check_docs.check_blocks(page, together)
    assert "docs/page.md: block starting with 'assert x == 1' fails" in problem and "NameError" in problem
    assert not check_docs.check_blocks(page, "```python\nx = 1\nassert x == 1\n```\n")
    no_run = "```python no-run\nunknown()\n```\n"
    assert not check_docs.check_blocks(page.with_name("api.md"), no_run)  # has signatures
    assert check_docs.check_blocks(page, no_run)


def test_quotes_and_links(check_docs: ModuleType) -> None:
    page = check_docs.ROOT / "docs" / "page.md"
    assert not check_docs.check_blocks(page, "```make\n# from Makefile\nhelp:  ## show this list\n```\n")
    assert check_docs.check_blocks(page, "```make\n# from Makefile\nnothing of the kind\n```\n")
    assert check_docs.broken_links(page, "[a](nowhere.md)") and not check_docs.broken_links(page, "[a](api.md)")


@pytest.mark.parametrize("about", ["heads first", "shorter than the window", "decode", "forked", "Ctrl-C"])
def test_questions_that_come_up(check_docs: ModuleType, about: str) -> None:
    titles = re.findall(r"^## (.*)$", (check_docs.ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
    assert any(about in title for title in titles), titles


def test_names_of_files_and_targets(check_docs: ModuleType) -> None:
    page = check_docs.ROOT / "HACKING.md"
    true = page.read_text()
    assert not check_docs.missing_names(page, true)
    for wrong in ("src/ops/gone.cpp", "`gone.cpp`", "`make nothing`"):
        (problem,) = check_docs.missing_names(page, f"{true}\n{wrong}\n")
        assert problem == f"HACKING.md: names {wrong.strip('`')}, which is not there"
    (problem,) = check_docs.missing_names(page, true.replace("`src/graph/`", ""))
    assert problem == "HACKING.md: does not say what is in src/graph"


def test_commands(check_docs: ModuleType) -> None:
    page = check_docs.ROOT / "docs" / "page.md"
    assert not check_docs.check_commands(page, "```sh\nnatten-mlx show --shape 9 -k 3  # a window\nmake nothing\n```\n")
    assert not check_docs.check_commands(page, "```sh\nnatten-mlx classify cat.jpg --model folder\n```\n")
    for wrong in ("natten-mlx show --shape 9 -k 99", "natten-mlx classify --nothing", "natten-mlx nothing"):
        (problem,) = check_docs.check_commands(page, f"```sh\n{wrong}\n```\n")
        assert f"docs/page.md: {wrong!r} fails with 2" in problem


@pytest.mark.parametrize("script", ["check_docs.py", "draw_docs.py --check", "draw_performance.py --check"])
def test_documentation(script: str) -> None:
    done = subprocess.run([sys.executable, *f"{SCRIPTS}/{script}".split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
