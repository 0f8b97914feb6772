"""The cases every test draws from: one table chosen by hand, and hypothesis strategies over all legal calls."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from oracle import Axis, Call, Geometry, Span

PER_AXIS = ("kernel_size", "stride", "dilation", "is_causal", "gna_stride", "is_circular")


DEFAULTS = {"stride": 1, "dilation": 1, "is_causal": False, "gna_stride": 1, "is_circular": False}


@dataclass(frozen=True)
class Case:
    """One attention call; per-axis parameters are tuples of the rank's length."""

    spatial: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    is_causal: tuple[bool, ...] = ()
    gna_stride: tuple[int, ...] = ()
    is_circular: tuple[bool, ...] = ()
    span: tuple[tuple[int, int, int, int], ...] = ()  # query_start, query rows, key_start, key rows; none: whole axes
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
        for name, default in DEFAULTS.items():
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

    @property
    def is_plain(self) -> bool:
        """Whole axes that no window goes around and no causal kernel exceeds."""
        axes = zip(self.spatial, self.kernel_size, self.dilation, strict=True)
        fits = all(kernel * dilation <= length for length, kernel, dilation in axes)
        return not self.span and not any(self.is_circular) and fits

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def parameters(self) -> dict[str, tuple]:
        return {name: getattr(self, name) for name in PER_AXIS}

    def placement(self) -> dict[str, tuple[int, ...]]:
        """The arguments of a span."""
        if not self.span:
            return {}
        query_start, _, key_start, _ = zip(*self.span, strict=True)
        return {"query_start": query_start, "key_start": key_start, "shape": self.spatial}

    def geometry(self) -> Geometry:
        axes = tuple(
            Axis(length, **{name: getattr(self, name)[i] for name in PER_AXIS}) for i, length in enumerate(self.spatial)
        )
        return Geometry(axes, self.batch, self.lengths, tuple(Span(*span) for span in self.span))

    def call(self, arrays: dict[str, np.ndarray]) -> Call:
        """The oracle's view of the call."""
        names = ("query", "key", "value", "rpb", "additional_keys", "additional_values")
        return Call(self.geometry(), scale=self.scale, **{name: arrays[name] for name in names if name in arrays})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        queries, keys = self.geometry().query_rows, self.geometry().key_rows
        shapes = {
            "query": (self.batch, *queries, self.heads, self.dim),
            "key": (self.batch, *keys, self.kv_heads, self.dim),
            "value": (self.batch, *keys, self.kv_heads, self.value_dim),
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
            ("o", self.is_circular, 0),
        ):
            if any(value != default for value in values):
                text += f"-{letter}{per_axis(values)}"
        if self.span:
            text += "-span" + "_".join(f"{q}+{m}k{k}+{n}" for q, m, k, n in self.span)
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


