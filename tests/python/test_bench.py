"""`natten-mlx bench` and `natten-mlx profile`: formulas, verdicts, exit codes, on small cases."""

from __future__ import annotations

import json
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from natten_mlx.bench import calls, cases, cost, guardrail, machine, measure, memory, plots, profile, report, rivals
from natten_mlx.bench.cases import FORWARD, GRAD_KEY, GRAD_QUERY, STEP, Case
from natten_mlx.cli import main
from oracle import Axis, Geometry

SMALL = Case("na2d_small", (1, 12, 10, 2, 8), (5, 3))
FAST = ["--warmup", "1", "--trials", "3", "--trim-head", "1", "--rounds", "2", "--seconds", "0.05"]
COMPILED = natten_mlx.get_support_matrix()["nanobind"]["available"]
needs_compiled = pytest.mark.skipif(not COMPILED, reason="the compiled tier can't run here")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Case:
    """A table of one quick case."""
    monkeypatch.setattr(cases, "CASES", (SMALL,))
    return SMALL


def wrong_results(monkeypatch: pytest.MonkeyPatch, factor: float = 1.01) -> None:
    """A tier that is off by a factor; the reference stays right."""
    right = natten_mlx.na2d

    def na2d(*args: Any, **options: Any) -> mx.array:
        out = right(*args, **options)
        return out if natten_mlx.get_backend() == "pure" else out * factor

    monkeypatch.setattr(natten_mlx, "na2d", na2d)


# Formulas


def test_pairs_are_those_of_the_definition():
    case = Case("", (1, 9, 11, 2, 8), (4, 3), stride=(2, 1), dilation=(1, 2), is_causal=(True, False))
    mask, _, _ = Geometry((Axis(9, 4, 2, 1, 1, True), Axis(11, 3, 1, 2, 1, False)), batch=1).tables()
    assert cost.size(case).pairs == int(np.sum(mask))
    assert cost.size(case).queries == 5 * 11 and case.queries == (5, 11)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("stride", "dilation", "gna_stride"), [(1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 2, 3), (2, 2, 1)])
def test_windows_at_borders(is_causal: bool, stride: int, dilation: int, gna_stride: int) -> None:
    case = Case("", (1, 23, 2, 8), 4, stride, dilation, is_causal, gna_stride=gna_stride)
    mask, _, _ = Geometry((Axis(23, 4, stride, dilation, gna_stride, is_causal),), batch=1).tables()
    assert cost.size(case).pairs == int(np.sum(mask))
    touched = 0
    for query in range(0, 23, stride):
        place, places = query // dilation, -(-(23 - query % dilation) // dilation)
        first = place // gna_stride * gna_stride  # of those that share the window
        leader = first + (gna_stride - 1 if is_causal else gna_stride // 2)
        start = leader - (3 if is_causal else 2)
        touched += start < 0 or leader >= places or (not is_causal and start + 4 > places)
    assert cost.border(case) == pytest.approx(touched / len(range(0, 23, stride)))


def test_flops_of_a_forward_and_a_backward():
    case = Case("", (2, 32, 32, 4, 16), 7)
    product = 2 * 32 * 32 * 4 * 49 * 16  # tokens heads prod(K) D
    size = cost.size(case)
    assert cost.flops("fused", FORWARD, size) == 4 * product
    assert cost.flops("fused", STEP, size) == 14 * product
    assert cost.flops("fused", GRAD_QUERY, size) == 10 * product
    assert cost.flops("qk", GRAD_KEY, size) == 4 * product


def test_bytes_count_every_array_once():
    size = cost.size(Case("", (1, 64, 4, 8), 7, dtype="float16"))
    assert cost.compulsory_bytes("fused", FORWARD, size) == 4 * 64 * 4 * 8 * 2
    assert cost.compulsory_bytes("fused", STEP, size) == 8 * 64 * 4 * 8 * 2
    grouped = cost.size(Case("", (1, 64, 4, 8), 7), kv_heads=2, value_dim=16)
    assert cost.compulsory_bytes("fused", FORWARD, grouped) == 4 * 64 * (4 * 8 + 2 * 8 + 2 * 16 + 4 * 16)


def test_roofline_names_what_binds():
    assert cost.roofline(100, 10, fma_rate=10, copy_rate=10).bound == "compute"
    assert cost.roofline(10, 100, fma_rate=10, copy_rate=10).bound == "memory"
    assert cost.roofline(10, 10, fma_rate=10, copy_rate=10, dispatch=2).seconds == 2
    assert math.isnan(cost.percent(1, 0))


def test_statistics():
    found = measure.summarize([[1.0, 2.0, 9.0], [4.0, 4.0, 4.0]])
    assert (found["median"], found["min"], found["max"], found["trials"]) == (3.0, 1.0, 9.0, 6)
    samples = measure.Samples(trim_head=1, rounds=[[9.0, 1.0, 1.0], [5.0]])
    assert samples.trimmed() == [[1.0, 1.0], [5.0]]  # a lone sample stays
    assert samples.statistics(trim=False)["max"] == 9.0


def test_a_slow_call_gets_fewer_trials():
    import time

    samples = measure.Samples(0)
    measure.one_round(
        lambda: time.sleep(0.02) or [], measure.Plan(warmup=2, trials=50, trim_head=0, seconds=0.1), samples
    )
    assert 1 <= len(samples.rounds[0]) <= 5


# The table of cases


def test_case_names_are_unique_and_every_case_is_legal():
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)
    for case in cases.CASES:
        natten_mlx.explain(case.query_shape, case.key_shape, case.key_shape, **case.neighborhood())


