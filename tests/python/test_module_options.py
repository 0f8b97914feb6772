"""What models put around attention: norms, rotary embedding, learned scale, registers; project and attend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import natten_mlx
from harness import assert_near, to_numpy
from natten_mlx.nn import RoPE
from oracle import Array
from test_modules import KERNEL, RANKS, SPATIAL, case_of, make, parameters

DATA = Path(__file__).parents[1] / "data" / "modules"
DIMS = {1: (6,), 2: (4, 2), 3: (2, 2, 2)}


def rotated(
    x: Array, dims: tuple[int, ...], traditional: bool, base: float = 10000.0, offset: tuple[int, ...] = ()
) -> Array:
    """RoPE in NumPy: a pair of channels is a complex number."""
    result, start = np.array(x, np.float64), 0
    for axis, channels in enumerate(dims, 1):
        pairs = np.arange(channels // 2)
        first = start + (2 * pairs if traditional else pairs)
        second = first + (1 if traditional else channels // 2)
        positions = np.arange(x.shape[axis], dtype=np.longdouble) + (offset[axis - 1] if offset else 0)
        angles = positions[:, None] * np.longdouble(base) ** (-2 * pairs / np.longdouble(channels))
        angles = np.remainder(angles, 2 * np.pi * np.longdouble(1)).astype(np.float64)
        angles = angles.reshape([len(positions) if a == axis else 1 for a in range(x.ndim - 1)] + [len(pairs)])
        turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles)
        result[..., first], result[..., second] = turned.real, turned.imag
        start += channels
    return result


def options_value(module: nn.Module, x: Array, rank: int, registers: int = 0, **options: Any) -> Array:
    """A module in NumPy, around the oracle; `options` are the neighborhood's."""
    weights = {name: to_numpy(p) for name, p in tree_flatten(module.parameters())}
    case = case_of(rank, options, batch=len(x)).with_(extra=registers or None)
    qkv = (x @ weights["qkv.weight"].T + weights["qkv.bias"]).reshape(*x.shape[:-1], 3, case.heads, -1)
    q, k, v = (qkv[..., i, :, :] for i in range(3))
    for name in ("qk_norm", "q_norm", "k_norm"):
        if f"{name}.weight" in weights:
            norm = {"q": (0,), "k": (1,), "qk": (0, 1)}[name.split("_")[0]]
            pair = [q, k]
            for i in norm:
                pair[i] = pair[i] / np.sqrt((pair[i] ** 2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]
            q, k = pair
    if isinstance(module.rope, RoPE):
        q, k = (rotated(a, module.rope.dims, module.rope.traditional, module.rope.base) for a in (q, k))
    if "scale" in weights:
        q, case = q * weights["scale"].reshape(-1, 1), case.with_(scale=1.0)
    arrays = {"query": q, "key": k, "value": v}
    if registers:
        for name, parameter in (("additional_keys", "register_keys"), ("additional_values", "register_values")):
            arrays[name] = np.repeat(weights[parameter], len(x), 0)
    if case.rpb:
        arrays["rpb"] = weights["rpb"]
    out, _ = case.call(arrays).forward()
    return out.reshape(*out.shape[:-2], -1) @ weights["proj.weight"].T + weights["proj.bias"]


OPTIONS: dict[str, Any] = {
    "one norm": lambda rank: {"qk_norm": nn.RMSNorm(8)},
    "two norms": lambda rank: {"qk_norm": (nn.RMSNorm(8), nn.RMSNorm(8))},
    "rope": lambda rank: {"rope": RoPE(DIMS[rank])},
    "rope of pairs": lambda rank: {"rope": RoPE(DIMS[rank], base=100.0, traditional=True)},
    "learned scale": lambda rank: {"qk_scale": mx.array([0.5, 0.3, -0.2, 1.0])},
    "one learned scale": lambda rank: {"qk_scale": mx.array(0.7)},
    "registers": lambda rank: {"num_registers": 3},
    "everything": lambda rank: {
        "qk_norm": (nn.RMSNorm(8), nn.RMSNorm(8)),
        "rope": RoPE(DIMS[rank]),
        "qk_scale": mx.array([0.5, 0.3, 0.2, 1.0]),
        "num_registers": 2,
        "rel_pos_bias": True,
        "is_causal": True,
    },
}


def noisy(module: nn.Module) -> nn.Module:
    """With parameters that are no ones or zeros."""
    for name in ("register_keys", "register_values"):
        if name in module:
            module[name] = mx.random.normal(module[name].shape)
    for name in ("qk_norm", "q_norm", "k_norm"):
        if name in module:
            module[name].weight = 1 + 0.3 * mx.random.normal((8,))
    return module


@RANKS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_value(tier: str, rank: int, options: Any) -> None:
    mx.random.seed(1)
    given = options(rank)
    module = noisy(make(rank, 32, 4, KERNEL[rank], **given))
    x = mx.random.normal((2, *SPATIAL[rank], 32))
    window = {name: given[name] for name in ("rel_pos_bias", "is_causal") if name in given}
    expected = options_value(module, to_numpy(x), rank, given.get("num_registers", 0), **window)
    assert_near(module(x), expected, 1e-5)


@RANKS
def test_everything_trains(tier: str, rank: int) -> None:
    mx.random.seed(1)
    module = noisy(make(rank, 32, 4, KERNEL[rank], attn_drop=0.2, **OPTIONS["everything"](rank)))
    x = mx.random.normal((2, *SPATIAL[rank], 32))
    grads = nn.value_and_grad(module, lambda x: (module(x) ** 2).sum())(x)[1]
    for name, gradient in tree_flatten(grads):
        assert mx.abs(gradient).max().item() > 0, name
    names = {"q_norm.weight", "k_norm.weight", "scale", "register_keys", "register_values", "rpb"}
    assert names < set(dict(tree_flatten(grads)))


def test_parameter_names_and_shapes() -> None:
    module = make(2, 32, 4, 3, num_kv_heads=2, num_registers=5, qk_norm=nn.RMSNorm(8), qk_scale=mx.ones(4))
    names = {"q_proj.weight", "q_proj.bias", "kv_proj.weight", "kv_proj.bias", "proj.weight", "proj.bias"}
    assert {name: shape for name, shape in parameters(module).items() if name not in names} == {
        "register_keys": (1, 5, 2, 8),
        "register_values": (1, 5, 2, 8),
        "qk_norm.weight": (8,),
        "scale": (4,),
    }
    assert set(parameters(make(1, 32, 4, 3, rope=RoPE(8)))) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}


