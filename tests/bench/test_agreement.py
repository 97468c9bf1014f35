"""How a step that does other work than ours is told."""

import numpy as np
import pytest

from tinyfcn import on
from tinyfcn.bench import agreement
from tinyfcn.bench.agreement import expect_agreement, same_bits, trace, trace_of
from tinyfcn.errors import TinyfcnError
from tinyfcn.training.step import Step, Task


def test_threads_change_rounding_alone():
    one, two = (trace(Step(Task("skip", 2), on("cpu"), threads=threads)) for threads in (1, 2))
    assert 0 < expect_agreement("two threads", two, one)["mean gradients"] < 1e-5


def test_equal_bits():
    def step(change):
        made = Step(Task("classifier", 2), on("cpu"))
        made.initial["conv1.weight"][0] += np.float32(1e-7) * change
        return made

    assert same_bits(lambda: step(0), 3)
    changes = iter([0, 1])
    assert not same_bits(lambda: step(next(changes)), 3)


INITIAL = {"a": np.zeros(3), "b": np.zeros(2)}
RIGHT = {
    "losses": np.ones(4),
    "means": {"a": np.ones(3), "b": np.full(2, 1e-6)},
    "parameters": {"a": np.ones(3), "b": np.ones(2)},
}


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"losses": np.ones(4) * 1.001}, "losses by 1.0e-03, more than 1e-05"),
        ({"losses": np.array([1, 1, np.nan, 1])}, "losses by inf"),
        ({"means": RIGHT["means"] | {"b": np.full(2, 2e-6)}}, "mean gradients by 1.0e"),  # small, but all wrong
        ({"parameters": RIGHT["parameters"] | {"b": np.zeros(2)}}, "parameters by"),
    ],
)
def test_disagreement_is_an_error(wrong, what):
    right = trace_of(INITIAL, **RIGHT)
    assert expect_agreement("it", right, right) == dict.fromkeys(agreement.TOLERANCES, 0)
    with pytest.raises(TinyfcnError, match=f"it and our step do not do the same, so neither is timed.*{what}"):
        expect_agreement("it", trace_of(INITIAL, **RIGHT | wrong), right)
