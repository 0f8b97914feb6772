"""The command `natten-mlx`: what it prints, and what it does with bad input."""

import json
import re
import subprocess
import sys

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
    arguments = ["explain", "na2d", "--shape", "2,16,16,4,8", "--kernel-size", "5x3", "--op", op, "--tier", tier]
    assert main(arguments) == 0
    assert "moved" not in capsys.readouterr().out
    assert main([*arguments, "--cost"]) == 0
    out = capsys.readouterr().out
    if tier != "fast_metal":
        return  # other tiers have no cost model
    lines = [line.removeprefix("cost").strip() for line in out.splitlines() if "moved" in line]
    assert [line.split(":")[0] for line in lines] == COSTS[op]
    for line in lines:
        megabytes, traffic, gigaflops, waste = (float(x) for x in re.findall(r"\d[\d.e+-]*", line.split(":")[1]))
        assert megabytes > 0 and gigaflops > 0
        assert traffic >= 0.99 and waste >= 1.0


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


def test_show_writes_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "window.png"
    assert main(["show", "--shape", "3,6,6", "-k", "3", "--png", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("op", ["attention", "qk", "av"])
def test_explain_takes_the_shape_of_query_whatever_the_stride(capsys, op):
    assert main(["explain", "na2d", "--shape", "1,9,8,2,4", "-k", "3,4", "-s", "2,3", "--op", op]) == 0
    assert capsys.readouterr().out.startswith("tier ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "--shape", "8", "-k", "9"], "kernel_size[0]=9 must be <= input spatial size 8"),
        (["show", "--shape", "8", "-k", "3", "-q", "8"], "outside"),
        (["show", "--shape", "8", "-k", "3", "-q", "-1"], "outside"),
        (["show", "--shape", "8", "-k", "3", "-q", "1,1"], "--query needs 1 values"),
        (["show", "--shape", "8", "-k", "3", "-s", "2", "-q", "3"], "isn't computed"),
        (["show", "--shape", "8", "-k", "3,3"], "must have length 1"),
        (["show", "--shape", "2,2,2,2", "-k", "1"], "one to three axes"),
        (["show", "--shape", "8", "-k", "three"], "expected integers"),
        (["show", "--shape", "8", "-k", "3", "-c", "maybe"], "expected true or false"),
        (["show", "--shape", "8", "-k", "3", "--png", "/nonexistent/folder/window.png"], "can't write"),
        (["show", "--shape", "8", "-k", "3", "--png", "window.unknown"], "can't write"),
        (["show", "--shape", "8"], "--kernel-size"),
        (["explain", "na2d", "--shape", "1,8,2,4", "-k", "3"], "batch,height,width,heads,head_dim"),
        (["explain", "na1d", "--shape", "1,8,3,4", "-k", "3", "--kv-heads", "2"], "must be divisible by"),
        (["explain", "na1d", "--shape", "1,8,2,4", "-k", "3", "--tier", "fastest"], "Unknown backend"),
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
