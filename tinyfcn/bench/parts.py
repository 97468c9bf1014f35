"""The parts of a training step, compared in all forms that they have, and timed.

On a GPU the forms are the fast kernels, the naive kernels and PyTorch; elsewhere NumPy and PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np

from tinyfcn.bench.timing import Clock, Run, TimeBudget, Timing, in_turn
from tinyfcn.checks.gradcheck import relative_error
from tinyfcn.checks.parts import Part, changed
from tinyfcn.devices.launch import ceil_div
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import Operations

TOLERANCE = 1e-3  # of the relative difference of two forms
COPIED_BYTES = 1 << 28  # of a part's arrays, all copies together: more than a cache holds
MIN_COPIES, MAX_COPIES = 2, 64
MIN_LAUNCHES = 20  # in a graph that is timed


class Form:
    """A way to do the parts of a step: by the operations that `ops` has."""

    def __init__(self, ops: Operations) -> None:
        self.ops = ops

    def does(self, part: Part) -> bool:
        return True

    def copy(self, array: Any) -> Any:
        return self.ops.asarray(self.ops.to_numpy(array))

    def to_numpy(self, result: Any) -> np.ndarray:
        return self.ops.to_numpy(result)

    def prepared(self, part: Part) -> Run:
        """Gives the part's results, from copies of its arguments."""
        function, arguments = getattr(self.ops, part.operation), part.copied_arguments(self.copy)
        return lambda: part.chosen(function(**arguments)) or changed(arguments)

    def record(self, part: Part, work: Run) -> Run:
        """Runs those launches of `work` that give the part."""
        recording = self.ops.device.record(work)
        recording.launches[:] = part.own(recording.launches)
        return recording.replay

    def program(self, part: Part, copies: int, rounds: int) -> Run:
        """Runs the part on copies of its arrays: kernels on each copy in each round, as one graph; the CPU on the next
        copy."""
        runs = [self.prepared(part) for _ in range(copies)]
        if not self.ops.device.runs_kernels:
            for run in runs:
                run()  # the first run takes longer
            turns = cycle(runs)
            return lambda: next(turns)()

        def work() -> None:
            for _ in range(rounds):
                [run() for run in runs]  # all outputs live at once, each in memory of its own

        return self.record(part, work)


def expect_same_results(part: Part, forms: Mapping[str, Form]) -> None:
    """Raises TinyfcnError unless all forms of a part give the same floats, but for rounding.

    Integers, such as max indices, may differ where two numbers are equal but for rounding.
    """
    results = {name: [*map(form.to_numpy, form.prepared(part)())] for name, form in forms.items()}
    first, *others = forms
    for name in others:
        pairs = zip(results[name], results[first], strict=True)
        error = max((relative_error(*pair) for pair in pairs if pair[1].dtype.kind == "f"), default=0)
        if not error <= TOLERANCE:
            differ = f"{first} and {name} differ by {error:.1e}, more than {TOLERANCE:.0e}"
            raise TinyfcnError(f"{part}: {differ}, so none is timed")


def time_parts(
    parts: Sequence[Part], forms: Mapping[str, Form], clock: Clock, budget: TimeBudget, say: Callable[[str], None]
) -> list[dict[str, Timing]]:
    """The timing of each part in each form that can do it, on arrays that no cache holds.

    NumPy gives dx and dweight at once. Where it is among the forms, a dx has the time of both, a dweight with it none.

    Raises:
        TinyfcnError: two forms of a part differ. Then nothing is timed.
    """
    at_once = "numpy" in forms
    timed = {row: part for row, part in enumerate(parts) if not (at_once and part.comes_with_dx)}
    if at_once:
        timed = {row: replace(part, what="") if part.what == "dx" else part for row, part in timed.items()}
    ways = {row: {name: form for name, form in forms.items() if form.does(part)} for row, part in timed.items()}
    for row, part in timed.items():
        expect_same_results(part, ways[row])
    timings: list[dict[str, Timing]] = [{} for _ in parts]
    for number, (row, part) in enumerate(timed.items(), 1):
        say(f"{number} of {len(timed)}: {part}")
        copies = min(max(ceil_div(COPIED_BYTES, max(part.byte_count, 1)), MIN_COPIES), MAX_COPIES)
        rounds = ceil_div(MIN_LAUNCHES, copies)
        programs = {name: form.program(part, copies, rounds) for name, form in ways[row].items()}
        timings[row] = in_turn(programs, clock, budget, 1 if at_once else copies * rounds)
    return timings
