"""Neighborhood attention as modules: projections around the operations of natten_mlx.functional."""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import mlx.core as mx
import mlx.nn as nn

from natten_mlx import _ext, functional
from natten_mlx.functional import Bools, Ints

_RPB_DEVIATION = 0.02
_P = ParamSpec("_P")


def _sizes(values: Any, rank: int) -> list[int]:
    """One integer for each axis, as the library reads them."""
    try:
        return [operator.index(values)] * rank
    except TypeError:
        return [operator.index(value) for value in values]


# What NATTEN calls some arguments.
_OTHER_NAMES = {"dim": "embed_dim", "bias": "rel_pos_bias"}


def _with_hints(init: Callable[Concatenate[Any, _P], None]) -> Callable[Concatenate[Any, _P], None]:
    """An unknown argument is answered with the one that may be meant."""
    names = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self: Any, /, *args: _P.args, **options: _P.kwargs) -> None:
        for name in options.keys() - names:
            import difflib

            other = _OTHER_NAMES.get(name)
            near = [other] if other in names else difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(names)}"
            raise TypeError(f"[{type(self).__name__}] unexpected argument {name!r}: {hint}")
        init(self, *args, **options)

    return checked


class _NeighborhoodAttention(nn.Module):
    """What the modules of every rank share. Subclasses set `rank`.

    No attribute that holds parameters may begin with an underscore: mlx.nn.Module does not list those.
    """

    rank: int

    @_with_hints
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools = False,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        gna_stride: Ints = 1,
        rel_pos_bias: bool = False,
        pad_input: bool = False,
    ) -> None:
        """Make the projections, and the bias table if wanted.

        Args:
            embed_dim: Channels C, divisible by num_heads.
            num_heads: Query heads.
            kernel_size, stride, dilation, is_causal, gna_stride: See natten_mlx.na1d, na2d, na3d.
            num_kv_heads: Key/value heads, a divisor of num_heads; default num_heads.
            qkv_bias: Whether the input projections have a bias.
            qk_scale: Of the logits; default head_dim ** -0.5.
            attn_drop, proj_drop: Dropout of attention weights and of the output, in training only.
            rel_pos_bias: Whether to learn a relative position bias.
            pad_input: Whether an axis (or a sample, with lengths) shorter than kernel_size * dilation is zero-padded to
                it at its end, before the projections, and the result cropped, as DiNAT and NATTEN 0.14's modules do.
                Without it such an input is an error.

        Raises:
            ValueError: arguments that do not fit.
        """
        super().__init__()
        self.embed_dim, self.num_heads, self.num_kv_heads, rpb_shape = _ext.check_module(
            type(self).__name__,
            self.rank,
            embed_dim,
            num_heads,
            kernel_size,
            stride,
            dilation,
            is_causal,
            num_kv_heads,
            qkv_bias,
            qk_scale,
            attn_drop,
            proj_drop,
            gna_stride,
            rel_pos_bias,
            pad_input,
        )
        self.head_dim = self.embed_dim // self.num_heads
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.is_causal = is_causal
        self.gna_stride = gna_stride
        self.pad_input = pad_input
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale

        channels = self.embed_dim
        if self.num_kv_heads == self.num_heads:
            self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(channels, channels, bias=qkv_bias)
            self.kv_proj = nn.Linear(channels, 2 * self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        self.attn_drop_rate = attn_drop
        if rel_pos_bias:
            self.rpb = _RPB_DEVIATION * mx.random.truncated_normal(-2.0, 2.0, rpb_shape)

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x [B, spatial..., C] -> query [.., heads, head_dim], key and value [.., kv_heads, head_dim]."""
        if "qkv" in self:
            packed = self.qkv(x).reshape(*x.shape[:-1], 3, self.num_heads, self.head_dim)
            return packed[..., 0, :, :], packed[..., 1, :, :], packed[..., 2, :, :]
        query = self.q_proj(x).reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        packed = self.kv_proj(x).reshape(*x.shape[:-1], 2, self.num_kv_heads, self.head_dim)
        return query, packed[..., 0, :, :], packed[..., 1, :, :]

    def _attend(self, query: mx.array, key: mx.array, value: mx.array, lengths: mx.array | None) -> mx.array:
        options: dict[str, Any] = {
            "stride": self.stride,
            "dilation": self.dilation,
            "is_causal": self.is_causal,
            "gna_stride": self.gna_stride,
            "lengths": lengths,
        }
        rpb = self.rpb if "rpb" in self else None
        name = f"na{self.rank}d"
        if self.training and self.attn_drop_rate > 0:
            # Dropout acts on the attention weights, which only the split form has.
            qk, av = getattr(functional, name + "_qk"), getattr(functional, name + "_av")
            logits = qk(query, key, self.kernel_size, scale=self.scale, rpb=rpb, **options)
            weights = self.attn_drop(mx.softmax(logits, axis=-1, precise=True))
            return av(weights, value, self.kernel_size, **options)
        attention = getattr(functional, name)
        return attention(query, key, value, self.kernel_size, scale=self.scale, rpb=rpb, **options)

    def _forward(self, x: mx.array, lengths: mx.array | None, lengths_name: str) -> mx.array:
        name = type(self).__name__
        _ext.check_module_input(name, self.rank, x, self.embed_dim)
        if lengths is None:
            return self.proj_drop(self.proj(self._attend_padded(x, None)))
        tokens, queries = self._padding_masks(x.shape[:-1], lengths, lengths_name)
        # The padding is replaced before the projections too: its NaN would reach their gradients through 0 * NaN.
        x = _ext.zero_outside(tokens, x)
        return self.proj_drop(_ext.zero_outside(queries, self.proj(self._attend_padded(x, lengths))))

    def _padding_masks(self, shape: tuple[int, ...], lengths: mx.array, label: str) -> tuple[mx.array, mx.array]:
        """Of tokens [B, spatial...] and of queries [B, out...]: which ones lie before the end of their sample."""
        name = type(self).__name__
        if not self.pad_input:
            return _ext.padding_masks(
                name, self.rank, shape, lengths, label, self.kernel_size, self.stride, self.dilation
            )
        # A sample shorter than the window is legal then.
        tokens, _ = _ext.padding_masks(name, self.rank, shape, lengths, label, 1, 1, 1)
        computed = (slice(None), *(slice(None, None, s) for s in _sizes(self.stride, self.rank)))
        return tokens, tokens[computed]

    def _attend_padded(self, x: mx.array, lengths: mx.array | None) -> mx.array:
        """x [B, spatial..., C] -> [B, out..., C]; with pad_input behind zeros at the end of axes that are too short."""
        if not self.pad_input:
            return self._merge_heads(self._attend(*self._project(x), lengths))
        grid = x.shape[1:-1]
        kernel, dilation, stride = (_sizes(v, self.rank) for v in (self.kernel_size, self.dilation, self.stride))
        windows = [k * d for k, d in zip(kernel, dilation, strict=True)]
        if any(length < window for length, window in zip(grid, windows, strict=True)):
            missing = [(0, max(0, window - length)) for length, window in zip(grid, windows, strict=True)]
            x = mx.pad(x, [(0, 0), *missing, (0, 0)])
        if lengths is not None:
            least = mx.array(windows if self.rank > 1 else windows[0], lengths.dtype)
            lengths = mx.maximum(lengths, least)
        out = self._merge_heads(self._attend(*self._project(x), lengths))
        real = (slice(None), *(slice(-(-length // s)) for length, s in zip(grid, stride, strict=True)))
        return out[real]

    def _merge_heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:-2], self.embed_dim)

    def _extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, gna_stride={self.gna_stride}, rel_pos_bias={'rpb' in self}, "
            f"pad_input={self.pad_input}"
        )


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Neighborhood attention over [B, L, C], optionally padded. The arguments are described at __init__.

    Parameters: `qkv` and `proj` (weight, bias), the rows of qkv ordered (3, heads, head_dim); with fewer key/value
    heads `q_proj`, `kv_proj` (rows ordered (2, kv_heads, head_dim)) and `proj`; with rel_pos_bias `rpb`
    [heads, 2K-1].
    """

    rank = 1

    def __call__(self, x: mx.array, seq_lens: mx.array | None = None) -> mx.array:
        """x [B, L, C] -> [B, ceil(L / stride), C]; seq_lens [B] int32 or int64: zeros past them."""
        return self._forward(x, seq_lens, "seq_lens")


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Neighborhood attention over [B, H, W, C], optionally padded. The arguments are described at __init__.

    Parameters: `qkv` and `proj` (weight, bias), the rows of qkv ordered (3, heads, head_dim); with fewer key/value
    heads `q_proj`, `kv_proj` (rows ordered (2, kv_heads, head_dim)) and `proj`; with rel_pos_bias `rpb`
    [heads, 2K-1, 2K-1].
    """

    rank = 2

    def __call__(self, x: mx.array, spatial_sizes: mx.array | None = None) -> mx.array:
        """x [B, H, W, C] -> [B, out..., C]; spatial_sizes [B, 2] int32 or int64: zeros past them."""
        return self._forward(x, spatial_sizes, "spatial_sizes")


class NeighborhoodAttention3D(_NeighborhoodAttention):
    """Neighborhood attention over [B, D, H, W, C], optionally padded. The arguments are described at __init__.

    Parameters: `qkv` and `proj` (weight, bias), the rows of qkv ordered (3, heads, head_dim); with fewer key/value
    heads `q_proj`, `kv_proj` (rows ordered (2, kv_heads, head_dim)) and `proj`; with rel_pos_bias `rpb`
    [heads, 2K-1, 2K-1, 2K-1].
    """

    rank = 3

    def __call__(self, x: mx.array, spatial_sizes: mx.array | None = None) -> mx.array:
        """x [B, D, H, W, C] -> [B, out..., C]; spatial_sizes [B, 3] int32 or int64: zeros past them."""
        return self._forward(x, spatial_sizes, "spatial_sizes")
