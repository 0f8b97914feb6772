"""Resident memory that one call adds, forward and backward, each in a fresh process.

The dense matrix of the default case (2-D 128x128, 4 heads, D 32, kernel 13x13) would take 4 GiB, the neighborhood's
logits 44 MiB; each input takes 8 MiB.

    python benchmarks/peak_memory.py [--tier pure] [--limit 512]
"""

import argparse
import resource
import subprocess
import sys


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux


def measure(args: argparse.Namespace) -> None:
    """Prints by how many MiB one call raises the highest resident size of this process."""
    import mlx.core as mx

    import natten_mlx

    natten_mlx.set_backend(args.tier)
    shape = (1, args.size, args.size, args.heads, args.head_dim)
    query, key, value = (mx.random.normal(shape) for _ in range(3))

    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return natten_mlx.na2d(q, k, v, args.kernel_size)

    # The first, tiny call loads what is loaded once.
    small = mx.ones((1, args.kernel_size, args.kernel_size, 1, args.head_dim))
    mx.eval(attention(small, small, small), query, key, value)
    before = peak_mib()
    if args.measure == "forward":
        mx.eval(attention(query, key, value))
    else:
        mx.eval(mx.grad(lambda *inputs: attention(*inputs).sum(), argnums=(0, 1, 2))(query, key, value))
    print(peak_mib() - before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default="pure")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--kernel-size", type=int, default=13)
    parser.add_argument("--limit", type=float, default=512, help="MiB that the forward may add; exit 1 above")
    parser.add_argument("--measure", choices=("forward", "backward"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args)
        return 0
    within = True
    for direction in ("forward", "backward"):
        command = [sys.executable, *sys.argv, "--measure", direction]
        added = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        limit = f" (limit {args.limit:.0f} MiB)" if direction == "forward" else ""
        print(f"{direction}, tier {args.tier}: adds {added:.0f} MiB{limit}")
        within = within and (direction != "forward" or added < args.limit)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
