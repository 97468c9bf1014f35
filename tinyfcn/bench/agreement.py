"""Whether programs do the same work: nothing is timed that does not.

The steps of both sides begin with the same weights, see the same images in the same order, and have the same loss and
optimiser. Their batches differ, in PyTorch's favour: its batches lie on the device as it wants them, as floats and
64-bit labels; ours gathers them from bytes within the step.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tinyfcn.checks.gradcheck import relative_error
from tinyfcn.errors import TinyfcnError
from tinyfcn.networks.network import views
from tinyfcn.training.step import Step

COMPARED = 4  # steps

# The largest relative differences of two float32 programs that do the same, after the compared steps: of the losses, of
# Adam's means of the gradients, and of the parameters' way from where they began. Found were at most a tenth of these.
# A wrong sign, factor or missing term is 0.1 and more. TF32 keeps ten bits of each factor instead of 23.
TOLERANCES = {"losses": 1e-5, "mean gradients": 1e-3, "parameters": 3e-2}
TF32_TOLERANCES = {"losses": 1e-2, "mean gradients": 0.3, "parameters": 0.5}

Arrays = Mapping[str, np.ndarray]  # by the names of the parameters
Trace = Mapping[str, Sequence[np.ndarray]]  # what a program did in the compared steps, by the names in TOLERANCES


def trace_of(initial: Arrays, losses: np.ndarray, means: Arrays, parameters: Arrays) -> Trace:
    """A trace from the losses of the steps, and Adam's means of the gradients and the parameters after them."""
    way = [(parameters[name] - initial[name].astype(np.float64)).ravel() for name in initial]
    return {
        "losses": [losses],
        "mean gradients": [means[name] for name in initial],
        "parameters": [np.concatenate(way)],
    }


def trace(step: Step, count: int = COMPARED) -> Trace:
    """What the first steps of ours do."""
    step.start_again()
    with step.parallel.computing():
        for _ in range(count):
            step()
    means = views(step.ops.to_numpy(step.state.m), step.network.parameter_shapes())
    losses = step.state.last_losses(step.ops, count)
    return trace_of(step.initial, losses, means, step.network.numpy_parameters())


def same_bits(make: Callable[[], Step], steps: int = COMPARED * 5) -> bool:
    """Whether two runs of the step that `make` gives end in the same parameters, bit by bit."""
    ends = set()
    for step in (make(), make()):
        trace(step, steps)
        ends.add(step.ops.to_numpy(step.network.parameters).tobytes())
    return len(ends) == 1


def expect_agreement(
    who: str, found: Trace, expected: Trace, tolerances: Mapping[str, float] = TOLERANCES
) -> dict[str, float]:
    """The relative differences of a program's trace from ours.

    Raises:
        TinyfcnError: a difference is larger than its tolerance, or a value is not finite: they do not do the same work.
    """
    differences = {what: max(map(relative_error, found[what], expected[what])) for what in tolerances}
    wrong = [
        f"{what} by {differences[what]:.1e}, more than {tolerance:.0e}"
        for what, tolerance in tolerances.items()
        if not differences[what] <= tolerance
    ]
    if wrong:
        problem = f"{who} and our step do not do the same, so neither is timed: after {COMPARED} steps they differ in "
        raise TinyfcnError(problem + "; in ".join(wrong))
    return differences
