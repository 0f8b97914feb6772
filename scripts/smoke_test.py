"""Is this installation of natten-mlx usable? Forward against dense attention, gradient, module, command line."""

import subprocess
import sys

import mlx.core as mx

import natten_mlx


def main() -> None:
    mx.random.seed(0)
    query, key, value = (mx.random.normal((1, 5, 7, 2, 8)) for _ in range(3))

    # A window as large as the input is dense attention.
    out, lse = natten_mlx.na2d(query, key, value, kernel_size=(5, 7), return_lse=True)
    flat = [x.reshape(1, 35, 2, 8).transpose(0, 2, 1, 3) for x in (query, key, value)]
    dense = mx.fast.scaled_dot_product_attention(*flat, scale=8**-0.5).transpose(0, 2, 1, 3).reshape(out.shape)
    assert mx.abs(out - dense).max().item() < 1e-5, "na2d differs from dense attention"
    assert lse.dtype == mx.float32 and lse.shape == (1, 5, 7, 2), (lse.dtype, lse.shape)

    # A window of one key returns the values, so the gradient of their sum is one everywhere.
    grad = mx.grad(lambda v: natten_mlx.na2d(query, key, v, kernel_size=1).sum())(value)
    assert mx.allclose(grad, mx.ones_like(grad)).item(), "gradient of a one-key window is not one"

    module = natten_mlx.NeighborhoodAttention2D(embed_dim=16, num_heads=2, kernel_size=3)
    assert module(mx.zeros((1, 5, 7, 16))).shape == (1, 5, 7, 16)

    try:
        natten_mlx.na1d(query, key, value, kernel_size=3)
    except ValueError as error:
        assert "na1d" in str(error), error
    else:
        raise AssertionError("a 2-D input was accepted by na1d")

    for command in ("doctor", "matrix"):
        subprocess.run([sys.executable, "-m", "natten_mlx", command], check=True, stdout=subprocess.DEVNULL)
    print(f"natten-mlx {natten_mlx.__version__} works (tier: {natten_mlx.get_backend()})")


if __name__ == "__main__":
    main()
