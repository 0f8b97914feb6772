"""Resident memory that one call adds, forward and backward, each in a fresh process.

The dense matrix of the default case (2-D 128x128, 4 heads, D 32, kernel 13x13) would take 4 GiB, the neighborhood's
logits 44 MiB; each input takes 8 MiB.

    python benchmarks/peak_memory.py [--tier pure] [--limit 512]

With --ratio, instead: a forward and a backward pass together, compared with the size of their inputs, outputs and
gradients. Exit 1 above the ratio. Storing the attention matrix would add 0.33, a copy of one tensor 0.12:

    python benchmarks/peak_memory.py --tier nanobind --size 512 --head-dim 64 --ratio 1.25
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux


def measure(args: argparse.Namespace) -> None:
    """Prints by how many MiB one call raises the highest resident size of this process."""
    import mlx.core as mx

    import natten_mlx

    natten_mlx.set_backend(args.tier)
    if args.tier == "nanobind":
        mx.set_default_device(mx.Device(mx.cpu))  # which it is compiled for, also where there is a GPU
    shape = (1, args.size, args.size, args.heads, args.head_dim)

    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return natten_mlx.na2d(q, k, v, args.kernel_size)

    # The first, tiny call loads what is loaded once.
    small = mx.ones((1, args.kernel_size, args.kernel_size, 1, args.head_dim))
    mx.eval(attention(small, small, small))
    if args.measure == "training":
        print(measure_training(attention, shape))
        return
    query, key, value = (mx.random.normal(shape) for _ in range(3))
    mx.eval(query, key, value)
    before = peak_mib()
    if args.measure == "forward":
        mx.eval(attention(query, key, value))
    else:
        mx.eval(mx.grad(lambda *inputs: attention(*inputs).sum(), argnums=(0, 1, 2))(query, key, value))
    print(peak_mib() - before)


def measure_training(attention: Callable[..., mx.array], shape: tuple[int, ...]) -> float:
    """How much a forward and a backward pass raise the highest resident size, inputs included, over what they must:
    query, key, value, the output, its gradient, theirs, and the lse.
    """
    import mlx.core as mx

    before = peak_mib()
    arrays = []
    for _ in range(4):
        arrays.append(mx.random.uniform(shape=shape))
        mx.eval(arrays)
        mx.clear_cache()  # of what made the numbers
    *inputs, cotangent = arrays
    outputs, gradients = mx.vjp(attention, inputs, [cotangent])
    mx.eval(outputs, gradients)
    lse_bytes = 4 * outputs[0].size // shape[-1]
    needed = sum(x.nbytes for x in (*inputs, cotangent, *outputs, *gradients)) + lse_bytes
    return (peak_mib() - before) / (needed / 2**20)


def check_ratio(args: argparse.Namespace) -> bool:
    ratio = run_child("training")
    print(f"forward and backward, tier {args.tier}: {ratio:.3f} times the tensors (limit {args.ratio})")
    return ratio <= args.ratio


def run_child(what: str) -> float:
    command = [sys.executable, *sys.argv, "--measure", what]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default="pure")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--kernel-size", type=int, default=13)
    parser.add_argument("--limit", type=float, default=512, help="MiB that the forward may add; exit 1 above")
    parser.add_argument("--ratio", type=float, help="limit of forward and backward, in sizes of their tensors")
    parser.add_argument("--measure", choices=("forward", "backward", "training"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args)
        return 0
    if args.ratio is not None:
        return 0 if check_ratio(args) else 1
    within = True
    for direction in ("forward", "backward"):
        added = run_child(direction)
        limit = f" (limit {args.limit:.0f} MiB)" if direction == "forward" else ""
        print(f"{direction}, tier {args.tier}: adds {added:.0f} MiB{limit}")
        within = within and (direction != "forward" or added < args.limit)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
