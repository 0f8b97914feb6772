"""A case as MLX calls, the tier that runs them, and the check against the tier `pure`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

import natten_mlx
from natten_mlx.bench.cases import FORWARD, GRAD_KEY, GRAD_QUERY, STEP, Case

REFERENCE = "pure"
JIT_NAMES = ("fast_metal", "fast_cuda")  # of one tier; a machine has one of them

# Relative to the largest value of each result. Both sides of a float32 comparison may be off by what the tests allow
# against a float64 oracle (1e-5, 1e-4). Half types are compared with `pure` in float32 on the same inputs: a forward
# rounds its result once; a gradient also reads an output that was rounded.
TOLERANCE = {
    "float32": (2e-5, 2e-4),
    "float16": (2.0**-10, 2.0**-7),
    "bfloat16": (2.0**-7, 2.0**-4),
}

Outputs = list[mx.array]
Call = Callable[[], Outputs]


def support_rows() -> dict[str, dict[str, Any]]:
    """The support matrix by what this machine calls its tiers."""
    return {row["name"]: row for row in natten_mlx.get_support_matrix().values()}


def tier_names() -> list[str]:
    """Tiers of the support matrix, the reference last."""
    names = list(support_rows())
    return [name for name in names if name != REFERENCE] + [REFERENCE]


def parse_tiers(names: Sequence[str]) -> list[str]:
    """Canonical tier names without repetitions.

    Raises:
        ValueError: a name that is no tier.
    """
    known = tier_names()
    jit = next(name for name in known if name in JIT_NAMES)
    result = [jit if name in JIT_NAMES else name for name in names]
    for name, given in zip(result, names, strict=True):
        if name not in known:
            raise ValueError(f"unknown tier {given!r}. Expected one of {list(dict.fromkeys([*known, *JIT_NAMES]))}")
    return list(dict.fromkeys(result))


@dataclass(frozen=True)
class Choice:
    """What a tier says about a case. `declined` is its reason, empty where it runs it."""

    declined: str
    kernel: str = ""
    tile: str = ""


def choice(case: Case, tier: str) -> Choice:
    """Whether `tier` itself would run every call of the case."""
    row = support_rows()[tier]
    if not row["available"]:
        return Choice(f"unavailable: {row['reason']}")
    batch, *_, heads, _ = case.shape
    attention = (batch, *case.queries, heads, math.prod(case.kernel))
    kernels, tiles = [], []
    with natten_mlx.backend(tier):
        for op in {"fused": ("attention",), "split": ("qk", "av"), "qk": ("qk",)}[case.form]:
            query = attention if op == "av" else case.query_shape
            dtype = getattr(mx, case.dtype)
            found = natten_mlx.explain(query, case.key_shape, case.key_shape, op=op, dtype=dtype, **case.neighborhood())
            if found.tier != tier:
                return Choice("declined: " + found.declined.get(tier, f"{found.tier} runs it"))
            kernels.append(found.kernel)
            tiles.append(found.tile)
    return Choice("", ", ".join(filter(None, kernels)), ", ".join(filter(None, tiles)))


def normal(shape: Sequence[int], seed: int, dtype: str) -> mx.array:
    """The same values on every run and machine. Large arrays repeat a block, of prime length to look like nothing."""
    size = math.prod(shape)
    values = np.random.default_rng(seed).standard_normal(min(size, 4194301), dtype=np.float32)
    return mx.array(np.resize(values, tuple(shape)) if size else np.zeros(tuple(shape), np.float32)).astype(
        getattr(mx, dtype)
    )


def inputs(case: Case, kv_heads: int | None = None, value_dim: int | None = None) -> Outputs:
    """query, key and value; those of half types hold half values."""
    *outer, heads, dim = case.key_shape
    key = (*outer, kv_heads or heads, dim)
    value = (*outer, kv_heads or heads, value_dim or dim)
    return [normal(shape, seed, case.dtype) for seed, shape in enumerate((case.query_shape, key, value))]


def function(case: Case) -> Callable[..., mx.array]:
    """The case's result as a function of query, key and, but for the form `qk`, value."""
    options = case.neighborhood()
    if case.form == "fused":
        fused = getattr(natten_mlx, case.function)
        return lambda q, k, v: fused(q, k, v, **options)
    qk, av = getattr(natten_mlx, f"{case.function}_qk"), getattr(natten_mlx, f"{case.function}_av")
    if case.form == "qk":
        return lambda q, k: qk(q, k, **options)
    return lambda q, k, v: av(mx.softmax(qk(q, k, **options), axis=-1, precise=True), v, **options)


