"""The fused form of 0.17 on, heads last: na1d, na2d, na3d and the dense attention beside them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from natten_mlx import functional
from natten_mlx.compat import _arguments as arguments
from natten_mlx.compat._arguments import Bools, Ints, P, R
from natten_mlx.compat._switches import without_effect
from natten_mlx.merge import merge_attentions

FNA_BACKENDS = ("cutlass-fna", "hopper-fna", "blackwell-fna", "flex-fna")
FMHA_BACKENDS = ("cutlass-fmha", "hopper-fmha", "blackwell-fmha", "flex-fmha")
KERNEL_SCHEDULES = ("non", "coop", "pp")
# Arguments that choose or tune kernels, with the values that ask for nothing.
TUNING: dict[str, Any] = {
    **dict.fromkeys(("backend", "kernel_schedule", "attention_kwargs", "backward_kv_splits")),
    **dict.fromkeys(f"{direction}{side}_tile_shape" for direction in ("", "backward_") for side in ("q", "kv")),
    **dict.fromkeys(f"{direction}{side}_tile_size" for direction in ("", "backward_") for side in ("q", "kv")),
    "backward_use_pt_reduction": False,
    "run_persistent_kernel": True,
    "torch_compile": False,
    "try_fuse_additional_kv": False,
}
_STRIDED = (
    "query", "key", "value", "kernel_size", "stride", "dilation", "is_causal", "scale", "additional_keys",
    "additional_values",
)  # fmt: skip


def rank_of(function: str, query: object) -> int:
    """1, 2 or 3, by query's axes."""
    rank = query.ndim - 3 if isinstance(query, mx.array) else 0
    if rank not in (1, 2, 3):
        got = f"the shape {tuple(query.shape)}" if isinstance(query, mx.array) else type(query).__name__
        raise ValueError(f"[{function}] query must be an mlx.core.array of 4, 5 or 6 axes, got {got}")
    return rank


def attention(
    function: str,
    rank: int,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: Ints,
    *,
    stride: Ints | None = 1,
    dilation: Ints | None,
    is_causal: Bools | None,
    scale: float | None,
    additional_keys: mx.array | None,
    additional_values: mx.array | None,
    rpb: mx.array | None = None,
    grouped_heads: bool = False,
    one_type: bool = False,
) -> tuple[mx.array, mx.array]:
    """(out, lse). A scale of None or 0 is head_dim ** -0.5, as NATTEN has it."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        arguments.array(function, name, x, rank, heads_first=False)
    if one_type:
        arguments.same_type(function, query, key, value)
    if not grouped_heads:
        arguments.same_heads(function, query=query, key=key, value=value)
    kernel = arguments.sizes(function, "kernel_size", kernel_size, rank, least=2)
    spacing = arguments.sizes(function, "dilation", dilation, rank)
    causal = arguments.flags(function, is_causal, rank)
    arguments.causal_windows_fit(function, query.shape[1:-2], kernel, spacing, causal)
    result: tuple[mx.array, mx.array] = getattr(functional, f"na{rank}d")(
        query,
        key,
        value,
        kernel,
        dilation=spacing,
        is_causal=causal,
        scale=arguments.scale(function, scale),
        return_lse=True,
        additional_keys=additional_keys,
        additional_values=additional_values,
        gna_stride=arguments.shared_windows(function, stride, kernel),
        rpb=rpb,
    )
    return result


# Of 0.20 on, until `return_lse` came.
STRIDED_NA = (
    "{rank} neighborhood attention [B, ..., heads, D], heads last; neighboring queries share windows by `stride`."
)


def named_na(rank: int | None, text: str, function: Callable[P, R]) -> Callable[P, R]:
    """`function`, 0.20's of a rank, or of query's, as the public one; `text` has {rank}."""
    return arguments.named(_na(rank), text.format(rank=f"{rank}-D" if rank else "1-D, 2-D or 3-D"), function)


def _na(rank: int | None) -> str:
    return "neighborhood_attention_generic" if rank is None else f"na{rank}d"


def strided(
    rank: int | None,
    dense_attention: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    grouped_heads: bool,
) -> tuple[mx.array, mx.array]:
    """`attention` of 0.20 on by all arguments `given`; without `rank`, it is query's."""
    function = _na(rank)
    tuning(function, FNA_BACKENDS, dense_attention, given)
    rank = rank_of(function, given["query"]) if rank is None else rank
    options = {name: given[name] for name in _STRIDED}
    return attention(function, rank, **options, grouped_heads=grouped_heads, one_type=True)


