"""The C++ API for Python: what natten_mlx.functional and the other modules are made of."""

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
    additional_keys: object | None,
    additional_values: object | None,
    gna_stride: object | None,
    rpb: object | None,
    lengths: object | None,
    lengths_name: str,
    stream: object | None,
) -> tuple[mlx.core.array, mlx.core.array]:
    """Neighborhood attention -> (out, lse)."""

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
    stream: object | None,
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
    stream: object | None,
) -> mlx.core.array:
    """Weighted values of the split form."""

def merge(outputs: object, lse_tensors: object) -> tuple[mlx.core.array, mlx.core.array]:
    """Joins partial attentions -> (out, lse)."""

def check_neighborhood(
    name: str,
    rank: int,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    gna_stride: object | None,
) -> None:
    """Raises ValueError for parameters that no array fits."""

def padding_masks(
    name: str,
    rank: int,
    shape: object,
    lengths: object,
    lengths_name: str,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
) -> tuple[mlx.core.array, mlx.core.array]:
    """Masks of tokens and of queries that are not padding."""

def set_backend(name: str) -> None: ...
def get_backend() -> str: ...
def support_matrix() -> dict[str, Any]: ...
def kernel_cache_info() -> dict[str, int]:
    """Kernels compiled at run time that are kept: how many, bytes of their text and plans, limit in bytes."""

def clear_cache() -> None:
    """Forgets the kernels compiled at run time."""

def explain(
    op: str,
    query: object | None,
    key: object | None,
    value: object | None,
    query_dtype: mlx.core.Dtype,
    key_dtype: mlx.core.Dtype,
    value_dtype: mlx.core.Dtype,
    kernel_size: object | None,
    stride: object | None,
    dilation: object | None,
    is_causal: object | None,
    gna_stride: object | None,
    has_rpb: bool,
    has_lengths: bool,
    stream: object | None,
) -> dict[str, Any]: ...
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
) -> list[int]:
    """Keys of one query on one axis."""

def window_start(index: int, length: int, kernel_size: int, dilation: int) -> tuple[int, int]:
    """First key of one query on one axis, and its index into the rpb axis."""

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

def cpu_threads() -> int:
    """Threads that the CPU kernels use."""

def set_cpu_threads(count: int) -> None:
    """
    Makes the CPU kernels use `count` threads, for small calls too; 0 returns to the default.
    """
