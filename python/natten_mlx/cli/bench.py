"""`natten-mlx bench`: the performance table, guardrails with an exit code, and comparison with alternatives."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from natten_mlx.cli import InputError
from natten_mlx.cli.arguments import blaming

HELP = "measure: performance table, guardrails, comparison with alternatives"


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    table = commands.add_parser("table", help="time, rates and memory of each case on each tier")
    _measuring(table, "table", warmup=5, trials=25, trim_head=2, rounds=1, seconds=2.0)
    table.add_argument(
        "--directions", nargs="+", metavar="DIR", help="forward, grad_query, step, grad_key (default: all)"
    )
    table.add_argument("--threads", type=int, default=0, help="CPU threads (default: NATTEN_NUM_THREADS or all)")
    _clock(table)
    table.add_argument(
        "--pure-limit", type=float, default=10.0, metavar="GFLOP", help="of a step, beyond which `pure` is not timed"
    )
    table.add_argument("--no-memory", action="store_true", help="don't measure peak memory (a process per figure)")
    _writing(table)
    table.add_argument("--plot", metavar="FILE", help="roofline plot (needs the extra `plots`)")
    table.set_defaults(benchmark_run=_table)

    guardrail = commands.add_parser("guardrail", help="exit 1 if a case is slower than its thresholds")
    guardrail.add_argument("--direction", choices=("forward", "backward"), required=True)
    _measuring(guardrail, "guardrail", warmup=2, trials=5, trim_head=1, rounds=3, seconds=0.06)
    guardrail.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, timed by the CPU clock)")
    guardrail.add_argument("--thresholds", metavar="FILE", help="instead of the package's")
    _writing(guardrail)
    guardrail.set_defaults(benchmark_run=_guardrail)

    compare = commands.add_parser("compare", help="side by side with dense, unfused, PyTorch and upstream attention")
    _measuring(compare, "large", warmup=2, trials=15, trim_head=1, rounds=2, seconds=1.0, tiers=False)
    compare.add_argument("--rivals", nargs="+", metavar="NAME", help="some of the alternatives (default: all)")
    compare.add_argument("--directions", nargs="+", metavar="DIR", help="forward, step (default: both)")
    compare.add_argument("--threads", type=int, default=0, help="CPU threads of natten-mlx and PyTorch (default: all)")
    _clock(compare)
    _writing(compare)
    compare.set_defaults(benchmark_run=_compare)


def _measuring(parser: argparse.ArgumentParser, cases: str, tiers: bool = True, **defaults: Any) -> None:
    parser.add_argument(
        "--cases", nargs="+", default=[cases], metavar="CASE", help=f"names, groups, *? (default: {cases})"
    )
    if tiers:
        parser.add_argument("--tiers", nargs="+", metavar="TIER", help="default: every tier, listed if it can't run")
    parser.add_argument("--warmup", type=int, default=defaults["warmup"], help="calls before each round")
    parser.add_argument("--trials", type=int, default=defaults["trials"], help="timed calls of each round")
    parser.add_argument("--trim-head", type=int, default=defaults["trim_head"], help="first trials that don't count")
    parser.add_argument("--rounds", type=int, default=defaults["rounds"], help="rounds in which the tiers take turns")
    parser.add_argument(
        "--seconds", type=float, default=defaults["seconds"], help="of one round at most: slow calls get fewer trials"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: MLX's")


def _clock(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cpu-clock", action="store_true", help="count the CPU time of this process: for --threads 1 on a busy machine"
    )


def _writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="everything: raw samples, statistics, machine, versions")
    parser.add_argument("--markdown", metavar="FILE", help="the table as Markdown")


def run(args: argparse.Namespace) -> int:
    use_device(args.device)
    from natten_mlx.bench.report import check_writable

    check_writable(args.json, args.markdown, getattr(args, "plot", None))
    return int(args.benchmark_run(args))


def use_device(name: str | None) -> None:
    """Makes `cpu` or `gpu` MLX's default device."""
    import mlx.core as mx

    if name is None:
        return
    if name == "gpu" and not (mx.metal.is_available() or mx.cuda.is_available()):
        raise InputError("--device gpu: MLX has no GPU here")
    mx.set_default_device(mx.Device(getattr(mx, name)))


def _table(args: argparse.Namespace) -> int:
    from natten_mlx import _ext
    from natten_mlx.bench import plots, report, table
    from natten_mlx.bench.calls import parse_tiers, tier_names
    from natten_mlx.bench.cases import select

    if args.plot:
        with blaming("--plot"):  # now, not when all is measured
            plots.check_format(args.plot)
    with blaming("--cases"):
        chosen = select(args.cases)
    with blaming("--tiers"):
        tiers = parse_tiers(args.tiers) if args.tiers else tier_names()
    directions = _directions(args.directions)
    if not args.pure_limit >= 0:
        raise InputError(f"--pure-limit must not be negative, got {args.pure_limit:g}")
    timing = plan(args, _cpu_clock(args))
    _ext.set_cpu_threads(_threads(args.threads))
    try:
        with progress_bar(table.count(chosen, directions)) as progress:
            result = table.run(chosen, tiers, timing, directions, not args.no_memory, 1e9 * args.pure_limit, progress)
    finally:
        _ext.set_cpu_threads(0)
    _show(report.terminal_table(report.COLUMNS, [report.cells(row) for row in result["rows"]]), result)
    _write(args, result, report.markdown)
    if args.plot:
        plots.roofline(result, args.plot)
        print(f"wrote {args.plot}")
    return 1 if table.has_wrong(result) else 0


