"""How long programs take: warmed up, then timed in turn, the median of many turns."""

import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[], Any]
Clock = Callable[[Run, int], float]  # (program, how many runs) -> the seconds of all runs

WARM_UP_RUNS, MAX_WARM_UP_SECONDS = 3, 1.0  # before a program is timed; a slow one is warm after fewer runs
MIN_TURNS = 5


@dataclass(frozen=True)
class Timing:
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
    """The host's clock, for work that is done when `run` returns."""
    return timeit.timeit(run, number=count)


def gpu_clock(run: Run, count: int) -> float:
    """CUDA events around all runs, on the default stream, which is PyTorch's too. No run waits for the one before, so
    that the time is the host's where the host is slower than the GPU."""
    from cupyx.profiler import benchmark

    def repeat() -> None:
        for _ in range(count):
            run()

    return float(benchmark(repeat, n_repeat=1, n_warmup=0).gpu_times[0, 0])


def in_turn(programs: Mapping[str, Run], clock: Clock, budget: TimeBudget, repeats: int = 1) -> dict[str, Timing]:
    """Times programs that do the same work, by turns, so that a busy machine slows all of them.

    repeats: how many times each run does the work; the timings are of one time.
    """
    counts, turns = dict.fromkeys(programs, 1), budget.turns
    for name, run in programs.items():
        warm_up: list[float] = []
        while len(warm_up) < WARM_UP_RUNS and sum(warm_up) <= MAX_WARM_UP_SECONDS:
            warm_up.append(clock(run, 1))
        once = warm_up[-1]
        for _ in range(2 if once < budget.min_turn else 0):  # the second estimate is the better one
            counts[name] = max(1, round(budget.min_turn / max(once, 1e-9)))
            once = clock(run, counts[name]) / counts[name]
        turns = min(turns, max(MIN_TURNS, int(budget.seconds / max(once * counts[name], 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, run in programs.items():
            seconds[name].append(clock(run, counts[name]) / counts[name] / repeats)
    timings = {}
    for name, values in seconds.items():
        low, median, high = map(float, np.quantile(values, (0.25, 0.5, 0.75)))
        timings[name] = Timing(median, low, high, turns, counts[name] * repeats)
    return timings


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(a, b) of seconds = a + b * size, both at least 0, with the least sum of squared relative errors.

    Relative errors, so that times from microseconds to seconds weigh the same.
    """
    x, y = np.array(sizes, float), np.array(seconds, float)
    columns, ones = np.stack([1 / y, x / y], axis=1), np.ones(len(y))
    # Where the best line has a negative coefficient, the best one within bounds has 0 for one of the two.
    fits = [kept * np.linalg.lstsq(columns * kept, ones, rcond=None)[0] for kept in np.array([[1, 1], [1, 0], [0, 1]])]
    a, b = min((fit for fit in fits if fit.min() >= 0), key=lambda fit: np.linalg.norm(columns @ fit - ones))
    return float(a), float(b)
