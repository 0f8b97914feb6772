"""The examples run: a few steps, to the picture at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hourglass", ["--steps", "2", "--batch-size", "8", "--sampling-steps", "2", "--each", "1"]),
        ("music", ["--steps", "2", "--batch-size", "1", "--songs", "1"]),
    ],
)
def test_example(name: str, arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    result = subprocess.run(
        [sys.executable, EXAMPLES / name / "train.py", *arguments, "--report", picture],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert str(picture) in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = subprocess.run(
        [sys.executable, EXAMPLES / name / "train.py", *arguments, "--report", picture, "--require", "1.1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 1
