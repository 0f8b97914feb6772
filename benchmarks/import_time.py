"""How long `import natten_mlx` takes on top of `import mlx.core`: best of several fresh interpreters.

python benchmarks/import_time.py [--limit 0.3]
"""

import argparse
import subprocess
import sys

# MLX is imported before the clock starts; the rest of the standard library's costs are natten-mlx's own.
PROGRAM = """
import time, mlx.core
start = time.perf_counter()
import natten_mlx
print(time.perf_counter() - start)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=0.3, help="seconds; exit 1 above")
    args = parser.parse_args()
    seconds = sorted(
        float(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)
        for _ in range(args.repeats)
    )
    best, median = seconds[0], seconds[len(seconds) // 2]
    print(f"import natten_mlx, after mlx.core: best {best:.3f} s, median {median:.3f} s (limit {args.limit} s)")
    return 0 if best < args.limit else 1


if __name__ == "__main__":
    sys.exit(main())
