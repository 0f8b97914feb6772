"""Kernels made before their calls, and the files that are kept of them. tests/nvrtc/ has the compiler itself."""

import io
import json
import os

import mlx.core as mx
import pytest

import natten_mlx
from conftest import EMULATED
from natten_mlx import _ext
from natten_mlx.cli import main

CALL = {"query": (1, 20, 2, 8), "key": (1, 20, 2, 8), "value": (1, 20, 2, 8), "kernel_size": 5}


@pytest.mark.skipif(EMULATED, reason="there the calls have kernels")
def test_calls_on_the_cpu_need_nothing():
    assert natten_mlx.warmup([]) == (0, 0)
    assert natten_mlx.warmup([CALL, CALL | {"stream": mx.cpu}], progress=lambda done, total: pytest.fail("told")) == (
        0,
        0,
    )


@pytest.mark.skipif(not EMULATED, reason="needs NATTEN_TEST_FAST_EMULATOR")
def test_each_kernel_is_made_once(tier):
    told = []
    calls = [CALL, CALL | {"query": (3, 20, 2, 8), "key": (3, 20, 2, 8), "value": (3, 20, 2, 8)}]
    natten_mlx.clear_cache()
    assert natten_mlx.warmup(calls, progress=lambda done, total: told.append((done, total))) == (4, 4)
    assert told == [(0, 4), (4, 4)]
    before = _ext.kernel_cache_info()["kernels"]
    x = mx.ones((2, 20, 2, 8))
    mx.eval(mx.grad(lambda a: natten_mlx.na1d(a, a, a, kernel_size=5).sum())(x))
    assert _ext.kernel_cache_info()["kernels"] == before
    assert natten_mlx.warmup([CALL | {"dtype": mx.float16}], gradients=False) == (1, 1)


@pytest.mark.skipif(not EMULATED, reason="needs NATTEN_TEST_FAST_EMULATOR")
@pytest.mark.parametrize(
    "more",
    [
        {"rpb": (2, 9), "lengths": (1,)},
        {"additional_keys": (1, 3, 2, 8), "additional_values": (1, 3, 2, 8)},
        {"op": "qk", "rpb": (2, 9)},
        {"op": "av", "query": (1, 20, 2, 5)},
    ],
)
def test_every_kind_of_call_runs(tier, more):
    kernels, _ = natten_mlx.warmup([CALL | more])
    assert kernels >= 3


@pytest.mark.parametrize(
    "calls, sentence",
    [
        ([CALL | {"kernel_size": 50}], "kernel_size"),
        ([CALL, CALL | {"kernel": 5}], r"calls\[1\].*kernel"),
        ([{"query": (1, 20, 2, 8)}], r"calls\[0\].*key"),
        (["na1d"], r"calls\[0\] must be a dict"),
        ([CALL | {"op": "attn"}], "op must be"),
        ([CALL | {"dtype": "float16"}], "dtype"),
    ],
)
def test_what_no_call_would_take_is_said_before_any_work(calls, sentence):
    with pytest.raises(ValueError, match=sentence):
        natten_mlx.warmup(calls, progress=lambda done, total: pytest.fail("began"))
    with pytest.raises(ValueError, match="gradients"):
        natten_mlx.warmup([CALL], gradients="yes")


@pytest.mark.skipif(EMULATED, reason="there the calls have kernels")
def test_the_command(tmp_path, capsys, monkeypatch):
    file = tmp_path / "calls.json"
    file.write_text(json.dumps([{"query": [1, 20, 2, 8], "kernel_size": 5, "dtype": "float16"}]))
    assert main(["warmup", str(file)]) == 0
    assert "need no kernels" in capsys.readouterr().out
    for text, sentence in (
        ("{}", "must hold a list of calls"),
        ("[", "Expecting"),
        ('[{"dtype": "int8"}]', "dtype must be one of"),
        ("[7]", "must be a dict"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert main(["warmup", "-"]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["warmup", str(tmp_path / "missing.json")]) == 2


def test_the_cache_command_shows_and_clears(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NATTEN_CACHE_DIR", str(tmp_path))
    (tmp_path / ("0123456789abcdef.kernel")).write_bytes(b"x" * 2**20)
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"1 kernel, 1.0 of at most 256 MiB, in {tmp_path}\n"
    assert main(["cache", "--clear"]) == 0
    assert "removed 1 kernel, 1.0 MiB\n0 kernels" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["notes.txt"]
    monkeypatch.setenv("NATTEN_CACHE_DIR", "")
    assert main(["cache", "--clear"]) == 0
    assert "nothing is kept" in capsys.readouterr().out


@pytest.mark.parametrize("name, value", [("NATTEN_NVRTC", "yes"), ("NATTEN_CACHE_DIR", __file__)])
def test_doctor_says_what_is_wrong_with_the_environment(name, value, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"{name}" in out and "WRONG" in out and "kernel files" in out
