"""How long programs take: warmed up, then timed in turn, the median of many turns."""

import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

Run = Callable[[], Any]
Clock = Callable[[Run, int], float]  # (program, how many runs) -> the seconds of all runs

WARM_UPS, MAX_WARM_UP_SECONDS = 4, 1.0  # before a program is timed; a slow one is warm after fewer
MIN_TURNS = 5
REST = 0.02  # seconds: after its last operation PyTorch's threads wait in a loop, for some milliseconds


class Timing(TypedDict):
    """Seconds of one run: the median over `turns` of `runs` each, and the quartiles `low` and `high`."""

    seconds: float
    low: float
    high: float
    turns: int
    runs: int


@dataclass(frozen=True)
class TimeBudget:
    """How long to measure: about `seconds` for each program, in at most `turns`, each at least `min_turn` seconds long.

    A shorter turn would measure the clock: the GPU's events are half a microsecond apart at the least.
    """

    seconds: float = 1.0
    turns: int = 50
    min_turn: float = 0.005


def wall_clock(run: Run, count: int) -> float:
    """The host's clock, for work that is done when `run` returns. Before them, the cores come to rest."""
    time.sleep(REST)
    return timeit.timeit(run, number=count)


def gpu_clock(run: Run, count: int) -> float:
    """CUDA events around all runs, on the default stream, which is PyTorch's too. No run waits for the one before, so
    that the time is the host's where the host is slower than the GPU."""
    from cupyx.profiler import benchmark

    return float(benchmark(lambda: [run() for _ in range(count)], n_repeat=1, n_warmup=0).gpu_times[0, 0])


def in_turn(programs: Mapping[str, Run], clock: Clock, budget: TimeBudget, repeats: int = 1) -> dict[str, Timing]:
    """Times programs that do the same work, by turns, so that a busy machine slows all of them.

    repeats: how many times each run does the work; the timings are of one time.
    """
    counts, turns = {}, budget.turns
    for name, run in programs.items():
        count, turn, warm_up = 1, clock(run, 1), 1
        while warm_up < WARM_UPS and turn <= MAX_WARM_UP_SECONDS:  # each estimates better how many runs fill a turn
            count, warm_up = max(1, round(count * budget.min_turn / max(turn, 1e-9))), warm_up + 1
            turn = clock(run, count)
        counts[name], turns = count, min(turns, max(MIN_TURNS, int(budget.seconds / max(turn, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, run in programs.items():
            seconds[name].append(clock(run, counts[name]) / counts[name] / repeats)
    quartiles = {name: [*map(float, np.quantile(values, (0.5, 0.25, 0.75)))] for name, values in seconds.items()}
    return {
        name: Timing(seconds=median, low=low, high=high, turns=turns, runs=counts[name] * repeats)
        for name, (median, low, high) in quartiles.items()
    }


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(a, b) of seconds = a + b * size, both at least 0, with the least sum of squared relative errors.

    Relative errors, so that times from microseconds to seconds weigh the same.
    """
    x, weights = np.array(sizes, float), 1 / np.array(seconds, float)
    b, a = np.polyfit(x, 1 / weights, 1, w=weights)
    # Where the best line has a negative coefficient, the best one within bounds has 0 for it.
    if a < 0:
        a, b = 0, (x * weights).sum() / (x * weights @ (x * weights))
    elif b < 0:
        a, b = weights.sum() / (weights @ weights), 0
    return float(a), float(b)
