"""What a release is made of: its notes, and one version everywhere."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release_notes() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("release_notes", str(ROOT / "scripts" / "release_notes"))
    spec = importlib.util.spec_from_loader("release_notes", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_notes(release_notes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    changelog = "# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2026-12-01\n\n### Added\n- This.\n\n## 1.1.0\n\n- That.\n"
    assert release_notes.notes(changelog, "1.2.0") == "### Added\n- This.\n"
    assert release_notes.notes(changelog, "1.1.0") == "- That.\n"
    for version in ("1.2", "2.0.0", "Unreleased"):
        with pytest.raises(ValueError, match=f"says nothing of {version}"):
            release_notes.notes(changelog, version)
    assert release_notes.main("0.0.1") == 1 and "has another version" in capsys.readouterr().err


def test_links_of_notes_lead_to_the_files(release_notes: ModuleType) -> None:
    text = "[a](docs/a.md#b), [c](https://example.org/c), [d](#d)"
    expected = "[a](https://host/blob/v1/docs/a.md#b), [c](https://example.org/c), [d](#d)"
    assert release_notes.with_links(text, "https://host/blob/v1") == expected


def test_workflows_call_what_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = 0
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for command in re.findall(
            r"^\s*(?:- run: |run: |  )((?:make|scripts/|\.ci/|\./).*)$", path.read_text(), re.MULTILINE
        ):
            word, *rest = command.split()
            assert rest[0] in targets if word == "make" else (ROOT / word).exists(), f"{path.name}: {command}"
            called += 1
    assert called >= 6


def test_one_version() -> None:
    header = (ROOT / "include" / "natten" / "version.h").read_text()
    version = re.search(r'NATTEN_MLX_VERSION "([^"]+)"', header)
    assert version and f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text()


def test_one_mlx() -> None:
    """The pins of MLX agree, in every file that has one."""
    pinned = re.search(r"NATTEN_MLX_REQUIRED ([\d.]+)", (ROOT / "cmake" / "mlx.cmake").read_text())
    assert pinned
    found = re.findall(r"mlx(?:-cpu)?(?:\[\w+\])?==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    found += re.findall(r'_MLX_VERSION = "([\d.]+)"', (ROOT / "python" / "natten_mlx" / "__init__.py").read_text())
    assert len(found) >= 6 and set(found) == {pinned[1]}
