"""The command `natten-mlx`: what it prints, and what it does with bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import natten_mlx
from natten_mlx.cli import main


@pytest.fixture(autouse=True)
def _restore_backend():
    yield
    natten_mlx.set_backend("auto")


def rows(capsys, *argv: str) -> list[str]:
    """Lines of the drawing that `show` prints."""
    assert main(["show", *argv]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if set(line) <= set("Q#. ") and line]


def test_doctor_checks_a_real_call(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert natten_mlx.__version__ in out and "gives the right result" in out
    assert all(tier in out for tier in natten_mlx.get_support_matrix())


def command(
    *argv: str, folder: Path, prelude: str = "", script: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m natten_mlx`, or the script natten-mlx, in a fresh process. The interpreter starts with `prelude`,
    and `folder` is on its path."""
    (folder / "sitecustomize.py").write_text(f"import sys\n{prelude}\n")
    entry = ["-m", "natten_mlx"]
    if script:
        entry = [str(folder / "natten-mlx")]
        (folder / "natten-mlx").write_text("import sys\nfrom natten_mlx.cli import main\nsys.exit(main())\n")
    base = {name: value for name, value in os.environ.items() if not name.startswith("NATTEN_")}
    base["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, *entry, *argv], env={**base, **environment}, capture_output=True, text=True, timeout=120
    )


# What is wrong, and what `doctor` says of it besides everything else.
BROKEN_ENVIRONMENTS = [
    ({"NATTEN_BACKEND": "bogus"}, r"NATTEN_BACKEND +WRONG: .*Unknown backend 'bogus'.*nanobind"),
    (
        {"NATTEN_BACKEND": "fast_metal", "NATTEN_STRICT": "1"},
        r"NATTEN_STRICT +WRONG: 1: tier 'fast_\w+' is chosen and can't run here",
    ),
    ({"NATTEN_STRICT": "maybe"}, r"NATTEN_STRICT +WRONG: NATTEN_STRICT must be 0 or 1, got 'maybe'"),
    ({"NATTEN_MLX_NANOBIND_MODULE": "no_such_module"}, r"NANOBIND_MODULE +WRONG: .*No module named 'no_such_module'"),
    ({"NATTEN_MLX_NANOBIND_MODULE": "json"}, r"NANOBIND_MODULE +WRONG: .*lacks the functions supports"),
    ({"NATTEN_MLX_NANOBIND_MODULE": "broken_module"}, r"NANOBIND_MODULE +WRONG: .*division by zero"),
    ({"NATTEN_CPU_TARGET": "Z80"}, r"NATTEN_CPU_TARGET +WRONG: .*Unknown NATTEN_CPU_TARGET 'Z80'"),
    ({"NATTEN_NUM_THREADS": "many"}, r"NATTEN_NUM_THREADS +WRONG: .*an integer from 1 to"),
    ({"NATTEN_CACHE_LIMIT": "1 GB"}, r"NATTEN_CACHE_LIMIT +WRONG: .*must be a number of bytes"),
    ({"NATTEN_FAST_TILE": "threads=many"}, r"NATTEN_FAST_TILE +WRONG: .*cannot use 'threads=many'"),
    ({"NATTEN_NUM_THREADS": "0", "NATTEN_BACKEND": "x"}, r"NATTEN_BACKEND +WRONG(.*\n)+NATTEN_NUM_THREADS +WRONG"),
]


def flat(text: str) -> str:
    """Wrapped lines of a table as single ones."""
    return re.sub(r"\n {10,}", " ", text)


@pytest.mark.parametrize(("environment", "told"), BROKEN_ENVIRONMENTS)
def test_doctor_in_a_broken_environment(tmp_path, environment, told):
    if "fast_metal" in environment.values() and natten_mlx.get_support_matrix()["fast_metal"]["available"]:
        pytest.skip("the tier is available here")
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    result = command("doctor", "--verbose", folder=tmp_path, **environment)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert re.search(told, flat(result.stdout)), result.stdout
    for part in (r"tier pure +can run here", r"tier nanobind", r"selected tier +\w+", "gives the right result"):
        assert re.search(part, result.stdout), result.stdout

    if environment.get("NATTEN_STRICT") == "1" or "NATTEN_FAST_TILE" in environment:  # the tier that runs reads neither
        return
    result = command("explain", "na1d", "--shape", "1,8,1,4", "-k", "3", folder=tmp_path, **environment)
    assert result.returncode in (1, 2) and "error: " in result.stderr and "Traceback" not in result.stderr
    assert any(value in result.stderr or "division" in result.stderr for value in environment.values())


