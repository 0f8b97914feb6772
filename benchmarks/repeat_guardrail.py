"""How often the guardrails fail although nothing changed: runs each direction again and again, each in a fresh process.

python benchmarks/repeat_guardrail.py [--runs 20] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from natten_mlx.bench import guardrail, report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--directions", nargs="+", default=["forward", "backward"])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="also keep every report, for record_thresholds.py")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for direction in args.directions:
        durations, failed, short = [], 0, []
        for number in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                path = (args.keep or Path(folder)) / f"{direction}{number}.json"
                command = [sys.executable, "-m", "natten_mlx", "bench", "guardrail", "--direction", direction]
                start = time.perf_counter()
                done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, check=False)
                durations.append(time.perf_counter() - start)
                if done.returncode not in (0, 1):
                    print(done.stderr, file=sys.stderr)
                    return 2
                failed += done.returncode
                rows = guardrail.failures(report.read_json(path, "guardrail"))
                short += [f"{row['case']} {row['direction']}: {row['reason']}" for row in rows]
            print(f"{direction} {number + 1}/{args.runs}: {'failed' if done.returncode else 'passed'}", flush=True)
        found[direction] = {
            "runs": args.runs,
            "failed": failed,
            "seconds": round(statistics.median(durations), 1),
            "short": short,
        }
        print(json.dumps(found[direction], indent=1))
    if args.json:
        report.write_json(args.json, {"kind": "guardrail runs", "directions": found})
    return int(any(result["failed"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
