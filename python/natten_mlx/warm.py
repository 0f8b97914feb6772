"""Kernels compiled before the calls that need them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from natten_mlx import _ext
from natten_mlx.support_matrix import explain

_PARAMETERS = [p for p in inspect.signature(explain).parameters.values() if p.name not in ("return_lse", "cost")]
_SIGNATURE = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in _PARAMETERS])


def warmup(
    calls: Iterable[Mapping[str, Any]],
    *,
    gradients: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Make the kernels of a list of calls, so that the calls themselves do not wait for a compiler.

    On NVIDIA GPUs, where this library compiles (`natten-mlx doctor` says whether), kernels compile side by side on the
    processor's cores and are kept in files for later processes. Otherwise each call runs once, on zeros, for one
    sample: Metal keeps what it compiled itself. Calls on the CPU have nothing to compile.

    Args:
        calls: Of each the keyword arguments of `explain`: query, key, value (arrays or shapes), kernel_size, ...
        gradients: Also the kernels of the gradients.
        progress: Called with the number of kernels that are ready and of all.

    Returns:
        The number of kernels, each counted once, and how many of them were not found in files.

    Raises:
        ValueError: what a call would raise, before any work; a name that no argument has.
        RuntimeError: a kernel that doesn't compile, with the compiler's messages.
    """
    try:
        each = list(calls)
    except TypeError:
        raise ValueError(f"[warmup] calls must be a list of dicts, got {type(calls).__name__}") from None
    return _ext.warmup([_described(call, f"calls[{i}]") for i, call in enumerate(each)], gradients, progress)


def _described(call: Mapping[str, Any], place: str) -> Any:
    if not isinstance(call, Mapping):
        raise ValueError(f"[warmup] {place} must be a dict of the arguments of explain, got {type(call).__name__}")
    try:
        given = _SIGNATURE.bind(**call)
    except TypeError as error:
        raise ValueError(f"[warmup] {place}: {error}") from None
    given.apply_defaults()
    return _ext.describe("warmup", **given.arguments)
