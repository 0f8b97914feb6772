"""The examples run: a few steps, to the picture at the end."""

from __future__ import annotations

import os
import socket
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


def test_distributed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    picture = tmp_path / "picture.png"
    command = [sys.executable, EXAMPLES / "distributed" / "demo.py", "--steps", "2", "--ranks", "1", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [*command, "--port", str(port), "--report", picture],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "differ by" in result.stdout and picture.read_bytes().startswith(b"\x89PNG")
