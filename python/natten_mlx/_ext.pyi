"""The C++ API for Python: what natten_mlx.functional and the other modules are made of."""

from collections.abc import Sequence
from typing import Any

import mlx.core

__version__: str

def attention(
    name: str,
    rank: int,
    query: object | None,
    key: object | None,
    value: object | None,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    scale: object | None,
    return_lse: object | None,
    additional_keys: object | None,
    additional_values: object | None,
    gna_stride: object | None,
    rpb: object | None,
    lengths: object | None,
    stream: object | None,
    is_circular: object | None,
    query_start: object | None,
    key_start: object | None,
    shape: object | None,
) -> Any:
    """Neighborhood attention -> out, or (out, lse)."""

def varlen(
    name: str,
    rank: int,
    query: object | None,
    key: object | None,
    value: object | None,
    lengths: object | None,
    lengths_name: str,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    scale: object | None,
    return_lse: object | None,
    gna_stride: object | None,
    stream: object | None,
    is_circular: object | None,
    query_start: object | None,
    key_start: object | None,
    shape: object | None,
) -> Any:
    """The same over padded samples."""

def qk(
    name: str,
    rank: int,
    query: object | None,
    key: object | None,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    scale: object | None,
    gna_stride: object | None,
    rpb: object | None,
    lengths: object | None,
    additional_keys: object | None,
    stream: object | None,
    is_circular: object | None,
    query_start: object | None,
    key_start: object | None,
    shape: object | None,
) -> mlx.core.array:
    """Logits of the split form."""

def av(
    name: str,
    rank: int,
    attn: object | None,
    value: object | None,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    gna_stride: object | None,
    lengths: object | None,
    additional_values: object | None,
    stream: object | None,
    is_circular: object | None,
    query_start: object | None,
    key_start: object | None,
    shape: object | None,
) -> mlx.core.array:
    """Weighted values of the split form."""

def dense_attention(
    query: object | None,
    key: object | None,
    value: object | None,
    scale: object | None,
    is_causal: object | None,
    return_lse: object | None,
    stream: object | None,
) -> Any:
    """Every query to every key -> out, or (out, lse)."""

def neighborhood_mask(
    shape: object | None,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    gna_stride: object | None,
    rpb: object | None,
    lengths: object | None,
    dtype: object | None,
    stream: object | None,
    is_circular: object | None,
    query_start: object | None,
    query_rows: object | None,
    key_start: object | None,
    key_rows: object | None,
) -> mlx.core.array:
    """The neighborhood as a dense mask."""

def key_span(
    kernel_size: object | None,
    query_start: object | None,
    rows: object | None,
    shape: object | None,
    dilation: object | None,
    is_causal: object | None,
    stride: object | None,
    gna_stride: object | None,
    is_circular: object | None,
) -> Any:
    """The keys that a span of queries needs."""

def merge(outputs: object | None, lse_tensors: object | None) -> tuple[mlx.core.array, mlx.core.array]:
    """Joins partial attentions -> (out, lse)."""

def check_module(
    name: str,
    rank: int,
    embed_dim: object | None,
    num_heads: object | None,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    num_kv_heads: object | None,
    qkv_bias: object | None,
    qk_scale: object | None,
    attn_drop: object | None,
    proj_drop: object | None,
    gna_stride: object | None,
    rel_pos_bias: object | None,
    pad_input: object | None,
    is_circular: object | None,
) -> tuple[int, int, int, tuple[int, ...]]:
    """
    Raises ValueError for arguments of a module that do not fit; -> (embed_dim, num_heads, num_kv_heads, rpb's shape).
    """

def check_module_input(
    name: str,
    rank: int,
    x: object | None,
    embed_dim: int,
) -> None:
    """Raises ValueError for an input that is no float array [B, spatial..., embed_dim]."""

def decoding_step(
    name: str,
    rank: int,
    inputs: Sequence[mlx.core.array],
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    gna_stride: object | None,
    is_circular: object | None,
    scale: object | None,
    composed: object,
) -> list[mlx.core.array] | None:
    """
    query, key, value, the rings of keys and values, and the position -> out, the rings and the position then; None
    where no kernel has it. `composed` gives the first three of other inputs, as operations with derivatives.
    """

def is_concrete(x: mlx.core.array) -> bool:
    """Whether x depends on no placeholder of a trace."""

def slice_from(x: mlx.core.array, start: mlx.core.array, axes: Sequence[int], lengths: Sequence[int]) -> mlx.core.array:
    """mx.slice for mx.vmap in every combination."""

def slice_updated(
    x: mlx.core.array, update: mlx.core.array, start: mlx.core.array, axes: Sequence[int]
) -> mlx.core.array:
    """mx.slice_update for mx.vmap in every combination."""

def zero_outside(mask: mlx.core.array, x: mlx.core.array) -> mlx.core.array:
    """
    x [..., C] where mask [...], else 0: no NaN gets through it, forward or backward.
    """

def padding_masks(
    name: str,
    rank: int,
    shape: object,
    lengths: object | None,
    lengths_name: str,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    gna_stride: object | None,
    is_circular: object | None,
) -> tuple[mlx.core.array, mlx.core.array]:
    """Masks of tokens and of queries that are not padding."""

