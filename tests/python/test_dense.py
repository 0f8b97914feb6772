"""Dense attention of queries and keys of different lengths: values, lse, gradients, errors."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import natten_mlx
from harness import assert_near, gradient_dtypes_match, to_mlx, to_numpy

# queries, keys, heads, key heads, dim, value dim, causal
CASES = (
    (7, 7, 2, 2, 4, 4, False),
    (7, 7, 2, 2, 4, 4, True),
    (1, 9, 4, 2, 8, 5, False),
    (1, 9, 4, 1, 8, 8, True),
    (5, 12, 2, 2, 16, 16, True),
    (12, 5, 4, 2, 8, 3, False),
    (11, 3, 2, 1, 4, 4, False),
    (6, 1, 2, 2, 4, 4, False),
    (130, 70, 2, 1, 32, 32, False),
)


def dense(q: mx.array, k: mx.array, v: mx.array, scale: Any, causal: bool) -> tuple[mx.array, mx.array]:
    """Textbook attention in float64."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.swapaxes(1, 2) for x in (q, mx.repeat(k, group, axis=2), mx.repeat(v, group, axis=2)))
    logits = (q * scale) @ k.swapaxes(-1, -2)
    if causal:
        place = mx.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        logits = mx.where(mx.arange(k.shape[2]) <= place, logits, -mx.array(np.inf, mx.float64))
    top = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = mx.power(mx.array(np.e, mx.float64), logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    return ((weights / total) @ v).swapaxes(1, 2), (mx.log(total) + top)[..., 0].swapaxes(1, 2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_lse_and_gradients(tier: str, case: tuple[Any, ...], rng: np.random.Generator) -> None:
    queries, keys, heads, kv_heads, dim, value_dim, causal = case
    shapes = ((2, queries, heads, dim), (2, keys, kv_heads, dim), (2, keys, kv_heads, value_dim))
    arrays = [rng.standard_normal(shape) for shape in shapes]
    cotangents = [rng.standard_normal((2, queries, heads, value_dim)), rng.standard_normal((2, queries, heads))]
    exact = [mx.array(x, mx.float64) for x in arrays]
    with mx.stream(mx.cpu):  # no GPU has float64
        expected, expected_grads = mx.vjp(
            lambda *a: list(dense(*a, dim**-0.5, causal)), exact, [mx.array(x, mx.float64) for x in cotangents]
        )
    inputs = [to_mlx(x) for x in arrays]
    results, grads = mx.vjp(
        lambda *a: list(natten_mlx.attention(*a, is_causal=causal, return_lse=True)),
        inputs,
        [to_mlx(x) for x in cotangents],
    )
    for result, value in zip(results, expected, strict=True):
        assert_near(result, to_numpy(value), 1e-5)
    assert gradient_dtypes_match(inputs, grads)
    for gradient, value in zip(grads, expected_grads, strict=True):
        assert_near(gradient, to_numpy(value), 1e-4)
    assert_near(natten_mlx.attention(*inputs, is_causal=causal), to_numpy(expected[0]), 1e-5)


@pytest.mark.parametrize("queries", [3, 20])
def test_a_learned_scale_per_head(tier: str, queries: int, rng: np.random.Generator) -> None:
    q, k = rng.standard_normal((1, queries, 4, 8)), rng.standard_normal((1, 6, 2, 8))
    scale = np.array([0.3, 0.5, -0.2, 1.0])

    def loss(attention: Any, scale: mx.array, kind: mx.Dtype) -> mx.array:
        return (attention(mx.array(q, kind), mx.array(k, kind), mx.array(k, kind), scale) ** 2).sum()

    with mx.stream(mx.cpu):
        expected = mx.grad(lambda s: loss(lambda *a: dense(*a[:3], a[3][:, None, None], False)[0], s, mx.float64))(
            mx.array(scale, mx.float64)
        )
    assert_near(mx.grad(lambda s: loss(natten_mlx.attention, s, mx.float32))(to_mlx(scale)), to_numpy(expected), 1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("queries", [5, 21])
def test_half_types(tier: str, dtype: str, queries: int, rng: np.random.Generator) -> None:
    inputs = [to_mlx(rng.standard_normal((2, n, 2, 16)), dtype) for n in (queries, 9, 9)]
    out, lse = natten_mlx.attention(*inputs, return_lse=True)
    assert (out.dtype, lse.dtype) == (inputs[0].dtype, mx.float32)
    with mx.stream(mx.cpu):
        expected, expected_lse = dense(*(mx.array(to_numpy(x), mx.float64) for x in inputs), 0.25, False)
    assert_near(out, to_numpy(expected), {"float16": 2e-3, "bfloat16": 1e-2}[dtype])
    assert_near(lse, to_numpy(expected_lse), 1e-5)


def test_transformations(tier: str) -> None:
    q, k = mx.random.normal((3, 1, 5, 2, 4)), mx.random.normal((3, 1, 3, 2, 4))
    expected = mx.stack([natten_mlx.attention(a, b, b) for a, b in zip(q, k, strict=True)])
    assert mx.allclose(mx.vmap(natten_mlx.attention)(q, k, k), expected, atol=1e-5)
    assert mx.allclose(mx.compile(natten_mlx.attention)(q[0], k[0], k[0]), expected[0], atol=1e-5)


def test_it_merges_with_a_neighborhood(tier: str) -> None:
    x, text = mx.random.normal((1, 12, 2, 8)), mx.random.normal((1, 5, 2, 8))
    near = natten_mlx.na1d(x, x, x, 3, return_lse=True)
    far = natten_mlx.attention(x, text, text, return_lse=True)
    both, _ = natten_mlx.merge_attentions(*zip(near, far, strict=True))
    assert mx.allclose(both, natten_mlx.na1d(x, x, x, 3, additional_keys=text, additional_values=text), atol=1e-5)


def test_a_batch_of_0(tier: str) -> None:
    q, k = mx.zeros((0, 5, 2, 4)), mx.zeros((0, 3, 2, 4))
    out, lse = natten_mlx.attention(q, k, k, return_lse=True)
    assert out.shape == q.shape and lse.shape == (0, 5, 2)


Q, K = mx.zeros((2, 5, 4, 8)), mx.zeros((2, 3, 2, 8))
WRONG: dict[str, Any] = {
    r"query must have layout \[B, L, H, D\], got shape \(5, 4, 8\)": lambda: natten_mlx.attention(Q[0], K, K),
    r"key must have layout": lambda: natten_mlx.attention(Q, K[0], K),
    r"query must have no axis of size 0": lambda: natten_mlx.attention(Q[:, :0], K, K),
    r"key must have no axis of size 0": lambda: natten_mlx.attention(Q, K[:, :0], K[:, :0]),
    r"Batch dimensions must match": lambda: natten_mlx.attention(Q[:1], K, K),
    r"Head dim must match": lambda: natten_mlx.attention(Q[..., :4], K, K),
    r"must be divisible by": lambda: natten_mlx.attention(Q[:, :, :3], K, K),
    r"Spatial dimensions must match": lambda: natten_mlx.attention(Q, K, K[:, :2]),
    r"heads of key and value must match": lambda: natten_mlx.attention(Q, K, K[:, :, :1]),
    r"at most as many queries as keys, got 5 and 3": lambda: natten_mlx.attention(Q, K, K, is_causal=True),
    r"query must be float32": lambda: natten_mlx.attention(Q.astype(mx.int32), K, K),
    r"scale must be": lambda: natten_mlx.attention(Q, K, K, mx.ones(3)),
    r"is_causal must be": lambda: natten_mlx.attention(Q, K, K, is_causal=1),
    r"key must be an mlx.core.array": lambda: natten_mlx.attention(Q, None, K),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[attention\] .*{message}"):
        WRONG[message]()
