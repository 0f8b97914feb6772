"""An external replacement of the compiled tier: `NATTEN_MLX_NANOBIND_MODULE=external_module`.

The contract, checked when the library loads the module. Each function but `supports` returns one array or a sequence:

    supports(problem) -> None or the reason to decline
    forward(problem, query, key, value, rpb, lengths) -> out, lse
    backward_query(problem, query, key, value, rpb, lengths, out, lse, dout, dlse) -> dq [, drpb]
    backward_key_value(problem, query, key, value, rpb, lengths, out, lse, dout, dlse) -> dk, dv
    qk(problem, query, key, rpb, lengths) -> logits
    qk_backward_query(problem, query, key, rpb, lengths, dlogits) -> dq [, drpb]
    qk_backward_key(problem, query, key, rpb, lengths, dlogits) -> dk
    av(problem, attn, value, lengths) -> out
    av_backward_attn(problem, attn, value, lengths, dout) -> dattn
    av_backward_value(problem, attn, value, lengths, dout) -> dv

`problem` is a dict; arrays are canonical, with three spatial axes; rpb and lengths may be None. What the functions
return is either the outputs of one primitive or, as here, a composition of MLX operations that MLX can vmap: products
with masks and one-hot tables, differentiated by MLX.
"""

from __future__ import annotations

from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from oracle import Axis, dense_tables

Problem = dict[str, Any]

FUNCTIONS = (
    "supports", "forward", "backward_query", "backward_key_value", "qk", "qk_backward_query", "qk_backward_key", "av",
    "av_backward_attn", "av_backward_value",
)  # fmt: skip
CALLS: list[tuple[str, Problem]] = []  # for the tests
FAILING_HEAD_DIM = 13


def supports(problem: Problem) -> str | None:
    CALLS.append(("supports", problem))
    if problem["device"] != "cpu":
        return "external module: CPU only"
    if any(problem[f"{name}_dtype"] != "float32" for name in ("query", "key", "value")):
        return "external module: float32 only"
    if problem["has_lengths"]:
        return "external module: no variable lengths"
    return None


def _tables(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mask, slot and bias index, each [queries, keys]"""
    names = ("length", "kernel_size", "stride", "dilation", "gna_stride", "is_causal")
    return dense_tables(tuple(Axis(*axis) for axis in zip(*(problem[name] for name in names), strict=True)))


def _one_hot(index: np.ndarray, mask: np.ndarray, count: int) -> mx.array:
    """[queries, keys, count], zero where there is no key"""
    return mx.array(((index[..., None] == np.arange(count)) & mask[..., None]).astype(np.float32))


def _grid(problem: Problem) -> tuple[int, ...]:
    outputs = (-(-length // s) for length, s in zip(problem["length"], problem["stride"], strict=True))
    return (problem["batch"], *outputs, problem["heads"])


def _flat(x: mx.array) -> mx.array:
    """[B, L0, L1, L2, H, C] -> [B, H, tokens, C]"""
    return x.reshape(x.shape[0], prod(x.shape[1:4]), *x.shape[4:]).swapaxes(1, 2)


def _per_query_head(problem: Problem, x: mx.array) -> mx.array:
    return mx.repeat(_flat(x), problem["heads"] // problem["kv_heads"], axis=1)


def _dense_logits(problem: Problem, query: mx.array, key: mx.array, rpb: mx.array | None) -> mx.array:
    """[B, H, queries, keys], not masked"""
    mask, _, bias_index = _tables(problem)
    s0, s1, s2 = problem["stride"]
    logits = problem["scale"] * (_flat(query[:, ::s0, ::s1, ::s2]) @ _per_query_head(problem, key).swapaxes(-1, -2))
    if rpb is not None:
        bias = rpb.reshape(problem["heads"], -1)
        logits = logits + mx.einsum("he,qke->hqk", bias, _one_hot(bias_index, mask, bias.shape[1]))
    return logits


def _forward(
    problem: Problem, query: mx.array, key: mx.array, value: mx.array, rpb: mx.array | None
) -> tuple[mx.array, mx.array]:
    logits = mx.where(mx.array(_tables(problem)[0]), _dense_logits(problem, query, key, rpb), -mx.inf)
    out = mx.softmax(logits, axis=-1) @ _per_query_head(problem, value)
    grid = _grid(problem)
    return out.swapaxes(1, 2).reshape(*grid, -1), mx.logsumexp(logits, axis=-1).swapaxes(1, 2).reshape(grid)


def forward(problem, query, key, value, rpb, lengths):
    CALLS.append(("forward", problem))
    if problem["head_dim"] == FAILING_HEAD_DIM:
        raise RuntimeError("deliberate failure of the example tier")
    return _forward(problem, query, key, value, rpb)


def backward_query(problem, query, key, value, rpb, lengths, out, lse, dout, dlse):
    CALLS.append(("backward_query", problem))
    inputs = [query] if rpb is None else [query, rpb]
    return mx.vjp(lambda q, bias=None: _forward(problem, q, key, value, bias), inputs, [dout, dlse])[1]


def backward_key_value(problem, query, key, value, rpb, lengths, out, lse, dout, dlse):
    CALLS.append(("backward_key_value", problem))
    return mx.vjp(lambda k, v: _forward(problem, query, k, v, rpb), [key, value], [dout, dlse])[1]


def _slots(problem: Problem) -> mx.array:
    """[queries, keys, slots]: which key stands in which slot"""
    mask, slot, _ = _tables(problem)
    return _one_hot(slot, mask, prod(problem["kernel_size"]))


def _qk(problem: Problem, query: mx.array, key: mx.array, rpb: mx.array | None) -> mx.array:
    slots = _slots(problem)
    logits = mx.einsum("bhqk,qks->bhqs", _dense_logits(problem, query, key, rpb), slots)
    logits = mx.where(slots.any(axis=1), logits, -mx.inf)
    return logits.swapaxes(1, 2).reshape(*_grid(problem), -1)


def qk(problem, query, key, rpb, lengths):
    CALLS.append(("qk", problem))
    return _qk(problem, query, key, rpb)


def qk_backward_query(problem, query, key, rpb, lengths, dlogits):
    CALLS.append(("qk_backward_query", problem))
    inputs = [query] if rpb is None else [query, rpb]
    return mx.vjp(lambda q, bias=None: [_qk(problem, q, key, bias)], inputs, [dlogits])[1]


def qk_backward_key(problem, query, key, rpb, lengths, dlogits):
    CALLS.append(("qk_backward_key", problem))
    return mx.vjp(lambda k: [_qk(problem, query, k, rpb)], [key], [dlogits])[1]


def _av(problem: Problem, attn: mx.array, value: mx.array) -> mx.array:
    slots = _slots(problem)
    weights = mx.where(slots.any(axis=1), _flat(attn), 0.0)
    out = mx.einsum("bhqs,qks->bhqk", weights, slots) @ _per_query_head(problem, value)
    return out.swapaxes(1, 2).reshape(*_grid(problem), -1)


def av(problem, attn, value, lengths):
    CALLS.append(("av", problem))
    return _av(problem, attn, value)


def av_backward_attn(problem, attn, value, lengths, dout):
    CALLS.append(("av_backward_attn", problem))
    return mx.vjp(lambda a: [_av(problem, a, value)], [attn], [dout])[1]


def av_backward_value(problem, attn, value, lengths, dout):
    CALLS.append(("av_backward_value", problem))
    return mx.vjp(lambda v: [_av(problem, attn, v)], [value], [dout])[1]