def set_backend(name: object | None) -> None: ...
def enter_backend(name: object | None) -> str:
    """Begins a scope of this thread; what it returns ends it."""

def leave_backend(outer: str) -> None: ...
def get_backend() -> str: ...
def is_strict() -> bool: ...
def set_exportable(on: bool) -> None:
    """
    Begins or ends a region of this thread whose calls can be exported; regions nest.
    """

def support_matrix() -> dict[str, Any]: ...
def kernel_cache_info() -> dict[str, int]:
    """Kernels compiled at run time that are kept: how many, bytes of their text and plans, limit in bytes."""

def get_cache_memory() -> int:
    """Bytes of memory of results that are kept for the next."""

def clear_cache() -> None:
    """Forgets the kernels compiled at run time and gives back the memory of results."""

class _Call:
    """A call that is described, not made."""

def describe(
    name: str,
    op: object | None,
    query: object | None,
    key: object | None,
    value: object | None,
    dtype: object | None,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    scale: object | None,
    additional_keys: object | None,
    additional_values: object | None,
    gna_stride: object | None,
    rpb: object | None,
    lengths: object | None,
    stream: object | None,
    is_circular: object | None,
    query_start: object | None,
    key_start: object | None,
    shape: object | None,
) -> _Call: ...
def explain(call: _Call, with_cost: object | None) -> dict[str, Any]: ...
def warmup(calls: Sequence[_Call], gradients: object | None, progress: object | None) -> tuple[int, int]:
    """Makes the kernels of calls -> how many, and how many of them were compiled."""

def kernel_compiler() -> str:
    """Who compiles the kernels of calls made now."""

def kernel_files() -> dict[str, Any]:
    """Compiled kernels on disk: folder, files, bytes, limit."""

def clear_kernel_files() -> dict[str, Any]:
    """Removes them -> what is gone."""

def load_external_tier(module: object) -> None:
    """Replaces the compiled tier by the functions of a module."""

def window_keys(
    index: int,
    length: int,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    is_causal: bool = False,
    gna_stride: int = 1,
    is_circular: bool = False,
) -> list[int]:
    """Keys of one query on one axis, in the order of their slots."""

def window_start(
    index: object | None, length: object | None, kernel_size: object | None, dilation: object | None
) -> tuple[int, int]:
    """First key of one query on one axis, and its index into the rpb axis."""

def window_end(
    start_index: object | None, length: object | None, kernel_size: object | None, dilation: object | None
) -> int:
    """One past the last token that the window from `start_index` may reach."""

def fma_rate(rounds: int) -> float:
    """
    Float operations per second of one burst of multiply-adds in registers, on cpu_threads() threads.
    """

def copy_rate(bytes: int, repeats: int) -> float:
    """
    Bytes read and written per second when memory is copied on cpu_threads() threads, the best of `repeats`.
    """

def float_lanes() -> int:
    """float32 lanes of a vector of cpu_target()."""

def cpu_target() -> str:
    """The SIMD target that the CPU kernels use."""

def cache_limit() -> int:
    """Bytes of memory of results that are kept at most."""

def cpu_threads() -> int:
    """Threads that the CPU kernels use."""

def set_cpu_threads(count: int) -> None:
    """
    Makes the CPU kernels use `count` threads, for small calls too; 0 returns to the default.
    """

def slab_plan(
    rows: list[int],
    kernel_size: int,
    stride: int,
    dilation: int,
    is_causal: bool,
    gna_stride: int,
    is_circular: bool,
) -> dict[str, Any]:
    """Slabs, halos and messages of an axis that is spread over ranks."""

def equal_rows(length: int, parts: int) -> list[int]:
    """Slabs as equal as possible, the longer ones first."""

def distributed_attention(
    rank: int,
    query: object | None,
    key: object | None,
    value: object | None,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    scale: object | None,
    additional_keys: object | None,
    additional_values: object | None,
    gna_stride: object | None,
    rpb: object | None,
    lengths: object | None,
    stream: object | None,
    is_circular: object | None,
    group: object | None,
    axis: object | None,
    rows: object | None,
    overlap: object | None,
    communication_stream: object | None,
) -> tuple[mlx.core.array, mlx.core.array]:
    """This rank's rows -> (out, lse)."""

def distributed_rows(
    name: str,
    rank: int,
    x: object | None,
    lengths: object | None,
    group: object | None,
    axis: object | None,
    options: Sequence[tuple[str, Sequence[int]]],
) -> list[int]:
    """Rows of every rank, which must share the arguments of a module."""

def distributed_shard(
    x: object | None, group: object | None, axis: object | None, rows: object | None, stream: object | None
) -> mlx.core.array:
    """This rank's rows of an array that all ranks hold."""

def distributed_gather(
    x: object | None, group: object | None, axis: object | None, rows: object | None, stream: object | None
) -> mlx.core.array:
    """The whole array, on every rank."""

def distributed_sum(arrays: object | None, group: object | None, stream: object | None) -> list[mlx.core.array]:
    """The sums of arrays over all ranks."""

def distributed_bytes_sent() -> int:
    """Bytes that this process has sent to its neighbors."""
