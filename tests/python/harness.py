"""Runs a `Case` through the library, and says how close is close enough."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import natten_mlx
from cases import Case

DTYPES = {name: getattr(mx, name) for name in ("float16", "bfloat16", "float32", "float64")}
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
FORWARD_TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
GRADIENT_TOLERANCE = {"float32": 1e-4, "float64": 1e-11}

Arrays = dict[str, np.ndarray]


def tiers() -> list[str]:
    """Tiers that this machine can run; the JIT tier through its emulator when asked for."""
    if os.environ.get("NATTEN_TEST_TIERS"):
        return os.environ["NATTEN_TEST_TIERS"].split(",")
    if os.environ.get("NATTEN_TEST_FAST_EMULATOR"):
        return ["fast_metal"]
    matrix = natten_mlx.get_support_matrix()
    return [name for name in ("pure", "fast_metal", "nanobind") if matrix[name]["available"]]


def device() -> mx.Device:
    """The device on which the tests run what a tier computes."""
    return mx.Device(mx.gpu if os.environ.get("NATTEN_TEST_DEVICE") == "gpu" else mx.cpu)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process, because the library reads its environment once."""
    base = {k: v for k, v in os.environ.items() if not k.startswith("NATTEN_")}
    base["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**base, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def succeeds(code: str, **environment: str) -> str:
    result = run_python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def to_mlx(x: np.ndarray, dtype: str = "float32") -> mx.array:
    return mx.array(np.asarray(x, np.float64), dtype=mx.float64).astype(
        DTYPES[dtype], stream=mx.cpu
    )  # no GPU has float64


def to_numpy(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float64, stream=mx.cpu))


def rounded(arrays: Arrays, dtype: str) -> Arrays:
    """What the oracle must be given: the values the library sees."""
    return {name: to_numpy(to_mlx(x, dtype)) for name, x in arrays.items()}


def function(case: Case, suffix: str = "") -> Callable[..., Any]:
    return getattr(natten_mlx, f"na{case.rank}d{suffix}")


def lengths_array(case: Case, dtype: mx.Dtype = mx.int32) -> mx.array | None:
    if case.lengths is None:
        return None
    lengths = np.array(case.lengths)
    return mx.array(lengths[:, 0] if case.rank == 1 else lengths, dtype=dtype)


def options(case: Case, *names: str) -> dict[str, Any]:
    """Keyword arguments of `case` among `names`; every function has the neighborhood's."""
    result: dict[str, Any] = case.parameters() | case.placement()
    if "scale" in names:
        result["scale"] = case.scale
    if case.lengths is not None:
        result["lengths"] = lengths_array(case)
    return result


def attention(case: Case) -> tuple[list[str], Callable[..., list[mx.array]]]:
    """-> names of the inputs, and a function of them that returns [out, lse]."""
    names = list(case.shapes())

    def call(*inputs: mx.array) -> list[mx.array]:
        arrays = dict(zip(names, inputs, strict=True))
        q, k, v = (arrays.pop(name) for name in ("query", "key", "value"))
        return list(function(case)(q, k, v, return_lse=True, **arrays, **options(case, "scale")))

    return names, call


def split_qk(case: Case) -> tuple[list[str], Callable[..., list[mx.array]]]:
    names = ["query", "key"] + (["rpb"] if case.rpb else [])

    def call(*inputs: mx.array) -> list[mx.array]:
        arrays = dict(zip(names, inputs, strict=True))
        q, k = arrays.pop("query"), arrays.pop("key")
        return [function(case, "_qk")(q, k, **arrays, **options(case, "scale"))]

    return names, call


def split_av(case: Case) -> tuple[list[str], Callable[..., list[mx.array]]]:
    def call(attn: mx.array, value: mx.array) -> list[mx.array]:
        return [function(case, "_av")(attn, value, **options(case))]

    return ["attn", "value"], call


def largest(x: np.ndarray) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return float(finite.max()) if finite.size else 0.0