def differentiated(function: Callable[..., mx.array], arrays: Outputs, direction: str, cotangent: mx.array) -> Call:
    """`function(*arrays)`, or it with gradients, as a call that builds its graph anew."""
    if direction == FORWARD:
        return lambda: [function(*arrays)]
    wanted = {GRAD_QUERY: [0], GRAD_KEY: [1], STEP: list(range(len(arrays)))}[direction]

    def partial(*chosen: mx.array) -> Outputs:
        full = list(arrays)
        for index, array in zip(wanted, chosen, strict=True):
            full[index] = array
        return [function(*full)]

    def call() -> Outputs:
        outputs, gradients = mx.vjp(partial, [arrays[index] for index in wanted], [cotangent])
        return [*outputs, *gradients]

    return call


def make_call(case: Case, direction: str, heads: int | None = None, in_float32: bool = False) -> Call:
    """The case in one direction. Evaluate what it returns: the result first, then the gradients.

    `heads` takes only the first heads, which compute the same as among all; `in_float32` widens the inputs.
    """
    arrays = inputs(case)[: 2 if case.form == "qk" else 3]
    run = function(case)
    result = run(*arrays)
    cotangent = normal(result.shape, len(arrays), case.dtype)
    if case.form == "qk":  # empty slots hold -inf: a cotangent of 0 there, so that no NaN enters a comparison
        cotangent = mx.where(mx.isfinite(result), cotangent, mx.zeros_like(cotangent))
    arrays, cotangent = [x[..., :heads, :] for x in arrays], cotangent[..., :heads, :]
    if in_float32:
        arrays, cotangent = [x.astype(mx.float32) for x in arrays], cotangent.astype(mx.float32)
    arrays, cotangent = [mx.contiguous(x) for x in arrays], mx.contiguous(cotangent)
    mx.eval(arrays, cotangent)
    return differentiated(run, arrays, direction, cotangent)


class Reference:
    """What `pure` makes of a case, in float32: evaluated once for all directions, or of the first `heads` only."""

    def __init__(self, case: Case, direction: str | None = None, heads: int | None = None) -> None:
        self.heads = heads
        self._direction = direction or case.directions[-1]
        with natten_mlx.backend(REFERENCE):
            self._results = to_numpy(make_call(case, self._direction, heads, in_float32=True)())

    def check(self, results: Sequence[mx.array], direction: str, dtype: str) -> Check:
        """Compares the result and the gradients of a direction with the reference's."""
        wanted = {FORWARD: 1, GRAD_QUERY: 2}.get(direction, len(self._results))
        return check([x[..., : self.heads, :] for x in to_numpy(results)], self._results[:wanted], dtype)


def to_numpy(arrays: Sequence[mx.array]) -> list[np.ndarray]:
    """float32 copies."""
    return [np.array(x.astype(mx.float32)) for x in arrays]


def error_of(result: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest expected value; infinite for another shape, NaN or stray infinity."""
    finite = np.isfinite(expected)
    if result.shape != expected.shape or not np.array_equal(result[~finite], expected[~finite]):
        return float("inf")
    difference = np.abs(result[finite] - expected[finite]).max(initial=0.0)
    largest = np.abs(expected[finite]).max(initial=0.0)
    return float(difference / largest) if np.isfinite(difference) and largest else float(difference or 0.0)


@dataclass(frozen=True)
class Check:
    """Errors of the result and of the worst gradient, and what is wrong about them (empty: nothing)."""

    forward: float
    gradient: float
    wrong: str

    @property
    def error(self) -> float:
        """The larger one."""
        return max(self.forward, self.gradient)


def check(results: Sequence[np.ndarray], expected: Sequence[np.ndarray], dtype: str) -> Check:
    """Compares the result (first) and the gradients (the rest) with those of the reference."""
    forward, *gradients = [error_of(r, e) for r, e in zip(results, expected, strict=True)]
    worst = max(gradients, default=0.0)
    allowed = TOLERANCE[dtype]
    wrong = [
        f"{name} differs by {error:.2g} of the largest value, allowed {limit:.2g}"
        for name, error, limit in (("result", forward, allowed[0]), ("gradient", worst, allowed[1]))
        if not error <= limit
    ]
    return Check(forward, worst, "; ".join(wrong))