@pytest.mark.parametrize(
    "name, module",
    [
        (
            "attention1d_grouped",
            lambda: make(1, 12, 6, 4, is_causal=True, num_kv_heads=2, rel_pos_bias=True, qk_scale=0.4),
        ),
        ("attention2d", lambda: make(2, 12, 3, (3, 4), dilation=(2, 1), rel_pos_bias=True)),
    ],
)
def test_weights_of_0_4_0_load_unchanged(tier: str, name: str, module: Any) -> None:
    saved = mx.load(str(DATA / f"{name}.safetensors"))
    weights = [(key.removeprefix("weights."), x) for key, x in saved.items() if key.startswith("weights.")]
    loaded = module().load_weights(weights, strict=True)
    assert_near(loaded(saved["x"]), to_numpy(saved["out"]), 1e-6)


@RANKS
def test_circular_axes(tier: str, rank: int) -> None:
    """A module is its projections around the function."""
    mx.random.seed(1)
    module = make(rank, 32, 4, KERNEL[rank], is_circular=True, rel_pos_bias=True)
    x = mx.random.normal((2, *SPATIAL[rank], 32))
    out = module(x)
    turned = mx.roll(module(mx.roll(x, 1, axis=1)), -1, axis=1)
    assert mx.allclose(out, turned, atol=1e-5)
    function = getattr(natten_mlx, f"na{rank}d")
    query, key, value = module.project(x)
    plain = function(query, key, value, KERNEL[rank], is_circular=True, rpb=module.rpb)
    assert mx.allclose(out, module.proj(plain.reshape(x.shape)), atol=1e-5)
    with pytest.raises(ValueError, match="is_circular"):
        make(rank, 32, 4, KERNEL[rank], is_circular=True, is_causal=True)


def test_a_causal_window_may_be_longer_than_a_sample(tier: str) -> None:
    module = make(1, 16, 2, 5, is_causal=True)
    x = mx.random.normal((2, 8, 16))
    out = module(x, mx.array([8, 3]))
    assert mx.allclose(out[1, :3], module(x[1:, :3])[0], atol=1e-5)


