"""Other ways to compute a case: dense attention with a mask, an unfused gather, PyTorch, upstream NATTEN.

Each entry of `RIVALS` makes a `Rival` of a case and a direction, or raises `Skip` with the reason why it can't.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from natten_mlx import _ext
from natten_mlx.bench.calls import differentiated, inputs, make_call, normal
from natten_mlx.bench.cases import FORWARD, STEP, Case

MASK_LIMIT = 512 << 20
"""Bytes of a dense mask, or of gathered keys, above which an alternative is skipped."""


class Skip(Exception):
    """Why an alternative can't run a case."""


@dataclass(frozen=True)
class Rival:
    """`run` is timed and blocks until done; `results` returns the output and the gradients, heads last."""

    run: Callable[[], Any]
    results: Callable[[], list[mx.array]]


def _axis_keys(case: Case, axis: int) -> list[list[int]]:
    def of_axis(value: Any) -> Any:
        return value[axis] if isinstance(value, tuple) else value

    length, stride = case.shape[1 + axis], of_axis(case.stride)
    flags = (bool(of_axis(case.is_causal)), of_axis(case.gna_stride), bool(of_axis(case.is_circular)))
    parameters = (stride, of_axis(case.dilation), *flags)
    return [_ext.window_keys(query, length, case.kernel[axis], *parameters) for query in range(0, length, stride)]


@functools.lru_cache(maxsize=8)
def _axis_mask(case: Case, axis: int) -> np.ndarray:
    """[queries, keys] of one axis: who attends whom."""
    keys = _axis_keys(case, axis)
    mask = np.zeros((len(keys), case.shape[1 + axis]), bool)
    for query, places in enumerate(keys):
        mask[query, places] = True
    return mask


@functools.lru_cache(maxsize=1)
def _dense_mask(case: Case) -> np.ndarray:
    """[tokens, tokens]: the product of the axes' masks."""
    tokens = math.prod(case.shape[1:-2])
    if tokens**2 > MASK_LIMIT:
        raise Skip(f"the dense mask of {tokens} x {tokens} tokens would take {tokens**2 >> 20} MiB")
    mask = np.ones((1, 1), bool)
    for axis in range(case.rank):
        mask = np.kron(mask, _axis_mask(case, axis))
    return mask


def _whole(case: Case, what: str) -> None:
    if case.form != "fused" or case.queries != case.shape[1:-2]:
        raise Skip(f"{what} is compared in the fused form, without a query stride or span")


def _mlx(function: Callable[..., mx.array], case: Case, direction: str) -> Rival:
    """An MLX function of the case's arrays, with its gradients by MLX."""
    arrays = inputs(case)
    cotangent = normal(case.shape, len(arrays), case.dtype)
    mx.eval(arrays, cotangent)
    call = differentiated(function, arrays, direction, cotangent)
    return Rival(call, call)


def _natten_mlx(case: Case, direction: str) -> Rival:
    call = make_call(case, direction)
    return Rival(call, call)


def _mlx_sdpa(case: Case, direction: str) -> Rival:
    _whole(case, "dense attention")
    mask = mx.array(_dense_mask(case))
    batch, *_, heads, dim = case.shape

    def attention(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        heads_first = [x.reshape(batch, -1, heads, dim).swapaxes(1, 2) for x in (query, key, value)]
        out = mx.fast.scaled_dot_product_attention(*heads_first, scale=dim**-0.5, mask=mask)
        return out.swapaxes(1, 2).reshape(query.shape)

    return _mlx(attention, case, direction)


def _mlx_gather(case: Case, direction: str) -> Rival:
    _whole(case, "the gather")
    batch, *spatial, heads, dim = case.shape
    tokens, slots = math.prod(spatial), math.prod(case.kernel)
    gathered = batch * tokens * slots * heads * dim * 4
    if gathered > MASK_LIMIT:
        raise Skip(f"the gathered keys would take {gathered >> 20} MiB")
    # Keys of every query as flat indices; a causal window that is not full repeats its first key, masked.
    index = np.zeros((1, 1), np.int64)
    live = np.ones((1, 1), bool)
    for axis, length in enumerate(spatial):
        keys = _axis_keys(case, axis)
        width = max(map(len, keys))
        places = np.array([row + row[:1] * (width - len(row)) for row in keys])
        filled = np.array([[True] * len(row) + [False] * (width - len(row)) for row in keys])
        index = (index[:, None, :, None] * length + places[None, :, None, :]).reshape(len(index) * length, -1)
        live = (live[:, None, :, None] & filled[None, :, None, :]).reshape(len(live) * length, -1)
    indices, bias = mx.array(index), mx.array(np.where(live, 0.0, -np.inf).astype(np.float32))

    def attention(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        q, k, v = (x.reshape(batch, tokens, heads, dim) for x in (query, key, value))
        logits = mx.einsum("bnhd,bnkhd->bnhk", q, mx.take(k, indices, axis=1)) * dim**-0.5 + bias[:, None, :]
        weights = mx.softmax(logits.astype(mx.float32), axis=-1).astype(query.dtype)
        return mx.einsum("bnhk,bnkhd->bnhd", weights, mx.take(v, indices, axis=1)).reshape(query.shape)

    return _mlx(attention, case, direction)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skip(f"{name} is not installed" if getattr(error, "name", "") == name else str(error)) from None


def set_torch_threads(count: int) -> None:
    """PyTorch gets as many threads as the library's kernels, where it is installed."""
    with contextlib.suppress(Skip):
        _import("torch").set_num_threads(count)


def _torch_rival(function: Callable[..., Any], case: Case, direction: str) -> Rival:
    """A PyTorch function of heads-last tensors."""
    torch = _import("torch")
    dtype = getattr(torch, case.dtype)

    def tensor(array: mx.array) -> Any:
        return torch.from_numpy(np.array(array.astype(mx.float32))).to(dtype)

    arrays = inputs(case)
    cotangent = tensor(normal(case.shape, len(arrays), case.dtype))
    leaves = [tensor(array).requires_grad_(direction == STEP) for array in arrays]

    def run() -> list[Any]:
        if direction == FORWARD:
            with torch.no_grad():
                return [function(*leaves)]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, cotangent)]

    def results() -> list[mx.array]:
        try:
            return [mx.array(x.detach().to(torch.float32).numpy()) for x in run()]
        except (NotImplementedError, RuntimeError, AttributeError) as error:  # what it can't do on this device
            raise Skip(str(error).strip().partition("\n")[0][:160] or type(error).__name__) from None

    return Rival(run, results)


