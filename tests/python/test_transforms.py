"""MLX's transformations: compile, shapeless compile, vmap, checkpoint, second derivatives, jvp, and array layouts."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from cases import Case
from harness import (
    assert_near,
    attention,
    check_split_form,
    device,
    rounded,
    split_av,
    split_qk,
    to_mlx,
    to_numpy,
    vjp,
)

CASES = [
    Case((9,), (4,), heads=2, rpb=True, is_causal=(True,)),
    Case((7, 8), (3, 4), heads=4, kv_heads=2, value_dim=3, stride=(2, 1), rpb=True, batch=2),
    Case((4, 5, 6), (2, 3, 3), dilation=(2, 1, 1), gna_stride=(1, 2, 1), rpb=True),
    Case((6, 7), (3, 3), extra=3, heads=2),
    Case((9,), (3,), batch=2, lengths=((5,), (9,)), rpb=True),
]
BEYOND_PLAIN = [
    Case((20, 9), (5, 3), span=((8, 4, 6, 8), (0, 9, 0, 9)), heads=2, rpb=True),
    Case((14,), (5,), is_circular=(True,), span=((0, 6, -2, 10),), rpb=True, extra=2),
    Case((18,), (5,), batch=2, span=((6, 8, 0, 18),), lengths=((9,), (18,)), stride=(2,)),
    Case((6,), (9,), is_causal=(True,), rpb=True, heads=2),
]

SEVERAL_BLOCKS = Case((24, 25), (9, 9), dim=32, rpb=True)  # of the pure tier, which bounds its memory by them


def loss_of(call: Callable[..., list[mx.array]], *weights: mx.array) -> Callable[..., mx.array]:
    return lambda *inputs: sum((x * w).sum() for x, w in zip(call(*inputs), weights, strict=True))


def prepared(case: Case) -> tuple[list[str], Callable[..., list[mx.array]], dict[str, np.ndarray], list[mx.array]]:
    names, call = attention(case)
    arrays = rounded(case.arrays(), case.dtype)
    return names, call, arrays, [to_mlx(arrays[name], case.dtype) for name in names]


def check_gradients(case: Case, grads: list[mx.array], arrays: dict[str, np.ndarray], names: list[str]) -> None:
    expected = case.call(arrays).backward(arrays["dout"], arrays["dlse"])
    for name, gradient in zip(names, grads, strict=True):
        assert_near(gradient, expected[name], 1e-4, name)


@pytest.mark.parametrize("case", [*CASES, *BEYOND_PLAIN, SEVERAL_BLOCKS], ids=str)
def test_compile(tier: str, case: Case) -> None:
    names, call, arrays, inputs = prepared(case)
    out, lse = case.call(arrays).forward()
    compiled = mx.compile(call)
    for _ in range(2):
        result, result_lse = compiled(*inputs)
        assert_near(result, out, 1e-5)
        assert_near(result_lse, lse, 1e-5)
    loss = loss_of(call, to_mlx(arrays["dout"]), to_mlx(arrays["dlse"]))
    grads = mx.compile(mx.grad(loss, argnums=list(range(len(names)))))(*inputs)
    check_gradients(case, grads, arrays, names)


def test_compile_retraces_for_other_shapes(tier: str) -> None:
    compiled = mx.compile(lambda q, k, v: natten_mlx.na1d(q, k, v, 3))
    for length in (6, 4, 9):
        case = Case((length,), (3,))
        _, _, arrays, inputs = prepared(case)
        assert_near(compiled(*inputs), case.call(arrays).forward()[0], 1e-5)


def test_compile_does_not_join_different_calls(tier: str) -> None:
    """Common subexpressions: calls that differ in one parameter are not the same call."""
    case = Case((12,), (4,))
    _, _, arrays, inputs = prepared(case)
    variants = [
        {},
        {"is_causal": True},
        {"dilation": 2},
        {"gna_stride": 2},
        {"scale": 0.1},
        {"kernel_size": 3},
        {"gna_stride": 3},
        {"dilation": 3},
    ]

    def call(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        return [natten_mlx.na1d(q, k, v, **{"kernel_size": 4, **changes}) for changes in variants]

    for changes, result in zip(variants, mx.compile(call)(*inputs), strict=True):
        varied = case.with_(**{name: x if name == "scale" else (x,) for name, x in changes.items()})
        assert_near(result, varied.call(arrays).forward()[0], 1e-5, str(changes))


def test_compile_of_equal_calls_on_a_fused_input(tier: str) -> None:
    """MLX fuses what makes the input, and replaces the input of every call."""

    def call(x: mx.array) -> mx.array:
        q = 2 * x + 1  # in rank 3 with nothing between it and the node
        attention = lambda q: natten_mlx.na3d(q, q, q, 2)  # noqa: E731
        outputs, gradients = mx.vjp(attention, [q], [q])
        return attention(q) + outputs[0] + gradients[0]

    x = mx.random.normal((1, 2, 3, 4, 1, 4), key=mx.random.key(0))
    assert mx.allclose(mx.compile(call)(x), call(x), atol=1e-4)


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("case", [*CASES, Case((9,), (1,)), Case((9,), (3,), extra=1)], ids=str)
def test_shapeless_compile_is_right_or_raises(tier: str, case: Case, with_gradient: bool) -> None:
    """Traced at one shape and called with others: never a wrong answer, never a read out of bounds."""
    if case.lengths is not None:
        case = case.with_(lengths=None)

    def call(*inputs: mx.array) -> list[mx.array]:
        names = list(case.shapes())
        arrays = dict(zip(names, inputs, strict=True))
        q, k, v = (arrays.pop(name) for name in ("query", "key", "value"))
        return list(getattr(natten_mlx, f"na{case.rank}d")(q, k, v, return_lse=True, **arrays, **case.parameters()))

    function = call
    if with_gradient:
        count = len(case.shapes())
        function = mx.grad(lambda *inputs: sum(x.sum() for x in call(*inputs)), argnums=list(range(count)))
    compiled = mx.compile(function, shapeless=True)
    for change in (0, -1, 3):
        sized = case.with_(spatial=(case.spatial[0], *(length + change for length in case.spatial[1:])))
        if case.rank == 1:
            sized = case.with_(spatial=(case.spatial[0] + change,))
        _, _, arrays, inputs = prepared(sized)
        try:
            results = compiled(*inputs)
            mx.eval(results)
        except (ValueError, RuntimeError):
            continue
        if with_gradient:
            ones = np.ones_like(arrays["dout"]), np.ones_like(arrays["dlse"])
            expected = sized.call(arrays).backward(*ones)
            for name, gradient in zip(sized.shapes(), results, strict=True):
                assert_near(gradient, expected[name], 1e-4, f"{name} at {sized.spatial}")
        else:
            out, lse = sized.call(arrays).forward()
            assert_near(results[0], out, 1e-5, f"out at {sized.spatial}")
            assert_near(results[1], lse, 1e-5, f"lse at {sized.spatial}")


@pytest.mark.parametrize("mapped", [(0,), (1,), (2,), (3,), (0, 3), (0, 1, 2), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("case", [*CASES[:4], *BEYOND_PLAIN[:2], SEVERAL_BLOCKS], ids=str)
def test_vmap_over_any_input(tier: str, case: Case, mapped: tuple[int, ...]) -> None:
    """Forward, and the gradient inside of vmap: each example has its own gradient, drpb too."""
    names, call, arrays, inputs = prepared(case)
    examples = [rounded(case.with_(seed=seed).arrays(), "float32") for seed in (1, 2, 3)]
    axes = tuple(0 if i in mapped else None for i in range(len(names)))
    stacked = [
        mx.stack([to_mlx(example[name]) for example in examples]) if axis == 0 else x
        for name, axis, x in zip(names, axes, inputs, strict=True)
    ]
    loss = loss_of(call, to_mlx(arrays["dout"]), to_mlx(arrays["dlse"]))
    out, lse = mx.vmap(call, in_axes=axes)(*stacked)
    grads = mx.vmap(mx.grad(loss, argnums=list(range(len(names)))), in_axes=axes)(*stacked)
    for i, example in enumerate(examples):
        own = {**arrays, **{name: example[name] for name, axis in zip(names, axes, strict=True) if axis == 0}}
        expected_out, expected_lse = case.call(own).forward()
        assert_near(out[i], expected_out, 1e-5)
        assert_near(lse[i], expected_lse, 1e-5)
        check_gradients(case, [gradient[i] for gradient in grads], own, names)


@pytest.mark.parametrize("axis", [1, 2, 3, 4, -1])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_vmap_over_another_axis(tier: str, rank: int, axis: int) -> None:
    case = Case((9, 5, 4)[:rank], (4, 3, 2)[:rank], batch=2, heads=2, dilation=(2, 1, 1)[:rank])
    names, call, arrays, _ = prepared(case)
    examples = [rounded(case.with_(seed=seed).arrays(), "float32") for seed in (1, 2, 3)]
    stacked = [mx.stack([to_mlx(e[name]) for e in examples], axis=axis) for name in names]
    out, _ = mx.vmap(call, in_axes=axis, out_axes=[1, 0])(*stacked)
    loss = loss_of(call, to_mlx(arrays["dout"]), to_mlx(arrays["dlse"]))
    grads = mx.vmap(mx.grad(loss, argnums=list(range(len(names)))), in_axes=axis)(*stacked)
    for i, example in enumerate(examples):
        assert_near(out[:, i], case.call(example).forward()[0], 1e-5)
        check_gradients(
            case,
            [gradient[i] for gradient in grads],
            {**arrays, **example, "dout": arrays["dout"], "dlse": arrays["dlse"]},
            names,
        )


@pytest.mark.parametrize("mapped", [("query", "rpb"), ("rpb",), ("query",)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_vmap_of_a_gradient_that_depends_on_the_example(tier: str, rank: int, mapped: tuple[str, ...]) -> None:
    """The cotangent is mapped too, over the axis where the tier put the examples."""
    case = Case((9, 5, 4)[:rank], (4, 3, 2)[:rank], heads=2, rpb=True)
    names, call, _, inputs = prepared(case)
    axes = [0 if name in mapped else None for name in names]
    given = [
        mx.stack([x * scale for scale in (1.0, 0.5, -1.0)]) if axis == 0 else x
        for x, axis in zip(inputs, axes, strict=True)
    ]

    def loss(*inputs: mx.array) -> mx.array:
        out, lse = call(*inputs)
        return (out**2).sum() + (lse**2).sum()

    gradient = mx.grad(loss, argnums=list(range(len(names))))
    mapped_gradients = mx.vmap(gradient, in_axes=tuple(axes))(*given)
    for i in range(3):
        own = gradient(*[x[i] if axis == 0 else x for x, axis in zip(given, axes, strict=True)])
        for name, found, expected in zip(names, mapped_gradients, own, strict=True):
            assert_near(found[i], to_numpy(expected), 1e-5, name)


def test_vmap_over_more_than_a_kernel_takes(tier: str) -> None:
    """A bias for each example makes heads of the examples: more than a GPU's grid has, so in several calls."""
    count, heads = 2, 32_800
    q, k, v = (mx.random.normal((1, 2, heads, 1), key=mx.random.key(i)) for i in range(3))
    rpb = mx.random.normal((count, heads, 3), key=mx.random.key(4))

    def call(rpb: mx.array) -> mx.array:
        return natten_mlx.na1d(q, k, v, 2, rpb=rpb)

    found = mx.vmap(call)(rpb)
    mx.eval(found)
    with natten_mlx.backend("pure"):
        expected = np.stack([to_numpy(call(table)) for table in rpb])
    assert_near(found, expected, 1e-5)


