"""The three modules: parameters, the value they compute, lengths, dropout, training, saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import natten_mlx
from cases import Case
from harness import assert_near, to_numpy
from oracle import Array

RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
SPATIAL = {1: (9,), 2: (6, 7), 3: (4, 5, 6)}
KERNEL = {1: (4,), 2: (3, 4), 3: (2, 3, 3)}


def make(rank: int, *args: Any, **options: Any) -> nn.Module:
    return getattr(natten_mlx, f"NeighborhoodAttention{rank}D")(*args, **options)


def parameters(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in tree_flatten(module.parameters())}


@RANKS
def test_parameter_names_and_shapes(rank: int) -> None:
    kernel = KERNEL[rank]
    assert parameters(make(rank, 12, 3, kernel)) == {
        "qkv.weight": (36, 12),
        "qkv.bias": (36,),
        "proj.weight": (12, 12),
        "proj.bias": (12,),
    }
    assert "qkv.bias" not in parameters(make(rank, 12, 3, kernel, qkv_bias=False))
    grouped = make(rank, 12, 4, kernel, num_kv_heads=2, rel_pos_bias=True)
    assert parameters(grouped) == {
        "q_proj.weight": (12, 12),
        "q_proj.bias": (12,),
        "kv_proj.weight": (12, 12),
        "kv_proj.bias": (12,),
        "proj.weight": (12, 12),
        "proj.bias": (12,),
        "rpb": (4, *(2 * k - 1 for k in kernel)),
    }
    assert parameters(make(rank, 16, 4, kernel, num_kv_heads=1))["kv_proj.weight"] == (8, 16)
    # as many key heads as query heads are not grouped heads
    assert "qkv.weight" in parameters(make(rank, 12, 4, kernel, num_kv_heads=4))
    assert "rpb" not in parameters(make(rank, 12, 4, kernel))


def test_rpb_is_a_truncated_normal() -> None:
    mx.random.seed(0)
    table = to_numpy(make(2, 64, 16, 13, rel_pos_bias=True).rpb)
    assert abs(table.mean()) < 0.002
    assert 0.015 < table.std() < 0.021
    assert np.abs(table).max() <= 0.04 + 1e-6


def expected_value(module: nn.Module, x: Array, case: Case, zero_padding: bool = False) -> Array:
    """The module in float64 NumPy: projections around the oracle."""
    weights = {name: to_numpy(p) for name, p in tree_flatten(module.parameters())}

    def linear(name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    grid = x.shape[:-1]
    if "qkv.weight" in weights:
        qkv = linear("qkv", x).reshape(*grid, 3, case.heads, case.dim)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
    else:
        q = linear("q_proj", x).reshape(*grid, case.heads, case.dim)
        kv = linear("kv_proj", x).reshape(*grid, 2, case.kv_heads, case.dim)
        k, v = kv[..., 0, :, :], kv[..., 1, :, :]
    arrays = {"query": q, "key": k, "value": v}
    if case.rpb:
        arrays["rpb"] = weights["rpb"]
    out, _ = case.call(arrays).forward()
    result = linear("proj", out.reshape(*out.shape[:-2], -1))
    if zero_padding:
        live = case.geometry().tables()[0].any(axis=2).reshape(case.batch, *case.output)
        result = np.where(live[..., None], result, 0.0)
    return result


OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "dilated": {"dilation": 2, "kernel_size": 2},
    "strided": {"stride": 2},
    "gna": {"gna_stride": 2},
    "bias": {"rel_pos_bias": True},
    "grouped": {"num_kv_heads": 2, "rel_pos_bias": True, "is_causal": True},
    "one key head": {"num_kv_heads": 1},
    "scaled": {"qk_scale": 0.7},
    "without bias": {"qkv_bias": False},
    "everything": {"num_kv_heads": 2, "rel_pos_bias": True, "is_causal": True, "stride": 2, "qk_scale": 0.3},
}


def case_of(rank: int, options: dict[str, Any], batch: int = 2) -> Case:
    kernel = options.get("kernel_size", KERNEL[rank])
    kernel = (kernel,) * rank if isinstance(kernel, int) else kernel
    return Case(
        SPATIAL[rank],
        kernel,
        stride=(options.get("stride", 1),) * rank,
        dilation=(options.get("dilation", 1),) * rank,
        is_causal=(options.get("is_causal", False),) * rank,
        gna_stride=(options.get("gna_stride", 1),) * rank,
        batch=batch,
        heads=4,
        kv_heads=options.get("num_kv_heads", 4),
        dim=3,
        scale=options.get("qk_scale"),
        rpb=options.get("rel_pos_bias", False),
    )


@RANKS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_value(tier: str, rank: int, options: dict[str, Any]) -> None:
    mx.random.seed(1)
    module = make(rank, 12, 4, **{"kernel_size": KERNEL[rank], **options})
    x = mx.random.normal((2, *SPATIAL[rank], 12))
    assert_near(module(x), expected_value(module, to_numpy(x), case_of(rank, options)), 1e-5)


@RANKS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_lengths_keep_every_option_and_zero_the_padding(tier: str, rank: int, options: dict[str, Any]) -> None:
    mx.random.seed(1)
    module = make(rank, 12, 4, **{"kernel_size": KERNEL[rank], **options})
    x = mx.random.normal((2, *SPATIAL[rank], 12))
    lengths = {1: ((5,), (9,)), 2: ((4, 7), (6, 5)), 3: ((4, 5, 4), (4, 4, 6))}[rank]
    case = case_of(rank, options).with_(lengths=lengths)
    given = mx.array(lengths)
    result = module(x, given[:, 0] if rank == 1 else given)
    expected = expected_value(module, to_numpy(x), case, zero_padding=True)
    assert_near(result, expected, 1e-5)
    live = case.geometry().tables()[0].any(axis=2).reshape(2, *case.output)
    assert np.all(to_numpy(result)[~live] == 0)
    keyword = "seq_lens" if rank == 1 else "spatial_sizes"
    assert mx.array_equal(module(x, **{keyword: given[:, 0] if rank == 1 else given}), result)


@RANKS
def test_padding_of_the_input_reaches_no_gradient(tier: str, rank: int) -> None:
    mx.random.seed(1)
    module = make(rank, 12, 4, KERNEL[rank], rel_pos_bias=True)
    lengths = {1: ((5,), (9,)), 2: ((4, 7), (6, 5)), 3: ((4, 5, 4), (4, 4, 6))}[rank]
    given = mx.array(lengths)[:, 0] if rank == 1 else mx.array(lengths)
    clean = np.random.default_rng(0).standard_normal((2, *SPATIAL[rank], 12))
    dirty = clean.copy()
    for b, sample in enumerate(lengths):
        for axis, length in enumerate(sample):
            dirty[(b, *[slice(None)] * axis, slice(length, None))] = 1e4

    def gradients(x: Array) -> tuple[dict[str, Array], Array]:
        module_grads = nn.value_and_grad(module, lambda x: (module(x, given) ** 2).sum())
        x = mx.array(x.astype(np.float32))
        flat = {name: to_numpy(g) for name, g in tree_flatten(module_grads(x)[1])}
        return flat, to_numpy(mx.grad(lambda x: (module(x, given) ** 2).sum())(x))

    (a, dx_a), (b, dx_b) = gradients(clean), gradients(dirty)
    for name in a:
        assert_near(b[name], a[name], 1e-5, name)
    assert_near(dx_b, dx_a, 1e-5)
    for b, sample in enumerate(lengths):
        for axis, length in enumerate(sample):
            assert np.all(dx_b[(b, *[slice(None)] * axis, slice(length, None))] == 0)


@RANKS
@pytest.mark.parametrize("mapped", [False, True])
def test_nan_in_the_padding_of_a_cotangent_reaches_no_gradient(tier: str, rank: int, mapped: bool) -> None:
    module = make(rank, 8, 2, 3, rel_pos_bias=True)
    grid = (2, *[6] * rank)
    lengths = mx.array([4, 6]) if rank == 1 else mx.array([[4] * rank, [6] * rank])
    inside = np.zeros((*grid, 1), bool)
    inside[(0, *[slice(4)] * rank)] = inside[1] = True
    x, cotangent = np.random.default_rng(0).standard_normal((2, *grid, 8)).astype(np.float32)
    names, weights = zip(*tree_flatten(module.parameters()), strict=True)

    def function(x: mx.array, *weights: mx.array) -> mx.array:
        module.load_weights(list(zip(names, weights, strict=True)))
        return mx.vmap(lambda x: module(x, lengths))(x[None])[0] if mapped else module(x, lengths)

    def gradients(padding: float) -> list[mx.array]:
        arrays = [mx.array(np.where(inside, a, padding)) for a in (x, cotangent)]
        found = mx.vjp(function, [arrays[0], *weights], [arrays[1]])[1]
        module.load_weights(list(zip(names, weights, strict=True)))
        return found

    for name, found, expected in zip(["x", *names], gradients(float("nan")), gradients(0.0), strict=True):
        assert_near(found, to_numpy(expected), 1e-6, name)


@RANKS
def test_a_batch_of_0_with_lengths(tier: str, rank: int) -> None:
    module = make(rank, 8, 2, 3, stride=2)
    lengths = mx.zeros((0,) if rank == 1 else (0, rank), mx.int32)
    x = mx.zeros((0, *[6] * rank, 8))
    assert module(x, lengths).shape == (0, *[3] * rank, 8)
    assert mx.grad(lambda x: module(x, lengths).sum())(x).shape == x.shape


def test_numpy_integers_are_sizes() -> None:
    for kernel in (np.int64(3), np.array([3, 5]), np.array(3), (np.int8(3), 5)):
        module = make(2, np.int64(8), np.int32(2), kernel, num_kv_heads=np.uint8(1), rel_pos_bias=True)
        assert module.rpb.shape[:2] == (2, 5)
        assert module(mx.zeros((1, 6, 6, 8))).shape == (1, 6, 6, 8)


@pytest.mark.parametrize("option", ["attn_drop", "proj_drop"])
@pytest.mark.parametrize("padded", [False, True])
def test_dropout_only_in_training(tier: str, option: str, padded: bool) -> None:
    mx.random.seed(2)
    module = make(2, 12, 4, 3, **{option: 0.5})
    plain = make(2, 12, 4, 3)
    plain.update(module.parameters())
    x = mx.random.normal((2, 8, 8, 12))
    lengths = (mx.array([[8, 8], [5, 6]]),) if padded else ()
    module.eval()
    expected = to_numpy(plain(x, *lengths))
    assert_near(module(x, *lengths), expected, 1e-6)
    module.train()
    first, second = to_numpy(module(x, *lengths)), to_numpy(module(x, *lengths))
    assert np.abs(first - second).max() > 1e-3
    mean = np.mean([to_numpy(module(x, *lengths)) for _ in range(300)], axis=0)
    assert np.abs(mean - expected).max() < 0.35 * np.abs(expected).max()
    if padded:
        assert np.all(first[1, 5:] == 0) and np.all(first[1, :, 6:] == 0)


def test_dropout_of_everything_leaves_the_output_bias(tier: str) -> None:
    module = make(1, 8, 2, 3, attn_drop=0.999999)
    module.proj.bias = mx.arange(8.0)
    module.train()
    out = to_numpy(module(mx.random.normal((1, 6, 8))))
    assert_near(out, np.broadcast_to(np.arange(8.0), out.shape), 1e-6)


@RANKS
@pytest.mark.parametrize("grouped", [False, True])
def test_a_few_training_steps(tier: str, rank: int, grouped: bool) -> None:
    mx.random.seed(3)
    module = make(rank, 8, 4, KERNEL[rank], num_kv_heads=2 if grouped else None, rel_pos_bias=True, attn_drop=0.05)
    x = mx.random.normal((2, *SPATIAL[rank], 8))
    target = mx.roll(x, 1, axis=1)
    step = nn.value_and_grad(module, lambda x: ((module(x) - target) ** 2).mean())
    optimizer = optim.Adam(learning_rate=0.02)
    before = {name: to_numpy(p) for name, p in tree_flatten(module.parameters())}
    losses = []
    for _ in range(15):
        loss, grads = step(x)
        optimizer.update(module, grads)
        mx.eval(module.parameters(), optimizer.state)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, p in tree_flatten(module.parameters()):
        assert np.abs(to_numpy(p) - before[name]).max() > 0, f"{name} did not train"


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_save_and_load(tmp_path: Path, grouped: bool, suffix: str) -> None:
    options = {"num_kv_heads": 2 if grouped else None, "rel_pos_bias": True}
    mx.random.seed(4)
    module, other = make(2, 16, 4, (3, 4), **options), make(2, 16, 4, (3, 4), **options)
    x = mx.random.normal((1, 6, 7, 16))
    assert not mx.allclose(module(x), other(x))
    path = str(tmp_path / f"weights{suffix}")
    module.save_weights(path)
    other.load_weights(path)
    assert mx.array_equal(module(x), other(x))


def test_inside_of_a_model_and_compiled_training(tier: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [make(2, 8, 2, 3, rel_pos_bias=True) for _ in range(2)]

        def __call__(self, x: mx.array) -> mx.array:
            for layer in self.layers:
                x = x + layer(x)
            return x

    mx.random.seed(5)
    model = Model()
    assert len(tree_flatten(model.trainable_parameters())) == 10
    optimizer = optim.SGD(learning_rate=0.05)
    x = mx.random.normal((2, 6, 6, 8))
    state = [model.state, optimizer.state]

    def step(x: mx.array) -> mx.array:
        loss, grads = nn.value_and_grad(model, lambda x: (model(x) ** 2).mean())(x)
        optimizer.update(model, grads)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    losses = [compiled(x).item() for _ in range(10)]
    assert losses[-1] < losses[0]


def test_freezing(tier: str) -> None:
    module = make(1, 8, 2, 3, rel_pos_bias=True)
    module.freeze(keys=["rpb"])
    grads = nn.value_and_grad(module, lambda x: module(x).sum())(mx.random.normal((1, 6, 8)))[1]
    assert "rpb" not in dict(tree_flatten(grads))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_types(tier: str, dtype: mx.Dtype) -> None:
    module = make(2, 16, 4, 3, rel_pos_bias=True)
    x = mx.random.normal((1, 6, 7, 16))
    expected = to_numpy(module(x))
    module.set_dtype(dtype)
    result = module(x.astype(dtype))
    assert result.dtype == dtype
    assert_near(result, expected, 0.03)


def test_repr_names_the_neighborhood() -> None:
    text = repr(make(2, 16, 4, (3, 5), dilation=2, is_causal=(True, False)))
    assert "NeighborhoodAttention2D" in text and "(3, 5)" in text


PADDED = {
    "plain": {},
    "dilated": {"dilation": 2},
    "strided": {"stride": 2},
    "bias": {"rel_pos_bias": True},
    "causal": {"is_causal": True},
    "grouped": {"num_kv_heads": 2, "rel_pos_bias": True},
}
SHORT = {1: (2,), 2: (9, 2), 3: (2, 7, 3)}  # at least one axis shorter than its window


@RANKS
@pytest.mark.parametrize("options", PADDED.values(), ids=PADDED.keys())
def test_pad_input_appends_zeros_before_the_projections_and_crops(
    tier: str, rank: int, options: dict[str, Any]
) -> None:
    mx.random.seed(1)
    module = make(rank, 12, 4, KERNEL[rank], pad_input=True, **options)
    x = mx.random.normal((2, *SHORT[rank], 12))
    case = case_of(rank, options)
    windows = [k * d for k, d in zip(case.kernel_size, case.dilation, strict=True)]
    padded = tuple(max(pair) for pair in zip(SHORT[rank], windows, strict=True))
    zeros = np.pad(to_numpy(x), [(0, 0), *((0, w - n) for n, w in zip(SHORT[rank], padded, strict=True)), (0, 0)])
    kept = tuple(slice(-(-n // s)) for n, s in zip(SHORT[rank], case.stride, strict=True))
    expected = expected_value(module, zeros, case.with_(spatial=padded))[(slice(None), *kept)]
    assert_near(module(x), expected, 1e-5)


@pytest.mark.parametrize("lengths", [None, [2, 1]])
def test_pad_input_leaves_causal_axes_as_they_are(tier: str, lengths: list[int] | None) -> None:
    """Their windows hold the keys that exist, so that padding them would be work in vain."""
    module = make(2, 12, 4, (5, 3), dilation=(3, 1), is_causal=(True, False), pad_input=True)
    x, projected = mx.random.normal((2, 2, 2, 12)), []
    sizes = () if lengths is None else (mx.array([[length, 2] for length in lengths]),)
    project = module.project
    module.project = lambda x: (projected.append(x.shape), project(x))[1]
    out = module(x, *sizes)
    assert projected == [(2, 2, 3, 12)]
    plain = make(2, 12, 4, (5, 3), dilation=(3, 1), is_causal=(True, False))
    plain.update(module.parameters())
    wide = plain(mx.pad(x, [(0, 0), (0, 0), (0, 1), (0, 0)]))[:, :, :2]
    for sample, length in enumerate(lengths or [2, 2]):
        assert mx.allclose(out[sample, :length], wide[sample, :length], atol=1e-6)


@pytest.mark.parametrize("integer", [np.int32, lambda x: mx.array(x)], ids=["numpy", "mlx"])
def test_pad_input_takes_any_integers(integer: Any) -> None:
    x, options = mx.random.normal((1, 3, 4, 12)), {"pad_input": True, "dilation": 2, "stride": 2}
    module = make(2, 12, 4, 3, **options)
    other = make(2, 12, 4, integer(3), pad_input=True, dilation=integer(2), stride=integer(2))
    other.update(module.parameters())
    lengths = mx.array([[2, 3]])
    assert mx.array_equal(module(x), other(x)) and mx.array_equal(module(x, lengths), other(x, lengths))


@RANKS
def test_pad_input_changes_nothing_where_the_window_fits(tier: str, rank: int) -> None:
    module = make(rank, 12, 4, KERNEL[rank], pad_input=True, rel_pos_bias=True)
    plain = make(rank, 12, 4, KERNEL[rank], rel_pos_bias=True)
    plain.update(module.parameters())
    x = mx.random.normal((2, *SPATIAL[rank], 12))
    assert mx.array_equal(module(x), plain(x))


@RANKS
@pytest.mark.parametrize("stride", [1, 2])
def test_pad_input_with_lengths_is_each_sample_alone(tier: str, rank: int, stride: int) -> None:
    mx.random.seed(1)
    module = make(rank, 12, 4, KERNEL[rank], pad_input=True, rel_pos_bias=True, stride=stride)
    lengths = {1: ((1,), (3,), (9,)), 2: ((2, 7), (6, 3), (1, 1)), 3: ((1, 5, 2), (4, 2, 6), (1, 1, 1))}[rank]
    x = mx.random.normal((3, *SPATIAL[rank], 12))
    for size in (SPATIAL[rank], tuple(max(axis) for axis in zip(*lengths, strict=True))):
        cut = x[(slice(None), *(slice(n) for n in size))]
        given = mx.array(lengths)
        result = to_numpy(module(cut, given[:, 0] if rank == 1 else given))
        for b, sample in enumerate(lengths):
            alone = to_numpy(module(cut[(slice(b, b + 1), *(slice(n) for n in sample))]))[0]
            inside = tuple(slice(n) for n in alone.shape[:-1])
            assert_near(mx.array(result[b][inside].astype(np.float32)), alone, 1e-5)
            result[b][inside] = 0
            assert np.all(result[b] == 0)


@RANKS
def test_gradients_through_pad_input(tier: str, rank: int) -> None:
    mx.random.seed(1)
    module = make(rank, 12, 4, KERNEL[rank], pad_input=True, rel_pos_bias=True)
    x = mx.random.normal((1, *SHORT[rank], 12))
    direction = mx.random.normal(x.shape)

    def function(x: mx.array) -> mx.array:
        return (module(x) ** 2).sum()

    slope = (mx.grad(function)(x) * direction).sum().item()
    step = 1e-2
    numeric = (function(x + step * direction) - function(x - step * direction)).item() / (2 * step)
    assert abs(slope - numeric) < 2e-2 * abs(numeric)


def test_without_pad_input_a_short_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"kernel_size\[0\]=5 must be <= input spatial size 4"):
        make(2, 12, 4, 5)(mx.zeros((1, 4, 9, 12)))
