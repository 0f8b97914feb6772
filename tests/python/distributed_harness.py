"""What the cases of distributed_ranks.py and distributed_modules.py share: this rank, comparisons, a random call.

Every rank makes the whole arrays from the same seed, computes the plain call on them, and compares its own rows.
"""

from __future__ import annotations

import json
import os
import random
import traceback
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

import fusion  # noqa: F401 - switches it off
import natten_mlx
from natten_mlx import distributed

CASES: dict[str, Callable[[], None]] = {}
GROUP = mx.distributed.init(backend=os.environ.get("NATTEN_TEST_GROUP", "ring"))
RANK, SIZE = GROUP.rank(), GROUP.size()
TOLERANCE = {mx.float32: 2e-5, mx.float16: 4e-3, mx.bfloat16: 3e-2}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def assert_close(name: str, got: mx.array, wanted: mx.array, tolerance: float) -> None:
    got, wanted = (np.array(a.astype(mx.float32)) for a in (got, wanted))
    assert got.shape == wanted.shape, f"{name}: shape {got.shape}, wanted {wanted.shape}"
    bound = tolerance * max(1.0, float(np.abs(wanted).max(initial=0)))
    error = float(np.abs(got - wanted).max(initial=0))
    assert error <= bound, f"{name}: error {error:.3g} above {bound:.3g}"


def assert_same(name: str, got: mx.array, wanted: mx.array) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, f"{name}: {got.dtype} {got.shape}"
    same = np.array_equal(*(np.array(a.astype(mx.float32)) for a in (got, wanted)), equal_nan=True)
    assert same, f"{name}: other bits"


