"""What runs where: computed from the predicates that dispatch uses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from natten_mlx import _ext
from natten_mlx.functional import Bools, Ints, StreamOrDevice


def get_support_matrix() -> dict[str, dict[str, Any]]:
    """The coverage of each tier.

    Returns:
        {"pure": row, "fast_metal": row, "nanobind": row} on every machine. `available` and `reason` are about this
        machine; `forward`, `backward` ({"na1d", "na2d", "na3d", "split_qk_av"}: bool), `fusion`, `varlen` ({"na1d",
        "na2d", "na3d"}: bool), `devices`, `dtypes` and `constraints` are what the tier declares for a device that
        has it.
    """
    return _ext.support_matrix()


@dataclass(frozen=True)
class Explanation:
    """Which tier would run a call, and why the tiers preferred to it would not."""

    tier: str
    kernel: str
    declined: dict[str, str] = field(default_factory=dict)
    """Reason of each tier that declined, in order of preference."""
    tile: str = ""
    cost: str = ""
    """A line for each kernel of the call, forward and backward; empty where the tier does not know."""

    @property
    def reason(self) -> dict[str, str]:
        """The same as `declined`."""
        return self.declined

    def __str__(self) -> str:
        lines = [f"tier    {self.tier}"]
        lines += [f"{label:<7} {text}" for label, text in (("kernel", self.kernel), ("tile", self.tile)) if text]
        if self.cost:
            lines.append("cost    " + self.cost.replace("\n", "\n        "))
        lines += [f"not     {name}: {reason}" for name, reason in self.declined.items()]
        return "\n".join(lines)


def explain(
    query: mx.array | Sequence[int],
    key: mx.array | Sequence[int],
    value: mx.array | Sequence[int] | None = None,
    kernel_size: Ints = 1,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    *,
    op: str = "attention",
    dtype: mx.Dtype | None = None,
    gna_stride: Ints = 1,
    rpb: mx.array | Sequence[int] | None = None,
    lengths: mx.array | Sequence[int] | None = None,
    stream: StreamOrDevice = None,
    **_call_only: Any,
) -> Explanation:
    """Say which tier would run a call, without running it.

    Args:
        query, key, value: The arrays of the call, or their shapes together with `dtype`. For op="qk" value is unused;
            for op="av" query is attn and key is value.
        kernel_size, stride, dilation, is_causal, gna_stride, rpb, lengths, stream: As in the call.
        op: "attention", "qk" or "av".
        dtype: Of shapes; default float32.

    Raises:
        ValueError: what the call itself would raise for its shapes and parameters; an unknown op.
    """
    unknown = set(_call_only) - {"scale", "return_lse", "additional_keys", "additional_values"}
    if unknown:
        raise TypeError(f"explain() got an unexpected keyword argument '{sorted(unknown)[0]}'")

    def shape(a: mx.array | Sequence[int] | None) -> Sequence[int]:
        return () if a is None else a.shape if isinstance(a, mx.array) else tuple(a)

    def dtype_of(a: mx.array | Sequence[int] | None) -> mx.Dtype:
        return a.dtype if isinstance(a, mx.array) else dtype or mx.float32

    if op == "av" and value is None:
        value = key
    found = _ext.explain(
        op,
        shape(query),
        shape(key),
        shape(value),
        dtype_of(query),
        dtype_of(key),
        dtype_of(value),
        kernel_size,
        stride,
        dilation,
        is_causal,
        gna_stride,
        rpb is not None,
        lengths is not None,
        stream,
    )
    return Explanation(found["tier"], found["kernel"], dict(found["declined"]), found["tile"], found["cost"])