def dense(
    function: str,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    *,
    is_causal: bool = False,
    scale: float | None,
    return_lse: bool,
    grouped_heads: bool = False,
) -> mx.array | tuple[mx.array, mx.array]:
    """Attention of every query to every key; causal from the top left: query i attends the keys 0..i."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, mx.array) or x.ndim != 4:
            got = f"the shape {tuple(x.shape)}" if isinstance(x, mx.array) else type(x).__name__
            raise ValueError(f"[{function}] {name} must be an mlx.core.array [B, L, heads, D], got {got}")
    if not grouped_heads:
        arguments.same_heads(function, query=query, key=key, value=value)
    arguments.same_type(function, query, key, value)
    # 0.20 has scale in this place.
    if not isinstance(is_causal, bool):
        raise ValueError(f"[{function}] is_causal must be a bool, got {is_causal!r}")
    if key.shape[:3] != value.shape[:3]:
        shapes = f"{tuple(key.shape)} and {tuple(value.shape)}"
        raise ValueError(f"[{function}] shapes of key and value must match, got {shapes}")
    options: dict[str, Any] = {"scale": arguments.scale(function, scale), "return_lse": return_lse}
    if not is_causal:
        return functional.attention(query, key, value, **options)
    # There the last query sees the last key: as many keys as queries, and the queries behind the last key see all.
    both = min(query.shape[1], key.shape[1])
    parts = [functional.attention(query[:, :both], key[:, :both], value[:, :both], is_causal=True, **options)]
    if query.shape[1] > both:
        parts.append(functional.attention(query[:, both:], key, value, **options))
    return joined(parts)


def joined(parts: list[Any]) -> Any:
    """Results of attention to queries that follow each other, as one."""
    if not isinstance(parts[0], tuple):
        return mx.concatenate(parts, axis=1)
    return tuple(mx.concatenate(list(of_one), axis=1) for of_one in zip(*parts, strict=True))


def tuning(
    function: str, backends: tuple[str, ...], dense_attention: Callable[..., Any], given: Mapping[str, Any]
) -> None:
    """Looks at those of the arguments `given` that choose or tune kernels of NATTEN: known ones are accepted, and said
    to have no effect."""
    backend, schedule = given["backend"], given["kernel_schedule"]
    if backend is not None and backend not in backends:
        raise NotImplementedError(f"[{function}] unknown backend {backend!r}; this release has {', '.join(backends)}")
    if isinstance(schedule, str) and schedule not in KERNEL_SCHEDULES:
        raise ValueError(f"[{function}] kernel_schedule must be one of {KERNEL_SCHEDULES}, got {schedule!r}")
    # For the attention to additional tokens, which is in the same softmax here.
    if given.get("attention_kwargs"):
        if not isinstance(given["attention_kwargs"], dict):
            raise ValueError(f"[{function}] attention_kwargs must be a dict, got {given['attention_kwargs']!r}")
        unknown = set(given["attention_kwargs"]) - set(inspect.signature(dense_attention).parameters)
        if unknown:
            raise TypeError(f"[{function}] attention_kwargs: attention() has no argument {sorted(unknown)[0]!r}")
    for name, default in TUNING.items():
        if name in given and given[name] is not None and given[name] != default:
            without_effect(f"the argument {name}")


def merge(function: str, outputs: list[mx.array], lse_tensors: list[mx.array]) -> tuple[mx.array, mx.array]:
    """Of outputs [B, L, heads, D] with lse [B, L, heads]."""
    for name, tensors, rank in (("outputs", outputs, 4), ("lse_tensors", lse_tensors, 3)):
        if not isinstance(tensors, list | tuple):
            raise ValueError(f"[{function}] {name} must be a list of mlx.core.array, got {type(tensors).__name__}")
        for index, x in enumerate(tensors):
            if not isinstance(x, mx.array) or x.ndim != rank:
                got = f"the shape {tuple(x.shape)}" if isinstance(x, mx.array) else type(x).__name__
                raise ValueError(f"[{function}] {name}[{index}] must be an array of {rank} axes, got {got}")
    return merge_attentions(outputs, lse_tensors)
