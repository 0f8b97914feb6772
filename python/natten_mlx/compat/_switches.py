"""Switches of the releases. They select kernels that only NATTEN has: they remember what was asked, change nothing
else, and say so once."""

from __future__ import annotations

import logging
from enum import Enum

logger = logging.getLogger("natten_mlx")
_said: set[str] = set()


def without_effect(what: str) -> None:
    """Says it, the first time for each."""
    if what not in _said:
        _said.add(what)
        logger.warning("natten_mlx.compat: %s selects or tunes kernels of NATTEN and has no effect here", what)


class MemoryUsagePreference(Enum):
    """What `get_memory_usage_preference` returns."""

    Default = 0
    Strict = 1
    Unrestricted = 2


def _bool(value: bool | None, current: bool) -> bool:
    if value is None:
        return current
    if not isinstance(value, bool):
        raise ValueError(f"Expected `bool`, got {type(value).__name__}")
    return value


class Switches:
    """The state of one release, whose functions are the methods."""

    def __init__(self, kv_parallelism: bool) -> None:
        self._deterministic = False
        self._kv_parallelism = kv_parallelism
        self._fused = False
        self._tf32 = self._tiled = self._gemm = True
        self._memory = MemoryUsagePreference.Default
        self._autotuner = {"forward": False, "backward": False, "thorough_forward": False, "thorough_backward": False}
        self._flex_compile = self._flex_compile_backprop = False

    # Determinism. Every kernel here is deterministic whatever is asked.

    def use_deterministic_algorithms(self, mode: bool = True) -> None:
        """Remembers `mode`; results are deterministic in any case."""
        self._deterministic = mode
        without_effect("use_deterministic_algorithms (results are deterministic in any case)")

    def are_deterministic_algorithms_enabled(self) -> bool:
        """What was asked last."""
        return self._deterministic

    def _allow_nondeterminism(self, what: str, mode: bool) -> None:
        if mode and self._deterministic:
            raise RuntimeError(f"{what} is not deterministic, and use_deterministic_algorithms is on")

    # Fused neighborhood attention

    def use_kv_parallelism_in_fused_na(self, mode: bool = True) -> None:
        """Remembers `mode`.

        Raises:
            RuntimeError: on, while deterministic algorithms are asked for.
        """
        self._allow_nondeterminism("KV parallelism", mode)
        self._kv_parallelism = mode
        without_effect("use_kv_parallelism_in_fused_na")

    def is_kv_parallelism_in_fused_na_enabled(self) -> bool:
        """What was asked last."""
        return self._kv_parallelism

    def use_fused_na(
        self,
        mode: bool = True,
        kv_parallel: bool = True,
        use_flex_attention: bool = False,
        force_flex_attention: bool = False,
    ) -> None:
        """Remembers `mode`; modules are fused wherever attention weights need no dropout."""
        self.use_kv_parallelism_in_fused_na(mode and kv_parallel)
        self._fused = mode
        without_effect("use_fused_na")

    def is_fused_na_enabled(self) -> bool:
        """What was asked last."""
        return self._fused

    def use_flex_attention(self) -> None:
        """`use_fused_na` with Flex Attention."""
        self.use_fused_na(True, use_flex_attention=True)

    def force_flex_attention(self) -> None:
        """`use_fused_na` with Flex Attention only."""
        self.use_fused_na(True, use_flex_attention=True, force_flex_attention=True)

    def set_memory_usage_preference(self, pref: str = "default") -> None:
        """Remembers "default", "strict" or "unrestricted".

        Raises:
            ValueError: another one.
        """
        known = {preference.name.lower(): preference for preference in MemoryUsagePreference}
        if pref not in known:
            raise ValueError(f"[set_memory_usage_preference] pref must be one of {list(known)}, got {pref!r}")
        self._memory = known[pref]
        without_effect("set_memory_usage_preference")

    def get_memory_usage_preference(self) -> MemoryUsagePreference:
        """What was asked last."""
        return self._memory

    def is_memory_usage_default(self) -> bool:
        """Whether "default" was asked last."""
        return self._memory is MemoryUsagePreference.Default

    def is_memory_usage_strict(self) -> bool:
        """Whether "strict" was asked last."""
        return self._memory is MemoryUsagePreference.Strict

    def is_memory_usage_unrestricted(self) -> bool:
        """Whether "unrestricted" was asked last."""
        return self._memory is MemoryUsagePreference.Unrestricted

    # The auto-tuner

    def use_autotuner(
        self,
        forward_pass: bool | None = None,
        backward_pass: bool | None = None,
        thorough_mode_forward: bool | None = None,
        thorough_mode_backward: bool | None = None,
        warmup_steps_forward: int | None = None,
        warmup_steps_backward: int | None = None,
        steps_forward: int | None = None,
        steps_backward: int | None = None,
    ) -> None:
        """Remembers which passes shall be tuned.

        Raises:
            ValueError: a flag that is no bool.
            RuntimeError: on, while deterministic algorithms are asked for.
        """
        self._allow_nondeterminism("The auto-tuner", bool(forward_pass or backward_pass))
        asked = {
            "forward": forward_pass,
            "backward": backward_pass,
            "thorough_forward": thorough_mode_forward,
            "thorough_backward": thorough_mode_backward,
        }
        self._autotuner = {name: _bool(value, self._autotuner[name]) for name, value in asked.items()}
        without_effect("use_autotuner")

    def disable_autotuner(self) -> None:
        """All of it off."""
        self._autotuner = dict.fromkeys(self._autotuner, False)

    def is_autotuner_enabled(self) -> bool:
        """Whether it was asked for, for a pass."""
        return self._autotuner["forward"] or self._autotuner["backward"]

    def is_autotuner_enabled_for_forward(self) -> bool:
        """What was asked last."""
        return self._autotuner["forward"]

    def is_autotuner_enabled_for_backward(self) -> bool:
        """What was asked last."""
        return self._autotuner["backward"]

    def is_autotuner_thorough_for_forward(self) -> bool:
        """What was asked last."""
        return self._autotuner["thorough_forward"]

    def is_autotuner_thorough_for_backward(self) -> bool:
        """What was asked last."""
        return self._autotuner["thorough_backward"]

    # Unfused kernels

    def use_tf32_in_gemm_na(self, mode: bool = True) -> None:
        """Remembers `mode`."""
        self._tf32 = mode
        without_effect("use_tf32_in_gemm_na")

    def is_tf32_in_gemm_na_enabled(self) -> bool:
        """What was asked last."""
        return self._tf32

    def use_tiled_na(self, mode: bool = True) -> None:
        """Remembers `mode`."""
        self._tiled = mode
        without_effect("use_tiled_na")

    def is_tiled_na_enabled(self) -> bool:
        """What was asked last."""
        return self._tiled

    def use_gemm_na(self, mode: bool = True) -> None:
        """Remembers `mode`."""
        self._gemm = mode
        without_effect("use_gemm_na")

    def is_gemm_na_enabled(self) -> bool:
        """What was asked last."""
        return self._gemm

    def enable_tf32(self) -> bool:
        """`use_tf32_in_gemm_na(True)`, and what was asked."""
        self.use_tf32_in_gemm_na(True)
        return self._tf32

    def disable_tf32(self) -> bool:
        """`use_tf32_in_gemm_na(False)`, and what was asked."""
        self.use_tf32_in_gemm_na(False)
        return self._tf32

    def enable_tiled_na(self) -> bool:
        """`use_tiled_na(True)`, and what was asked."""
        self.use_tiled_na(True)
        return self._tiled

    def disable_tiled_na(self) -> bool:
        """`use_tiled_na(False)`, and what was asked."""
        self.use_tiled_na(False)
        return self._tiled

    def enable_gemm_na(self) -> bool:
        """`use_gemm_na(True)`, and what was asked."""
        self.use_gemm_na(True)
        return self._gemm

    def disable_gemm_na(self) -> bool:
        """`use_gemm_na(False)`, and what was asked."""
        self.use_gemm_na(False)
        return self._gemm

    # torch.compile of Flex Attention

    def allow_flex_compile(self, mode: bool = True, backprop: bool = False) -> None:
        """Remembers both."""
        self._flex_compile = mode
        self._flex_compile_backprop = mode and backprop
        without_effect("allow_flex_compile")

    def allow_flex_compile_backprop(self, mode: bool = True) -> None:
        """Remembers `mode`, for the gradient only."""
        self.allow_flex_compile(self._flex_compile, mode)

    def disable_flex_compile(self) -> None:
        """Remembers that it is off."""
        self.allow_flex_compile(False)

    def disable_flex_compile_backprop(self) -> None:
        """Remembers that it is off, for the gradient only."""
        self.allow_flex_compile(self._flex_compile, False)

    def is_flex_compile_allowed(self) -> bool:
        """What was asked last."""
        return self._flex_compile

    def is_flex_compile_backprop_allowed(self) -> bool:
        """What was asked last."""
        return self._flex_compile_backprop