# Installations that can't work, as they look to the interpreter.
BROKEN_INSTALLATIONS = {
    "another MLX": (
        'import mlx.core; mlx.core.__version__ = "0.31.0"',
        r"mlx +WRONG: .*built for MLX 0\.32\.4, but MLX 0\.31\.0 is installed.*pip install",
    ),
    "no MLX": ('sys.modules["mlx"] = None', r"mlx +WRONG: .*mlx"),
    "no extension": ('sys.modules["natten_mlx._ext"] = None', r"extension +WRONG: .*natten_mlx\._ext"),
    "half of MLX": ('sys.modules["mlx.nn"] = None', r"package +WRONG: .*mlx\.nn"),
}


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize("case", BROKEN_INSTALLATIONS)
def test_doctor_of_a_broken_installation(tmp_path, case, script):
    prelude, told = BROKEN_INSTALLATIONS[case]
    start = {"folder": tmp_path, "prelude": prelude, "script": script}
    result = command("doctor", **start)
    assert (result.returncode, result.stderr) == (1, ""), result.stderr
    assert re.search(told, flat(result.stdout)), result.stdout
    assert "python" in result.stdout and "processor" in result.stdout
    for other in (["matrix"], ["explain", "na1d", "--shape", "1,8,1,4", "-k", "3"]):
        result = command(*other, **start)
        assert result.returncode == 1 and f"natten-mlx {other[0]}: error: " in result.stderr
        assert "Traceback" not in result.stderr and "doctor" in result.stderr
    assert command("--version", **start).stdout.startswith("natten-mlx ")


def test_other_programs_are_told_when_they_import(tmp_path):
    """Also one that runs as a module itself, during whose import `sys.argv` looks like the command's."""
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__init__.py").write_text("import natten_mlx\n")
    (tmp_path / "program" / "__main__.py").write_text("print('not reached')\n")
    (tmp_path / "script.py").write_text("import natten_mlx\n")
    for argv in (["-m", "program"], [str(tmp_path / "script.py")], ["-c", "import natten_mlx"]):
        environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]), "NATTEN_BACKEND": "x"}
        result = subprocess.run(
            [sys.executable, *argv], env={**os.environ, **environment}, capture_output=True, text=True
        )
        assert result.returncode == 1 and "ImportError: NATTEN_BACKEND: Unknown backend 'x'" in result.stderr, argv
        assert result.stdout == ""