def assert_near(result: mx.array | np.ndarray, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """Equal shape, infinities in the same places, error at most `tolerance` of the largest value."""
    got = to_numpy(result) if isinstance(result, mx.array) else np.asarray(result)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    finite = np.isfinite(expected)
    assert np.array_equal(got[~finite], expected[~finite]), f"{what}: infinities differ"
    assert np.isfinite(got[finite]).all(), f"{what}: NaN or infinity"
    # A result that is 0 by cancellation has the error of its terms, which are of order 1 in these tests.
    bound = tolerance * max(largest(expected), 0.1)
    error = largest(got[finite] - expected[finite])
    assert error <= bound, f"{what}: error {error:.3g} above {bound:.3g} (largest value {largest(expected):.3g})"


def assert_half_near(result: mx.array, rough: list[np.ndarray], expected: np.ndarray, dtype: str, what: str) -> None:
    """At most twice the error of the worst of `rough`, results of that dtype, plus one ulp of the largest value."""
    got = to_numpy(result)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    finite = np.isfinite(expected)
    assert np.array_equal(got[~finite], expected[~finite]), f"{what}: infinities differ"
    top = largest(expected)
    ulp = 2.0 ** np.floor(np.log2(top)) * EPSILON[dtype] if top else 0.0
    rough_error = max(largest((other - expected)[finite]) for other in rough)
    error = largest(got[finite] - expected[finite]) if finite.any() else 0.0
    assert np.isfinite(got[finite]).all(), f"{what}: NaN or infinity"
    assert error <= 2 * rough_error + ulp, f"{what}: error {error:.3g}, rough {rough_error:.3g}, ulp {ulp:.3g}"


def naive_attention(case: Case) -> Callable[..., list[mx.array]]:
    """Dense masked attention, every product, sum and exponential in the inputs' dtype."""
    mask, _, bias_index = case.geometry().tables()
    live = mask.any(axis=2)
    names = list(case.shapes())
    steps = (slice(None), *case.geometry().computed)

    def flat(x: mx.array) -> mx.array:
        return x.reshape(x.shape[0], -1, *x.shape[-2:]).swapaxes(1, 2)

    def call(*inputs: mx.array) -> list[mx.array]:
        arrays = dict(zip(names, inputs, strict=True))
        query, key, value = flat(arrays["query"][steps]), flat(arrays["key"]), flat(arrays["value"])
        seen = mask
        if case.extra is not None:
            key = mx.concatenate([key, flat(arrays["additional_keys"])], axis=2)
            value = mx.concatenate([value, flat(arrays["additional_values"])], axis=2)
            seen = np.concatenate([mask, np.repeat(live[:, :, None], case.extra, axis=2)], axis=2)
        group = case.heads // case.kv_heads
        key, value = mx.repeat(key, group, axis=1), mx.repeat(value, group, axis=1)
        scale = case.dim**-0.5 if case.scale is None else case.scale
        logits = mx.array(scale, query.dtype) * (query @ key.swapaxes(-1, -2))
        if case.rpb:
            table = arrays["rpb"].reshape(case.heads, -1)
            bias = table[:, mx.array(bias_index)].swapaxes(0, 1)
            logits = logits + mx.pad(bias, [(0, 0)] * 3 + [(0, logits.shape[-1] - bias.shape[-1])])
        low = mx.array(-1e4, logits.dtype)
        logits = mx.where(mx.array(seen[:, None]), logits, low)
        keep = mx.array(live[:, None, :, None])
        out = mx.where(keep, mx.softmax(logits, axis=-1) @ value, 0)
        lse = mx.where(keep[..., 0], mx.logsumexp(logits, axis=-1), 0)
        rows = (case.batch, *case.output, case.heads)
        return [out.swapaxes(1, 2).reshape(*rows, case.value_dim), lse.swapaxes(1, 2).reshape(rows)]

    return call


def vjp(call: Callable[..., list[mx.array]], inputs: list[mx.array], cotangents: list[mx.array]) -> list[mx.array]:
    _, grads = mx.vjp(call, inputs, cotangents)
    return grads


def gradient_dtypes_match(inputs: list[mx.array], grads: list[mx.array]) -> bool:
    return all(x.dtype == g.dtype and x.shape == g.shape for x, g in zip(inputs, grads, strict=True))


def check_split_form(
    case: Case,
    arrays: Arrays,
    tolerance: float,
    gradient_tolerance: float,
    given: Callable[[str], mx.array] | None = None,
) -> None:
    """qk, av and their gradients of `given(name)` against the oracle's of `arrays`, which are given by default."""
    given = given or (lambda name: to_mlx(arrays[name], case.dtype))
    reference = case.call(arrays)
    qk = reference.qk(), reference.qk_backward(arrays["dlogits"])
    av = reference.av(arrays["attn"]), reference.av_backward(arrays["attn"], arrays["dout"])
    for (names, call), cotangent, (expected, gradients) in (
        (split_qk(case), "dlogits", qk),
        (split_av(case), "dout", av),
    ):
        inputs = [given(name) for name in names]
        (result,) = call(*inputs)
        assert result.dtype == inputs[0].dtype
        assert_near(result, expected, tolerance, f"result, {cotangent}")
        grads = vjp(call, inputs, [given(cotangent)])
        assert gradient_dtypes_match(inputs, grads)
        for name, gradient in zip(names, grads, strict=True):
            assert_near(gradient, gradients[name], gradient_tolerance, f"gradient of {name}, {cotangent}")


def import_from_root(name: str) -> Any:
    return getattr(importlib.import_module("natten_mlx"), name)


def available_gib() -> float:
    """Memory that this process could still take: of the machine, and of its control group where one limits it."""
    if sys.platform == "darwin":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31  # half of all
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        groups = [line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return 0.0
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    root = Path("/sys/fs/cgroup")
    folders = {root, root / "memory"}  # versions 2 and 1; a container sees its own group as the root
    folders |= {root / controllers / path.lstrip("/") for controllers, path in groups if controllers in ("", "memory")}
    for folder in folders:
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
            except (OSError, ValueError):  # no such file; no limit ("max")
                continue
            available = min(available, left)
    return max(available, 0) / 2**30
