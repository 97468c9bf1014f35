"""Programs take turns, and the median counts."""

import itertools

import numpy as np
import pytest

from tinyfcn.bench.timing import TimeBudget, fit_line, gpu_clock, in_turn, wall_clock


def test_programs_take_turns_and_the_median_counts():
    order, taken = [], {"a": itertools.chain([9, 1, 2, 30, 4, 5], itertools.repeat(4)), "b": itertools.repeat(2)}

    def clock(program, count):
        order.append(program)
        return float(next(taken[program]))

    timings = in_turn({"a": "a", "b": "b"}, clock, TimeBudget(seconds=10, turns=50, min_turn=0))
    assert order[:2] == ["a", "b"]  # warm after a run of 9 s
    assert order[-10:] == ["a", "b"] * 5
    assert timings["a"] == {"seconds": 4, "low": 2, "high": 5, "turns": 5, "runs": 1}


def test_a_fast_program_runs_many_times_in_a_turn():
    clock = lambda program, count: 1e-4 * count + (1e-3 if program.pop() else 0)  # noqa: E731
    cold = [False] * 99 + [True]  # the first run takes longer
    timing = in_turn({"a": cold}, clock, TimeBudget(seconds=0.5, turns=20, min_turn=0.01), repeats=4)["a"]
    assert timing["runs"] == 4 * 100 and timing["turns"] == 20
    assert timing["seconds"] == pytest.approx(1e-4 / 4)


@pytest.mark.cupy
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
    # Neither is below 0, and the other one is then the best: 1.75 / 1.3125, (1/3 + 1/2 + 1) / (1/9 + 1/4 + 1).
    assert fit_line([1, 2, 4], [1, 4, 16]) == pytest.approx((0, 4 / 3))
    assert fit_line([1, 2, 4], [3, 2, 1]) == pytest.approx((66 / 49, 0))
