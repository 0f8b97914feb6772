"""Modules of the releases: natten_mlx.nn's, with the arguments, the defaults and the rules that a release has.

Parameters have the names and shapes of NATTEN's (`qkv`, `proj`, `rpb`), so that its weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from natten_mlx import nn
from natten_mlx.compat import _arguments as arguments
from natten_mlx.compat._arguments import Bools, Ints
from natten_mlx.compat._switches import without_effect


class Padded(nn._NeighborhoodAttention):
    """0.14 and 0.15 in 1-D and 2-D: inputs smaller than the window are zero-padded; there is a bias by default."""

    kernel_size: int

    @nn._with_hints
    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        name = type(self).__name__
        kernel = arguments.odd(name, arguments.sizes(name, "kernel_size", kernel_size, 1))[0]
        spacing = arguments.sizes(name, "dilation", dilation, 1)[0]
        super().__init__(
            dim,
            num_heads,
            kernel,
            dilation=spacing,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale or None,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=bias,
            pad_input=True,
        )
        self.window_size = kernel * spacing


class KernelFirst(Padded):
    """0.14.1 to 0.14.4: the kernel size before the heads, and always a bias. In 2-D a dilation that is a string stands
    for the largest that fits the input."""

    @nn._with_hints
    def __init__(
        self,
        dim: int,
        kernel_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        dilation: int | str | None = None,
    ) -> None:
        self.follows_input = self.rank == 2 and isinstance(dilation, str)
        spacing: Any = 1 if self.follows_input else dilation
        super().__init__(dim, num_heads, kernel_size, spacing, True, qkv_bias, qk_scale, attn_drop, proj_drop)

    def _forward(
        self, x: mx.array, lengths: mx.array | None, lengths_name: str, rows: Sequence[int] | None
    ) -> mx.array:
        if self.follows_input and isinstance(x, mx.array) and x.ndim == 4:
            self.dilation = max(min(x.shape[1:3]) // self.kernel_size, 1)
        return super()._forward(x, lengths, lengths_name, rows)


class PaddedDepth(nn._NeighborhoodAttention):
    """0.15 in 3-D: depth has a kernel size and a dilation of its own."""

    @nn._with_hints
    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        kernel_size_d: int | None = None,
        dilation: int = 1,
        dilation_d: int | None = None,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        name = type(self).__name__
        kernel = arguments.odd(name, depth_first(name, "kernel_size", kernel_size, kernel_size_d or kernel_size))
        spacing = depth_first(name, "dilation", dilation or 1, dilation_d or dilation or 1)
        super().__init__(
            dim,
            num_heads,
            kernel,
            dilation=spacing,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale or None,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=bias,
            pad_input=True,
        )
        self.window_size_d, self.window_size = kernel[0] * spacing[0], kernel[1] * spacing[1]


class Fitting(nn._NeighborhoodAttention):
    """Inputs smaller than the window are an error on causal axes too."""

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]

    def _forward(
        self, x: mx.array, lengths: mx.array | None, lengths_name: str, rows: Sequence[int] | None
    ) -> mx.array:
        if isinstance(x, mx.array) and x.ndim == self.rank + 2:
            name, window = type(self).__name__, (self.kernel_size, self.dilation, self.is_causal)
            arguments.causal_windows_fit(name, x.shape[1:-1], *window)
        return super()._forward(x, lengths, lengths_name, rows)


class Causal(Fitting):
    """0.17: a value per axis, causal axes, no padding, no bias by default."""

    @nn._with_hints
    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Ints,
        dilation: Ints = 1,
        is_causal: Bools = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
    ) -> None:
        name = type(self).__name__
        causal = arguments.flags(name, is_causal, self.rank)
        kernel = arguments.sizes(name, "kernel_size", kernel_size, self.rank, least=2)
        arguments.no_bias_on_causal_axes(name, causal, rel_pos_bias)
        if use_experimental_ops:
            without_effect("the argument use_experimental_ops")
        super().__init__(
            dim,
            num_heads,
            arguments.odd(name, kernel) if rel_pos_bias else kernel,
            dilation=arguments.sizes(name, "dilation", dilation, self.rank),
            is_causal=causal,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale or None,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            rel_pos_bias=rel_pos_bias,
        )


class Strided(Fitting):
    """0.20 and 0.21: `stride` makes queries share windows (here `gna_stride`); no bias, no attention dropout."""

    @nn._with_hints
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        name = type(self).__name__
        kernel = arguments.sizes(name, "kernel_size", kernel_size, self.rank, least=2)
        super().__init__(
            embed_dim,
            num_heads,
            kernel,
            dilation=arguments.sizes(name, "dilation", dilation, self.rank),
            is_causal=arguments.flags(name, is_causal, self.rank),
            qkv_bias=qkv_bias,
            qk_scale=qk_scale or None,
            proj_drop=proj_drop,
            gna_stride=arguments.shared_windows(name, stride, kernel),
        )


def depth_first(function: str, argument: str, plane: int, depth: int) -> tuple[int, int, int]:
    """0.15's two numbers in 3-D, for height and width, and for depth."""
    both = arguments.sizes(function, argument, plane, 1)[0]
    return arguments.sizes(function, f"{argument}_d", depth, 1)[0], both, both
