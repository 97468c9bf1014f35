"""Programs take turns, and the median counts."""

import itertools

import numpy as np
import pytest

from tinyfcn.bench.timing import TimeBudget, fit_line, gpu_clock, in_turn, wall_clock


def test_programs_take_turns_and_the_median_counts():
    order, taken = [], {"a": iter([9, 1, 2, 30, 4, 5]), "b": itertools.repeat(2)}

    def clock(program, count):
        order.append(program)
        return float(next(taken[program]))

    timings = in_turn({"a": "a", "b": "b"}, clock, TimeBudget(seconds=10, turns=50, min_turn=0))
    assert order[-10:] == ["a", "b"] * 5
    assert timings["a"].seconds == 4 and (timings["a"].low, timings["a"].high) == (2, 5)
    assert timings["b"].turns == 5 and timings["b"].runs == 1


def test_a_fast_program_runs_many_times_in_a_turn():
    budget = TimeBudget(seconds=0.5, turns=20, min_turn=0.01)
    timing = in_turn({"a": None}, lambda program, count: 1e-4 * count, budget, repeats=4)["a"]
    assert timing.runs == 4 * 100 and timing.turns == 20
    assert timing.seconds == pytest.approx(1e-4 / 4)


def test_clocks_count_all_runs(monkeypatch):
    runs = []
    assert wall_clock(lambda: runs.append(1), 7) > 0 and len(runs) == 7

    def benchmark(function, n_repeat, n_warmup):
        """As CuPy's, without a GPU."""
        [function() for _ in range(n_repeat + n_warmup)]
        return type("Result", (), {"gpu_times": np.full((1, n_repeat), 0.5)})

    monkeypatch.setattr("cupyx.profiler.benchmark", benchmark)
    assert gpu_clock(lambda: runs.append(1), 5) == 0.5 and len(runs) == 7 + 5


def test_lines():
    sizes = [1, 4, 16, 4096]
    assert fit_line(sizes, [3e-3 + 2e-6 * size for size in sizes]) == pytest.approx((3e-3, 2e-6))
    assert fit_line([1, 2, 4], [1, 4, 16])[0] == 0  # never below 0
    assert fit_line([1, 2, 4], [3, 2, 1])[1] == 0
