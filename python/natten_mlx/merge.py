"""Joining partial attentions."""

from collections.abc import Sequence

import mlx.core as mx

from natten_mlx import _ext


def merge_attentions(outputs: Sequence[mx.array], lse_tensors: Sequence[mx.array]) -> tuple[mx.array, mx.array]:
    """Join attentions of the same queries over disjoint key sets into the attention over their union.

    Args:
        outputs: Two or more arrays [..., Dv] of one shape.
        lse_tensors: As many arrays [...]: the natural log of the sum of exponentials of each one's logits, -inf for
            one that has no keys.

    Returns:
        out [..., Dv] in the dtype of outputs[0] and lse [...] in float32 (float64 where an input is). Where every lse
        is -inf, out is 0 and lse -inf.

    Raises:
        ValueError: fewer than two outputs, or shapes or counts that do not match.
    """
    return _ext.merge(outputs, lse_tensors)
