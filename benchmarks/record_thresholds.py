"""Makes the guardrails' thresholds of reports that `natten-mlx bench guardrail --json` wrote.

Several reports of each direction, of one machine, show how much the ratios vary: a floor is a part of the lowest one,
and the stored ratios of the release are the medians. They take the place of what is stored for that kind of machine.

    for i in 1 2 3; do for d in forward backward; do
      natten-mlx bench guardrail --direction $d --json $d$i.json
    done; done
    python benchmarks/record_thresholds.py forward?.json backward?.json

After a case was added, reports of it alone (--cases) will do, with --keep. A report of `natten-mlx bench table` will do
for a kind of machine that has none (--floors-alone, and a smaller --part, for it is one run).
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


def keep(stored: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What is stored of a kind of machine, with what was measured of some cases in place of these cases'."""
    joined = {name: {tier: dict(cases) for tier, cases in stored[name].items()} for name in ("floors", "ratios")}
    for name, tiers in joined.items():
        for tier, by_case in own[name].items():
            tiers.setdefault(tier, {}).update(by_case)
    return {**stored, **joined}


def read(path: str) -> dict[str, Any]:
    """A report of guardrails or a table.

    Raises:
        ValueError: it is neither.
    """
    try:
        return read_json(path, "guardrail")
    except ValueError:
        return read_json(path, "table")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", metavar="JSON")
    parser.add_argument("--part", type=float, default=0.5, help="of the lowest ratio seen: the floor (default: 0.5)")
    parser.add_argument("--margin", type=float, default=0.5, help="of the release's ratio that must be reached")
    parser.add_argument("--floors-alone", action="store_true", help="no ratios of a release")
    parser.add_argument("--keep", action="store_true", help="what the file has of cases that the reports do not have")
    parser.add_argument("--output", type=Path, default=THRESHOLDS)
    args = parser.parse_args()
    try:
        reports = [read(path) for path in args.reports]
        thresholds = guardrail.load(str(args.output))
        own = guardrail.thresholds_of(reports, args.part, args.margin, not args.floors_alone)
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    if any(row["status"] == WRONG for found in reports for row in found["rows"]):
        print("some results were wrong: nothing is recorded", file=sys.stderr)
        return 1
    stored = guardrail.own_thresholds(thresholds, own)
    others = [machine for machine in thresholds["machines"] if machine is not stored]
    thresholds["machines"] = [*others, keep(stored, own) if args.keep and stored else own]
    text = json.dumps(thresholds, indent=1)
    args.output.write_text(re.sub(r"\{[^{}]*\}", lambda innermost: " ".join(innermost[0].split()), text) + "\n")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
