"""Trains train.py's model with 1, 2 and 4 ranks on this machine, compares the losses, and draws who held what.

python examples/distributed/demo.py --report reports/distributed.png
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from natten_mlx.distributed.plan import plan
from train import AXIS, LATITUDES, LONGITUDES, WINDOW, weather

HERE = Path(__file__).parent


def launch(ranks: int, folder: Path, steps: int, port: int) -> list[float]:
    """The losses of a training on `ranks` processes."""
    losses = folder / f"{ranks}.json"
    launcher = shutil.which("mlx.launch", path=Path(sys.executable).parent) or "mlx.launch"
    command = [launcher, "-n", str(ranks), "--backend", "ring", "--starting-port", str(port), "--"]
    script = [sys.executable, str(HERE / "train.py"), "--steps", str(steps), "--losses", str(losses)]
    subprocess.run([*command, *script] if ranks > 1 else script, check=True)
    return json.loads(losses.read_text())


def draw(report: Path, losses: dict[int, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    spread = [ranks for ranks in losses if ranks > 1]
    heights = [1.1] * len(spread) + [1.3]
    figure, axes = plt.subplots(len(heights), 1, figsize=(9, 1.6 + 2.1 * len(heights)), height_ratios=heights)
    axes = np.atleast_1d(axes)
    field = np.array(weather(1, 0)[0][0, :, :, 0])
    for panel, ranks in zip(axes, spread, strict=False):
        panel.imshow(field, cmap="RdBu_r", aspect="auto")
        found = plan((1, LATITUDES, LONGITUDES, 2, 8), WINDOW, ranks, axis=AXIS, is_circular=(False, True))
        start = 0
        for rank, cost in enumerate(found.ranks):
            panel.axvline(start - 0.5, color="black", linewidth=1.5)
            panel.text(start + cost.rows / 2 - 0.5, 1.5, f"rank {rank}", ha="center", weight="bold")
            if rank == 1:
                before, after = cost.halo
                for left, width in ((start - before, before), (start + cost.rows, after)):
                    for turn in (0, LONGITUDES, -LONGITUDES):
                        box = Rectangle(
                            (left + turn - 0.5, -0.5), width, LATITUDES, fill=False, hatch="///", linewidth=0
                        )
                        panel.add_patch(box)
                panel.text(start + cost.rows / 2 - 0.5, LATITUDES - 2, "hatched: its halo", ha="center")
            start += cost.rows
        panel.set(title=f"{ranks} ranks, slabs of longitudes", xticks=[], yticks=[], xlim=(-0.5, LONGITUDES - 0.5))
    for (ranks, values), style in zip(losses.items(), ("-", "--", ":"), strict=False):
        axes[-1].plot(values, style, label=f"{ranks} rank(s)", linewidth=4 - ranks / 2)
    axes[-1].set(title="the same losses", xlabel="step", ylabel="mean squared error", yscale="log")
    axes[-1].legend()
    figure.tight_layout()
    report.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(report, dpi=110)
    print(f"wrote {report}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--port", type=int, default=32400, help="first of the ports that the ranks listen on")
    parser.add_argument("--report", type=Path, help="picture to write")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative difference of losses")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        losses = {
            ranks: launch(ranks, Path(folder), args.steps, args.port + 16 * index)
            for index, ranks in enumerate(args.ranks)
        }
    first = np.array(losses[args.ranks[0]])
    apart = max(float(np.max(np.abs(np.array(values) - first) / first)) for values in losses.values())
    print(f"losses of {args.ranks} ranks differ by {apart:.1e} at most, and end at {first[-1]:.5f}")
    if args.report:
        draw(args.report, losses)
    if apart > args.tolerance:
        print(f"expected at most {args.tolerance:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