def _spans() -> list[Case]:
    """Parts of axes in the middle and at borders, circular axes with and without a halo, long causal kernels."""
    return [
        Case((20,), (5,), span=((8, 4, 6, 8),), heads=2),  # exactly the keys that are needed
        Case((20,), (4,), span=((0, 3, 0, 9),), rpb=True),  # more of them, at the left border
        Case((20,), (5,), span=((17, 3, 15, 5),), dim=5),
        Case((21,), (3,), dilation=(4,), span=((9, 5, 5, 13),), heads=4, kv_heads=2),
        Case((24,), (4,), gna_stride=(3,), span=((7, 9, 3, 15),), rpb=True),
        Case((23,), (4,), stride=(3,), span=((7, 9, 6, 13),), extra=2),  # the first row is not computed
        Case((23,), (5,), stride=(5,), dilation=(2,), span=((4, 12, 1, 19),)),
        Case((30,), (6,), is_causal=(True,), span=((29, 1, 24, 6),), heads=2, kv_heads=1, value_dim=3),  # decoding
        Case((30,), (6,), is_causal=(True,), gna_stride=(2,), span=((10, 8, 6, 14),), rpb=True),
        Case((9, 12), (3, 5), span=((3, 4, 2, 6), (0, 5, 0, 7)), heads=2, rpb=True),
        Case((8, 9), (3, 4), is_causal=(True, False), dilation=(2, 1), span=((5, 3, 1, 7), (2, 7, 0, 9)), extra=1),
        Case((6, 7, 8), (3, 2, 3), span=((2, 1, 1, 3), (1, 5, 0, 6), (0, 8, 0, 8)), stride=(1, 1, 2), heads=2),
        Case((18,), (5,), batch=3, span=((6, 8, 3, 15),), lengths=((9,), (18,), (14,)), rpb=True),
        Case((18,), (5,), batch=2, is_causal=(True,), span=((6, 8, 2, 12),), lengths=((3,), (11,)), extra=2),
        Case((10,), (5,), is_circular=(True,), heads=2),
        Case((10,), (4,), is_circular=(True,), rpb=True),
        Case((7,), (7,), is_circular=(True,), dim=3),
        Case((15,), (4,), dilation=(3,), is_circular=(True,), rpb=True, heads=2, kv_heads=1),
        Case((33,), (31,), is_circular=(True,), heads=4, kv_heads=2, rpb=True),
        Case((70,), (25,), dilation=(2,), is_circular=(True,), batch=2, dim=20),
        Case((16,), (6,), gna_stride=(4,), is_circular=(True,), rpb=True),
        Case((12,), (3,), gna_stride=(2,), dilation=(2,), is_circular=(True,), extra=2),
        Case((12,), (5,), stride=(3,), is_circular=(True,)),
        Case((14,), (5,), is_circular=(True,), span=((0, 6, -2, 10),), rpb=True),  # halo on both sides
        Case((14,), (6,), is_circular=(True,), span=((9, 5, 6, 11),), heads=2),  # past the end
        Case((14,), (5,), is_circular=(True,), span=((3, 8, -6, 14),), rpb=True),  # all keys, turned
        Case((15,), (3,), dilation=(3,), stride=(2,), is_circular=(True,), span=((10, 5, 7, 12),)),
        Case((12,), (3,), batch=3, is_circular=(True,), lengths=((3,), (12,), (7,)), rpb=True),
        Case((12,), (3,), batch=2, is_circular=(True,), span=((2, 5, 0, 8),), lengths=((5,), (12,))),
        Case((8, 9), (3, 4), is_circular=(True, False), dilation=(2, 2), heads=2, rpb=True),
        Case((8, 6), (5, 4), is_circular=(False, True), is_causal=(True, False), span=((4, 4, 0, 8), (0, 3, -2, 6))),
        Case((4, 6, 5), (2, 3, 5), is_circular=(True, True, True), gna_stride=(2, 1, 1), heads=2),
        Case((5,), (9,), is_causal=(True,), rpb=True, heads=2),
        Case((7,), (4,), is_causal=(True,), dilation=(3,)),
        Case((6,), (100,), is_causal=(True,), extra=2),
        Case((3, 6), (4, 3), is_causal=(True, False), gna_stride=(3, 1), rpb=True),
        Case((1, 4), (3, 2), is_causal=(True, False), stride=(3, 1)),
        Case((9,), (4,), is_causal=(True,), batch=3, lengths=((1,), (9,), (3,)), rpb=True),
    ]


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
    *_spans(),
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
    """Legal parameters of one axis, of every fourth beyond windows that are whole and shifted inside."""
    kind = draw(st.sampled_from(("plain",) * 6 + ("circular", "long causal")))
    if kind == "circular":
        return draw(circular_axes(longest))
    if kind == "long causal":
        kernel = draw(st.integers(1, 12))
        stride, share = draw(st.sampled_from(((1, 1), (1, kernel), (kernel, 1))))
        length, dilation = draw(st.integers(1, longest)), draw(st.integers(1, 4))
        return dict(zip(AXIS, (length, kernel, dilation, stride, share, True, False), strict=True))
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
        "is_circular": False,
    }


AXIS = ("spatial", "kernel_size", "dilation", "stride", "gna_stride", "is_causal", "is_circular")


