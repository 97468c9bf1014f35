"""How long things take: warmed up, one after another in turn, the median of many."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyfcn.devices import cuda

Run = Callable[[], Any]
Clock = Callable[[Run, int], float]  # (what to run, how often) -> the seconds that all of it takes

WARM_UP, WARM_ENOUGH = 3, 1.0  # runs before any is timed, and seconds after which no more of them are needed
MIN_TURNS = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: the median over `turns` of `runs` each, and the quartiles, between which half of them lie."""

    seconds: float
    low: float
    high: float
    turns: int
    runs: int

    def divided(self, count: int) -> "Timing":
        """The timing of one, where each run did so many."""
        return Timing(self.seconds / count, self.low / count, self.high / count, self.turns, self.runs * count)


@dataclass(frozen=True)
class Patience:
    """How long to measure: for about `seconds` each, in at most `turns`, none shorter than `shortest` seconds.

    A turn that is too short measures the clock: the GPU's events are half a microsecond apart at the least.
    """

    seconds: float = 1.0
    turns: int = 50
    shortest: float = 0.005


def wall_clock(run: Run, count: int) -> float:
    """By the clock on the wall, of what is done when it returns."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - start


def gpu_clock(run: Run, count: int) -> float:
    """By CUDA events on the default stream, on which PyTorch's work goes too unless it is told otherwise.

    The work is put there without waiting for it. Where the host is slower than the GPU, as with a framework that
    launches kernel after kernel, the time between the events is the host's.
    """
    events = cuda.import_cupy().cuda
    start, end = events.Event(), events.Event()
    start.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return events.get_elapsed_time(start, end) / 1e3


def in_turn(runs: Mapping[str, Run], clock: Clock, patience: Patience) -> dict[str, Timing]:
    """Times some ways to do the same thing, by turns, so that what else the machine does meets all of them."""
    counts, turns = dict.fromkeys(runs, 1), patience.turns
    for name, run in runs.items():
        warming = 0.0
        for _ in range(WARM_UP):
            once = clock(run, 1)
            warming += once
            if warming > WARM_ENOUGH:
                break
        for _ in range(2 if once < patience.shortest else 0):  # the second time by a better estimate
            counts[name] = max(1, round(patience.shortest / max(once, 1e-9)))
            once = clock(run, counts[name]) / counts[name]
        turns = min(turns, max(MIN_TURNS, int(patience.seconds / max(once * counts[name], 1e-9))))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            taken[name].append(clock(run, counts[name]) / counts[name])
    timings = {}
    for name, seconds in taken.items():
        low, median, high = (float(value) for value in np.quantile(seconds, (0.25, 0.5, 0.75)))
        timings[name] = Timing(median, low, high, turns, counts[name])
    return timings


def line_through(sizes: list[float], seconds: list[float]) -> tuple[float, float]:
    """(a, b) of seconds = a + b * size, both at least 0, with the least relative errors squared.

    Relative ones, since times from microseconds to seconds are to count alike.
    """
    x, y = np.array(sizes, float), np.array(seconds, float)
    columns = np.stack([1 / y, x / y], axis=1)
    (a, b), *_ = np.linalg.lstsq(columns, np.ones(len(y)), rcond=None)
    if a < 0 or b < 0:  # the best line within bounds has one of the two at 0
        ones = [columns[:, k] @ np.ones(len(y)) / (columns[:, k] @ columns[:, k]) for k in (0, 1)]
        errors = [np.sum((columns[:, k] * ones[k] - 1) ** 2) for k in (0, 1)]
        a, b = (ones[0], 0.0) if errors[0] < errors[1] else (0.0, ones[1])
    return float(a), float(b)
