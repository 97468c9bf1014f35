"""Times the parts of a training step in every form that they have here, after comparing all of them.

On a GPU the forms are the fast kernels, the naive kernels and PyTorch; elsewhere NumPy and PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from tinyfcn.bench.parts import Part
from tinyfcn.bench.roofline import least_bytes
from tinyfcn.bench.timing import Clock, Run, TimeBudget, Timing, in_turn
from tinyfcn.checks.gradcheck import relative_error
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

    def function(self, part: Part) -> Any:
        """What does the operation of a part, or None."""
        return getattr(self.ops, part.operation)

    def copy(self, array: Any) -> Any:
        return self.ops.asarray(self.ops.to_numpy(array))

    def to_numpy(self, result: Any) -> np.ndarray:
        return self.ops.to_numpy(result)

    def arguments(self, part: Part) -> dict[str, Any]:
        """Copies of a part's arguments."""
        return part.copied_arguments(self.copy)

    def results(self, part: Part) -> list[np.ndarray]:
        """The part's results, on the host."""
        return [self.to_numpy(result) for result in part.chosen(self.function(part)(**self.arguments(part)))]

    def record(self, part: Part, work: Run) -> Run:
        """Runs those launches of `work` that give the part."""
        recording = self.ops.device.record(work)
        recording.launches[:] = part.own(recording.launches)
        return recording.replay

    def program(self, part: Part, copies: int, rounds: int) -> Run:
        """Runs the part on copies of its arrays: kernels on each copy in each round, as one graph; the CPU on the next
        copy."""
        function, sets = self.function(part), [self.arguments(part) for _ in range(copies)]
        if not self.ops.device.runs_kernels:
            turns = cycle(sets)
            return lambda: function(**next(turns))

        def work() -> None:
            for _ in range(rounds):
                [function(**arguments) for arguments in sets]  # all outputs live at once, each in memory of its own

        return self.record(part, work)


def expect_same_results(part: Part, forms: Mapping[str, Form]) -> None:
    """Raises TinyfcnError unless all forms of a part give the same floats, but for rounding.

    Integers, such as max indices, may differ where two numbers are equal but for rounding.
    """
    (first, expected), *others = [(name, form.results(part)) for name, form in forms.items()]
    for name, found in others:
        for one, other in zip(expected, found, strict=True):
            error = relative_error(one.astype(np.float64), other.astype(np.float64)) if one.dtype.kind == "f" else 0
            if not error <= TOLERANCE:
                differ = f"{first} and {name} differ by {error:.1e}, more than {TOLERANCE:.0e}"
                raise TinyfcnError(f"{part}: {differ}, so none is timed")


def time_parts(
    parts: Sequence[Part], forms: Mapping[str, Form], clock: Clock, budget: TimeBudget, say: Callable[[str], None]
) -> list[dict[str, Timing]]:
    """The timing of each part in each form that can do it, on arrays that no cache holds.

    Raises:
        TinyfcnError: two forms of a part differ. Then nothing is timed.
    """
    ways = [{name: form for name, form in forms.items() if form.function(part)} for part in parts]
    for part, way in zip(parts, ways, strict=True):
        expect_same_results(part, way)
    timings = []
    for number, (part, way) in enumerate(zip(parts, ways, strict=True), 1):
        say(f"{number} of {len(parts)}: {part}")
        copies = min(max(ceil_div(COPIED_BYTES, max(least_bytes(part), 1)), MIN_COPIES), MAX_COPIES)
        rounds = ceil_div(MIN_LAUNCHES, copies)
        programs = {name: form.program(part, copies, rounds) for name, form in way.items()}
        timings.append(in_turn(programs, clock, budget, 1 if "numpy" in programs else copies * rounds))
    return timings
