"""The cases every test draws from: one table chosen by hand, and hypothesis strategies over all legal calls."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from oracle import Axis, Call, Geometry

PER_AXIS = ("kernel_size", "stride", "dilation", "is_causal", "gna_stride")


@dataclass(frozen=True)
class Case:
    """One attention call; per-axis parameters are tuples of the rank's length."""

    spatial: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    is_causal: tuple[bool, ...] = ()
    gna_stride: tuple[int, ...] = ()
    batch: int = 1
    heads: int = 1
    kv_heads: int = 0  # 0: as many as query heads
    dim: int = 4
    value_dim: int = 0  # 0: as query
    dtype: str = "float32"
    scale: float | None = None
    rpb: bool = False
    extra: int | None = None  # additional tokens
    lengths: tuple[tuple[int, ...], ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rank = len(self.spatial)
        for name, default in (("stride", 1), ("dilation", 1), ("is_causal", False), ("gna_stride", 1)):
            if not getattr(self, name):
                object.__setattr__(self, name, (default,) * rank)
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "value_dim", self.value_dim or self.dim)

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def output(self) -> tuple[int, ...]:
        return self.geometry().output

    @property
    def volume(self) -> int:
        return prod(self.kernel_size)

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def parameters(self) -> dict[str, tuple]:
        return {name: getattr(self, name) for name in PER_AXIS}

    def geometry(self) -> Geometry:
        axes = tuple(
            Axis(
                length,
                *(getattr(self, name)[i] for name in ("kernel_size", "stride", "dilation")),
                self.gna_stride[i],
                self.is_causal[i],
            )
            for i, length in enumerate(self.spatial)
        )
        return Geometry(axes, self.batch, self.lengths)

    def call(self, arrays: dict[str, np.ndarray]) -> Call:
        """The oracle's view of the call."""
        names = ("query", "key", "value", "rpb", "additional_keys", "additional_values")
        return Call(self.geometry(), scale=self.scale, **{name: arrays[name] for name in names if name in arrays})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {
            "query": (self.batch, *self.spatial, self.heads, self.dim),
            "key": (self.batch, *self.spatial, self.kv_heads, self.dim),
            "value": (self.batch, *self.spatial, self.kv_heads, self.value_dim),
        }
        if self.rpb:
            shapes["rpb"] = (self.heads, *(2 * k - 1 for k in self.kernel_size))
        if self.extra is not None:
            shapes["additional_keys"] = (self.batch, self.extra, self.kv_heads, self.dim)
            shapes["additional_values"] = (self.batch, self.extra, self.kv_heads, self.value_dim)
        return shapes

    def cotangent_shapes(self) -> dict[str, tuple[int, ...]]:
        rows = (self.batch, *self.output, self.heads)
        return {"dout": (*rows, self.value_dim), "dlse": rows, "dlogits": (*rows, self.volume)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Inputs and cotangents in float64, the same for every run of the same case."""
        rng = np.random.default_rng([self.seed, zlib.crc32(repr(self).encode())])
        shapes = self.shapes() | self.cotangent_shapes() | {"attn": self.cotangent_shapes()["dlogits"]}
        return {name: rng.standard_normal(shape) for name, shape in shapes.items()}

    def __str__(self) -> str:
        def per_axis(values: tuple) -> str:
            return "x".join(str(int(value)) for value in values)

        text = f"{self.rank}d-{per_axis(self.spatial)}-k{per_axis(self.kernel_size)}"
        for letter, values, default in (
            ("s", self.stride, 1),
            ("d", self.dilation, 1),
            ("c", self.is_causal, 0),
            ("u", self.gna_stride, 1),
        ):
            if any(value != default for value in values):
                text += f"-{letter}{per_axis(values)}"
        text += f"-b{self.batch}h{self.heads}g{self.kv_heads}e{self.dim}v{self.value_dim}-{self.dtype}"
        text += "-rpb" if self.rpb else ""
        text += f"-extra{self.extra}" if self.extra is not None else ""
        text += "-lengths" + "_".join(per_axis(row) for row in self.lengths) if self.lengths else ""
        return text


def _axis_sweep() -> list[Case]:
    """1-D: borders, even and odd windows, K = 1, K covering everything, every option alone and with causal."""
    cases = []
    for length, kernel in ((1, 1), (5, 1), (7, 4), (8, 4), (9, 3), (7, 7), (6, 6), (33, 16), (17, 2)):
        for causal in (False, True):
            cases.append(Case((length,), (kernel,), is_causal=(causal,), dim=5))
    for causal in (False, True):
        cases += [
            Case((11,), (4,), dilation=(2,), is_causal=(causal,), heads=2),
            Case((13,), (3,), dilation=(4,), is_causal=(causal,), rpb=True),
            Case((11,), (4,), stride=(3,), is_causal=(causal,), heads=2),
            Case((12,), (3,), stride=(3,), dilation=(3,), is_causal=(causal,)),
            Case((11,), (4,), gna_stride=(2,), is_causal=(causal,), rpb=True),
            Case((15,), (5,), gna_stride=(5,), dilation=(2,), is_causal=(causal,)),
            Case((10,), (5,), stride=(5,), is_causal=(causal,), extra=3),
        ]
    return cases


TABLE: tuple[Case, ...] = (
    *_axis_sweep(),
    Case((6, 7), (3, 3), heads=2),
    Case((9, 5), (7, 2), heads=2, rpb=True),  # non-square, even
    Case((5, 9), (2, 5), is_causal=(True, False), batch=2),
    Case((8, 8), (3, 4), dilation=(2, 2), is_causal=(False, True), heads=4, kv_heads=2),
    Case((7, 9), (3, 5), stride=(2, 3), heads=4, kv_heads=1, value_dim=7),
    Case((7, 9), (4, 3), stride=(2, 1), gna_stride=(1, 3), is_causal=(True, True), rpb=True),
    Case((6, 6), (6, 6), heads=2, value_dim=3),  # dense attention
    Case((1, 9), (1, 3), heads=3, dim=1),
    Case((9, 1), (3, 1), value_dim=1, dim=3),
    Case((8, 6), (3, 3), stride=(2, 2), extra=5, heads=2),
    Case((8, 6), (3, 3), extra=0),
    Case((7, 8), (3, 3), heads=2, kv_heads=1, extra=2, rpb=True, scale=0.3),
    Case((17, 16), (5, 3), dim=16, gna_stride=(4, 2)),
    Case((4, 5, 6), (3, 3, 3), heads=2),
    Case((5, 4, 6), (2, 3, 4), is_causal=(True, False, False), rpb=True),
    Case((6, 5, 4), (3, 2, 2), stride=(2, 1, 2), dilation=(1, 2, 1), heads=2, kv_heads=1, value_dim=6),
    Case((4, 6, 6), (2, 3, 3), gna_stride=(2, 3, 1), is_causal=(False, True, True), batch=2),
    Case((3, 3, 3), (3, 3, 3), extra=2),
    Case((9,), (3,), batch=3, lengths=((3,), (9,), (6,))),
    Case((10,), (3,), stride=(2,), dilation=(2,), batch=2, lengths=((7,), (10,)), heads=2, kv_heads=1),
    Case((6, 7), (3, 2), batch=2, is_causal=(True, False), lengths=((6, 4), (3, 7)), value_dim=3, rpb=True),
    Case((6, 7), (3, 3), stride=(1, 2), batch=2, gna_stride=(2, 1), lengths=((5, 3), (6, 6))),
    Case((5, 5, 5), (2, 3, 2), batch=2, lengths=((2, 3, 4), (5, 5, 3)), rpb=True),
    Case((7,), (3,), batch=2, lengths=((5,), (3,)), extra=2),
    Case((64,), (31,), dim=33, heads=2),
    Case((19,), (5,), dim=257),  # above any fixed thread array
    Case((16, 17), (7, 7), dim=20, heads=2),
    Case((24, 25), (9, 9), dim=32, rpb=True, is_causal=(True, False)),  # several blocks of the pure tier
    Case((400,), (64,), dim=32, batch=2, lengths=((390,), (64,)), rpb=True),
)

HALF_TABLE: tuple[Case, ...] = tuple(
    case.with_(dtype=dtype)
    for dtype in ("float16", "bfloat16")
    for case in (
        Case((33,), (16,), dim=32, heads=2),
        Case((17,), (5,), dim=64, is_causal=(True,), dilation=(3,)),
        Case((9, 7), (3, 4), dim=24, heads=4, kv_heads=2, value_dim=9),
        Case((9, 7), (5, 3), dim=16, rpb=True, stride=(2, 2)),
        Case((5, 6, 4), (3, 2, 4), dim=8, heads=2, gna_stride=(1, 2, 2)),
        Case((8, 8), (3, 3), dim=16, batch=2, lengths=((5, 8), (8, 3))),
        Case((8, 8), (3, 3), dim=16, extra=4),
        # head dims that matrix units take
        Case((150,), (31,), dim=16, value_dim=48, heads=2),
        Case((70,), (40,), dim=128, is_causal=(True,)),
        Case((21, 18), (7, 5), dim=32, batch=2, heads=4, kv_heads=2),
        Case((17, 20), (4, 3), dim=64, dilation=(2, 3), is_causal=(False, True)),
        Case((20, 19), (6, 4), dim=16, stride=(2, 1), gna_stride=(1, 4), rpb=True, heads=2),
        Case((9, 8, 10), (5, 3, 4), dim=48, value_dim=16, stride=(1, 3, 2)),
        Case((7, 9, 8), (3, 4, 5), dim=32, batch=2, lengths=((7, 5, 8), (3, 9, 6)), rpb=True, heads=2, kv_heads=1),
    )
)


@st.composite
def axes(draw: st.DrawFn, longest: int) -> dict[str, Any]:
    """Legal parameters of one axis."""
    length = draw(st.integers(1, longest))
    kernel = draw(st.one_of(st.integers(1, length), st.integers(1, min(length, 5))))
    dilation = draw(st.integers(1, length // kernel))
    stride, share = draw(
        st.one_of(
            st.just((1, 1)),
            st.tuples(st.integers(1, kernel), st.just(1)),
            st.tuples(st.just(1), st.integers(1, kernel)),
        )
    )
    return {
        "spatial": length,
        "kernel_size": kernel,
        "dilation": dilation,
        "stride": stride,
        "gna_stride": share,
        "is_causal": draw(st.booleans()),
    }


@st.composite
def calls(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = ("float32",),
    with_lengths: bool | None = None,
    with_extra: bool | None = None,
    with_rpb: bool | None = None,
) -> Case:
    """Any legal call of any rank; None leaves an option to chance."""
    rank = draw(st.integers(1, 3))
    drawn = [draw(axes({1: 40, 2: 10, 3: 6}[rank])) for _ in range(rank)]
    parameters = {name: tuple(axis[name] for axis in drawn) for name in ("spatial", *PER_AXIS)}
    kv_heads = draw(st.integers(1, 2))
    dim = draw(st.sampled_from((1, 2, 3, 4, 7, 8, 15, 16, 17)))

    def choose(option: bool | None) -> bool:
        return draw(st.booleans()) if option is None else option

    batch = draw(st.integers(1, 3))
    lengths = None
    if choose(with_lengths):
        lengths = tuple(
            tuple(draw(st.integers(axis["kernel_size"] * axis["dilation"], axis["spatial"])) for axis in drawn)
            for _ in range(batch)
        )
    return Case(
        **parameters,
        batch=batch,
        kv_heads=kv_heads,
        heads=kv_heads * draw(st.integers(1, 3)),
        dim=dim,
        value_dim=draw(st.one_of(st.just(dim), st.integers(1, 18))),
        dtype=draw(st.sampled_from(dtypes)),
        scale=draw(st.one_of(st.none(), st.floats(0.05, 1.0))),
        rpb=choose(with_rpb),
        extra=draw(st.integers(0, 5)) if choose(with_extra) else None,
        lengths=lengths,
        seed=draw(st.integers(0, 1000)),
    )