def _torch_sdpa(case: Case, direction: str) -> Rival:
    _whole(case, "dense attention")
    torch = _import("torch")
    mask = torch.from_numpy(_dense_mask(case))
    batch, *_, heads, dim = case.shape

    def attention(query: Any, key: Any, value: Any) -> Any:
        heads_first = [x.reshape(batch, -1, heads, dim).transpose(1, 2) for x in (query, key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)
        return out.transpose(1, 2).reshape(query.shape)

    return _torch_rival(attention, case, direction)


def _torch_flex(case: Case, direction: str) -> Rival:
    _whole(case, "flex_attention")
    torch = _import("torch")
    flex = _import("torch.nn.attention.flex_attention")
    batch, *spatial, heads, dim = case.shape
    tokens = math.prod(spatial)
    tables = [torch.from_numpy(_axis_mask(case, axis)) for axis in range(case.rank)]
    steps = [math.prod(spatial[axis + 1 :]) for axis in range(case.rank)]

    def attends(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
        inside = None
        for table, step, length in zip(tables, steps, spatial, strict=True):
            found = table[query // step % length, key // step % length]
            inside = found if inside is None else inside & found
        return inside

    compiled = _compiled_flex()
    try:
        blocks = flex.create_block_mask(attends, None, None, tokens, tokens, device="cpu")
    except RuntimeError as error:
        raise Skip(str(error).partition("\n")[0]) from None

    def attention(query: Any, key: Any, value: Any) -> Any:
        heads_first = [x.reshape(batch, tokens, heads, dim).transpose(1, 2) for x in (query, key, value)]
        return compiled(*heads_first, block_mask=blocks).transpose(1, 2).reshape(query.shape)

    return _torch_rival(attention, case, direction)


@functools.cache
def _compiled_flex() -> Any:
    torch, flex = _import("torch"), _import("torch.nn.attention.flex_attention")
    return torch.compile(flex.flex_attention)


def _upstream(case: Case, direction: str) -> Rival:
    _whole(case, "upstream natten")
    natten = _import("natten")
    functional = _import("natten.functional")
    if case.gna_stride != 1:
        raise Skip("upstream natten is compared without a GNA stride")
    if case.is_circular is not False:
        raise Skip("upstream natten has no circular axes")
    left_out = ("stride", "gna_stride", "is_circular")
    options = {key: value for key, value in case.neighborhood().items() if key not in left_out}
    fused = getattr(natten, case.function, None) or getattr(functional, case.function, None)
    if fused is not None and hasattr(natten, case.function):  # 0.20 and later
        return _torch_rival(lambda q, k, v: fused(q, k, v, **options), case, direction)
    if case.is_causal is not False:
        raise Skip("the unfused operations of this version of natten have no causal windows")
    qk, av = (getattr(functional, f"{case.function}_{name}", None) for name in ("qk", "av"))
    if qk is None or av is None:
        raise Skip(f"this version of natten has no {case.function}_qk")
    kernel, dilation = case.kernel_size, case.dilation

    def attention(query: Any, key: Any, value: Any) -> Any:
        q, k, v = (x.movedim(-2, 1).contiguous() for x in (query * query.shape[-1] ** -0.5, key, value))
        return av(qk(q, k, kernel, dilation).softmax(dim=-1), v, kernel, dilation).movedim(1, -2)

    return _torch_rival(attention, case, direction)


RIVALS: dict[str, Callable[[Case, str], Rival]] = {
    "natten-mlx": _natten_mlx,
    "mlx-sdpa": _mlx_sdpa,
    "mlx-gather": _mlx_gather,
    "torch-flex": _torch_flex,
    "torch-sdpa": _torch_sdpa,
    "natten": _upstream,
}
"""Name on the command line -> how to make it. Dense ones mask all but the window."""