def test_vmap_of_vmap(tier: str) -> None:
    case = CASES[0]
    names, call, _, _ = prepared(case)
    examples = [[rounded(case.with_(seed=2 * i + j).arrays(), "float32") for j in range(2)] for i in range(3)]
    stacked = [mx.stack([mx.stack([to_mlx(e[name]) for e in row]) for row in examples]) for name in names]
    out, lse = mx.vmap(mx.vmap(call))(*stacked)
    for i, row in enumerate(examples):
        for j, example in enumerate(row):
            assert_near(out[i, j], case.call(example).forward()[0], 1e-5)
            assert_near(lse[i, j], case.call(example).forward()[1], 1e-5)


@pytest.mark.parametrize("which", ["lengths", "lengths and query", "query"])
@pytest.mark.parametrize("times", [1, 30], ids=["one block", "several blocks"])
def test_vmap_over_lengths(tier: str, which: str, times: int) -> None:
    case = CASES[4].with_(spatial=(9 * times,), kernel_size=(3 * times,), dim=4 if times == 1 else 32)
    lengths = [tuple((times * x,) for x in row) for row in ((5, 9), (3, 4), (9, 7))]
    case = case.with_(lengths=lengths[0])
    names, _, arrays, inputs = prepared(case)
    stacked = mx.array([[row[0] for row in rows] for rows in lengths])
    queries = [rounded(case.with_(seed=seed).arrays(), "float32")["query"] for seed in (4, 5, 6)]
    maps_lengths, maps_query = "lengths" in which, "query" in which

    def call(length: mx.array, q: mx.array, k: mx.array, v: mx.array, rpb: mx.array) -> list[mx.array]:
        return list(natten_mlx.na1d(q, k, v, 3 * times, rpb=rpb, lengths=length, return_lse=True))

    def gradient(length: mx.array, *inputs: mx.array) -> list[mx.array]:
        weighted = loss_of(lambda *args: call(length, *args), to_mlx(arrays["dout"]), to_mlx(arrays["dlse"]))
        return mx.grad(weighted, argnums=[0, 1, 2, 3])(*inputs)

    in_axes = (0 if maps_lengths else None, 0 if maps_query else None, None, None, None)
    given = [stacked if maps_lengths else stacked[0]]
    given += [mx.stack([to_mlx(q) for q in queries]) if maps_query else inputs[0], *inputs[1:]]
    out, lse = mx.vmap(call, in_axes=in_axes)(*given)
    grads = mx.vmap(gradient, in_axes=in_axes)(*given)
    for i in range(3):
        own = case.with_(lengths=lengths[i] if maps_lengths else lengths[0])
        own_arrays = {**arrays, "query": queries[i] if maps_query else arrays["query"]}
        expected_out, expected_lse = own.call(own_arrays).forward()
        assert_near(out[i], expected_out, 1e-5)
        assert_near(lse[i], expected_lse, 1e-5)
        check_gradients(own, [g[i] for g in grads], own_arrays, names)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[2]], ids=str)