def test_selection():
    assert [case.name for case in cases.select(["na3d_k3", "na1d_k7"])] == ["na1d_k7", "na3d_k3"]  # the table's order
    assert {case.name for case in cases.select(["na1d_*"])} == {c.name for c in cases.CASES if c.rank == 1}
    assert len(cases.select(["table"])) == 17
    with pytest.raises(ValueError, match="no case or group matches 'na4d'"):
        cases.select(["na4d"])


# Checks against the reference


@pytest.mark.parametrize("form", ["fused", "split", "qk"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tiers_agree_in_every_form(tier, form, dtype):
    case = Case("", (1, 9, 8, 2, 8), 3, stride=(2, 1), is_causal=(True, False), dtype=dtype, form=form)
    expected = calls.Reference(case)
    assert calls.choice(case, *calls.parse_tiers([tier])).declined == ""
    for direction in case.directions:
        with natten_mlx.backend(tier):
            verdict = expected.check(calls.make_call(case, direction)(), direction, dtype)
        assert verdict.wrong == ""


def test_a_wrong_result_is_seen():
    expected = [np.ones((2, 3), np.float32), np.ones(4, np.float32)]
    good = [x * (1 + 1e-6) for x in expected]
    assert calls.check(good, expected, "float32").wrong == ""
    assert "result" in calls.check([good[0] * 1.001, good[1]], expected, "float32").wrong
    assert "gradient" in calls.check([good[0], good[1] * 1.01], expected, "float32").wrong
    assert "result" in calls.check([np.full((2, 3), np.nan, np.float32), good[1]], expected, "float32").wrong
    assert calls.error_of(np.ones(3), np.ones(4)) == math.inf
    assert calls.error_of(np.array([-np.inf, 1.0]), np.array([-np.inf, 1.0])) == 0


def test_one_head_checks_like_all():
    one = calls.Reference(SMALL, heads=1)
    assert one.check(calls.make_call(SMALL, STEP)(), STEP, "float32").wrong == ""


# The commands


def test_table_writes_everything(small, capsys, tmp_path):
    paths = {name: tmp_path / f"table.{name}" for name in ("json", "markdown")}
    arguments = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    assert main(["bench", "table", "--cases", "na2d_small", *FAST, *arguments]) == 0
    written = json.loads(paths["json"].read_text())
    assert written["machine"]["cpu_target"] and written["limits"]["fma_gflops"]["best"] > 0
    timed = [row for row in written["rows"] if row["status"] == "ok"]
    assert {row["direction"] for row in timed} == {FORWARD, GRAD_QUERY, STEP}
    for row in timed:
        assert len(row["raw"]) == 2 and row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert row["gflops"] == pytest.approx(row["flops"] / row["seconds"]["median"] / 1e9)
        assert row["extra_mib"] is not None
    pure = [row for row in timed if row["tier"] == "pure"]
    assert all(row["speedup"] == 1 for row in pure)
    out = capsys.readouterr().out
    for name, row in natten_mlx.get_support_matrix().items():
        assert name in out
        assert row["available"] or f"{name} is unavailable: {row['reason']}" in out
    assert "| na2d_small | forward | pure |" in paths["markdown"].read_text()


def test_table_draws_a_roofline(small, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "roofline.png"
    arguments = ["--cases", "na2d_small", "--directions", "forward", "--no-memory", "--plot", str(path)]
    assert main(["bench", "table", *arguments, *FAST]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@needs_compiled
def test_table_reports_wrong_results(small, monkeypatch, capsys):
    wrong_results(monkeypatch)
    assert main(["bench", "table", "--cases", "na2d_small", "--no-memory", *FAST]) == 1
    assert "WRONG: result differs by 0.01" in " ".join(capsys.readouterr().out.split())


BAD = [
    (["table", "--cases", "na9d"], "--cases: no case or group matches 'na9d'"),
    (["table", "--tiers", "cuda"], "--tiers: unknown tier 'cuda'"),
    (["table", "--directions", "sideways"], "--directions: unknown direction 'sideways'"),
    (["table", "--plot", "x.unknown"], "--plot: can't draw x.unknown"),
    (["table", "--pure-limit", "nan"], "--pure-limit must not be negative"),
    (["table", "--json", "/nonexistent/x.json"], "can't write /nonexistent/x.json"),
    (["table", "--trials", "2"], "--trials 2 leaves nothing: the first 2 of each round don't count (--trim-head)"),
    (["table", "--trials", "0", "--trim-head", "0"], "--trials 0 leaves nothing"),
    (["table", "--warmup", "-1"], "--warmup must be at least 0, got -1"),
    (["table", "--trim-head", "-1"], "--trim-head must be at least 0, got -1"),
    (["compare", "--rounds", "0"], "--rounds must be at least 1, got 0"),
    (["table", "--seconds", "0"], "--seconds must be positive, got 0"),
    (["table", "--threads", "-1"], "--threads expects"),
    (
        ["guardrail", "--direction", "forward", "--thresholds", "/nonexistent.json"],
        "--thresholds: can't read /nonexistent.json",
    ),
    (["guardrail", "--direction", "forward", "--cases", "na9d"], "--cases: no case or group"),
    (
        ["guardrail", "--direction", "forward", "--tiers", "pure"],
        "--tiers: every ratio is relative to pure: name another tier",
    ),
    (["guardrail", "--direction", "sideways"], "invalid choice"),
    (["guardrail"], "required"),
    (["table", "--threads", "2", "--cpu-clock"], "use it with --threads 1"),
    (["compare", "--rivals", "numpy"], "--rivals: unknown alternative 'numpy'"),
    ([], "required"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(mx.metal.is_available() or mx.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_bad_input(capsys):
    assert main(["bench", "table", "--device", "gpu"]) == 2
    assert "MLX has no GPU here" in capsys.readouterr().err


# Guardrails


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(guardrail, "PAUSES", (0.0, 0.0, 0.01))


def this_machine() -> dict[str, Any]:
    return {name: machine.describe()[name] for name in ("processor", "cpu_target")}


def thresholds(
    tmp_path, floors: dict[str, float], ratios: dict[str, Any] | None = None, on: dict[str, str] | None = None
) -> str:
    path = tmp_path / "thresholds.json"
    per_direction = dict.fromkeys((FORWARD, GRAD_QUERY, STEP), floors)
    stored = {"version": "0.0.1", "margin": 0.5, "floors": {"nanobind": {SMALL.name: per_direction}}}
    stored |= {"ratios": ratios or {}, **this_machine(), **(on or {})}
    path.write_text(json.dumps({"cases_version": cases.VERSION, "machines": [stored]}))
    return str(path)


def run_guardrail(path: str, direction: str = "forward") -> int:
    return main(["bench", "guardrail", "--direction", direction, "--cases", SMALL.name, "--thresholds", path, *FAST])


@needs_compiled
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_guardrail_passes_and_fails_by_its_floors(small, tmp_path, capsys, direction):
    assert run_guardrail(thresholds(tmp_path, {"vs_pure": 0.01, "of_fma": 1e-9}), direction) == 0
    assert "within their thresholds" in capsys.readouterr().out
    assert run_guardrail(thresholds(tmp_path, {"vs_pure": 1e6}), direction) == 1
    assert "vs_pure" in capsys.readouterr().out


@needs_compiled
def test_guardrail_compares_with_what_a_release_reached_on_such_a_machine(small, tmp_path, capsys):
    ratios = {"nanobind": {SMALL.name: {FORWARD: {"of_fma": 1e6}}}}
    assert run_guardrail(thresholds(tmp_path, {"vs_pure": 0.01}, ratios)) == 1
    said = " ".join(capsys.readouterr().out.split())
    kind = ", ".join(this_machine().values())
    assert "of release 0.0.1" in said and f"Held to the floors, and to release 0.0.1 on {kind};" in said


@needs_compiled
@pytest.mark.parametrize("other", [{"cpu_target": "another"}, {"processor": "another"}])
def test_guardrail_on_another_machine_holds_the_share_of_the_peak(small, tmp_path, capsys, other):
    ratios = {"nanobind": {SMALL.name: {FORWARD: {"of_fma": 1e6}}}}
    assert run_guardrail(thresholds(tmp_path, {"vs_pure": 1e6, "of_fma": 1e-9}, ratios, other)) == 0
    said = " ".join(capsys.readouterr().out.split())
    kind = ", ".join(this_machine().values())
    assert f"Held to the lowest floors of the share of the peak alone: none are stored for {kind}." in said
    assert run_guardrail(thresholds(tmp_path, {"of_fma": 1e6}, on=other)) == 1


@needs_compiled
def test_guardrail_measures_again_what_falls_short(small, tmp_path, monkeypatch):
    found = iter([1e-9, 1e-9, 1.0])
    monkeypatch.setattr(guardrail, "ratios", lambda *_: {"of_fma": next(found)})
    assert run_guardrail(thresholds(tmp_path, {"of_fma": 0.5})) == 0
    assert next(found, None) is None


@needs_compiled
def test_guardrail_fails_without_a_threshold_and_for_wrong_results(small, tmp_path, monkeypatch, capsys):
    assert run_guardrail(thresholds(tmp_path, {})) == 1
    assert "no threshold" in capsys.readouterr().out
    wrong_results(monkeypatch)
    assert run_guardrail(thresholds(tmp_path, {"vs_pure": 1e-9})) == 1
    assert "WRONG" in capsys.readouterr().out


def test_guardrail_refuses_a_file_for_other_cases(small, tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_text('{"cases_version": 0, "machines": []}')
    assert run_guardrail(str(path)) == 2
    assert "for version 0 of the cases" in capsys.readouterr().err
    path.write_text("[")
    assert run_guardrail(str(path)) == 2
    assert "is no JSON" in capsys.readouterr().err


def test_every_guarded_case_has_floors():
    for case in cases.select(["guardrail"]):
        for direction in case.directions:
            row = {"tier": "nanobind", "case": case.name, "direction": direction, "ratios": {"of_fma": 1e-9}}
            for kind in (*guardrail.load()["machines"], {"processor": "another", "cpu_target": "X"}):
                assert guardrail.shortfalls(row, guardrail.load(), kind)
                assert "of_fma" in row["floors"]


def report_of(*rows: dict[str, Any]) -> dict[str, Any]:
    kind = {"cpu_target": "X", "processor": "Y", "versions": {"natten-mlx": "1"}}
    full = [{"tier": "nanobind", "case": "a", "direction": FORWARD, **row} for row in rows]
    return {"rows": full, "machine": kind, "plan": {"trim_head": 0}}


def test_thresholds_are_made_of_the_lowest_ratio():
    reports = [report_of({"ratios": {"vs_pure": found}}) for found in (10, 20, 40)]
    found = guardrail.thresholds_of(reports, part=0.5, margin=0.6)
    assert found["floors"] == {"nanobind": {"a": {FORWARD: {"vs_pure": 5.0}}}}
    assert found["ratios"] == {"nanobind": {"a": {FORWARD: {"vs_pure": 20.0}}}}
    assert (found["processor"], found["cpu_target"], found["version"]) == ("Y", "X", "1")
    reports[1] = {**reports[1], "machine": {**reports[1]["machine"], "processor": "Z"}}
    with pytest.raises(ValueError, match="several kinds of machines"):
        guardrail.thresholds_of(reports, part=0.5, margin=0.6)


def test_thresholds_are_made_of_a_table():
    timed = {"flops": 4e9, "fma_gflops": 10.0}
    rows = [{"tier": "pure", "raw": [[8.0]], **timed}, {"raw": [[2.0]], **timed}]
    found = guardrail.thresholds_of([report_of(*rows)], part=0.5, margin=0.6, with_release=False)
    assert found["floors"] == {"nanobind": {"a": {FORWARD: {"of_fma": 0.1, "vs_pure": 2.0}}}}
    assert found["ratios"] == {}


# Comparison with alternatives


@pytest.mark.parametrize("name", ["natten-mlx", "mlx-sdpa", "mlx-gather"])
@pytest.mark.parametrize(
    "case",
    [
        Case("plain", (2, 9, 8, 2, 8), (3, 4)),
        Case("causal", (1, 14, 2, 8), 3, dilation=2, is_causal=True),
        Case("volume", (1, 5, 4, 6, 1, 4), (2, 3, 3), is_causal=(True, False, False)),
    ],
    ids=lambda case: case.name,
)
def test_alternatives_compute_the_same(name, case):
    expected = calls.Reference(case)
    for direction in (FORWARD, STEP):
        results = rivals.RIVALS[name](case, direction).results()
        assert expected.check(results, direction, "float32").wrong == ""


def test_alternatives_are_skipped_with_a_reason(monkeypatch):
    with pytest.raises(rivals.Skip, match="query stride"):
        rivals.RIVALS["mlx-sdpa"](Case("", (1, 9, 1, 4), 3, stride=2), FORWARD)
    monkeypatch.setattr(rivals, "MASK_LIMIT", 10)
    with pytest.raises(rivals.Skip, match="dense mask"):
        rivals.RIVALS["mlx-sdpa"](Case("big", (1, 9, 1, 4), 3), FORWARD)


def test_compare_lists_everything(small, capsys, tmp_path):
    path = tmp_path / "compare.json"
    arguments = ["--cases", small.name, "--rivals", "mlx-gather", "natten", "--json", str(path), *FAST]
    assert main(["bench", "compare", *arguments]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["tier"] for row in rows} == {"natten-mlx", "mlx-gather", "natten"}
    for row in rows:
        assert row["status"] == "ok" or row["reason"].startswith("skipped: ")


def test_compare_reports_wrong_results(small, monkeypatch, capsys):
    right = rivals.RIVALS["mlx-gather"]

    def wrong(case: Case, direction: str) -> rivals.Rival:
        rival = right(case, direction)
        return rivals.Rival(rival.run, lambda: [2 * x for x in rival.results()])

    monkeypatch.setitem(rivals.RIVALS, "mlx-gather", wrong)
    assert main(["bench", "compare", "--cases", small.name, "--rivals", "mlx-gather", *FAST]) == 1
    assert "WRONG" in capsys.readouterr().out


# Machine, memory, profile


def test_limits_are_measured():
    limits = machine.Limits()
    limits.sample_fma()
    summary = limits.summary()
    assert 0.1 < summary["fma_gflops"]["median"] <= summary["fma_gflops"]["best"] < 1e5
    assert 0.1 < summary["copy_gbytes"]["best"] < 1e4


@needs_compiled
def test_threads_are_restored():
    count = natten_mlx._ext.cpu_threads()
    with pytest.raises(KeyError):
        guardrail.run([SMALL], ["no such tier"], "forward", measure.Plan(), guardrail.load())
    assert natten_mlx._ext.cpu_threads() == count


@needs_compiled
def test_extra_memory_holds_the_output_and_little_more():
    case = Case("", (1, 128, 128, 4, 64), 3)
    output = 128 * 128 * 4 * 64 * 4 / 2**20
    extra = memory.measure(case, FORWARD, "nanobind")
    assert extra is not None and 0.9 * output <= extra < 2 * output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["na2d", "--shape", "1,12,12,2,8", "-k", "5"], ["forward and every gradient", "GFLOP"]),
        (["na1d", "--shape", "1,32,4,6", "-k", "7", "-c", "--split"], ["of the forward: softmax", "split form writes"]),
        (["na1d", "--shape", "1,32,4,8", "-k", "32"], ["this is dense attention"]),
        (["na3d", "--shape", "1,6,6,6,4,8", "-k", "3", "--kv-heads", "2", "--tier", "pure"], ["tier    pure"]),
        (["na2d", "--shape", "1,12,12,2,8", "-k", "5", "-u", "1,3", "-s", "2,1"], ["s (2, 1), u (1, 3)"]),
        (["na1d", "--shape", "1,32,4,8", "-k", "6", "-u", "4", "-c"], ["u 4", "% of the window's slots hold no key"]),
    ],
)
def test_profile(capsys, arguments, expected):
    assert (
        main(["profile", *arguments, "--seconds", "20"]) == 0
    )  # more than enough: every stage has its 200 runs sooner
    out = capsys.readouterr().out
    assert all(part in out for part in expected), out
    assert "left out" not in out


def test_profile_spends_at_most_its_seconds(capsys):
    """Of a clock that only calls advance: the forward is measured once in any case, the rest if it fits."""
    assert main(["profile", "na1d", "--shape", "1,64,4,8", "-k", "7", "--seconds", "1e-9"]) == 0
    out = capsys.readouterr().out
    lines = {line[:42].strip(): line for line in out.splitlines()}
    assert "left out" not in lines["forward"]
    assert "left out" in lines["forward and every gradient"] and "--seconds gives it more" in out


def test_a_budget_is_shared(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += 1.0

    budget = profile.Budget(10.0)
    assert budget.median(call, 0.35) == 1.0 and now[0] == 3.0
    assert budget.median(call, 1.0, expected=8.0) is None and now[0] == 3.0
    assert budget.median(call, 1.0, expected=6.0) == 1.0 and now[0] == 10.0
    assert budget.median(call, 1.0) is None and now[0] == 10.0


def test_profile_announces_its_stages():
    for case in (Case("", (1, 16, 1, 4), 3), Case("", (1, 16, 1, 4), 3, form="split")):
        told: list[str] = []
        profile.profile(case, seconds=0.1, progress=told.append)
        assert len(told) == profile.stage_count(case)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["na2d", "--shape", "1,12,2,8", "-k", "5"], "5 values, got 4"),
        (["na1d", "--shape", "1,12,2,8", "-k", "13"], "kernel_size[0]=13 must be <= input spatial size 12"),
        (["na1d", "--shape", "1,12,2,8", "-k", "3", "--tier", "x"], "--tier: unknown tier 'x'"),
        (["na1d", "--shape", "1,12,2,8", "-k", "3", "--seconds", "0"], "--seconds expects"),
        (["na1d", "--shape", "1,12,2,8", "-k", "3", "-d", "5"], "--dilation: [na1d] dilation[0]"),
        (["na1d", "--shape", "1,12,2,8", "-k", "3", "-s", "2", "-u", "2"], "must not both exceed 1"),
        (["na1d", "--shape", "1,12,2,8", "-k", "3", "--kv-heads", "0"], "must have no axis of size 0"),
        (["na1d", "--shape", "1,12,2,8", "-k", "3", "--value-dim", "-3"], "dimensions from 0 to 2^31 - 1"),
        (["na1d", "--shape", "0,12,2,8", "-k", "3"], "a batch of 0 has nothing to measure"),
    ],
)
def test_profile_bad_input(capsys, arguments, message):
    assert main(["profile", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_reports_are_read_back(tmp_path):
    path = tmp_path / "x.json"
    report.write_json(str(path), {"kind": "table", "rows": []})
    assert report.read_json(path, "table")["rows"] == []
    with pytest.raises(ValueError, match="no report of the kind 'scaling'"):
        report.read_json(path, "scaling")
    with pytest.raises(ValueError, match="can't read"):
        report.read_json(tmp_path / "none.json", "table")


def test_number_keeps_three_digits():
    assert [report.number(x) for x in (0.12345, 1.2345, 123.45, 12345.6, None)] == ["0.12", "1.23", "123", "12346", "-"]


@pytest.mark.parametrize("name", ["fast_metal", "fast_cuda"])
def test_the_jit_tier_has_one_name_on_a_machine(monkeypatch, name) -> None:
    """That of the support matrix, whichever of the two is given."""
    matrix = natten_mlx.get_support_matrix()
    matrix["fast_metal"]["name"] = name
    monkeypatch.setattr(natten_mlx, "get_support_matrix", lambda: matrix)
    assert calls.parse_tiers(["fast_cuda", "pure", "fast_metal"]) == [name, "pure"]
    assert calls.tier_names() == [name, "nanobind", "pure"] and set(calls.tier_names()) <= set(plots.COLORS)


def test_one_thread_is_no_threads() -> None:
    assert (report.count(1, "thread"), report.count(2, "thread")) == ("1 thread", "2 threads")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (200, 40000, [1000, 10000]),
        (8.5, 40, [10, 20]),
        (0.9, 2.1, [1, 2]),
        (8, 70, [10, 20, 50]),
        (31.5, 38.5, [32, 34, 36, 38]),
        (0.08, 1100, [0.1, 1, 10, 100, 1000]),
    ],
)
def test_ticks_of_logarithmic_axes(low: float, high: float, expected: list[float]) -> None:
    """Two to six on every axis that is longer than a tenth of a power of ten."""
    assert plots.log_ticks(low, high) == pytest.approx(expected)
