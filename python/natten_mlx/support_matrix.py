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
        {"pure": row, "fast_metal": row, "nanobind": row} on every machine. `name` (what this machine calls the tier:
        "fast_cuda" for "fast_metal" with an NVIDIA GPU), `available` and `reason` are about this machine; `forward`,
        `backward` ({"na1d", "na2d", "na3d", "split_qk_av"}: bool), `fusion`, `varlen` ({"na1d", "na2d", "na3d"}: bool),
        `devices`, `dtypes` and `constraints` are what the tier declares for a device that has it.
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
    """Of the kernels for GPUs, forward and backward, a line for each; empty unless asked for."""

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
    key: mx.array | Sequence[int] | None,
    value: mx.array | Sequence[int] | None,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | mx.array | None = None,
    return_lse: bool = False,
    additional_keys: mx.array | Sequence[int] | None = None,
    additional_values: mx.array | Sequence[int] | None = None,
    *,
    op: str = "attention",
    dtype: mx.Dtype | None = None,
    gna_stride: Ints = 1,
    rpb: mx.array | Sequence[int] | None = None,
    lengths: mx.array | Sequence[int] | None = None,
    stream: StreamOrDevice = None,
    cost: bool = False,
    is_circular: Bools = False,
    query_start: Ints = 0,
    key_start: Ints = 0,
    shape: Ints | None = None,
) -> Explanation:
    """Say which tier would run a call, without running it.

    Args:
        query, key, value, rpb, lengths, additional_keys, additional_values: The arrays of the call, or their shapes.
            For op="qk" value is unused; for op="av" query is attn, and key is unused (or is value, where that is None).
        kernel_size, stride, dilation, is_causal, scale, return_lse, gna_stride, stream: As in the call.
        is_circular, query_start, key_start, shape: As in the call.
        op: "attention", "qk" or "av".
        dtype: Of the tensors given as shapes; default float32.
        cost: Also what each kernel of the call would cost on a GPU, which this machine need not have.

    Raises:
        ValueError: what the call itself would raise for its shapes and parameters; an unknown op or dtype.
    """
    call = _ext.describe(
        "explain",
        op,
        query,
        key,
        value,
        dtype,
        kernel_size,
        stride,
        dilation,
        is_causal,
        scale,
        additional_keys,
        additional_values,
        gna_stride,
        rpb,
        lengths,
        stream,
        is_circular,
        query_start,
        key_start,
        shape,
    )
    found = _ext.explain(call, cost)
    return Explanation(found["tier"], found["kernel"], dict(found["declined"]), found["tile"], found["cost"])
