"""`natten-mlx matrix`: what each tier covers, computed by the library from the predicates that dispatch uses."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "show what each tier supports, and whether it can run here"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace) -> int:
    import natten_mlx

    matrix = natten_mlx.get_support_matrix()
    if args.json:
        print(json.dumps(matrix, indent=2))
        return 0
    from rich.console import Console

    console = Console()
    console.print(table(matrix))
    for row in matrix.values():
        for constraint in row["constraints"]:
            console.print(f"[bold]{row['name']}[/]: {constraint}", highlight=False)
    return 0


def table(matrix: dict[str, Any]) -> Any:
    """The matrix as a rich table, one column per tier."""
    from rich.table import Table

    result = Table(title="natten-mlx support matrix")
    result.add_column("")
    for row in matrix.values():
        result.add_column(row["name"], overflow="fold")

    def add(label: str, *cells: str) -> None:
        result.add_row(label, *cells)

    rows = list(matrix.values())
    add("available here", *("[green]yes[/]" if row["available"] else f"[yellow]no[/]: {row['reason']}" for row in rows))
    for field in ("forward", "backward", "fusion", "varlen"):
        add(field, *(", ".join(name for name, covered in row[field].items() if covered) or "-" for row in rows))
    for field in ("devices", "dtypes"):
        add(field, *(", ".join(row[field]) for row in rows))
    return result