def test_vmap_of_the_split_form(tier: str, case: Case) -> None:
    examples = [rounded(case.with_(seed=seed).arrays(), "float32") for seed in (1, 2)]
    for (names, call), cotangent in ((split_qk(case), "dlogits"), (split_av(case), "dout")):
        stacked = [mx.stack([to_mlx(e[name]) for e in examples]) for name in names]
        weights = mx.stack([to_mlx(e[cotangent]) for e in examples])
        (result,) = mx.vmap(call)(*stacked)
        grads = mx.vmap(lambda w, *inputs, call=call: vjp(call, list(inputs), [w]))(weights, *stacked)
        for i, example in enumerate(examples):
            reference = case.call(example)
            if cotangent == "dlogits":
                expected, backward = reference.qk(), reference.qk_backward(example["dlogits"])
            else:
                expected = reference.av(example["attn"])
                backward = reference.av_backward(example["attn"], example["dout"])
            assert_near(result[i], expected, 1e-5)
            for name, gradient in zip(names, grads, strict=True):
                assert_near(gradient[i], backward[name], 1e-4, name)


@pytest.mark.parametrize("case", [*CASES, *BEYOND_PLAIN], ids=str)
def test_checkpoint(tier: str, case: Case) -> None:
    names, call, arrays, inputs = prepared(case)
    loss = loss_of(mx.checkpoint(call), to_mlx(arrays["dout"]), to_mlx(arrays["dlse"]))
    check_gradients(case, mx.grad(loss, argnums=list(range(len(names))))(*inputs), arrays, names)


