"""Choosing a tier, falling back, the support matrix, explain, the environment, and the external compiled tier."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import assert_near, attention, device, rounded, run_python, succeeds, to_mlx

NAMES = ("pure", "fast_metal", "nanobind")
FAST = r"fast_(metal|cuda)"  # one tier; its name tells the GPU of the machine


def pattern(tier: str) -> str:
    return FAST if tier.startswith("fast_") else tier


@pytest.fixture(autouse=True)
def restore_backend() -> Iterator[None]:
    yield
    natten_mlx.set_backend("auto")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATTEN_STRICT", "0")


def unavailable() -> list[str]:
    return [name for name, row in natten_mlx.get_support_matrix().items() if not row["available"]]


def test_set_and_get() -> None:
    for name in ("pure", "nanobind"):
        natten_mlx.set_backend(name)
        assert natten_mlx.get_backend() == name
    for name in ("fast_metal", "fast_cuda"):
        natten_mlx.set_backend(name)
        assert re.fullmatch(FAST, natten_mlx.get_backend())


def test_auto_resolves_to_the_tier_that_runs() -> None:
    natten_mlx.set_backend("auto")
    q = mx.zeros((1, 8, 1, 4))
    assert natten_mlx.get_backend() == natten_mlx.explain(q, q, q, 3).tier
    assert natten_mlx.get_support_matrix()[natten_mlx.get_backend()]["available"]


@pytest.mark.parametrize("name", ["x", "", "Pure", "metal", "cuda"])
def test_unknown_backend_keeps_the_old_one(name: str) -> None:
    natten_mlx.set_backend("pure")
    with pytest.raises(ValueError, match=rf"Unknown backend '{name}'\. Expected one of \["):
        natten_mlx.set_backend(name)
    assert natten_mlx.get_backend() == "pure"


class TestBackendOfABlock:
    def test_restores_what_was_set_before(self) -> None:
        for before in ("nanobind", "pure"):
            natten_mlx.set_backend(before)
            with natten_mlx.backend("pure"):
                assert natten_mlx.get_backend() == "pure"
                with natten_mlx.backend("nanobind"):
                    assert natten_mlx.get_backend() == "nanobind"
                assert natten_mlx.get_backend() == "pure"
            assert natten_mlx.get_backend() == before

    def test_restores_after_an_error(self) -> None:
        natten_mlx.set_backend("nanobind")
        with pytest.raises(KeyError), natten_mlx.backend("pure"):
            raise KeyError
        assert natten_mlx.get_backend() == "nanobind"
        for wrong in ("x", None, 3):
            with pytest.raises(ValueError, match="Unknown backend"), natten_mlx.backend(wrong):
                raise AssertionError("not reached")
        assert natten_mlx.get_backend() == "nanobind"

    def test_set_backend_inside_ends_with_the_block(self) -> None:
        natten_mlx.set_backend("nanobind")
        with natten_mlx.backend("pure"):
            natten_mlx.set_backend("auto")
            assert natten_mlx.get_backend() != "pure"
            natten_mlx.set_backend("pure")
            assert natten_mlx.get_backend() == "pure"
        assert natten_mlx.get_backend() == "nanobind"

    def test_decorates(self) -> None:
        natten_mlx.set_backend("nanobind")
        assert natten_mlx.backend("pure")(natten_mlx.get_backend)() == "pure"
        assert natten_mlx.get_backend() == "nanobind"

    def test_chooses_the_calls_of_the_block(self) -> None:
        """Their gradients too, wherever they are asked for."""
        q = mx.random.normal((1, 8, 2, 4))
        natten_mlx.set_backend("nanobind")
        with natten_mlx.backend("pure"):
            assert natten_mlx.explain(q, q, q, 3).tier == "pure"
            out = natten_mlx.na1d(q, q, q, 3)
        graph = io.StringIO()
        mx.export_to_dot(graph, out)
        assert "nanobind" not in graph.getvalue()
        graph = io.StringIO()
        mx.export_to_dot(graph, natten_mlx.na1d(q, q, q, 3))
        assert "nanobind" in graph.getvalue()

    def test_threads_have_their_own(self) -> None:
        """Blocks that overlap in time, entered and left in another order than nesting has."""
        natten_mlx.set_backend("nanobind")
        inside, leave = threading.Barrier(3), threading.Event()
        seen: dict[str, list[str]] = {}

        def work(name: str) -> None:
            seen[name] = [natten_mlx.get_backend()]
            with natten_mlx.backend(name):
                inside.wait(60)
                seen[name].append(natten_mlx.get_backend())
                if name == "pure":
                    leave.wait(60)
                seen[name].append(natten_mlx.get_backend())
            seen[name].append(natten_mlx.get_backend())

        threads = [threading.Thread(target=work, args=(name,)) for name in ("pure", "fast_metal")]
        for thread in threads:
            thread.start()
        inside.wait(60)
        assert natten_mlx.get_backend() == "nanobind"
        threads[1].join(60)
        leave.set()
        threads[0].join(60)
        assert seen["pure"] == ["nanobind", "pure", "pure", "nanobind"]
        assert seen["fast_metal"][::3] == ["nanobind", "nanobind"]
        assert all(re.fullmatch(FAST, name) for name in seen["fast_metal"][1:3])
        assert natten_mlx.get_backend() == "nanobind"


@pytest.mark.parametrize("name", [None, 3, ["pure"], b"pure"])
def test_a_backend_that_is_no_name(name: object) -> None:
    natten_mlx.set_backend("pure")
    with pytest.raises(ValueError, match=r"Unknown backend .*Expected one of \["):
        natten_mlx.set_backend(name)  # type: ignore[arg-type]
    assert natten_mlx.get_backend() == "pure"


def test_support_matrix_has_every_field() -> None:
    matrix = natten_mlx.get_support_matrix()
    assert set(matrix) == set(NAMES)
    for row in matrix.values():
        assert isinstance(row["available"], bool)
        assert bool(row["reason"]) == (not row["available"])
        for direction in ("forward", "backward"):
            assert set(row[direction]) == {"na1d", "na2d", "na3d", "split_qk_av"}
            assert all(isinstance(value, bool) for value in row[direction].values())
        assert set(row["varlen"]) == {"na1d", "na2d", "na3d"}
        assert set(row["fusion"]) == {"na1d", "na2d", "na3d"}
        assert all(isinstance(value, bool) for value in row["fusion"].values())
        assert all(isinstance(text, str) for name in ("devices", "dtypes", "constraints") for text in row[name])
    (no_float64,) = matrix["nanobind"]["constraints"]
    x = (1, 9, 9, 1, 4)
    assert natten_mlx.explain(x, x, x, 3, dtype=mx.float64, stream=mx.cpu).declined["nanobind"] == no_float64
    pure = matrix["pure"]
    assert pure["available"] and all(pure["forward"].values()) and all(pure["backward"].values())
    assert all(pure["varlen"].values()) and "cpu" in pure["devices"] and "float32" in pure["dtypes"]
    json.dumps(matrix)


def test_the_jit_tier_has_one_name_on_a_machine(capsys: pytest.CaptureFixture[str], lenient: None) -> None:
    from natten_mlx.cli import main

    q = mx.zeros((1, 8, 1, 4))
    names = {natten_mlx.get_support_matrix()["fast_metal"]["name"]}
    names |= {*natten_mlx.explain(q, q, q, 3).declined, natten_mlx.explain(q, q, q, 3).tier} - {"nanobind", "pure"}
    for alias in ("fast_metal", "fast_cuda"):
        natten_mlx.set_backend(alias)
        names.add(natten_mlx.get_backend())
    for argv in (["doctor"], ["matrix"], ["profile", "na1d", "--shape", "1,8,1,4", "-k", "3", "--seconds", "0.01"]):
        assert main(argv) == 0
        names |= set(re.findall(r"fast_\w+", capsys.readouterr().out.replace("'fast_metal', 'nanobind'", "")))
    natten_mlx.set_backend("pure")
    names |= set(re.findall(r"fast_\w+", str(natten_mlx.explain(q, q, q, 3))))
    assert names == {"fast_cuda" if mx.cuda.is_available() else "fast_metal"}


def test_support_matrix_is_what_dispatch_does(lenient: None) -> None:
    """A tier that says it is available and covers a call runs it under strict; one that is not raises."""
    os.environ["NATTEN_STRICT"] = "1"
    for name, row in natten_mlx.get_support_matrix().items():
        natten_mlx.set_backend(name)
        for rank in (1, 2, 3):
            q = mx.zeros((1, *(6,) * rank, 1, 4))
            call = getattr(natten_mlx, f"na{rank}d")
            if row["available"] and row["forward"][f"na{rank}d"] and "cpu" in row["devices"]:
                mx.eval(call(q, q, q, 3))
            elif not row["available"]:
                with pytest.raises(RuntimeError, match="NATTEN_STRICT"):
                    call(q, q, q, 3)


def test_has_functions_agree_with_the_matrix() -> None:
    matrix = natten_mlx.get_support_matrix()
    assert natten_mlx.has_nanobind() == matrix["nanobind"]["available"]
    assert isinstance(natten_mlx.has_metal(), bool)
    if not mx.metal.is_available():
        assert natten_mlx.has_metal() is False


def test_a_chosen_tier_that_is_unavailable_falls_back(lenient: None) -> None:
    case = Case((7, 6), (3, 3), heads=2)
    arrays = rounded(case.arrays(), "float32")
    names, call = attention(case)
    for name in unavailable():
        natten_mlx.set_backend(name)
        assert natten_mlx.get_backend() != "auto"
        out, _ = call(*(to_mlx(arrays[n]) for n in names))
        assert_near(out, case.call(arrays).forward()[0], 1e-5)


def test_float64_falls_back_from_every_tier_but_pure(lenient: None) -> None:
    case = Case((7,), (3,), dtype="float64")
    names, call = attention(case)
    for name in NAMES:
        natten_mlx.set_backend(name)
        out, lse = call(*(to_mlx(case.arrays()[n], "float64") for n in names))
        assert out.dtype == lse.dtype == mx.float64
        assert_near(out, case.call(case.arrays()).forward()[0], 1e-12)


def test_strict_names_the_tier_and_the_reason() -> None:
    q = mx.zeros((1, 8, 1, 4), mx.float64)
    for name in ("fast_metal", "nanobind"):
        natten_mlx.set_backend(name)
        with pytest.raises(RuntimeError, match=pattern(name)):
            natten_mlx.na1d(q, q, q, 3)
    natten_mlx.set_backend("auto")  # strict is about explicit choices
    mx.eval(natten_mlx.na1d(q, q, q, 3))


def test_strict_allows_compositions(tier: str) -> None:
    """Additional keys, jvp and second derivatives are compositions, not fallbacks."""
    q = mx.random.normal((1, 8, 1, 4))
    extra = mx.random.normal((1, 2, 1, 4))
    mx.eval(natten_mlx.na1d(q, q, q, 3, additional_keys=extra, additional_values=extra))

    def loss(q: mx.array) -> mx.array:
        return (natten_mlx.na1d(q, q, q, 3) ** 2).sum()

    mx.eval(mx.grad(lambda q: (mx.grad(loss)(q) ** 2).sum())(q))
    mx.eval(mx.jvp(loss, [q], [q]))


def test_each_reason_is_logged_once() -> None:
    code = """
        import logging, re, mlx.core as mx
        records = []
        class Keep(logging.Handler):
            def emit(self, record):
                records.append(record)
        logger = logging.getLogger("natten_mlx")
        logger.addHandler(Keep())
        logger.setLevel(logging.DEBUG)
        import natten_mlx
        mx.set_default_device(mx.cpu)
        name = "fast_metal"
        assert not natten_mlx.get_support_matrix()[name]["available"]
        natten_mlx.set_backend(name)
        q = mx.zeros((1, 8, 1, 4))
        for _ in range(3):
            mx.eval(natten_mlx.na1d(q, q, q, 3))
        fallbacks = [r for r in records if re.search("fast_(metal|cuda)", r.getMessage())]
        assert len(fallbacks) == 1, [r.getMessage() for r in records]
        assert fallbacks[0].levelno >= logging.WARNING
        assert natten_mlx.get_support_matrix()[name]["reason"] in fallbacks[0].getMessage()
        natten_mlx.set_backend("auto")
        count = len(records)
        mx.eval(natten_mlx.na1d(q, q, q, 3))
        assert len(records) == count, "auto does not choose, so nothing falls back"
        print("ok")
    """
    if natten_mlx.get_support_matrix()["fast_metal"]["available"]:
        pytest.skip("every tier is available here")
    assert "ok" in succeeds(code)


def test_auto_logs_what_ends_on_pure() -> None:
    code = """
        import logging, mlx.core as mx
        records = []
        class Keep(logging.Handler):
            def emit(self, record):
                records.append(record.getMessage())
        logging.getLogger("natten_mlx").addHandler(Keep())
        import natten_mlx
        q = mx.zeros((1, 8, 1, 4))
        mx.eval(natten_mlx.na1d(q, q, q, 3, stream=mx.cpu))
        assert records == [], records
        q = q.astype(mx.float64, stream=mx.cpu)
        for _ in range(2):
            mx.eval(natten_mlx.na1d(q, q, q, 3, stream=mx.cpu))
        assert len(records) == 1, records
        assert "float64 is computed by the pure tier only" in records[0], records
        assert "falling back to tier 'pure'" in records[0], records
        print("ok")
    """
    assert "ok" in succeeds(code)


def test_a_fallback_does_not_reach_standard_output() -> None:
    code = """
        import mlx.core as mx, natten_mlx
        natten_mlx.set_backend("fast_metal")
        q = mx.zeros((1, 8, 1, 4))
        mx.eval(natten_mlx.na1d(q, q, q, 3, stream=mx.cpu))
    """
    assert succeeds(code) == ""


class TestEnvironment:
    @pytest.mark.parametrize("name", NAMES)
    def test_initial_backend(self, name: str) -> None:
        out = succeeds("import natten_mlx; print(natten_mlx.get_backend())", NATTEN_BACKEND=name)
        assert re.fullmatch(pattern(name), out.strip())

    def test_unknown_backend_lists_the_names(self) -> None:
        result = run_python("import natten_mlx; natten_mlx.get_backend()", NATTEN_BACKEND="bogus")
        assert result.returncode != 0
        assert "NATTEN_BACKEND: Unknown backend 'bogus'. Expected one of [" in result.stderr
        for name in ("auto", *NAMES):
            assert name in result.stderr

    @pytest.mark.parametrize("value, raises", [("1", True), ("0", False), ("", False)])
    def test_strict(self, value: str, raises: bool) -> None:
        code = """
            import mlx.core as mx, natten_mlx
            q = mx.zeros((1, 8, 1, 4), mx.float64)
            natten_mlx.set_backend("nanobind")
            mx.eval(natten_mlx.na1d(q, q, q, 3, stream=mx.cpu))
        """
        result = run_python(code, NATTEN_STRICT=value)
        assert (result.returncode != 0) == raises, result.stderr
        assert not raises or "RuntimeError" in result.stderr

    def test_strict_is_yes_or_no(self) -> None:
        assert "ImportError: NATTEN_STRICT must be 0 or 1" in run_python("import natten_mlx", NATTEN_STRICT="on").stderr


class TestExplain:
    def test_arrays_and_shapes_agree(self, tier: str) -> None:
        q = mx.zeros((1, 8, 9, 4, 16), mx.float16)
        kv = mx.zeros((1, 8, 9, 2, 16), mx.float16)
        by_array = natten_mlx.explain(q, kv, kv, (3, 4), is_causal=(True, False))
        by_shape = natten_mlx.explain(q.shape, kv.shape, kv.shape, (3, 4), is_causal=(True, False), dtype=mx.float16)
        assert by_array == by_shape
        assert re.fullmatch(pattern(tier), by_array.tier)
        assert by_array.kernel

    def test_reasons_of_the_tiers_that_declined(self, lenient: None) -> None:
        natten_mlx.set_backend("auto")
        q = mx.zeros((1, 8, 1, 4), mx.float64)
        told = natten_mlx.explain(q, q, q, 3)
        assert dataclasses.is_dataclass(told)
        assert told.tier == "pure"
        for name in (FAST, "nanobind"):
            assert re.search(name, str(told))

    @pytest.mark.parametrize("op", ["attention", "qk", "av"])
    def test_every_operation(self, tier: str, op: str) -> None:
        q, attn = mx.zeros((1, 8, 2, 4)), mx.zeros((1, 8, 2, 3))
        arguments = {"attention": (q, q, q), "qk": (q, q, None), "av": (attn, None, q)}[op]
        told = natten_mlx.explain(*arguments, 3, op=op)
        assert re.fullmatch(pattern(tier), told.tier)
        assert told.tier in str(told)

    def test_wrong_calls_raise_like_the_call(self) -> None:
        q = mx.zeros((1, 8, 1, 4))
        with pytest.raises(ValueError, match="must be <= input spatial size 8"):
            natten_mlx.explain(q, q, q, 9)
        with pytest.raises(ValueError, match="op"):
            natten_mlx.explain(q, q, q, 3, op="nothing")

    def test_kernel_size_is_no_option(self) -> None:
        with pytest.raises(TypeError, match="kernel_size"):
            natten_mlx.explain((1, 8, 1, 4), (1, 8, 1, 4), (1, 8, 1, 4))  # type: ignore[call-arg]

    @pytest.mark.parametrize("dtype", ["float16", 16, np.float16])
    def test_a_dtype_that_is_none(self, dtype: object) -> None:
        with pytest.raises(
            ValueError, match=r"\[explain\] dtype must be an mlx.core.Dtype such as mlx.core.float16, got"
        ):
            natten_mlx.explain((1, 8, 1, 4), (1, 8, 1, 4), (1, 8, 1, 4), 3, dtype=dtype)  # type: ignore[arg-type]

    def test_additional_tokens_change_the_answer_as_they_change_the_call(self, lenient: None) -> None:
        """Float16 with them is a window in float32; without them, and with none of them, it is not."""
        code = """
            import mlx.core as mx, natten_mlx
            natten_mlx.set_backend("nanobind")
            q = mx.zeros((1, 8, 1, 4), mx.float16)
            for tokens in (0, 2):
                extra = mx.zeros((1, tokens, 1, 4), mx.float16)
                options = {"additional_keys": extra, "additional_values": extra}
                told = natten_mlx.explain(q, q, q, 3, **options)
                assert told == natten_mlx.explain(q.shape, q.shape, q.shape, 3, dtype=mx.float16, **{
                    name: array.shape for name, array in options.items()})
                print(told.tier, "2 additional tokens" in told.kernel)
                out = natten_mlx.na1d(q, q, q, 3, stream=mx.cpu, **options)
        """
        result = run_python(code, **EXTERNAL)  # which computes float32 only
        assert result.stdout.split() == ["pure", "False", "nanobind", "True"], result.stderr
        assert result.stderr.count("falling back") == 1
        with pytest.raises(ValueError, match="must both be provided"):
            natten_mlx.explain((1, 8, 1, 4), (1, 8, 1, 4), (1, 8, 1, 4), 3, additional_keys=(1, 2, 1, 4))

    @pytest.mark.parametrize("options", [{}, {"is_causal": True, "gna_stride": 2}, {"gna_stride": 2}])
    def test_the_kernel_is_the_one_that_runs(self, options: dict[str, object]) -> None:
        natten_mlx.set_backend("nanobind")
        shape = (1, 12, 12, 1, 4)
        assert natten_mlx.explain(shape, shape, shape, 3, **options).kernel == "shift"
        assert natten_mlx.explain(shape, shape, None, 3, op="qk", **options).kernel == "split"
        attn = (1, 12, 12, 1, 9)
        assert natten_mlx.explain(attn, shape, None, 3, op="av", **options).kernel == "split"

    def test_costs_are_computed_when_asked_for(self, tier: str) -> None:
        q = (1, 2**18, 1, 1)
        told = natten_mlx.explain(q, q, q, 2**13)
        assert told.cost == "" and "cost" not in str(told)
        lines = natten_mlx.explain(q, q, q, 2**13, cost=True).cost.splitlines()
        assert lines[0] == f"on {natten_mlx.get_support_matrix()['fast_metal']['name']}"
        assert [line.split(":")[0] for line in lines[1:]] == [
            "forward",
            "delta",
            "backward_query",
            "backward_key_value",
        ]

    def test_shapes_of_bias_and_lengths_are_checked(self) -> None:
        q = (2, 8, 2, 4)
        with pytest.raises(ValueError, match="rpb"):
            natten_mlx.explain(q, q, q, 3, rpb=(2, 6))
        with pytest.raises(ValueError, match="lengths"):
            natten_mlx.explain(q, q, q, 3, lengths=(3,))
        with pytest.raises(ValueError, match="scale"):
            natten_mlx.explain(q, q, q, 3, scale=float("nan"))
        with pytest.raises(ValueError, match="query"):
            natten_mlx.explain("shape", q, q, 3)

    def test_an_empty_batch_runs_nothing(self) -> None:
        q = (0, 8, 2, 4)
        assert natten_mlx.explain(q, q, q, 3).kernel == "none, the batch is empty"

    def test_a_single_query_is_no_plural(self) -> None:
        shape = (1, 1, 1, 4)
        with natten_mlx.backend("nanobind"):
            assert "tasks of 1 query," in natten_mlx.explain(shape, shape, shape, 1, stream=mx.cpu).tile

    def test_options(self, tier: str) -> None:
        q = mx.zeros((2, 8, 2, 4))
        told = natten_mlx.explain(q, q, q, 3, 1, 2, rpb=mx.zeros((2, 5)), lengths=mx.array([8, 6]))
        assert re.fullmatch(pattern(tier), told.tier)


class TestImport:
    def test_wrong_mlx_version(self) -> None:
        code = """
            import mlx.core as mx
            mx.__version__ = "0.31.0"
            import natten_mlx
        """
        result = run_python(code)
        assert result.returncode != 0
        assert "ImportError" in result.stderr
        assert "0.32.4" in result.stderr and "0.31.0" in result.stderr and "pip install" in result.stderr

    def test_version(self) -> None:
        assert natten_mlx.__version__.count(".") >= 2
        try:
            installed = importlib.metadata.version("natten-mlx")
        except importlib.metadata.PackageNotFoundError:
            return
        assert installed == natten_mlx.__version__

    def test_what_the_reference_lists_is_importable_from_the_root(self) -> None:
        """Also submodules, without an import of their own."""
        text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
        listed = set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE))  # rows of tables
        for block in re.findall(r"```signature\n(.*?)```", text, re.DOTALL):
            for names in re.findall(r"^([\w |]+)\(", block, re.MULTILINE):  # na1d | na2d; Module1D | 2D
                first, *others = names.split(" | ")
                listed |= {first, *(o if len(o) > 2 else first[: -len(o)] + o for o in others)}
        listed -= {"module", "rope"}  # instances
        assert {"na3d_av", "na2d_varlen", "NeighborhoodAttention3D", "set_backend", "get_pb_start"} <= listed
        missing = [name for name in listed if not hasattr(natten_mlx, name) or name not in natten_mlx.__all__]
        assert not missing
        for module in re.findall(r"^## natten_mlx\.([\w.]+)", text, re.MULTILINE):
            print_it = f"import natten_mlx; print(natten_mlx.{module}.__name__)"
            assert succeeds(print_it).strip() == f"natten_mlx.{module}"

    def test_import_leaves_heavy_modules_alone(self) -> None:
        out = succeeds(
            "import sys, natten_mlx; print([m for m in ('matplotlib', 'numpy', 'rich', 'sklearn') if m in sys.modules])"
        )
        assert out.strip() == "[]"


EXTERNAL = {"NATTEN_MLX_NANOBIND_MODULE": "external_module"}


class TestExternalModule:
    def test_it_replaces_the_compiled_tier(self) -> None:
        """Forward, split form and every gradient of the hand-picked cases run on it, with no fallback."""
        code = """
            import external_module, natten_mlx
            from cases import TABLE
            from test_attention import check_attention, check_split
            natten_mlx.set_backend("nanobind")
            assert natten_mlx.has_nanobind()
            for case in TABLE[::3]:
                if max(case.spatial) > 30 or case.dim > 64 or case.lengths or not case.is_plain:
                    continue
                check_attention(case)
                if case.extra is None:
                    check_split(case)
            import test_transforms
            for case in test_transforms.CASES[:3]:
                test_transforms.test_vmap_over_any_input("nanobind", case, (0, 3))
                test_transforms.test_vmap_over_any_input("nanobind", case, (1,))
                test_transforms.test_vmap_of_the_split_form("nanobind", case)
                test_transforms.test_compile("nanobind", case)
                test_transforms.test_shapeless_compile_is_right_or_raises("nanobind", case, True)
                test_transforms.test_jvp_and_second_derivatives("nanobind", case)
                test_transforms.test_checkpoint("nanobind", case)
            missing = set(external_module.FUNCTIONS) - {name for name, _ in external_module.CALLS}
            assert not missing, missing
            print("ok")
        """
        assert "ok" in succeeds(code, **EXTERNAL, NATTEN_STRICT="1")

    def test_its_objections_are_the_matrix(self) -> None:
        code = """
            import json, natten_mlx
            print(json.dumps(natten_mlx.get_support_matrix()["nanobind"]))
        """
        row = json.loads(succeeds(code, **EXTERNAL))
        assert row["available"] and row["dtypes"] == ["float32"] and row["devices"] == ["cpu"]
        assert any("float32 only" in text for text in row["constraints"])

    def test_what_it_declines_runs_elsewhere_or_raises_under_strict(self) -> None:
        code = """
            import mlx.core as mx, natten_mlx
            natten_mlx.set_backend("nanobind")
            q = mx.zeros((1, 8, 1, 4), mx.float16)
            mx.eval(natten_mlx.na1d(q, q, q, 3, stream=mx.cpu))
        """
        assert run_python(code, **EXTERNAL).returncode == 0
        strict = run_python(code, **EXTERNAL, NATTEN_STRICT="1")
        assert strict.returncode != 0 and "float32 only" in strict.stderr

    def test_a_missing_module_is_an_error_that_names_it(self) -> None:
        result = run_python("import natten_mlx", NATTEN_MLX_NANOBIND_MODULE="no_such_module_here")
        assert result.returncode != 0
        assert "no_such_module_here" in result.stderr and "NATTEN_MLX_NANOBIND_MODULE" in result.stderr

    def test_a_module_without_the_functions_is_an_error_that_lists_them(self) -> None:
        result = run_python("import natten_mlx", NATTEN_MLX_NANOBIND_MODULE="json")
        assert result.returncode != 0
        assert "NATTEN_MLX_NANOBIND_MODULE" in result.stderr
        for name in ("supports", "forward", "backward_key_value", "av_backward_value"):
            assert name in result.stderr


def test_logging_goes_to_the_named_logger(caplog: pytest.LogCaptureFixture, lenient: None) -> None:
    """Also in this process: pytest's handler sees a fallback with a reason that no earlier test used."""
    if natten_mlx.get_support_matrix()["nanobind"]["available"]:
        natten_mlx.set_backend("nanobind")
        q = mx.zeros((1, 8, 1, 4), mx.float64)
    else:
        natten_mlx.set_backend("fast_metal")
        q = mx.zeros((1, 8, 1, 4))
    with caplog.at_level(logging.WARNING, logger="natten_mlx"):
        mx.eval(natten_mlx.na1d(q, q, q, 3, stream=mx.cpu))
    assert all(record.name == "natten_mlx" for record in caplog.records)


def test_threads_share_the_choice_and_the_answer(tier: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    case = Case((16, 15), (3, 5), heads=2)
    arrays = rounded(case.arrays(), "float32")
    expected = case.call(arrays).forward()[0]

    def work(_: int) -> np.ndarray:
        with mx.stream(mx.new_stream(device())):
            inputs = [to_mlx(arrays[name]) for name in ("query", "key", "value")]
            out = natten_mlx.na2d(*inputs, (3, 5))
            mx.eval(out)
            return np.array(out)

    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(work, range(16)):
            assert_near(out, expected, 1e-5)