def test_what_strict_forbids_is_a_sentence(capsys, monkeypatch):
    monkeypatch.setenv("NATTEN_STRICT", "1")
    arguments = ["profile", "na1d", "--shape", "1,16,1,8", "-k", "3", "--dtype", "float64", "--tier", "nanobind"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "natten-mlx profile: error: [na1d] NATTEN_STRICT is set and tier 'nanobind' cannot run this call" in error


def test_doctor_shows_where_things_are_and_what_is_cached(capsys):
    assert main(["doctor"]) == 0
    assert "kernel cache" not in capsys.readouterr().out
    assert main(["doctor", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"kernel cache +kernels: \d+, \d+\.\d of at most \d+ MiB", out) and "_ext" in out


def test_doctor_names_a_wrong_result(capsys, monkeypatch):
    monkeypatch.setattr(natten_mlx, "na2d", lambda query, *_, **__: 2 * query)
    assert main(["doctor"]) == 1
    assert re.search("a 2-D call +WRONG", capsys.readouterr().out)


def test_matrix_json_is_the_support_matrix(capsys):
    assert main(["matrix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == natten_mlx.get_support_matrix()


def test_matrix_table_names_every_tier(capsys):
    assert main(["matrix"]) == 0
    out = capsys.readouterr().out
    assert all(tier in out for tier in natten_mlx.get_support_matrix())


@pytest.mark.parametrize("op", ["attention", "qk", "av"])
def test_explain_names_the_tier_that_runs(capsys, op):
    arguments = ["--shape", "2,16,16,4,8", "--kernel-size", "5x3", "--kv-heads", "2", "--op", op, "--tier", "pure"]
    assert main(["explain", "na2d", *arguments]) == 0
    assert "pure" in capsys.readouterr().out


COSTS = {
    "attention": ["forward", "delta", "backward_query", "backward_key_value"],
    "qk": ["qk", "qk_backward_query", "qk_backward_key"],
    "av": ["av", "av_backward_attn", "av_backward_value"],
}


@pytest.mark.parametrize("op", COSTS)
def test_explain_gives_the_cost_of_every_kernel(capsys, tier, op):
    """Of the kernels for GPUs, whatever runs the call here."""
    arguments = ["explain", "na2d", "--shape", "2,16,16,4,8", "--kernel-size", "5x3", "--op", op, "--tier", tier]
    assert main(arguments) == 0
    assert "moved" not in capsys.readouterr().out
    assert main([*arguments, "--cost"]) == 0
    out = capsys.readouterr().out
    assert f"cost    on {natten_mlx.get_support_matrix()['fast_metal']['name']}\n" in out
    lines = [line.removeprefix("cost").strip() for line in out.splitlines() if "moved" in line]
    assert [line.split(":")[0] for line in lines] == COSTS[op]
    for line in lines:
        numbers = [float(x) for x in re.findall(r"\d[\d.e+-]*", line.split(":")[1])]
        megabytes, traffic, gigaflops, waste = numbers[:4]
        assert megabytes > 0 and gigaflops > 0
        assert traffic >= 0.99 and waste >= 1.0
        # Kernels with a tile also say how many are on matrix units, and what they read of threadgroup memory.
        assert numbers[4:] == [] if line.startswith("delta") else len(numbers) == 6 and 0 <= numbers[4] <= gigaflops


def test_explain_says_why_there_is_no_cost(capsys):
    assert main(["explain", "na1d", "--shape", "1,16,1,8", "-k", "3", "--dtype", "float64", "--cost"]) == 0
    assert re.search(r"cost    none: tier 'fast_\w+' cannot run this call: float64", capsys.readouterr().out)


@pytest.mark.parametrize("op", ["attention", "qk", "av"])
def test_explain_takes_every_option_of_the_call(capsys, op):
    arguments = ["explain", "na2d", "--shape", "2,16,12,4,8", "-k", "5,3", "--kv-heads", "2", "--op", op, "--lengths"]
    arguments += [] if op == "av" else ["--rpb"]
    arguments += ["--additional-keys", "3"] if op == "attention" else []
    assert main(arguments) == 0
    assert ("3 additional tokens" in capsys.readouterr().out) == (op == "attention")


# Golden windows: axis length, kernel size, gna stride, dilation, causal, query, drawing.
@pytest.mark.parametrize(
    ("length", "kernel", "gna", "dilation", "causal", "query", "drawn"),
    [
        (7, 4, 1, 1, False, 0, "Q # # # . . ."),
        (7, 4, 1, 1, False, 6, ". . . # # # Q"),
        (8, 4, 2, 1, False, 5, ". . . # # Q # ."),
        (7, 4, 2, 1, True, 4, ". . # # Q . ."),
        (11, 4, 2, 2, False, 10, ". . . . # . # . # . Q"),
        (7, 3, 2, 2, True, 6, ". . # . # . Q"),
    ],
)
def test_show_draws_golden_windows(capsys, length, kernel, gna, dilation, causal, query, drawn):
    arguments = ["--shape", str(length), "-k", str(kernel), "-u", str(gna), "-d", str(dilation), "-q", str(query)]
    assert rows(capsys, *arguments, "--causal", str(causal)) == [drawn]


def test_show_wraps_long_rows(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["show", "--shape", "2,47", "-k", "1,33", "-q", "1,40"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 40 for line in out.splitlines())
    parts = out.split("\n\n")[1:]
    assert [part.splitlines()[0] for part in parts] == [
        "axis 1 from 0 to 19",
        "axis 1 from 20 to 39",
        "axis 1 from 40 to 46",
    ]
    row = " ".join(part.splitlines()[2] for part in parts).split()
    assert row == ["."] * 14 + ["#"] * 26 + ["Q"] + ["#"] * 6


def test_show_draws_the_product_of_axes(capsys):
    assert rows(capsys, "--shape", "4x5", "-k", "3,1", "-q", "0,4", "-c", "false,true") == [
        ". . . . Q",
        ". . . . #",
        ". . . . #",
        ". . . . .",
    ]


def test_show_draws_planes_of_3d(capsys):
    drawn = rows(capsys, "--shape", "3,3,3", "-k", "1,3,3")  # the query defaults to the middle
    assert drawn == [". . ."] * 3 + ["# # #", "# Q #", "# # #"] + [". . ."] * 3


def test_show_defaults_to_a_computed_query(capsys):
    assert rows(capsys, "--shape", "9", "-k", "3", "-s", "3") == [". . # Q # . . . ."]


def test_show_draws_windows_that_wrap(capsys):
    assert rows(capsys, "--shape", "9", "-k", "5", "-q", "0", "--circular") == ["Q # # . . . . # #"]
    assert rows(capsys, "--shape", "4,6", "-k", "3", "-q", "3,5", "--circular", "true,false") == [
        ". . . # # #",
        ". . . . . .",
        ". . . # # #",
        ". . . # # Q",
    ]


def test_show_draws_spans(capsys):
    assert rows(capsys, "--shape", "12", "-k", "5", "--rows", "3", "--query-start", "4") == [". . # # Q Q Q # # . . ."]
    assert rows(capsys, "--shape", "8", "-k", "3", "--rows", "2", "--query-start", "6", "--circular") == [
        "# . . . . # Q Q"
    ]
    assert main(["show", "--shape", "9,12", "-k", "3,4", "-c", "true,false", "--rows", "1,4"]) == 0
    out = capsys.readouterr().out
    assert "axis 0: queries 4..4 need the keys 2..4: 3 rows from there on" in out
    assert "axis 1: queries 4..7 need the keys 2..8: 7 rows from there on" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "2", "--query", "3"], "one query or a span of them, not both"),
        (["--query-start", "3"], "--query-start needs --rows"),
        (["--rows", "2,2"], "--rows needs one value per axis of --shape"),
        (["--rows", "11"], "--rows must be 1 to 10 on axis 0 of --shape, got 11"),
        (["--rows", "0"], "--rows must be 1 to 10 on axis 0 of --shape, got 0"),
        (["--rows", "4", "--query-start", "7"], "queries of axis 0 must lie at positions 0..9, got 7..10"),
        (["--circular", "--causal"], "must not both be true"),
    ],
)
def test_show_refuses_spans_that_are_not_there(capsys, arguments, message):
    assert main(["show", "--shape", "10", "-k", "3", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("more", [[], ["--rows", "1,2,6", "--query-start", "0,2,0", "--circular", "false,false,true"]])
def test_show_writes_a_picture(tmp_path, capsys, more):
    pytest.importorskip("matplotlib")
    path = tmp_path / "window.png"
    assert main(["show", "--shape", "3,6,6", "-k", "3", "--png", str(path), *more]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("op", ["attention", "qk", "av"])
def test_explain_takes_the_shape_of_query_whatever_the_stride(capsys, op):
    assert main(["explain", "na2d", "--shape", "1,9,8,2,4", "-k", "3,4", "-s", "2,3", "--op", op]) == 0
    assert capsys.readouterr().out.startswith("tier ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["show", "--shape", "8", "-k", "9"],
            "--kernel-size: [na1d] kernel_size[0]=9 must be <= input spatial size 8",
        ),
        (["show", "--shape", "8", "-k", "3", "-u", "4"], "--gna-stride: [na1d] gna_stride[0]=4"),
        (["show", "--shape", "8", "-k", "3", "-s", "4"], "--stride: [na1d] stride[0]=4"),
        (["show", "--shape", "8", "-k", "3", "-d", "3"], "--dilation: [na1d] dilation[0]"),
        (["show", "--shape", "8", "-k", "3", "-c", "true,false"], "--causal: [na1d] is_causal must have length 1"),
        (["show", "--shape", "0", "-k", "1"], "--shape must hold positive numbers, got 0"),
        (["show", "--shape", "8", "-k", "3", "-q", "8"], "--query: 8 lies outside"),
        (["show", "--shape", "8", "-k", "3", "-q", "-1"], "--query: -1 lies outside"),
        (["show", "--shape", "8", "-k", "3", "-q", "1,1"], "--query needs one value per axis of --shape, got 2 and 1"),
        (["show", "--shape", "8", "-k", "3", "-s", "2", "-q", "3"], "isn't computed"),
        (["show", "--shape", "8", "-k", "3,3"], "must have length 1"),
        (["show", "--shape", "2,2,2,2", "-k", "1"], "one to three axes"),
        (["show", "--shape", "8", "-k", "three"], "expected integers"),
        (["show", "--shape", "8", "-k", "3", "-c", "maybe"], "expected true or false"),
        (["show", "--shape", "8", "-k", "3", "--png", "/nonexistent/folder/window.png"], "can't write"),
        (["show", "--shape", "8", "-k", "3", "--png", "window.unknown"], "can't write"),
        (["show", "--shape", "8", "-k", "3", "--png", ""], "--png needs"),
        (["show", "--shape", "8"], "--kernel-size"),
        (["show", "--shape", "1000000", "-k", "3"], "--shape: 1000000 tokens are too many to draw"),
        (["explain", "na2d", "--shape", "1,8,2,4", "-k", "3"], "batch,height,width,heads,head_dim"),
        (["explain", "na1d", "--shape", "1,-8,3,4", "-k", "3"], "--shape: [explain] query must hold"),
        (["explain", "na1d", "--shape", "1,8,3,4", "-k", "9"], "--kernel-size: [na1d] kernel_size[0]=9"),
        (["explain", "na1d", "--shape", "1,8,3,4", "-k", "3", "--kv-heads", "-1"], "--kv-heads: [explain] key"),
        (["explain", "na1d", "--shape", "1,8,3,4", "-k", "3", "--value-dim", "-1"], "--value-dim: [explain] value"),
        (["explain", "na1d", "--shape", "1,8,3,4", "-k", "3", "--op", "av", "--rpb"], "--rpb: av takes none"),
        (
            ["explain", "na1d", "--shape", "1,8,3,4", "-k", "3", "--op", "qk", "--additional-keys", "2"],
            "--additional-keys is a number of tokens, of the fused call only",
        ),
        (
            ["explain", "na1d", "--shape", "1,8,3,4", "-k", "3", "--kv-heads", "2"],
            "--kv-heads: [na1d] query heads must",
        ),
        (["explain", "na1d", "--shape", "1,8,2,4", "-k", "3", "--tier", "fastest"], "--tier: Unknown backend"),
        (
            ["explain", "na1d", "--shape", "1,8,2,4", "-k", "3", "--op", "qk", "--value-dim", "2"],
            "--value-dim: qk takes",
        ),
        (["explain", "na1d", "--shape", "1,8,2,4", "-k", f"{10**20}", "--op", "av"], "--kernel-size: [explain]"),
        (
            ["explain", "na1d", "--shape", "1,8,2,4", "-k", "3", "--additional-keys", f"{10**10}"],
            "--additional-keys: [",
        ),
        (
            ["explain", "na2d", "--shape", "1,8,8,2,4", "-k", "3", "-s", "2,2,2", "--op", "av"],
            "stride must have length 2",
        ),
        (["explain", "na2d", "--shape", "1,8,8,2,4", "-k", "3", "-s", "0", "--op", "av"], "must be positive"),
        (["explain", "na4d", "--shape", "1,8,2,4", "-k", "3"], "na4d"),
        (["paint"], "paint"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_explained_with_exit_code_2(capsys, argv, message):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_module_and_command_are_the_same():
    result = subprocess.run(
        [sys.executable, "-m", "natten_mlx", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"natten-mlx {natten_mlx.__version__}\n"


@pytest.mark.parametrize("options", ["", "--json"])
def test_a_closed_pipe_leaves_no_traceback(options):
    command = f"{sys.executable} -m natten_mlx matrix {options} | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stderr == ""