def test_functions_are_norms_and_ropes(tier: str) -> None:
    """Lambdas too, and the order is norm, then rope."""
    calls: list[str] = []

    def norm(x: mx.array) -> mx.array:
        calls.append("norm")
        return x * 2

    def rope(query: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
        calls.append("rope")
        return query, key

    mx.random.seed(0)
    module = make(1, 16, 2, 3, qk_norm=norm, rope=rope)
    plain = make(1, 16, 2, 3, qk_scale=4 * 8**-0.5)
    plain.update(module.parameters())
    x = mx.random.normal((1, 6, 16))
    assert mx.allclose(module(x), plain(x), atol=1e-5)
    assert calls == ["norm", "norm", "rope"]


@RANKS
def test_project_and_attend_are_the_module(tier: str, rank: int) -> None:
    mx.random.seed(1)
    module = make(rank, 32, 4, KERNEL[rank], num_registers=2, rope=RoPE(DIMS[rank]))
    x = mx.random.normal((2, *SPATIAL[rank], 32))
    query, key, value = module.project(x)
    assert query.shape == key.shape == value.shape == (2, *SPATIAL[rank], 4, 8)
    out = module.attend(query, key, value)
    assert mx.array_equal(module.proj(out.reshape(x.shape)), module(x))


def test_a_subclass_with_projections_of_its_own(tier: str) -> None:
    class Attention(natten_mlx.NeighborhoodAttention1D):
        def project(self, x: mx.array, offset: Any = None) -> tuple[mx.array, mx.array, mx.array]:
            query, key, value = super().project(x, offset)
            return query, key, value * 2

    mx.random.seed(0)
    module = Attention(16, 2, 3, qkv_bias=False)
    plain = make(1, 16, 2, 3, qkv_bias=False)
    plain.update(module.parameters())
    x = mx.random.normal((1, 6, 16))
    bias = module.proj.bias
    assert mx.allclose(module(x) - bias, 2 * (plain(x) - bias), atol=1e-5)


@pytest.mark.parametrize("traditional", [False, True])
@RANKS
def test_rope(rank: int, traditional: bool, rng: np.random.Generator) -> None:
    dims = {1: (6,), 2: (0, 4), 3: (4, 2, 6)}[rank]
    x = rng.standard_normal((2, *SPATIAL[rank], 3, 14))
    rope = RoPE(dims, traditional=traditional)
    query, key = rope(mx.array(x), mx.array(x[..., :1, :]))
    assert_near(query, rotated(x, dims, traditional), 1e-6)
    assert_near(key, rotated(x[..., :1, :], dims, traditional), 1e-6)
    offset = (5, -3, 2)[:rank]
    assert_near(rope.rotate(mx.array(x), offset), rotated(x, dims, traditional, offset=offset), 1e-6)
    traced = mx.compile(lambda x, first: rope.rotate(x, (first, *offset[1:])))
    assert_near(traced(mx.array(x), mx.array([offset[0]])), rotated(x, dims, traditional, offset=offset), 1e-6)


@pytest.mark.parametrize("traditional", [False, True])
def test_rope_is_mlx_rope_in_1d(traditional: bool) -> None:
    x = mx.random.normal((2, 7, 3, 16))
    expected = nn.RoPE(12, traditional=traditional, scale=0.5)(x.swapaxes(1, 2), offset=4).swapaxes(1, 2)
    assert mx.allclose(RoPE(12, traditional=traditional, scale=0.5).rotate(x, 4), expected, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 2**24 + 1, 2**31 - 8, -(2**31)])
def test_rope_is_accurate_at_every_position(offset: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 7, 1, 16))
    assert_near(RoPE(16).rotate(mx.array(x), offset), rotated(x, (16,), False, offset=(offset,)), 5e-7)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64])
def test_rope_keeps_the_type_and_rounds_once(dtype: mx.Dtype, rng: np.random.Generator) -> None:
    x = mx.array(rng.standard_normal((1, 9, 2, 8))).astype(dtype)
    result = RoPE(8).rotate(x, 1000)
    assert result.dtype == dtype
    ulp = {mx.float16: 2**-11, mx.bfloat16: 2**-8}.get(dtype, 1e-6)
    assert_near(result, rotated(to_numpy(x), (8,), False, offset=(1000,)), ulp)