def _needs_clone(module: str) -> None:
    """Wheels leave out what compares with rivals and thresholds (scripts/build_wheel)."""
    if importlib.util.find_spec(f"natten_mlx.bench.{module}") is None:
        raise InputError(
            "this measurement is not part of wheels: it runs in a clone of the repository, after `make test`"
        )


def _guardrail(args: argparse.Namespace) -> int:
    _needs_clone("guardrail")
    from natten_mlx.bench import guardrail, report
    from natten_mlx.bench.calls import REFERENCE, parse_tiers, tier_names
    from natten_mlx.bench.cases import select

    with blaming("--cases"):
        chosen = select(args.cases)
    with blaming("--thresholds"):
        thresholds = guardrail.load(args.thresholds)
    with blaming("--tiers"):
        tiers = [tier for tier in (parse_tiers(args.tiers) if args.tiers else tier_names()) if tier != REFERENCE]
        if not tiers:
            raise ValueError("every ratio is relative to pure: name another tier")
    count = sum(len(guardrail.directions(case, args.direction)) for case in chosen)
    threads = _threads(args.threads) or 1
    with progress_bar(count) as progress:
        result = guardrail.run(chosen, tiers, args.direction, plan(args, threads == 1), thresholds, threads, progress)
    failed = guardrail.failures(result)
    _show(report.terminal_table(guardrail.COLUMNS, [guardrail.cells(row) for row in result["rows"]]), result)
    if failed:
        columns = ("case", "direction", "tier", "status", "reason")
        fell = [[row["case"], row["direction"], row["tier"], row["status"], row["reason"]] for row in failed]
        _print(report.terminal_table(columns, fell, f"{len(failed)} of {len(result['rows'])} fell short"))
    else:
        print(f"{args.direction}: all {len(result['rows'])} within their thresholds, or declared as unavailable")
    print(result["held_to"])
    _write(args, result, guardrail.markdown)
    return 1 if failed else 0


def _compare(args: argparse.Namespace) -> int:
    _needs_clone("compare")
    from natten_mlx.bench import compare, report, table
    from natten_mlx.bench.cases import select

    with blaming("--cases"):
        chosen = select(args.cases)
    with blaming("--rivals"):
        rivals = compare.parse_rivals(args.rivals)
    directions = _directions(args.directions, ("forward", "step"))
    timing, threads = plan(args, _cpu_clock(args)), _threads(args.threads)
    with progress_bar(table.count(chosen, directions)) as progress:
        result = compare.run(chosen, rivals, timing, directions, threads, progress)
    _show(report.terminal_table(compare.COLUMNS, [compare.cells(row) for row in result["rows"]]), result)
    _write(args, result, compare.markdown)
    return 1 if table.has_wrong(result) else 0


def plan(args: argparse.Namespace, cpu_clock: bool = False) -> Any:
    """The options of `_measuring`."""
    from natten_mlx.bench.measure import Plan

    for name, least in (("warmup", 0), ("trim_head", 0), ("rounds", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    if args.trials <= args.trim_head:
        raise InputError(
            f"--trials {args.trials} leaves nothing: the first {args.trim_head} of each round don't count "
            f"(--trim-head). It must be at least {args.trim_head + 1}"
        )
    if not args.seconds > 0:
        raise InputError(f"--seconds must be positive, got {args.seconds:g}")
    return Plan(args.warmup, args.trials, args.trim_head, args.rounds, args.seconds, cpu_clock)


def _directions(names: list[str] | None, known: tuple[str, ...] = ()) -> list[str] | None:
    from natten_mlx.bench.cases import DIRECTIONS

    known = known or tuple(dict.fromkeys(name for names in DIRECTIONS.values() for name in names))
    unknown = set(names or known) - set(known)
    if unknown:
        raise InputError(f"--directions: unknown direction {sorted(unknown)[0]!r}. Expected one of {list(known)}")
    return names or (list(known) if len(known) == 2 else None)


def _cpu_clock(args: argparse.Namespace) -> bool:
    if args.cpu_clock and args.threads != 1:
        raise InputError("--cpu-clock adds up the time of all threads: use it with --threads 1")
    return bool(args.cpu_clock)


def _threads(count: int) -> int:
    if not 0 <= count <= 1024:
        raise InputError(f"--threads expects a number from 1 to 1024, got {count}")
    return count


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr that disappears at the end; what is yielded announces the next step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        started = False

        def advance(description: str) -> None:
            nonlocal started
            bar.update(task, description=description, advance=int(started))
            started = True

        yield advance


def _print(table: Any) -> None:
    """In full width where the output is no terminal, so that nothing is cut off in a log."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=180)).print(table, highlight=False)


def _show(table: Any, result: dict[str, Any]) -> None:
    from natten_mlx.bench.report import machine_line, tier_lines

    print(machine_line(result))
    for line in tier_lines(result):
        print(line)
    _print(table)


def _write(args: argparse.Namespace, result: dict[str, Any], markdown: Callable[[dict[str, Any]], str]) -> None:
    from pathlib import Path

    from natten_mlx.bench.report import write_json

    if args.json:
        write_json(args.json, result)
        print(f"wrote {args.json}")
    if args.markdown:
        Path(args.markdown).write_text(markdown(result))
        print(f"wrote {args.markdown}")
