"""Timing: warm-up, trials, rounds, and what becomes of the samples."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx

from natten_mlx.bench.calls import Call
from natten_mlx.bench.machine import Limits


@dataclass(frozen=True)
class Plan:
    """How often a call is made. `seconds` bounds one round: a slow call gets fewer trials, at least one.

    `cpu_clock` counts the time that this process computed, not what others took from it: for one thread only.
    """

    warmup: int = 5
    trials: int = 25
    trim_head: int = 2
    rounds: int = 1
    seconds: float = 2.0
    cpu_clock: bool = False

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.trim_head < 0 or self.rounds < 1 or self.trials <= self.trim_head:
            raise ValueError(
                "expected warmup >= 0, trim_head >= 0, rounds >= 1 and trials > trim_head, got "
                f"{self.warmup}, {self.trim_head}, {self.rounds} and {self.trials}"
            )
        if not self.seconds > 0:
            raise ValueError(f"expected a positive number of seconds, got {self.seconds:g}")


@dataclass
class Samples:
    """Seconds of every trial, round by round, and the machine's limits around each round."""

    trim_head: int
    rounds: list[list[float]] = field(default_factory=list)
    fma_rates: list[float] = field(default_factory=list)

    def trimmed(self) -> list[list[float]]:
        """Without the first trials of each round, where there are more."""
        return [r[self.trim_head :] if len(r) > self.trim_head else r for r in self.rounds]

    def statistics(self, trim: bool = True) -> dict[str, float]:
        """What `summarize` makes of them."""
        return summarize(self.trimmed() if trim else self.rounds)


def summarize(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """median: of the rounds' medians; spread: from the 10th to the 90th percentile, as a part of the median."""
    every = sorted(sample for samples in rounds for sample in samples)
    median = statistics.median(statistics.median(samples) for samples in rounds)

    def percentile(part: float) -> float:
        return every[min(len(every) - 1, math.floor(part * len(every)))]

    return {
        "median": median,
        "min": every[0],
        "max": every[-1],
        "spread": (percentile(0.9) - percentile(0.1)) / median,
        "trials": float(len(every)),
    }


def once(call: Call, cpu_clock: bool = False) -> float:
    """Seconds of building the graph and evaluating it."""
    clock = time.process_time if cpu_clock else time.perf_counter
    start = clock()
    mx.eval(call())
    return clock() - start


def one_round(call: Call, plan: Plan, samples: Samples, limits: Limits | None = None) -> None:
    """Warms up, then adds a round of trials to `samples`, between two looks at the machine's peak."""
    if limits is not None:
        samples.fma_rates.append(limits.sample_fma())
    first = once(call, plan.cpu_clock)
    affordable = max(1, int(plan.seconds / first))
    if affordable == 1 and first > plan.seconds:
        samples.rounds.append([first])  # so slow that a warm-up means nothing and costs much
    else:
        for _ in range(min(plan.warmup - 1, affordable // 4)):
            once(call)
        samples.rounds.append([once(call, plan.cpu_clock) for _ in range(min(plan.trials, affordable))])
    if limits is not None:
        samples.fma_rates.append(limits.sample_fma())


def plan_options(plan: Plan) -> dict[str, Any]:
    """For the report."""
    return asdict(plan)