def test_rope_is_orthogonal_backward(rng: np.random.Generator) -> None:
    x, cotangent = (mx.array(rng.standard_normal((1, 5, 2, 8)).astype(np.float32)) for _ in range(2))
    gradient = mx.vjp(RoPE(8).rotate, [x], [cotangent])[1][0]
    assert mx.allclose(RoPE(8).rotate(gradient), cotangent, atol=1e-5)


X1 = mx.zeros((1, 6, 2, 8))
WRONG: dict[str, Any] = {
    r"\[NeighborhoodAttention1D\] num_registers must be an int from 0 on, got -1": lambda: make(
        1, 16, 2, 3, num_registers=-1
    ),
    r"num_registers must be an int from 0 on, got True": lambda: make(1, 16, 2, 3, num_registers=True),
    r"qk_norm must be a module or function, or two of them": lambda: make(1, 16, 2, 3, qk_norm="rms"),
    r"qk_norm must be .*RMSNorm": lambda: make(1, 16, 2, 3, qk_norm=nn.RMSNorm),
    r"qk_norm must be": lambda: make(1, 16, 2, 3, qk_norm=(nn.RMSNorm(8),) * 3),
    r"qk_norm must be a module or": lambda: make(1, 16, 2, 3, qk_norm=()),
    r"rope must be a function": lambda: make(1, 16, 2, 3, rope=8),
    r"rope must rotate 2 axes and at most head_dim = 8": lambda: make(2, 16, 2, 3, rope=RoPE(8)),
    r"at most head_dim = 8 channels": lambda: make(1, 16, 2, 3, rope=RoPE(10)),
    r"qk_scale must have one element or shape \[2\], got shape \(3,\)": lambda: make(1, 16, 2, 3, qk_scale=mx.ones(3)),
    r"qk_scale must be float": lambda: make(1, 16, 2, 3, qk_scale=mx.array(1)),
    r"qk_scale must be a number, an array or None": lambda: make(1, 16, 2, 3, qk_scale="1"),
    r"the padded input must have less than 2\^31 tokens, got 2199023255552": lambda: make(
        2, 16, 2, 2**20, pad_input=True
    )(mx.zeros((2, 2, 3, 16))),
    r"\[RoPE\] dims must be even ints from 0 on, got 3": lambda: RoPE(3),
    r"\[RoPE\] dims must be even ints from 0 on, got True": lambda: RoPE((True, 2)),
    r"\[RoPE\] dims must be even ints from 0 on, got None": lambda: RoPE(None),
    r"\[RoPE\] dims must be of 1 to 3 axes, got 4": lambda: RoPE((2, 2, 2, 2)),
    r"\[RoPE\] base must be positive": lambda: RoPE(8, base=0),
    r"\[RoPE\] scale must be a finite number": lambda: RoPE(8, scale=float("nan")),
    r"\[RoPE\] scale must be a finite number, got '1'": lambda: RoPE(8, scale="1"),
    r"\[RoPE\] base must be a finite number, got True": lambda: RoPE(8, base=True),
    r"\[RoPE\] base must be a finite number, got 1000": lambda: RoPE(8, base=10**400),
    r"\[RoPE\] traditional must be bool, got 1": lambda: RoPE(8, traditional=1),
    r"\[NeighborhoodAttention1D\] x must be an mlx.core.array": lambda: make(1, 16, 2, 3).project(np.zeros((1, 6, 16))),
    r"Expected input shape \[B, L, C\]": lambda: make(1, 16, 2, 3).project(mx.zeros((16,))),
    r"expected a floating array \[B, 1 spatial axes, heads, D\], got \[1, 6, 8\]": lambda: RoPE(8).rotate(X1[:, :, 0]),
    r"expected a floating array .*int32": lambda: RoPE(8).rotate(X1.astype(mx.int32)),
    r"expected at least 10 channels, which dims rotate, got 8": lambda: RoPE(10).rotate(X1),
    r"offset must have one value or 1, got 2": lambda: RoPE(8).rotate(X1, (0, 1)),
    r"offset must be an int of 64 bits or an integer array, got 0.5": lambda: RoPE(8).rotate(X1, 0.5),
    r"offset must be an int of 64 bits": lambda: RoPE(8).rotate(X1, 2**64),
    r"offset must be an integer array of one element": lambda: RoPE(8).rotate(X1, mx.array([0, 1])),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