class Call:
    """A random call of the plain function on whole arrays, and how its axis is spread."""

    def __init__(self, seed: int, **fixed: Any) -> None:
        r = random.Random(seed)
        self.rank = fixed.get("rank", r.choice([1, 1, 2, 2, 3]))
        self.axis = r.randrange(self.rank)
        self.rows = fixed.get("rows") or [r.randint(1, r.choice([2, 4, 9])) for _ in range(SIZE)]
        shape = [r.randint(2, 5) for _ in range(self.rank)]
        shape[self.axis] = sum(self.rows)
        options: dict[str, list[Any]] = {name: [] for name in ("kernel_size", "stride", "dilation", "gna_stride")}
        options["is_causal"], options["is_circular"] = [], []
        for length in shape:
            d = r.choice([d for d in (1, 1, 2, 3) if d <= length])
            k = r.randint(1, length // d)
            circular = length % d == 0 and r.random() < 0.3
            shares = [u for u in range(1, k + 1) if not circular or (length // d) % u == 0]
            u = r.choice(shares) if r.random() < 0.25 else 1
            options["dilation"].append(d)
            options["kernel_size"].append(k)
            options["is_circular"].append(circular)
            options["is_causal"].append(not circular and r.random() < 0.3)
            options["gna_stride"].append(u)
            options["stride"].append(r.randint(1, k) if u == 1 and r.random() < 0.3 else 1)
        self.options: dict[str, Any] = options
        batch, kv_heads, head_dim = r.randint(1, 2), r.choice([1, 2]), r.choice([4, 8])
        heads, value_dim = kv_heads * r.choice([1, 2]), r.choice([4, 8])
        self.dtype = fixed.get("dtype", r.choice([mx.float32, mx.float32, mx.float16, mx.bfloat16]))
        mx.random.seed(seed)
        normal = mx.random.normal
        outer = (batch, *shape)
        self.arrays = {
            "query": normal((*outer, heads, head_dim)).astype(self.dtype),
            "key": normal((*outer, kv_heads, head_dim)).astype(self.dtype),
            "value": normal((*outer, kv_heads, value_dim)).astype(self.dtype),
        }
        if r.random() < 0.1:
            self.arrays["value"] = self.arrays["value"].astype(mx.float32)
        self.shared: dict[str, mx.array] = {}
        if r.random() < 0.3:
            self.shared["rpb"] = normal((heads, *(2 * k - 1 for k in options["kernel_size"])))
        if r.random() < 0.3:
            count = r.randint(1, 3)
            self.shared["additional_keys"] = normal((batch, count, kv_heads, head_dim)).astype(self.dtype)
            self.shared["additional_values"] = normal((batch, count, kv_heads, value_dim)).astype(self.dtype)
        if r.random() < 0.2:
            self.options["scale"] = r.random() + 0.1
        if r.random() < 0.25 and not any(options["is_circular"]):
            least = [
                1 if c else k * d
                for k, d, c in zip(options["kernel_size"], options["dilation"], options["is_causal"], strict=True)
            ]
            lengths = [[r.randint(low, high) for low, high in zip(least, shape, strict=True)] for _ in range(batch)]
            self.options["lengths"] = mx.array(lengths if self.rank > 1 else [row[0] for row in lengths])
        self.overlap = fixed.get("overlap", r.choice([None, True, False]))
        starts = np.cumsum([0, *self.rows])
        self.tokens = slice(int(starts[RANK]), int(starts[RANK + 1]))
        stride = options["stride"][self.axis]
        self.queries = slice(-(-self.tokens.start // stride), -(-self.tokens.stop // stride))

    def describe(self) -> str:
        options = {
            name: value.tolist() if isinstance(value, mx.array) else value for name, value in self.options.items()
        }
        shapes = {name: tuple(a.shape) for name, a in {**self.arrays, **self.shared}.items()}
        return f"rows {self.rows} of axis {self.axis}, overlap {self.overlap}, {self.dtype}, {shapes}, {options}"

    def rows_of(self, whole: mx.array, rows: slice) -> mx.array:
        return whole[(slice(None),) * (1 + self.axis) + (rows,)]

    def plain(self, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        return getattr(natten_mlx, f"na{self.rank}d")(
            *arrays[:3], return_lse=True, **self.named(arrays), **self.options
        )

    def spread(self, *arrays: mx.array, **more: Any) -> tuple[mx.array, mx.array]:
        function = getattr(distributed, f"na{self.rank}d")
        slabs = {"group": GROUP, "axis": self.axis, "overlap": self.overlap, **more}
        return function(*arrays[:3], return_lse=True, **self.named(arrays), **self.options, **slabs)

    def named(self, arrays: tuple[mx.array, ...]) -> dict[str, mx.array]:
        return dict(zip(self.shared, arrays[3:], strict=True))

    def whole(self) -> list[mx.array]:
        return [*self.arrays.values(), *self.shared.values()]

    def slabs(self) -> list[mx.array]:
        return [*(self.rows_of(a, self.tokens) for a in self.arrays.values()), *self.shared.values()]

    def cotangents(self) -> list[mx.array]:
        """Of the whole results; lse is -inf where nothing is attended, which a sum must not meet."""
        out, lse = self.plain(*self.whole())
        mx.random.seed(7)
        return [mx.random.normal(out.shape).astype(out.dtype), 0.1 * mx.random.normal(lse.shape)]

    def is_rounded(self) -> bool:
        """Whether kernels may compute a part whose bits depend on the part (docs/laboratory/native-cpu.md): those of
        a matrix unit, and the one of at most 8 queries."""
        if natten_mlx.get_backend() != "nanobind":
            return False
        windows = np.atleast_1d(self.options["kernel_size"])
        is_long = np.sum(windows > 1) == 1 and max(windows) >= 16
        chosen = natten_mlx.explain(*self.whole()[:3], **self.options)
        is_matrix = self.dtype == mx.bfloat16 and str(chosen.tile).endswith(("AMX", "AVX3_BF16"))
        borders = 0 if self.overlap is False else int(np.max(windows * np.array(self.options.get("dilation", 1))))
        return is_matrix or (is_long and min(self.rows) - borders <= 8)

    def check(self, spread: Callable[..., Any] | None = None) -> None:
        spread = spread or self.spread
        wanted, cotangents = self.plain(*self.whole()), self.cotangents()
        got = spread(*self.slabs())
        for name, mine, whole in zip(("out", "lse"), got, wanted, strict=True):
            if self.is_rounded():
                assert_close(name, mine, self.rows_of(whole, self.queries), TOLERANCE[self.dtype])
            else:
                assert_same(name, mine, self.rows_of(whole, self.queries))
        _, all_gradients = mx.vjp(lambda *a: list(self.plain(*a)), self.whole(), cotangents)
        own = [self.rows_of(c, self.queries) for c in cotangents]
        _, gradients = mx.vjp(lambda *a: list(spread(*a)), self.slabs(), own)
        gradients = [*gradients[:3], *distributed.sum_gradients(gradients[3:], GROUP)]
        for i, (name, mine, whole) in enumerate(
            zip([*self.arrays, *self.shared], gradients, all_gradients, strict=True)
        ):
            tolerance = max(TOLERANCE[self.dtype], TOLERANCE[whole.dtype])
            assert_close("d" + name, mine, self.rows_of(whole, self.tokens) if i < 3 else whole, tolerance)


def refused(call: Callable[[], Any], *fragments: str) -> None:
    try:
        call()
    except ValueError as error:
        assert all(fragment in str(error) for fragment in fragments), error
    else:
        raise AssertionError(f"not refused: {fragments}")


def main(tier: str, names: list[str]) -> None:
    natten_mlx.set_backend(tier)
    for name in names or CASES:
        problem = None
        try:
            CASES[name]()
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps({"rank": RANK, "case": name, "problem": problem}), flush=True)
