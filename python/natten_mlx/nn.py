"""Neighborhood attention as modules: projections around the operations of natten_mlx.functional."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec

import mlx.core as mx
import mlx.nn as nn

from natten_mlx import _ext, distributed, functional
from natten_mlx._arguments import count, ints
from natten_mlx._decoding import DecodingCache, attend_next, make_cache
from natten_mlx._padding import computed_rows, least_lengths, missing_rows, with_rows
from natten_mlx._rope import Offset, RoPE
from natten_mlx._slabs import Slab, check_group, slab_of
from natten_mlx.functional import Bools, Ints

__all__ = ["DecodingCache", "NeighborhoodAttention1D", "NeighborhoodAttention2D", "NeighborhoodAttention3D", "RoPE"]

_WINDOW = ("stride", "dilation", "is_causal", "gna_stride", "is_circular")
_DEVIATION = 0.02  # of the initial bias and registers
_P = ParamSpec("_P")
Norm = Callable[[mx.array], mx.array]  # mlx.nn.RMSNorm(head_dim), ...
Rope = Callable[..., tuple[mx.array, mx.array]]


# What NATTEN calls some arguments.
_OTHER_NAMES = {"dim": "embed_dim", "bias": "rel_pos_bias"}


def _is_function(value: Any) -> bool:
    """Not a class, which someone meant to be made into a module."""
    return callable(value) and not isinstance(value, type)


def _initial(shape: tuple[int, ...]) -> mx.array:
    return _DEVIATION * mx.random.truncated_normal(-2.0, 2.0, shape)


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
        qk_scale: float | mx.array | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        gna_stride: Ints = 1,
        rel_pos_bias: bool = False,
        pad_input: bool = False,
        qk_norm: Norm | tuple[Norm, Norm] | None = None,
        rope: Rope | None = None,
        num_registers: int = 0,
        is_circular: Bools = False,
        group: mx.distributed.Group | None = None,
        shard_axis: int | None = None,
    ) -> None:
        """Make the projections, and what else is learned.

        Args:
            embed_dim: Channels C, divisible by num_heads.
            num_heads: Query heads.
            kernel_size, stride, dilation, is_causal, gna_stride, is_circular: See natten_mlx.na1d, na2d, na3d.
            num_kv_heads: Key/value heads, a divisor of num_heads; default num_heads.
            qkv_bias: Whether the input projections have a bias.
            qk_scale: Of the logits; default head_dim ** -0.5. An array of one element or of shape [num_heads] is a
                parameter, `scale`, that is learned.
            attn_drop, proj_drop: Dropout of attention weights and of the output, in training only.
            rel_pos_bias: Whether to learn a relative position bias.
            pad_input: Whether an axis (or a sample, with lengths) that is not causal and shorter than kernel_size *
                dilation is zero-padded to it at its end, before the projections, and the result cropped, as DiNAT and
                NATTEN 0.14's modules do. Without it such an input is an error.
            qk_norm: What query and key [..., heads, head_dim] go through behind the projection: a module or function
                for both, the module's parameters being `qk_norm.*`; or two, `q_norm.*` and `k_norm.*`.
            rope: What gives query and key their positions, behind qk_norm: rope(query, key) -> (query, key), such as
                `RoPE`. Rows are positions 0, 1, ... of each axis; where they begin elsewhere (`project`, `step`), it
                gets the keyword offset, the position of row 0: an int or an integer array of one element, in 2-D and
                3-D one for each axis.
            num_registers: Learned keys and values that every query attends besides its window: the parameters
                `register_keys` and `register_values` [1, num_registers, num_kv_heads, head_dim].
            group, shard_axis: Given, each rank of the group calls the module with its slab of the spatial axis
                shard_axis and gets its rows of the result (natten_mlx.distributed). Defaults of the one that is not
                given: mx.distributed.init(), and axis 0. Parameters are whole on every rank and get this rank's part of
                their gradient: distributed.sum_gradients adds it up. Lengths are of the whole axes, rope gets positions
                of the whole field, an axis that pad_input lengthens is padded on the last rank, every rank draws for
                proj_drop itself. No attn_drop.

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
            is_circular,
        )
        self.head_dim = self.embed_dim // self.num_heads
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.is_causal = is_causal
        self.gna_stride = gna_stride
        self.is_circular = is_circular
        self.pad_input = pad_input
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        self.num_registers = count(type(self).__name__, "num_registers", num_registers)
        self._set_position_options(qk_norm, rope)
        self.attn_drop_rate = attn_drop
        self.group, self.shard_axis = check_group(self, group, shard_axis)

        channels = self.embed_dim
        if self.num_kv_heads == self.num_heads:
            self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(channels, channels, bias=qkv_bias)
            self.kv_proj = nn.Linear(channels, 2 * self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        if rel_pos_bias:
            self.rpb = _initial(rpb_shape)
        if self.num_registers:
            shape = (1, self.num_registers, self.num_kv_heads, self.head_dim)
            self.register_keys, self.register_values = _initial(shape), _initial(shape)

    def _set_position_options(self, qk_norm: Any, rope: Any) -> None:
        name = type(self).__name__
        norms = qk_norm if isinstance(qk_norm, (tuple, list)) else [qk_norm]
        if qk_norm is not None and (len(norms) not in (1, 2) or not all(map(_is_function, norms))):
            raise ValueError(f"[{name}] qk_norm must be a module or function, or two of them, got {qk_norm!r}")
        if rope is not None and not _is_function(rope):
            raise ValueError(f"[{name}] rope must be a function of query and key, got {rope!r}")
        if isinstance(rope, RoPE) and (len(rope.dims) != self.rank or sum(rope.dims) > self.head_dim):
            raise ValueError(
                f"[{name}] rope must rotate {self.rank} axes and at most head_dim = {self.head_dim} channels, "
                f"got {rope}"
            )
        if len(norms) == 2:
            self.q_norm, self.k_norm = norms
        elif qk_norm is not None:
            self.qk_norm = norms[0]
        self.rope = rope

    def project(self, x: mx.array, offset: Offset | None = None) -> tuple[mx.array, mx.array, mx.array]:
        """What `attend` takes: projected, normed and rotated.

        Args:
            x: [B, spatial..., C].
            offset: Position of row 0 for rope, where x is a part of a whole; see there. Default: 0, with a group that
                of this rank's slab.

        Returns:
            query [B, spatial..., heads, head_dim], key and value [B, spatial..., kv_heads, head_dim].

        Raises:
            ValueError: x that does not fit.
        """
        _ext.check_module_input(type(self).__name__, self.rank, x, self.embed_dim)
        if offset is None and self.rope is not None and self.shard_axis is not None:
            offset = slab_of(self, x, None, None).offset(self.rank)
        query, key, value = self._split_heads(x)
        if hasattr(self, "qk_norm"):
            query, key = self.qk_norm(query), self.qk_norm(key)
        elif hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rope is not None:
            query, key = self.rope(query, key) if offset is None else self.rope(query, key, offset=offset)
        return query, key, value

    def _split_heads(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        if "qkv" in self:
            packed = self.qkv(x).reshape(*x.shape[:-1], 3, self.num_heads, self.head_dim)
            return packed[..., 0, :, :], packed[..., 1, :, :], packed[..., 2, :, :]
        query = self.q_proj(x).reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        packed = self.kv_proj(x).reshape(*x.shape[:-1], 2, self.num_kv_heads, self.head_dim)
        return query, packed[..., 0, :, :], packed[..., 1, :, :]

    def attend(
        self, query: mx.array, key: mx.array, value: mx.array, lengths: mx.array | None = None, **options: Any
    ) -> mx.array:
        """The neighborhood attention itself, with all that the module has: window, scale, bias, registers, dropout.

        Args:
            query: [B, spatial..., heads, head_dim], as `project` returns it.
            key, value: [B, spatial..., kv_heads, head_dim].
            lengths: [B] (1-D) or [B, rank] int32 or int64: the tokens of each padded sample.
            options: More keyword arguments of na1d (na2d, na3d; with a group those of natten_mlx.distributed): a span,
                rows of the ranks, or what replaces an option of the module.

        Returns:
            [B, out..., heads, head_dim].

        Raises:
            ValueError: arrays that do not fit, with "[na1d]" (na2d, na3d) in front.
        """
        return self._attend(query, key, value, {"lengths": lengths, **options})

    def _attend(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        options: dict[str, Any],
        written: mx.array | None = None,
    ) -> mx.array:
        """With `written`, bool [rows, kernel_size[0]], only those slots of the first axis hold a key."""
        window = {name: getattr(self, name) for name in _WINDOW} | options
        rpb = window.pop("rpb", self.rpb if "rpb" in self else None)
        logits = {"scale": self.scale, "rpb": rpb}
        keys = {"additional_keys": self.register_keys} if self.num_registers else {}
        values = {"additional_values": self.register_values} if self.num_registers else {}
        name, kernel = f"na{self.rank}d", self.kernel_size
        if self.shard_axis is not None:
            spread = {"group": self.group, "axis": self.shard_axis, **window}
            return getattr(distributed, name)(query, key, value, kernel, **logits, **spread, **keys, **values)
        is_dropping = self.training and self.attn_drop_rate > 0
        if written is None and not is_dropping:
            return getattr(functional, name)(query, key, value, kernel, **logits, **window, **keys, **values)
        # Dropout and masks act on the attention weights, which only the split form has.
        qk, av = getattr(functional, name + "_qk"), getattr(functional, name + "_av")
        slots = qk(query, key, kernel, **logits, **window, **keys)
        if written is not None:
            slots = mx.where(self._slot_mask(written), slots, -math.inf)
        weights = mx.softmax(slots, axis=-1, precise=True)
        return av(self.attn_drop(weights) if is_dropping else weights, value, kernel, **window, **values)

    def _slot_mask(self, written: mx.array) -> mx.array:
        """bool [rows, kernel_size[0]] -> [rows, 1..., slots], true for registers."""
        volume = math.prod(ints(self.kernel_size, self.rank)[1:])
        mask = mx.pad(mx.repeat(written, volume, axis=1), [(0, 0), (0, self.num_registers)], constant_values=True)
        return mask.reshape(mask.shape[0], *[1] * self.rank, -1)

    def _forward(
        self, x: mx.array, lengths: mx.array | None, lengths_name: str, rows: Sequence[int] | None
    ) -> mx.array:
        name = type(self).__name__
        if rows is not None and self.shard_axis is None:
            raise ValueError(f"[{name}] rows are those of the ranks of a group, and the module has none")
        # First: what is wrong on one rank must not keep the others waiting.
        slab = None if self.shard_axis is None else slab_of(self, x, lengths, rows)
        _ext.check_module_input(name, self.rank, x, self.embed_dim)
        if lengths is None:
            return self.proj_drop(self.proj(self._attend_padded(x, None, slab)))
        shape = x.shape[:-1] if slab is None else slab.whole(x.shape[:-1])
        tokens, queries = self._padding_masks(shape, lengths, lengths_name)
        if slab is not None:
            tokens = slab.part(tokens)
            queries = slab.part(queries, ints(self.stride, self.rank)[slab.axis])
        # The padding is replaced before the projections too: its NaN would reach their gradients through 0 * NaN.
        x = _ext.zero_outside(tokens, x)
        return self.proj_drop(_ext.zero_outside(queries, self.proj(self._attend_padded(x, lengths, slab))))

    def _padding_masks(self, shape: tuple[int, ...], lengths: mx.array, label: str) -> tuple[mx.array, mx.array]:
        """Of tokens [B, spatial...] and of queries [B, out...]: which ones lie before the end of their sample."""
        name = type(self).__name__
        if not self.pad_input:
            window = (getattr(self, option) for option in _WINDOW)
            return _ext.padding_masks(name, self.rank, shape, lengths, label, self.kernel_size, *window)
        # A sample shorter than the window is legal then.
        tokens, _ = _ext.padding_masks(name, self.rank, shape, lengths, label, 1, 1, 1, False, 1, False)
        computed = (slice(None), *(slice(None, None, s) for s in ints(self.stride, self.rank)))
        return tokens, tokens[computed]

    def _attend_padded(self, x: mx.array, lengths: mx.array | None, slab: Slab | None) -> mx.array:
        """x [B, spatial..., C] -> [B, out..., C]; with pad_input behind zeros at the end of axes that are too short."""
        if not self.pad_input:
            return self._attend_slab(x, lengths, slab)
        grid = (x.shape if slab is None else slab.whole(x.shape))[1:-1]
        missing, real = missing_rows(self, x.shape[0], grid), computed_rows(self, grid)
        if slab is not None:
            mine = slab.queries(ints(self.stride, self.rank)[slab.axis])
            real[slab.axis] = slice(mine.stop - mine.start)
            is_last, slab = slab.is_last, slab.extended(missing[slab.axis])
            missing[slab.axis] *= is_last
        if lengths is not None:
            least = least_lengths(self)
            lengths = mx.maximum(lengths, mx.array(least if self.rank > 1 else least[0], lengths.dtype))
        kept = (slice(None), *real)
        return self._attend_slab(with_rows(x, missing), lengths, slab)[kept]

    def _attend_slab(self, x: mx.array, lengths: mx.array | None, slab: Slab | None) -> mx.array:
        if slab is None:
            return self._merge_heads(self.attend(*self.project(x), lengths))
        projected = self.project(x) if self.rope is None else self.project(x, slab.offset(self.rank))
        return self._merge_heads(self.attend(*projected, lengths, rows=slab.rows))

    def make_cache(self, batch: int, dtype: mx.Dtype | None = None, *, grid: Ints = ()) -> DecodingCache:
        """The memory of `step`, empty: keys and values of the last kernel_size * dilation rows of the first axis.

        Args:
            batch: Samples.
            dtype: Of keys and values; default the one of the weights.
            grid: Lengths of the axes behind the first one: () in 1-D, W or (W,) in 2-D, (H, W) in 3-D.

        Raises:
            ValueError: a module that cannot decode (its first axis must be causal, with stride and gna_stride 1), or
                arguments that do not fit.
        """
        name = type(self).__name__
        others = grid if isinstance(grid, (tuple, list)) else [grid]
        lengths = tuple(count(name, "grid", length, least=1) for length in others)
        return make_cache(self, count(name, "batch", batch, least=1), dtype, lengths)

    def step(self, x: mx.array, cache: DecodingCache) -> mx.array:
        """The output for rows that follow those that the cache has seen, which then has seen them too.

        Rows given in pieces of any size are what one call gives for all of them, to rounding. Under mx.compile, with
        the cache among inputs and outputs, a step compiles once for each number of rows.

        Args:
            x: [B, rows, C]; [B, rows, W, C] in 2-D, [B, rows, H, W, C] in 3-D: new tokens, rows or frames.
            cache: What `make_cache` returned, of this module alone.

        Returns:
            [B, rows, out..., C].

        Raises:
            ValueError: x or a cache that does not fit.
        """
        _ext.check_module_input(type(self).__name__, self.rank, x, self.embed_dim)
        missing = missing_rows(self, x.shape[0], x.shape[1:-1])
        out = self._merge_heads(attend_next(self, with_rows(x, missing), cache))
        if any(missing):
            kept = (slice(None), *computed_rows(self, x.shape[1:-1]))
            out = out[kept]
        return self.proj_drop(self.proj(out))

    def _merge_heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:-2], self.embed_dim)

    def _extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, gna_stride={self.gna_stride}, is_circular={self.is_circular}, "
            f"rel_pos_bias={'rpb' in self}, pad_input={self.pad_input}, num_registers={self.num_registers}"
            + ("" if self.shard_axis is None else f", shard_axis={self.shard_axis}")
        )


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Neighborhood attention over [B, L, C], optionally padded. The arguments are described at __init__.

    Parameters: `qkv` and `proj` (weight, bias), the rows of qkv ordered (3, heads, head_dim); with fewer key/value
    heads `q_proj`, `kv_proj` (rows ordered (2, kv_heads, head_dim)) and `proj`; with rel_pos_bias `rpb`
    [heads, 2K-1].
    """

    rank = 1

    def __call__(self, x: mx.array, seq_lens: mx.array | None = None, *, rows: Sequence[int] | None = None) -> mx.array:
        """x [B, L, C] -> [B, ceil(L / stride), C]; seq_lens [B] int32 or int64: zeros past them.

        rows: With a group, of every rank; default: they are gathered, and arguments compared.
        """
        return self._forward(x, seq_lens, "seq_lens", rows)


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Neighborhood attention over [B, H, W, C], optionally padded. The arguments are described at __init__.

    Parameters: `qkv` and `proj` (weight, bias), the rows of qkv ordered (3, heads, head_dim); with fewer key/value
    heads `q_proj`, `kv_proj` (rows ordered (2, kv_heads, head_dim)) and `proj`; with rel_pos_bias `rpb`
    [heads, 2K-1, 2K-1].
    """

    rank = 2

    def __call__(
        self, x: mx.array, spatial_sizes: mx.array | None = None, *, rows: Sequence[int] | None = None
    ) -> mx.array:
        """x [B, H, W, C] -> [B, out..., C]; spatial_sizes [B, 2] int32 or int64: zeros past them.

        rows: With a group, of every rank; default: they are gathered, and arguments compared.
        """
        return self._forward(x, spatial_sizes, "spatial_sizes", rows)


class NeighborhoodAttention3D(_NeighborhoodAttention):
    """Neighborhood attention over [B, D, H, W, C], optionally padded. The arguments are described at __init__.

    Parameters: `qkv` and `proj` (weight, bias), the rows of qkv ordered (3, heads, head_dim); with fewer key/value
    heads `q_proj`, `kv_proj` (rows ordered (2, kv_heads, head_dim)) and `proj`; with rel_pos_bias `rpb`
    [heads, 2K-1, 2K-1, 2K-1].
    """

    rank = 3

    def __call__(
        self, x: mx.array, spatial_sizes: mx.array | None = None, *, rows: Sequence[int] | None = None
    ) -> mx.array:
        """x [B, D, H, W, C] -> [B, out..., C]; spatial_sizes [B, 3] int32 or int64: zeros past them.

        rows: With a group, of every rank; default: they are gathered, and arguments compared.
        """
        return self._forward(x, spatial_sizes, "spatial_sizes", rows)
