"""Makes the guardrails' thresholds of reports that `natten-mlx bench guardrail --json` wrote.

Several reports of each direction show how much the ratios vary: a floor is a part of the lowest one, and the stored
ratios of the release are the medians.

    for i in 1 2 3; do for d in forward backward; do
      natten-mlx bench guardrail --direction $d --json $d$i.json
    done; done
    python benchmarks/record_thresholds.py forward?.json backward?.json

After a case was added, reports of it alone (--cases) will do, with --keep.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from natten_mlx.bench import guardrail
from natten_mlx.bench.report import read_json
from natten_mlx.bench.table import WRONG

THRESHOLDS = Path(__file__).resolve().parent.parent / "python" / "natten_mlx" / "bench" / "thresholds.json"


def keep(stored: dict[str, Any], thresholds: dict[str, Any]) -> None:
    """Adds the stored thresholds of other cases, and the release that they are of."""
    new = {"floors": thresholds["floors"], "ratios": thresholds["release"]["ratios"]}
    old = {"floors": stored["floors"], "ratios": stored["release"]["ratios"]}
    for name, tiers in new.items():
        for tier, by_case in tiers.items():
            tiers[tier] = old[name].get(tier, {}) | by_case
    thresholds["release"] = {**stored["release"], "ratios": new["ratios"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", metavar="JSON")
    parser.add_argument("--part", type=float, default=0.5, help="of the lowest ratio seen: the floor (default: 0.5)")
    parser.add_argument("--margin", type=float, default=0.5, help="of the release's ratio that must be reached")
    parser.add_argument("--keep", action="store_true", help="what the file has of cases that the reports do not have")
    parser.add_argument("--output", type=Path, default=THRESHOLDS)
    args = parser.parse_args()
    try:
        reports = [read_json(path, "guardrail") for path in args.reports]
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    if any(row["status"] == WRONG for found in reports for row in found["rows"]):
        print("some results were wrong: nothing is recorded", file=sys.stderr)
        return 1
    thresholds = guardrail.thresholds_of(reports, args.part, args.margin)
    if args.keep:
        keep(guardrail.load(args.output), thresholds)
    text = json.dumps(thresholds, indent=1)
    args.output.write_text(re.sub(r"\{[^{}]*\}", lambda innermost: " ".join(innermost[0].split()), text) + "\n")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
