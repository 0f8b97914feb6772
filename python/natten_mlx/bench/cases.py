"""The table of benchmark cases: the only place where their shapes are written."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from natten_mlx.neighborhood import key_span

VERSION = 1
"""Raised when a case changes its meaning, so that reports of different versions are not compared."""

FORWARD, GRAD_QUERY, STEP, GRAD_KEY = "forward", "grad_query", "step", "grad_key"
DIRECTIONS = {
    "fused": (FORWARD, GRAD_QUERY, STEP),
    "split": (FORWARD, STEP),  # qk, softmax, av
    "qk": (FORWARD, GRAD_KEY),  # the logits alone
}
"""What can be measured of each form. grad_query, grad_key and step (every gradient) include the forward."""


@dataclass(frozen=True)
class Case:
    """One call. `shape` is that of query, heads last: [B, spatial..., heads, head_dim]; with a `span`, (start, rows) of
    the queries on each axis, it is that of the whole, and key and value have the rows that the span needs."""

    name: str
    shape: tuple[int, ...]
    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    dilation: int | tuple[int, ...] = 1
    is_causal: bool | tuple[bool, ...] = False
    dtype: str = "float32"
    form: str = "fused"
    gna_stride: int | tuple[int, ...] = 1
    is_circular: bool | tuple[bool, ...] = False
    span: tuple[tuple[int, int], ...] = ()
    groups: tuple[str, ...] = field(default=(), compare=False)

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.shape) - 3

    @property
    def function(self) -> str:
        """na1d, na2d or na3d."""
        return f"na{self.rank}d"

    @property
    def directions(self) -> tuple[str, ...]:
        """What can be measured of it."""
        return DIRECTIONS[self.form]

    @property
    def kernel(self) -> tuple[int, ...]:
        """kernel_size, one value per axis."""
        return self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size,) * self.rank

    @property
    def query_span(self) -> tuple[tuple[int, int], ...]:
        """Start and rows of the queries per axis."""
        return self.span or tuple((0, length) for length in self.shape[1:-2])

    @property
    def queries(self) -> tuple[int, ...]:
        """Computed queries per axis."""
        strides = self.stride if isinstance(self.stride, tuple) else (self.stride,) * self.rank
        return tuple(
            -(-(start + rows) // stride) + -start // stride
            for (start, rows), stride in zip(self.query_span, strides, strict=True)
        )

    @property
    def key_span(self) -> tuple[tuple[int, int], ...]:
        """Start and rows of the keys per axis."""
        if not self.span:
            return self.query_span
        starts, rows = zip(*self.span, strict=True)
        return tuple(
            zip(*key_span(query_start=starts, rows=rows, shape=self.shape[1:-2], **self.window()), strict=True)
        )

    @property
    def query_shape(self) -> tuple[int, ...]:
        """Of the array."""
        return (self.shape[0], *(rows for _, rows in self.query_span), *self.shape[-2:])

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Of the arrays of keys and values, where they have the heads of query."""
        return (self.shape[0], *(rows for _, rows in self.key_span), *self.shape[-2:])

    def neighborhood(self) -> dict[str, Any]:
        """Keyword arguments of na1d, na2d, na3d and their split forms."""
        if not self.span:
            return self.window()
        query_start, key_start = (tuple(start for start, _ in span) for span in (self.span, self.key_span))
        return {**self.window(), "query_start": query_start, "key_start": key_start, "shape": self.shape[1:-2]}

    def window(self) -> dict[str, Any]:
        """Those of them that say which keys a query attends."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "dilation": self.dilation,
            "is_causal": self.is_causal,
            "gna_stride": self.gna_stride,
            "is_circular": self.is_circular,
        }

    def describe(self) -> str:
        """Shape and parameters in one line."""
        parts = [f"{self.function} {'x'.join(map(str, self.shape))} K {'x'.join(map(str, self.kernel))}"]
        labels = (("s", self.stride), ("d", self.dilation), ("u", self.gna_stride))
        parts += [f"{label} {value}" for label, value in labels if value != 1]
        for name, values in (("causal", self.is_causal), ("circular", self.is_circular)):
            if values is True:
                parts.append(name)
            elif values:
                parts.append(f"{name} " + "".join("FT"[value] for value in values))
        if self.span:
            parts.append("queries " + " x ".join(f"{start}..{start + rows - 1}" for start, rows in self.span))
        parts += [self.dtype] * (self.dtype != "float32") + [self.form] * (self.form != "fused")
        return ", ".join(parts)


SMALL = ("small", "table", "guardrail")
"""Sizes of a single layer at low resolution: dispatch, threads and borders matter."""
LARGE = ("large", "table", "guardrail")
"""Sizes at which the kernels themselves are what is measured. Windows of 2048 have no guardrail: the gradients of
`pure`, which decide what is right, take half a minute there."""
GUARDRAIL = ("guardrail",)

_H_CAUSAL, _D_CAUSAL = (True, False), (True, False, False)
_MIXED_2D: dict[str, Any] = {"stride": (2, 1), "dilation": (1, 2), "is_causal": _H_CAUSAL}
_MIXED_3D: dict[str, Any] = {"stride": (2, 1, 1), "dilation": (1, 1, 2), "is_causal": _D_CAUSAL}

CASES: tuple[Case, ...] = (
    Case("na1d_k7", (2, 256, 8, 32), 7, groups=SMALL),
    Case("na1d_k7_causal", (2, 256, 8, 32), 7, is_causal=True, groups=SMALL),
    Case("na2d_k7", (1, 32, 32, 8, 32), 7, groups=SMALL),
    Case("na2d_k7_causal", (1, 32, 32, 8, 32), 7, is_causal=_H_CAUSAL, groups=SMALL),
    Case("na3d_k3", (1, 10, 12, 14, 4, 16), 3, groups=SMALL),
    Case("na3d_k3_causal", (1, 10, 12, 14, 4, 16), 3, is_causal=_D_CAUSAL, groups=SMALL),
    Case("na1d_l1024_k7", (1, 1024, 4, 32), 7, groups=LARGE),
    Case("na1d_l4096_k31", (1, 4096, 4, 32), 31, groups=LARGE),
    Case("na1d_l4096_k127", (1, 4096, 8, 64), 127, groups=LARGE),
    Case("na1d_l4096_k2048", (1, 4096, 2, 64), 2048, groups=("large", "table")),
    Case("na2d_56_k7", (1, 56, 56, 4, 32), 7, groups=LARGE),
    Case("na2d_64_k13", (1, 64, 64, 8, 64), 13, groups=LARGE),
    Case("na2d_128_k13", (1, 128, 128, 4, 32), 13, groups=LARGE),
    Case("na2d_128_k7_d128", (1, 128, 128, 2, 128), 7, groups=LARGE),
    Case("na3d_16_k3", (1, 16, 16, 16, 4, 32), 3, groups=LARGE),
    Case("na3d_16_k5", (1, 16, 16, 16, 4, 32), 5, groups=LARGE),
    Case("na3d_16_k7", (1, 16, 16, 16, 4, 32), 7, groups=LARGE),
    Case("na1d_decode_k9_d2", (1, 512, 8, 64), 9, dilation=2, is_causal=True, groups=GUARDRAIL),
    Case("na1d_decode_k7", (1, 1024, 8, 64), 7, groups=GUARDRAIL),
    Case("na1d_decode_k9", (1, 2048, 8, 16), 9, is_causal=True, groups=GUARDRAIL),
    Case("na2d_k7_qk", (1, 32, 32, 8, 32), 7, form="qk", groups=GUARDRAIL),
    Case("na3d_k3_qk", (1, 10, 12, 14, 4, 16), 3, form="qk", groups=GUARDRAIL),
    Case("na2d_k9_causal", (1, 24, 24, 8, 16), 9, is_causal=_H_CAUSAL, groups=GUARDRAIL),
    Case("na2d_k7_mixed", (1, 20, 18, 8, 16), 7, **_MIXED_2D, groups=GUARDRAIL),
    Case("na2d_k7_mixed_split", (1, 20, 18, 8, 16), 7, **_MIXED_2D, form="split", groups=GUARDRAIL),
    Case("na3d_k3_mixed_split", (1, 10, 12, 14, 4, 16), 3, **_MIXED_3D, form="split", groups=GUARDRAIL),
    Case("na1d_k31_float16", (1, 1024, 4, 32), 31, dtype="float16", groups=GUARDRAIL),
    Case("na2d_k7_float16", (1, 32, 32, 8, 32), 7, dtype="float16", groups=GUARDRAIL),
    Case("na2d_k7_bfloat16", (1, 32, 32, 8, 32), 7, dtype="bfloat16", groups=GUARDRAIL),
    Case("na3d_k3_float16", (1, 10, 12, 14, 4, 16), 3, dtype="float16", groups=GUARDRAIL),
    Case("na3d_k3_bfloat16", (1, 10, 12, 14, 4, 16), 3, dtype="bfloat16", groups=GUARDRAIL),
    # A token beside its cache, rows in the middle of an image, windows that wrap.
    Case("na1d_step_k1024", (1, 65536, 8, 64), 1024, is_causal=True, span=((40000, 1),), groups=GUARDRAIL),
    Case("na2d_k7_middle", (1, 64, 32, 8, 32), 7, span=((16, 32), (0, 32)), groups=GUARDRAIL),
    Case("na2d_k7_circular", (1, 32, 32, 8, 32), 7, is_circular=True, groups=GUARDRAIL),
)


def select(patterns: Sequence[str]) -> list[Case]:
    """The cases whose name or group matches one of `patterns` (shell wildcards), in the table's order.

    Raises:
        ValueError: a pattern that matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {
            case.name for case in CASES if any(fnmatch.fnmatchcase(n, pattern) for n in (case.name, *case.groups))
        }
        if not matching:
            groups = sorted({group for case in CASES for group in case.groups})
            raise ValueError(
                f"no case or group matches {pattern!r}. Groups: {', '.join(groups)}. "
                f"Cases: {', '.join(case.name for case in CASES)}"
            )
        chosen |= matching
    return [case for case in CASES if case.name in chosen]