def directional(case: Case, arrays: dict[str, np.ndarray], directions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """d/dt of outputs and gradients at inputs + t * directions, by central differences of the oracle."""
    step, results = 1e-5, []
    for sign in (1, -1):
        moved = {name: x + sign * step * directions.get(name, 0.0) for name, x in arrays.items()}
        reference = case.call(moved)
        out, lse = reference.forward()
        results.append({"out": out, "lse": lse, **reference.backward(arrays["dout"], arrays["dlse"])})
    return {name: (results[0][name] - results[1][name]) / (2 * step) for name in results[0]}


def check_second_order(case: Case, tolerance: float) -> None:
    names, call, arrays, inputs = prepared(case)
    rng = np.random.default_rng(3)
    directions = {name: rng.standard_normal(arrays[name].shape) for name in names}
    expected = directional(case, arrays, directions)
    tangents = [to_mlx(directions[name], case.dtype) for name in names]

    (out, lse) = mx.jvp(call, inputs, tangents)[1]
    assert_near(out, expected["out"], tolerance, "jvp of out")
    assert_near(lse, expected["lse"], tolerance, "jvp of lse")

    loss = loss_of(call, to_mlx(arrays["dout"], case.dtype), to_mlx(arrays["dlse"], case.dtype))
    every = list(range(len(names)))

    def slope(*inputs: mx.array) -> mx.array:
        return sum((g * t).sum() for g, t in zip(mx.grad(loss, argnums=every)(*inputs), tangents, strict=True))

    for name, second in zip(names, mx.grad(slope, argnums=every)(*inputs), strict=True):
        assert_near(second, expected[name], tolerance, f"second derivative by {name}")


@pytest.mark.parametrize("case", [*CASES, *BEYOND_PLAIN], ids=str)
def test_jvp_and_second_derivatives(tier: str, case: Case) -> None:
    check_second_order(case, 1e-3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_jvp_of_a_gradient(tier: str, case: Case) -> None:
    """Forward over reverse is the same second derivative as reverse over reverse."""
    names, call, arrays, inputs = prepared(case)
    rng = np.random.default_rng(3)
    directions = {name: rng.standard_normal(arrays[name].shape) for name in names}
    loss = loss_of(call, to_mlx(arrays["dout"]), to_mlx(arrays["dlse"]))
    gradient = mx.grad(loss, argnums=list(range(len(names))))
    tangents = mx.jvp(lambda *a: list(gradient(*a)), inputs, [to_mlx(directions[name]) for name in names])[1]
    expected = directional(case, arrays, directions)
    for name, tangent in zip(names, tangents, strict=True):
        assert_near(tangent, expected[name], 1e-3, name)


@pytest.mark.parametrize("case", [*CASES, SEVERAL_BLOCKS], ids=str)
def test_jvp_and_second_derivatives_in_float64(case: Case) -> None:
    with natten_mlx.backend("pure"):
        check_second_order(case.with_(dtype="float64"), 1e-6)


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_second_derivatives_of_the_split_form(tier: str, case: Case) -> None:
    """qk and av composed by hand have the second derivatives of the fused call."""
    fused_names, fused, arrays, inputs = prepared(case)
    neighborhood = case.parameters()
    library = natten_mlx

    def split(q: mx.array, k: mx.array, v: mx.array, rpb: mx.array) -> mx.array:
        logits = getattr(library, f"na{case.rank}d_qk")(q, k, rpb=rpb, **neighborhood)
        return getattr(library, f"na{case.rank}d_av")(mx.softmax(logits, axis=-1), v, **neighborhood)

    dout = to_mlx(arrays["dout"])
    rng = np.random.default_rng(4)
    tangents = [to_mlx(rng.standard_normal(arrays[name].shape)) for name in fused_names]

    def second(call: Callable[..., mx.array]) -> list[mx.array]:
        first = mx.grad(lambda *args: (call(*args) * dout).sum(), argnums=[0, 1, 2, 3])

        def slope(*args: mx.array) -> mx.array:
            return sum((g * t).sum() for g, t in zip(first(*args), tangents, strict=True))

        return mx.grad(slope, argnums=[0, 1, 2, 3])(*inputs)

    for name, a, b in zip(fused_names, second(split), second(lambda *args: fused(*args)[0]), strict=True):
        assert_near(a, to_numpy(b), 1e-3, name)


LAYOUTS: dict[str, Callable[[np.ndarray], mx.array]] = {
    "heads first, transposed": lambda x: to_mlx(np.moveaxis(x, -2, 1)).transpose(
        0, *range(2, x.ndim - 1), 1, x.ndim - 1
    ),
    "last axis not dense": lambda x: to_mlx(np.ascontiguousarray(x.T)).T,
    "every second of a larger array": lambda x: to_mlx(np.repeat(x, 2, axis=1))[:, ::2],
    "reversed": lambda x: to_mlx(np.ascontiguousarray(x[:, ::-1]))[:, ::-1],
    "slice inside of a larger array": lambda x: to_mlx(np.pad(x, [(1, 2)] * x.ndim))[(slice(1, -2),) * x.ndim],
    "every second channel": lambda x: to_mlx(np.repeat(x, 2, axis=-1))[..., ::2],
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_layouts(tier: str, case: Case, layout: str) -> None:
    names, call, arrays, plain = prepared(case)
    inputs = [
        LAYOUTS[layout](arrays[n]) if n in ("query", "key", "value") else x for n, x in zip(names, plain, strict=True)
    ]
    out, lse = case.call(arrays).forward()
    result, result_lse = call(*inputs)
    assert_near(result, out, 1e-5)
    assert_near(result_lse, lse, 1e-5)
    cotangents = [LAYOUTS[layout](arrays["dout"]), to_mlx(arrays["dlse"].T).T]
    check_gradients(case, vjp(call, inputs, cotangents), arrays, names)
    if case.extra is None:
        check_split_form(
            case, arrays, 1e-5, 1e-4, lambda n: to_mlx(arrays[n]) if n == "rpb" else LAYOUTS[layout](arrays[n])
        )


@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4])
def test_broadcast_inputs(tier: str, axis: int) -> None:
    """A broadcast axis has stride 0; its gradient is that of the whole array."""
    case = CASES[1].with_(heads=2, kv_heads=2, value_dim=4)
    names, call, arrays, inputs = prepared(case)
    for name in ("query", "key", "value"):
        row = np.take(arrays[name], [0], axis=axis)
        arrays[name] = np.broadcast_to(row, arrays[name].shape).copy()
        inputs[names.index(name)] = mx.broadcast_to(to_mlx(row), arrays[name].shape)
    out, lse = case.call(arrays).forward()
    result, result_lse = call(*inputs)
    assert_near(result, out, 1e-5)
    assert_near(result_lse, lse, 1e-5)
    ones = mx.broadcast_to(mx.array(1.0), result.shape), mx.broadcast_to(mx.array(1.0), result_lse.shape)
    arrays["dout"], arrays["dlse"] = np.ones(result.shape), np.ones(result_lse.shape)
    check_gradients(case, vjp(call, inputs, list(ones)), arrays, names)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_empty_batch(tier: str, rank: int) -> None:
    case = Case((5, 4, 6)[:rank], (3, 2, 2)[:rank], heads=2, rpb=True)
    _names, call = attention(case)
    inputs = [mx.zeros(shape if name == "rpb" else (0, *shape[1:])) for name, shape in case.shapes().items()]
    out, lse = call(*inputs)
    assert out.shape == (0, *case.output, 2, 4) and lse.shape == (0, *case.output, 2)
    grads = vjp(call, inputs, [mx.zeros_like(out), mx.zeros_like(lse)])
    mx.eval(grads)
    assert [g.shape for g in grads] == [x.shape for x in inputs]
    assert np.all(to_numpy(grads[3]) == 0)
    (logits,) = split_qk(case)[1](inputs[0], inputs[1], inputs[3])
    assert logits.shape == (0, *case.output, 2, case.volume)
    (product,) = split_av(case)[1](logits, inputs[2])
    assert product.shape == out.shape
    mx.eval(logits, product)


def test_empty_batch_with_lengths_and_extra_tokens(tier: str) -> None:
    q = mx.zeros((0, 5, 2, 4))
    out, lse = natten_mlx.na1d(q, q, q, 3, return_lse=True, lengths=mx.zeros((0,), mx.int32))
    assert out.shape == (0, 5, 2, 4) and lse.shape == (0, 5, 2)
    extra = mx.zeros((0, 2, 2, 4))
    out = natten_mlx.na1d(q, q, q, 3, additional_keys=extra, additional_values=extra)
    mx.eval(out, lse)
    assert out.shape == (0, 5, 2, 4)


def test_no_additional_tokens_change_nothing(tier: str) -> None:
    case = Case((6,), (3,), heads=2, extra=0)
    _names, call, arrays, inputs = prepared(case)
    out, lse = call(*inputs)
    expected = case.with_(extra=None).call(arrays).forward()
    assert_near(out, expected[0], 1e-5)
    assert_near(lse, expected[1], 1e-5)
    grads = vjp(call, inputs, [to_mlx(arrays["dout"]), to_mlx(arrays["dlse"])])
    assert [g.shape for g in grads] == [x.shape for x in inputs]


def test_an_input_used_twice(tier: str) -> None:
    """Self-attention without projections: one array is query, key and value."""
    case = Case((7, 6), (3, 3), heads=2)
    _, _, arrays, _ = prepared(case)
    x = to_mlx(arrays["query"])
    same = {**arrays, "key": arrays["query"], "value": arrays["query"]}
    gradient = mx.grad(lambda x: (natten_mlx.na2d(x, x, x, 3) * to_mlx(arrays["dout"])).sum())(x)
    expected = case.call(same).backward(arrays["dout"])
    assert_near(gradient, expected["query"] + expected["key"] + expected["value"], 1e-4)


def test_explicit_stream(tier: str) -> None:
    case = Case((7,), (3,))
    _, _, arrays, inputs = prepared(case)
    for stream in (device(), mx.default_stream(device()), mx.new_stream(device())):
        out = natten_mlx.na1d(*inputs, 3, stream=stream)
        assert_near(out, case.call(arrays).forward()[0], 1e-5)
