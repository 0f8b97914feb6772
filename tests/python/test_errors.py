"""Every error of the API: a ValueError that starts with the function's name, thrown before any graph node."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from natten_mlx.utils import window

SPATIAL = {1: (8,), 2: (8, 9), 3: (5, 6, 7)}
RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
LAYOUT = {1: r"\[B, ?L, ?", 2: r"\[B, ?H, ?W, ?", 3: r"\[B, ?D, ?H, ?W, ?"}


def array(rank: int, batch: int = 2, heads: int = 2, dim: int = 4, dtype: mx.Dtype = mx.float32, **spatial: int) -> Any:
    shape = list(SPATIAL[rank])
    for name, length in spatial.items():
        shape[int(name.removeprefix("axis"))] = length
    return mx.zeros((batch, *shape, heads, dim), dtype=dtype)


def fails(name: str, fragment: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=fragment or None) as caught:
        call()
    assert str(caught.value).startswith(f"[{name}] "), str(caught.value)


def attend(rank: int, *args: Any, kernel_size: Any = 3, **options: Any) -> Any:
    q = array(rank)
    inputs = [*args, *[q] * (3 - len(args))]
    return getattr(natten_mlx, f"na{rank}d")(*inputs, kernel_size, **options)


@RANKS
@pytest.mark.parametrize("position", [0, 1, 2])
def test_wrong_rank(rank: int, position: int) -> None:
    for wrong in (mx.zeros((2, 3)), mx.zeros((2, 8, 8, 8, 8, 2, 4)), mx.array(1.0)):
        inputs = [array(rank)] * 3
        inputs[position] = wrong
        fails(f"na{rank}d", LAYOUT[rank], lambda inputs=inputs: attend(rank, *inputs))
    q = array(rank)
    if position < 2:
        pair = [q, q]
        pair[position] = mx.zeros((2, 3))
        call = getattr(natten_mlx, f"na{rank}d_qk")
        fails(f"na{rank}d_qk", LAYOUT[rank], lambda: call(*pair, 3))
    av = getattr(natten_mlx, f"na{rank}d_av")
    attn = mx.zeros((*q.shape[:-1], 3**rank))
    fails(f"na{rank}d_av", "", lambda: av(mx.zeros((2, 3)), q, 3))
    fails(f"na{rank}d_av", LAYOUT[rank], lambda: av(attn, mx.zeros((2, 3)), 3))


@RANKS
def test_spatial_dimensions(rank: int) -> None:
    q = array(rank)
    for axis in range(rank):
        other = array(rank, **{f"axis{axis}": 4})
        fails(f"na{rank}d", "Spatial dimensions must match", lambda other=other: attend(rank, q, other, other))
        fails(f"na{rank}d", "Spatial dimensions must match", lambda other=other: attend(rank, q, q, other))
        qk = getattr(natten_mlx, f"na{rank}d_qk")
        fails(f"na{rank}d_qk", "Spatial dimensions must match", lambda qk=qk, other=other: qk(q, other, 3))


@RANKS
def test_batch_dimensions(rank: int) -> None:
    q, other = array(rank), array(rank, batch=1)
    fails(f"na{rank}d", "Batch dimensions must match", lambda: attend(rank, q, other, other))
    fails(f"na{rank}d", "Batch dimensions must match", lambda: attend(rank, q, q, other))
    qk = getattr(natten_mlx, f"na{rank}d_qk")
    fails(f"na{rank}d_qk", "Batch dimensions must match", lambda: qk(q, other, 3))


@RANKS
def test_head_dim(rank: int) -> None:
    q, other = array(rank), array(rank, dim=5)
    fails(f"na{rank}d", "Head dim must match", lambda: attend(rank, q, other, q))
    qk = getattr(natten_mlx, f"na{rank}d_qk")
    fails(f"na{rank}d_qk", "Head dim must match", lambda: qk(q, other, 3))


@RANKS
def test_heads(rank: int) -> None:
    q, three = array(rank, heads=4), array(rank, heads=3)
    fails(f"na{rank}d", "must be divisible by", lambda: attend(rank, q, three, three))
    qk, av = getattr(natten_mlx, f"na{rank}d_qk"), getattr(natten_mlx, f"na{rank}d_av")
    fails(f"na{rank}d_qk", "must be divisible by", lambda: qk(q, three, 3))
    attn = mx.zeros((*q.shape[:-1], 3**rank))
    fails(f"na{rank}d_av", "must be divisible by", lambda: av(attn, three, 3))
    # more key heads than query heads, and different heads in key and value
    fails(f"na{rank}d", "must be divisible by", lambda: attend(rank, array(rank, heads=1), q, q))
    fails(f"na{rank}d", "", lambda: attend(rank, q, q, array(rank, heads=2)))


@RANKS
def test_additional_tokens(rank: int) -> None:
    name, q = f"na{rank}d", array(rank)
    extra = mx.zeros((2, 3, 2, 4))
    both = "additional_keys and additional_values must both be provided"
    fails(name, both, lambda: attend(rank, additional_keys=extra))
    fails(name, both, lambda: attend(rank, additional_values=extra))

    def with_extra(keys: mx.array, values: mx.array) -> Callable[[], Any]:
        return lambda: attend(rank, q, q, q, additional_keys=keys, additional_values=values)

    fails(name, "must be 4D", with_extra(mx.zeros((2, 3, 4)), extra))
    fails(name, "must be 4D", with_extra(extra, mx.zeros((2, 3, 4))))
    fails(name, "batch", with_extra(mx.zeros((3, 3, 2, 4)), mx.zeros((3, 3, 2, 4))))
    fails(name, "head dim", with_extra(mx.zeros((2, 3, 2, 5)), extra))
    fails(name, "head dim", with_extra(extra, mx.zeros((2, 3, 2, 5))))
    fails(name, "", with_extra(extra, mx.zeros((2, 4, 2, 4))))  # one token more in values
    fails(name, "", with_extra(mx.zeros((2, 3, 1, 4)), mx.zeros((2, 3, 1, 4))))  # heads differ from key's
    fails(name, "int32", with_extra(extra.astype(mx.int32), extra))


@RANKS
def test_kernel_larger_than_input(rank: int) -> None:
    for axis in range(rank):
        length = SPATIAL[rank][axis]
        kernel = [1] * rank
        kernel[axis] = length + 1
        fragment = re.escape(f"kernel_size[{axis}]={length + 1} must be <= input spatial size {length}")
        fails(f"na{rank}d", fragment, lambda kernel=kernel: attend(rank, kernel_size=tuple(kernel)))
    fails(
        "na1d",
        re.escape("kernel_size[0]=5 must be <= input spatial size 4"),
        lambda: attend(1, *[array(1, axis0=4)] * 3, kernel_size=5),
    )


@RANKS
def test_stride_larger_than_kernel(rank: int) -> None:
    for axis in range(rank):
        stride = [1] * rank
        stride[axis] = 4
        fragment = re.escape(f"stride[{axis}]=4 must be <= kernel_size[{axis}]=3")
        fails(f"na{rank}d", fragment, lambda stride=stride: attend(rank, stride=tuple(stride)))
        fails(f"na{rank}d", "gna_stride", lambda stride=stride: attend(rank, gna_stride=tuple(stride)))


@RANKS
def test_dilation_too_large(rank: int) -> None:
    for axis in range(rank):
        dilation = [1] * rank
        dilation[axis] = 3
        kernel = [2] * rank
        kernel[axis] = 3
        length = SPATIAL[rank][axis]
        if length < 9:
            fragment = re.escape(f"dilation[{axis}] * kernel_size[{axis}] = 9 exceeds input size {length}")
            fails(
                f"na{rank}d",
                fragment,
                lambda d=dilation, k=kernel: attend(rank, kernel_size=tuple(k), dilation=tuple(d)),
            )
    fails(
        "na1d",
        re.escape("dilation[0] * kernel_size[0] = 6 exceeds input size 5"),
        lambda: attend(1, *[array(1, axis0=5)] * 3, kernel_size=3, dilation=2),
    )


def test_both_strides_on_one_axis() -> None:
    fails("na1d", "stride", lambda: attend(1, stride=2, gna_stride=2))
    fails("na2d", "stride", lambda: attend(2, stride=(1, 2), gna_stride=(1, 3)))
    attend(2, stride=(1, 2), gna_stride=(3, 1))  # on different axes they are fine


@RANKS
@pytest.mark.parametrize("parameter", ["kernel_size", "stride", "dilation", "is_causal", "gna_stride"])
def test_wrong_number_of_axes(rank: int, parameter: str) -> None:
    value = True if parameter == "is_causal" else 1
    for count in {0, rank + 1, rank - 1} - {rank}:
        options = {"kernel_size": 3, parameter: (value,) * count}
        fails(f"na{rank}d", f"must have length {rank}", lambda options=options: attend(rank, **options))


@RANKS
@pytest.mark.parametrize("value", [0, -1, -(2**31), -(2**63)])
@pytest.mark.parametrize("parameter", ["kernel_size", "stride", "dilation", "gna_stride"])
def test_not_positive(rank: int, parameter: str, value: int) -> None:
    fragment = "kernel_size values must be" if parameter == "kernel_size" else parameter
    fails(f"na{rank}d", fragment, lambda: attend(rank, **{parameter: value}))
    fails(f"na{rank}d", fragment, lambda: attend(rank, **{parameter: (1,) * (rank - 1) + (value,)}))


@pytest.mark.parametrize(
    "value",
    [3.0, "3", None, 3 + 0j, [3.0, 3.0], ("3", "3"), [None, 3], True, (True, 3), {3: 3, 4: 4}, object()],
    ids=repr,
)
def test_kernel_size_that_is_no_integer(value: Any) -> None:
    q = array(2)
    fails("na2d", "kernel_size values must be|must have length 2", lambda: natten_mlx.na2d(q, q, q, value))


@pytest.mark.parametrize("parameter", ["stride", "dilation", "gna_stride"])
@pytest.mark.parametrize("value", [1.0, "1", None, (1.0, 1)], ids=repr)
def test_parameter_that_is_no_integer(parameter: str, value: Any) -> None:
    fails("na2d", parameter, lambda: attend(2, **{parameter: value}))


def test_is_causal_that_is_no_bool() -> None:
    fails("na2d", "is_causal", lambda: attend(2, is_causal="yes"))
    fails("na2d", "is_causal", lambda: attend(2, is_causal=(True, None)))


@pytest.mark.parametrize("dtype", [mx.int32, mx.int8, mx.uint32, mx.bool_, mx.complex64])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_dtypes(position: int, dtype: mx.Dtype) -> None:
    inputs = [array(1)] * 3
    inputs[position] = inputs[position].astype(dtype)
    fragment = str(dtype).split(".")[-1].removesuffix("_")
    fails("na1d", fragment, lambda: attend(1, *inputs))


def test_dtype_of_rpb() -> None:
    fails("na1d", "int32", lambda: attend(1, rpb=mx.zeros((2, 5), mx.int32)))


@RANKS
def test_rpb_shape(rank: int) -> None:
    for shape in ((2, *[5] * (rank - 1), 4), (1, *[5] * rank), (2, *[5] * (rank + 1)), (5,) * rank):
        fails(f"na{rank}d", "rpb", lambda shape=shape: attend(rank, rpb=mx.zeros(shape)))
        qk, q = getattr(natten_mlx, f"na{rank}d_qk"), array(rank)
        fails(f"na{rank}d_qk", "rpb", lambda qk=qk, q=q, shape=shape: qk(q, q, 3, rpb=mx.zeros(shape)))


@RANKS
def test_attn_shape(rank: int) -> None:
    av, value = getattr(natten_mlx, f"na{rank}d_av"), array(rank)
    rows, slots = value.shape[:-1], 3**rank
    for shape in ((*rows, slots - 1), (*rows, slots + 1), (*rows[:1], *[4] * rank, 2, slots), (1, *rows[1:], slots)):
        fails(f"na{rank}d_av", "", lambda shape=shape: av(mx.zeros(shape), value, 3))
    # with a query stride, attn has the output's rows
    fails(f"na{rank}d_av", "", lambda: av(mx.zeros((*rows, slots)), value, 3, stride=2))


@pytest.mark.parametrize("suffix", ["_qk", "_av"])
def test_split_form_checks_the_neighborhood(suffix: str) -> None:
    q = array(1)
    call = getattr(natten_mlx, f"na1d{suffix}")
    first = q if suffix == "_qk" else mx.zeros((2, 8, 2, 3))
    name = f"na1d{suffix}"
    fails(name, re.escape("kernel_size[0]=9 must be <= input spatial size 8"), lambda: call(first, q, 9))
    fails(name, re.escape("dilation[0] * kernel_size[0] = 12 exceeds input size 8"), lambda: call(first, q, 3, 4))
    fails(name, re.escape("stride[0]=4 must be <= kernel_size[0]=3"), lambda: call(first, q, 3, stride=4))
    fails(name, "must have length 1", lambda: call(first, q, (3, 3)))


@RANKS
def test_lengths(rank: int) -> None:
    q = array(rank)
    shape = (2,) if rank == 1 else (2, rank)
    full = mx.broadcast_to(mx.array(SPATIAL[rank]), (2, rank)).reshape(shape)
    name, too_long = f"na{rank}d", "L_max" if rank == 1 else "max_spatial"
    varlen = getattr(natten_mlx, f"{name}_varlen")
    calls = {
        name: lambda lengths: getattr(natten_mlx, name)(q, q, q, 3, lengths=lengths),
        f"{name}_varlen": lambda lengths: varlen(q, q, q, lengths, 3),
        f"{name}_qk": lambda lengths: getattr(natten_mlx, f"{name}_qk")(q, q, 3, lengths=lengths),
    }
    for prefix, call in calls.items():
        for dtype in (mx.float32, mx.int16, mx.uint32, mx.bool_):
            fails(prefix, "int32 or int64", lambda call=call, dtype=dtype: call(full.astype(dtype)))
        fails(prefix, "kernel_size", lambda call=call: call(mx.full(shape, 2)))
        fails(prefix, "kernel_size", lambda call=call: call(mx.full(shape, -1)))
        fails(prefix, too_long, lambda call=call: call(full + 1))
        fails(prefix, "", lambda call=call: call(mx.zeros((3, *shape[1:]), mx.int32)))
        fails(prefix, "", lambda call=call: call(mx.full((*shape, 2), 5)))
    fails(f"{name}_varlen", "kernel_size", lambda: varlen(q, q, q, full - 4 * (rank > 0), 3, 2))


def test_lengths_beyond_32_bits() -> None:
    """int64 lengths are judged before they are narrowed."""
    q = array(1)
    for length in (2**32 + 5, 2**40, -(2**32) + 5):
        fails(
            "na1d",
            "kernel_size" if length < 0 else "L_max",
            lambda length=length: natten_mlx.na1d(q, q, q, 3, lengths=mx.array([8, length], dtype=mx.int64)),
        )


class TestMerge:
    out, lse = mx.zeros((1, 4, 2, 3)), mx.zeros((1, 4, 2))

    def check(self, fragment: str, outputs: Any, lses: Any) -> None:
        fails("merge_attentions", fragment, lambda: natten_mlx.merge_attentions(outputs, lses))

    def test_at_least_two(self) -> None:
        self.check("at least two", [], [])
        self.check("at least two", [self.out], [self.lse])

    def test_counts_match(self) -> None:
        self.check("must match", [self.out, self.out], [self.lse])
        self.check("must match", [self.out, self.out], [self.lse] * 3)

    def test_shapes(self) -> None:
        self.check("shape", [self.out, mx.zeros((1, 4, 2, 4))], [self.lse, self.lse])
        self.check("shape", [self.out, mx.zeros((1, 5, 2, 3))], [self.lse, mx.zeros((1, 5, 2))])
        self.check("shape", [self.out, self.out], [self.lse, mx.zeros((1, 4))])
        self.check("shape", [self.out, self.out], [self.lse, mx.zeros((1, 4, 2, 3))])

    def test_dtypes(self) -> None:
        self.check("int32", [self.out, self.out.astype(mx.int32)], [self.lse, self.lse])
        self.check("int32", [self.out, self.out], [self.lse.astype(mx.int32), self.lse])


X, PLANE = mx.zeros((1, 8, 2, 4)), mx.zeros((1, 8, 8, 2, 4))
MASK = np.array([True, False])
# Calls with arguments of wrong types, and the whole message that answers them.
WRONG_TYPES: dict[str, Callable[[], Any]] = {
    "[na1d] query must be an mlx.core.array, got NoneType": lambda: natten_mlx.na1d(None, None, None, 3),
    "[na1d] key must be an mlx.core.array, got ndarray": lambda: natten_mlx.na1d(X, np.zeros(X.shape), None, 3),
    "[na1d] value must be an mlx.core.array, got list": lambda: natten_mlx.na1d(X, X, [1.0], None),
    "[na1d] rpb must be an mlx.core.array, got ndarray": lambda: natten_mlx.na1d(X, X, X, 3, rpb=np.zeros((2, 5))),
    "[na1d] lengths must be an mlx.core.array, got list": lambda: natten_mlx.na1d(X, X, X, 3, lengths=[8]),
    "[na1d] kernel_size values must be int or a sequence of int, got '3' (str)": lambda: natten_mlx.na1d(X, X, X, "3"),
    "[na1d] kernel_size values must be int or a sequence of int, got '" + "x" * 99 + "... (str)": (
        lambda: natten_mlx.na1d(X, X, X, "x" * 10**6)
    ),
    "[na1d] is_causal values must be bool or a sequence of bool, got 1 (int)": (
        lambda: natten_mlx.na1d(X, X, X, 3, is_causal=1)
    ),
    "[na1d] scale must be a number, an mlx.core.array or None, got '1' (str)": lambda: natten_mlx.na1d(
        X, X, X, 3, scale="1"
    ),
    "[na1d] scale must be a number, an mlx.core.array or None, got True (bool)": lambda: natten_mlx.na1d(
        X, X, X, 3, scale=True
    ),
    "[na1d] return_lse must be bool, got 'no' (str)": lambda: natten_mlx.na1d(X, X, X, 3, return_lse="no"),
    "[na1d] return_lse must be bool, got array([ True, False]) (ndarray)": (
        lambda: natten_mlx.na1d(X, X, X, 3, return_lse=MASK)
    ),
    "[na2d_qk] query must be an mlx.core.array, got int": lambda: natten_mlx.na2d_qk(1, 2, 3),
    "[na2d_av] attn must be an mlx.core.array, got int": lambda: natten_mlx.na2d_av(1, 2, 3),
    "[na1d_varlen] seq_lens must be an mlx.core.array, got NoneType": lambda: natten_mlx.na1d_varlen(X, X, X, None, 3),
    "[na2d_varlen] spatial_sizes must be an mlx.core.array, got list": (
        lambda: natten_mlx.na2d_varlen(PLANE, PLANE, PLANE, [[8, 8]], 3)
    ),
    "[na2d_varlen] value must be an mlx.core.array, got str": (
        lambda: natten_mlx.na2d_varlen(PLANE, PLANE, "v", None, 3)
    ),
    "[merge_attentions] outputs must be a sequence of mlx.core.array, got NoneType": (
        lambda: natten_mlx.merge_attentions(None, None)
    ),
    "[merge_attentions] outputs must be a sequence of mlx.core.array, got str": (
        lambda: natten_mlx.merge_attentions("ab", "cd")
    ),
    "[merge_attentions] outputs must be an mlx.core.array, got NoneType": (
        lambda: natten_mlx.merge_attentions([None, None], [None, None])
    ),
    "[merge_attentions] lse_tensors must be a sequence of mlx.core.array, got dict": (
        lambda: natten_mlx.merge_attentions([X, X], {})
    ),
    "[window] index values must be int, got 5.5 (float)": lambda: window.get_window_start(5.5, 8, 3, 1, 1),
    "[window] index values must be int, got None (NoneType)": lambda: window.get_pb_start(None, 8, 3, 1, 1),
    "[window] index values must be int, got 1.5 (float)": (
        lambda: window.compute_window_start_end(np.array([1.5, 2.0]), 8, 3, 1)
    ),
    "[window] index values must be int, got True (bool)": lambda: window.compute_pb_start(True, 8, 3, 1),
    "[window] kernel_size values must be int, got '3' (str)": lambda: window.get_window_start(5, 8, "3", 1, 1),
    "[window] kernel_size values must be int, got 'three' (str)": (
        lambda: window.get_window_start(np.zeros(0, int), 8, "three", 1, 1)
    ),
    "[window] length values must be int of at most 64 bits, got 36893488147419103232": (
        lambda: window.get_window_start(5, 2**65, 3, 1, 1)
    ),
    "[window] start_index values must be int, got None (NoneType)": lambda: window.get_window_end(None, 8, 3, 1),
    "[warmup] calls must be a list of dicts, got NoneType": lambda: natten_mlx.warmup(None),
    "[distributed.na1d] return_lse must be bool, got 'no' (str)": (
        lambda: natten_mlx.distributed.na1d(X, X, X, 3, return_lse="no")
    ),
    "[distributed.shard] axis must count from the first spatial axis, 0 to 0, got 1": (
        lambda: natten_mlx.distributed.shard(mx.zeros((2, 8)), 1)
    ),
    "[distributed.gather] axis must count from the first spatial axis, 0 to 2, got -1": (
        lambda: natten_mlx.distributed.gather(X, -1)
    ),
}


@pytest.mark.parametrize("message", WRONG_TYPES)
def test_wrong_types(message: str) -> None:
    with pytest.raises(ValueError) as caught:
        WRONG_TYPES[message]()
    assert str(caught.value) == message


@RANKS
@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_first_wrong_array_is_named(rank: int, position: int) -> None:
    """Whether its shape or its type is wrong, and whatever is wrong behind it."""
    label = ("query", "key", "value")[position]
    q = array(rank)
    for wrong in (mx.zeros((2, 3)), q.astype(mx.int32), None):
        for behind in (wrong, None):
            inputs = [*[q] * position, wrong, *[behind] * (2 - position)]
            fails(f"na{rank}d", f"\\] {label} ", lambda inputs=inputs: attend(rank, *inputs))


@RANKS
@pytest.mark.parametrize(("function", "first"), [("qk", "query"), ("av", "attn")])
def test_the_first_wrong_array_of_the_split_form_is_named(rank: int, function: str, first: str) -> None:
    name = f"na{rank}d_{function}"
    fails(name, f"\\] {first} must have layout", lambda: getattr(natten_mlx, name)(mx.zeros((2, 3)), None, 3))


@pytest.mark.parametrize("backend", ["pure", "nanobind"])
def test_shapeless_replay_names_the_lengths_that_differ(backend: str) -> None:
    """Not the shapes of tiers, which have axes that the arrays of the call lack."""
    with natten_mlx.backend(backend):
        compiled = mx.compile(lambda x: natten_mlx.na1d(x, x, x, 3), shapeless=True)
        mx.eval(compiled(mx.zeros((1, 8, 2, 4))))
        with pytest.raises(ValueError, match="got an axis of 9 where the trace has 8") as caught:
            mx.eval(compiled(mx.zeros((1, 9, 2, 4))))
    assert "(" not in str(caught.value)


MODULES = {1: "NeighborhoodAttention1D", 2: "NeighborhoodAttention2D", 3: "NeighborhoodAttention3D"}


@RANKS
class TestModules:
    def check(self, rank: int, fragment: str, *args: Any, **options: Any) -> None:
        fails(MODULES[rank], fragment, lambda: getattr(natten_mlx, MODULES[rank])(*args, **options))

    def test_construction(self, rank: int) -> None:
        for embed_dim in (0, -8):
            self.check(rank, "embed_dim must be positive", embed_dim, 2, 3)
        for heads in (0, -2):
            self.check(rank, "num_heads must be positive", 8, heads, 3)
        self.check(rank, "must be divisible by", 9, 2, 3)
        self.check(rank, "must be divisible by", 8, 4, 3, num_kv_heads=3)
        self.check(rank, "kernel_size values must be", 8, 2, 0)
        self.check(rank, "kernel_size values must be", 8, 2, 3.5)
        self.check(rank, f"must have length {rank}", 8, 2, (3,) * (rank + 1))
        self.check(rank, "stride", 8, 2, 3, stride=4)
        self.check(rank, "num_kv_heads", 8, 2, 3, num_kv_heads=0)

    @pytest.mark.parametrize("wrong", [64.0, "64", None, True, [64]])
    def test_counts_are_ints(self, rank: int, wrong: Any) -> None:
        message = f"must be a positive int, got {re.escape(repr(wrong))}$"
        self.check(rank, f"embed_dim {message}", wrong, 2, 3)
        self.check(rank, f"num_heads {message}", 8, wrong, 3)
        if wrong is not None:
            self.check(rank, f"num_kv_heads {message}", 8, 2, 3, num_kv_heads=wrong)

    def test_other_arguments(self, rank: int) -> None:
        """Positions of other releases of NATTEN put numbers where booleans belong, and the other way round."""
        for wrong in ("a", float("nan"), float("inf"), True, [1.0]):
            self.check(rank, "qk_scale must be", 8, 2, 3, qk_scale=wrong)
        for wrong in ("a", None, 1.0, -0.1, float("nan")):
            self.check(rank, "attn_drop must be a number in", 8, 2, 3, attn_drop=wrong)
            self.check(rank, "proj_drop must be a number in", 8, 2, 3, proj_drop=wrong)
        for wrong in ("no", 0.125, None, 1):
            self.check(rank, "qkv_bias must be bool", 8, 2, 3, qkv_bias=wrong)
            self.check(rank, "rel_pos_bias must be bool", 8, 2, 3, rel_pos_bias=wrong)
            self.check(rank, "pad_input must be bool", 8, 2, 3, pad_input=wrong)
        self.check(rank, "embed_dim must be at most", 2**31, 2, 3)
        self.check(rank, "kernel_size must be at most", 8, 2, 2**62, rel_pos_bias=True)

    def test_unknown_arguments_get_a_hint(self, rank: int) -> None:
        make = getattr(natten_mlx, MODULES[rank])
        for given, meant in (("dim", "embed_dim"), ("bias", "rel_pos_bias"), ("kernelsize", "kernel_size")):
            with pytest.raises(TypeError, match=f"unexpected argument '{given}': did you mean '{meant}'"):
                make(**{"num_heads": 2, "kernel_size": 3, given: 8})
        with pytest.raises(TypeError, match="unexpected argument 'xyz': expected some of embed_dim, num_heads"):
            make(8, 2, 3, xyz=1)

    def test_input_is_a_float_array(self, rank: int) -> None:
        module = getattr(natten_mlx, MODULES[rank])(8, 2, 3)
        x = mx.zeros((2, *SPATIAL[rank], 8))
        for wrong in (np.zeros(x.shape, np.float32), None, [[1.0]]):
            fails(MODULES[rank], "x must be an mlx.core.array, got", lambda wrong=wrong: module(wrong))
        fails(MODULES[rank], "got int32", lambda: module(x.astype(mx.int32)))
        fails(MODULES[rank], "must be an mlx.core.array, got list", lambda: module(x, [8]))

    def test_input(self, rank: int) -> None:
        module = getattr(natten_mlx, MODULES[rank])(8, 2, 3)
        spatial = SPATIAL[rank]
        fails(MODULES[rank], "Expected input shape", lambda: module(mx.zeros((2, *spatial))))
        fails(MODULES[rank], "Expected input shape", lambda: module(mx.zeros((2, *spatial, 2, 4))))
        fails(MODULES[rank], "channel dim", lambda: module(mx.zeros((2, *spatial, 7))))
        with pytest.raises(ValueError, match="kernel_size"):
            module(mx.zeros((2, *[2] * rank, 8)))
        with pytest.raises(ValueError, match="int32 or int64"):
            module(
                mx.zeros((1, *spatial, 8)),
                mx.array([list(map(float, spatial))]).reshape(1, -1) if rank > 1 else mx.array([8.0]),
            )


def test_unknown_backend_lists_the_names() -> None:
    with pytest.raises(ValueError, match=re.escape("Unknown backend 'x'. Expected one of [")) as caught:
        natten_mlx.set_backend("x")
    for name in ("auto", "pure", "fast_metal", "nanobind"):
        assert name in str(caught.value)


def test_errors_come_before_any_graph_node() -> None:
    """Under a transformation too: the call itself raises, not its evaluation."""
    q = array(1)
    with pytest.raises(ValueError, match="kernel_size"):
        mx.grad(lambda q: natten_mlx.na1d(q, q, q, 9).sum())(q)
    with pytest.raises(ValueError, match="kernel_size"):
        mx.compile(lambda q: natten_mlx.na1d(q, q, q, 9))(q)
    with pytest.raises(ValueError, match="kernel_size"):
        mx.vmap(lambda q: natten_mlx.na1d(q, q, q, 9))(q[None])


LINE, TABLE, LSE = mx.zeros((1, 8, 2, 4)), mx.zeros((2, 5)), mx.zeros((1, 8, 2))
VALID: dict[str, dict[str, Any]] = {  # of every public function, a legal call
    "na1d": {"query": LINE, "key": LINE, "value": LINE, "kernel_size": 3},
    "na1d_qk": {"query": LINE, "key": LINE, "kernel_size": 3},
    "na1d_av": {"attn": mx.zeros((1, 8, 2, 3)), "value": LINE, "kernel_size": 3},
    "attention": {"query": LINE, "key": LINE, "value": LINE},
    "na1d_varlen": {"query": LINE, "key": LINE, "value": LINE, "seq_lens": mx.array([8]), "kernel_size": 3},
    "neighborhood_mask": {"shape": (8,), "kernel_size": 3},
    "merge_attentions": {"outputs": [LINE, LINE], "lse_tensors": [LSE, LSE]},
    "explain": {"query": LINE, "key": LINE, "value": LINE, "kernel_size": 3},
    "NeighborhoodAttention1D": {"embed_dim": 8, "num_heads": 2, "kernel_size": 3},
    "set_backend": {"name": "auto"},
    "get_window_start": {"index": 5, "length": 8, "kernel_size": 3, "neighborhood_size": 1, "dilation": 1},
    "get_window_end": {"start_index": 5, "length": 8, "kernel_size": 3, "dilation": 1},
    "get_pb_start": {"index": 5, "length": 8, "kernel_size": 3, "neighborhood_size": 1, "dilation": 1},
    "compute_window_start_end": {"query_positions": 5, "length": 8, "kernel_size": 3, "dilation": 1},
    "compute_pb_start": {"query_positions": 5, "length": 8, "kernel_size": 3, "dilation": 1},
}
STRANGE = [
    None,
    True,
    "x",
    b"x",
    5.5,
    float("nan"),
    -1,
    2**70,
    (),
    (3, 3, 3, 3),
    [None],
    {},
    {3},
    object(),
    type,
    np.zeros(3),
    np.array("x"),
    mx.array(3),
    mx.zeros((1, 8, 2, 4)),
    mx.float32,
    mx.cpu,
]


def test_shapes_of_window_utilities_broadcast() -> None:
    for call in (window.get_window_start, window.get_pb_start):
        assert call(np.arange(3)[:, None], [5, 6], 3, 1, 1).shape == (3, 2)
        for arguments in [([1, 2], [8, 8, 8], 3, 1, 1), ([[1], [1, 2]], 8, 3, 1, 1)]:
            with pytest.raises(ValueError, match=r"^\[window\] arguments must be integers or arrays of shapes"):
                call(*arguments)


@pytest.mark.parametrize("name", VALID)
def test_no_argument_gets_past_validation(name: str) -> None:
    """Each argument in turn is something strange: the call succeeds, or a ValueError says in one line what is wrong."""
    function = getattr(natten_mlx, name)
    function(**VALID[name])
    for argument in inspect.signature(function).parameters:
        for strange in STRANGE:
            try:
                function(**{**VALID[name], argument: strange})
            except ValueError as error:
                lines = str(error).splitlines()
                assert len(lines) == 1 or "\n" in repr(strange), (argument, strange, str(error))
                assert lines[0].startswith(("[", "Unknown backend")), (argument, strange, str(error))
            finally:
                natten_mlx.set_backend("auto")