@st.composite
def circular_axes(draw: st.DrawFn, longest: int) -> dict[str, Any]:
    dilation = draw(st.integers(1, min(longest, 4)))
    share = draw(st.integers(1, min(longest // dilation, 4)))
    places = share * draw(st.integers(1, longest // dilation // share))
    kernel = draw(st.integers(share, places))
    stride = draw(st.integers(1, kernel)) if share == 1 else 1
    return dict(zip(AXIS, (places * dilation, kernel, dilation, stride, share, False, True), strict=True))


def needed_keys(axis: Axis, span: Span) -> range:
    """From the least to the last key of the span's windows; all of a circular axis where they go around it."""
    if not axis.is_circular:
        keys = [key for query in span.queries(axis) for key in axis.keys(query)]
        return range(min(keys), max(keys) + 1)
    keys = [
        place * axis.dilation + query % axis.dilation for query in span.queries(axis) for place in axis.unwrapped(query)
    ]
    found = range(min(keys), max(keys) + 1)
    return found if len(found) < axis.length else range(axis.length)


@st.composite
def spans(draw: st.DrawFn, axis: Axis, may_turn: bool) -> tuple[int, int, int, int]:
    """Some queries of an axis, at least one of which is computed, and the keys that they need, perhaps with more."""
    computed = draw(st.sampled_from(list(axis.queries())))
    start = draw(st.integers(0, computed))
    rows = draw(st.integers(computed + 1 - start, axis.length - start))
    needed = needed_keys(axis, Span(start, rows, 0, 0))
    if axis.is_circular:
        if not may_turn and (needed.start < 0 or needed.stop > axis.length):
            return start, rows, 0, axis.length
        if may_turn and len(needed) == axis.length:
            return start, rows, draw(st.integers(-axis.length, axis.length - 1)), axis.length
        if may_turn:
            more = draw(st.integers(0, axis.length - len(needed)))
            key_start = needed.start - draw(st.integers(0, more))
            key_start = max(key_start, -axis.length)
            return start, rows, key_start, min(needed.stop - key_start + draw(st.integers(0, 2)), axis.length)
    first = draw(st.integers(0, needed.start))
    return start, rows, first, draw(st.integers(needed.stop, axis.length)) - first


def oracle_axis(axis: dict[str, Any]) -> Axis:
    return Axis(axis["spatial"], **{name: axis[name] for name in PER_AXIS})


def sample_lengths(axis: dict[str, Any]) -> st.SearchStrategy[int]:
    least, longest = (1 if axis["is_causal"] else axis["kernel_size"] * axis["dilation"]), axis["spatial"]
    if not axis["is_circular"]:
        return st.integers(least, longest)
    step = axis["dilation"] * axis["gna_stride"]
    return st.integers(-(-least // step), longest // step).map(lambda blocks: blocks * step)


def with_sample_keys(
    span: tuple[tuple[int, int, int, int], ...],
    drawn: list[dict[str, Any]],
    lengths: tuple[tuple[int, ...], ...] | None,
) -> tuple[tuple[int, int, int, int], ...]:
    """Spans with the keys that the windows of shorter samples need, which lie further left."""
    result = []
    for i, (axis, (start, rows, first, count)) in enumerate(zip(drawn, span, strict=True)):
        end = first + count
        for sample in lengths or ():
            shorter = oracle_axis({**axis, "spatial": sample[i]})
            inside = Span(start, min(rows, sample[i] - start), 0, 0)
            if not inside.queries(shorter):
                continue
            needed = needed_keys(shorter, inside)
            wraps = axis["is_circular"] and (needed.start < 0 or needed.stop > sample[i])
            needed = range(sample[i]) if wraps else needed
            first, end = min(first, needed.start), max(end, needed.stop)
        result.append((start, rows, first, end - first))
    return tuple(result)


@st.composite
def calls(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = ("float32",),
    with_lengths: bool | None = None,
    with_extra: bool | None = None,
    with_rpb: bool | None = None,
    with_span: bool | None = None,
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
        lengths = tuple(tuple(draw(sample_lengths(axis)) for axis in drawn) for _ in range(batch))
    span: tuple[tuple[int, int, int, int], ...] = ()
    if choose(with_span) and (with_span or draw(st.booleans())):  # a fourth of them, where it is left to chance
        parts = tuple(draw(spans(oracle_axis(axis), lengths is None)) for axis in drawn)
        span = with_sample_keys(parts, drawn, lengths)
    return Case(
        **parameters,
        span=span,
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
