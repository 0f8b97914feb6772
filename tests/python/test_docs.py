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
    signature = "```signature\nf(x, *, y=1)      # -> out\n```\n"
    assert not check_docs.check_blocks(page, signature)


@pytest.mark.parametrize(
    "fence",
    [
        "```python no-run",
        '```python title="a.py"',
        "```py",
        "```Python",
        "```python3",
        "```pycon",
        "``` python",
        "```{.python .copy}",
        "  ```python",
        "> ```python",
        "~~~python",
        "````python",
    ],
)
def test_no_python_is_passed_over(check_docs: ModuleType, fence: str) -> None:
    """In any way to write a fence that a reader, GitHub or the site takes for Python."""
    close = fence.partition("py")[0].partition("Py")[0].rstrip(" {.")
    for page in ("page.md", "api.md", "models-dinat.md"):
        text = f"```python\nx = 1\n```\n\n{fence}\nraise RuntimeError\n{close}\n\n```sh\nls\n```\n"
        (problem,) = check_docs.check_blocks(check_docs.ROOT / "docs" / page, text)
        assert f"docs/{page}: 1 blocks of Python would not run" in problem


def test_models_and_their_shapes(check_docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages load, classify and decode, from stand-ins under the names that they have on the hub."""
    monkeypatch.chdir(tmp_path)
    check_docs.write_stand_ins()
    for name, wrong in (
        ("models-dinat.md", ("[2, 1000]", "[2, 7]", "logits has the shape [2, 1000], and the comment says [2, 7]")),
        ("models-ltx-decoder.md", ("latents, key=", "latents[0], key=", "expected latents of shape")),
    ):
        page = check_docs.ROOT / "docs" / name
        text = page.read_text()
        assert re.search(r'^\w+, \w+ = models\.load\("[\w.-]+/[\w./-]+"', text, re.MULTILINE)  # a name on the hub
        assert not check_docs.check_blocks(page, text)
        problems = check_docs.check_blocks(page, text.replace(*wrong[:2]))
        assert problems and wrong[2] in problems[0]
    page = check_docs.ROOT / "docs" / "command-line.md"
    assert not check_docs.check_commands(page, page.read_text())
    assert (tmp_path / "out.mp4").exists() and (tmp_path / "out-0008.png").exists()


def test_quotes_and_links(check_docs: ModuleType) -> None:
    page = check_docs.ROOT / "docs" / "page.md"
    assert not check_docs.check_blocks(page, "```make\n# from Makefile\nhelp:  ## show this list\n```\n")
    assert check_docs.check_blocks(page, "```make\n# from Makefile\nnothing of the kind\n```\n")
    quoted = check_docs.check_blocks(page, "```python\n# from scripts/site_package.py\nfrom pathlib import Path\n```\n")
    assert ["is no example that runs in CI" in problem for problem in quoted] == [True]
    for other in ("```cpp\nint x;\n```\n", "```swift\nlet x = 1\n```\n", "```cmake\nproject(x)\n```\n"):
        assert ["is not `from FILE`" in problem for problem in check_docs.check_blocks(page, other)] == [True]
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
    assert not check_docs.check_commands(page, "```sh\nnatten-mlx convert dinat_mini.pth -o folder\n```\n")
    assert not check_docs.check_commands(page, "```sh\necho '[]' | natten-mlx warmup -\n```\n")
    for wrong in (
        *("natten-mlx show --shape 9 -k 99", "natten-mlx classify --nothing", "natten-mlx nothing"),
        "echo '[' | natten-mlx warmup -",
    ):
        (problem,) = check_docs.check_commands(page, f"```sh\n{wrong}\n```\n")
        assert f"docs/page.md: {wrong!r} fails with 2" in problem


@pytest.mark.parametrize("script", ["check_docs.py", "draw_docs.py --check", "draw_performance.py --check"])
def test_documentation(script: str) -> None:
    done = subprocess.run([sys.executable, *f"{SCRIPTS}/{script}".split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
