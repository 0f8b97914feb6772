"""How often the guardrails fail although nothing changed: runs each direction again and again, each in a fresh process.

    python benchmarks/repeat_guardrail.py [--runs 20] [--keep DIR] [--json FILE]

A verdict depends on the ratios of a report alone. So reports that were kept can be judged by other thresholds:

    python benchmarks/repeat_guardrail.py --judge DIR [--skip 5] [--thresholds FILE] --json FILE

where `--skip` leaves out the first reports of each direction, those of which the thresholds were made.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from natten_mlx.bench import guardrail, report


def run(direction: str, path: Path) -> None:
    """One run in a fresh process.

    Raises:
        ValueError: it could not run at all.
    """
    command = [sys.executable, "-m", "natten_mlx", "bench", "guardrail", "--direction", direction, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise ValueError(done.stderr)


def judged(path: Path, thresholds: dict[str, Any]) -> list[str]:
    """What falls short in a report, by the present thresholds."""
    found = report.read_json(path, "guardrail")
    short = []
    for row in found["rows"]:
        if "ratios" in row:
            reasons = guardrail.shortfalls(row, thresholds, found["machine"])
            reasons += [] if row["floors"] else ["no threshold"]
        else:
            reasons = [row["reason"]] if found["tiers"][row["tier"]]["available"] else []
        short += [f"{row['case']} {row['direction']}: {reason}" for reason in reasons]
    return short


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--directions", nargs="+", default=["forward", "backward"])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep every report there, for record_thresholds.py")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="judge the reports kept there, run nothing")
    parser.add_argument("--thresholds", metavar="FILE", help="with --judge: instead of the package's")
    parser.add_argument("--skip", type=int, default=0, help="with --judge: leave out the first reports of a direction")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    try:
        thresholds = guardrail.load(args.thresholds)
        for direction in args.directions:
            with tempfile.TemporaryDirectory() as scratch:
                folder = args.judge or args.keep or Path(scratch)
                paths = [folder / f"{direction}{number}.json" for number in range(args.skip, args.runs)]
                verdicts = []
                for path in [path for path in paths if args.judge is None or path.exists()]:
                    if args.judge is None:
                        run(direction, path)
                    verdicts.append(judged(path, thresholds))
                    print(f"{direction} {len(verdicts)}: {'; '.join(verdicts[-1]) or 'passed'}", flush=True)
            found[direction] = {
                "runs": len(verdicts),
                "failed": sum(map(bool, verdicts)),
                "short": [reason for verdict in verdicts for reason in verdict],
            }
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({direction: (r["failed"], r["runs"]) for direction, r in found.items()}))
    if args.json:
        report.write_json(args.json, {"kind": "guardrail runs", "directions": found})
    return int(any(result["failed"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
