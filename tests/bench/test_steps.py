"""Training steps as they are timed: what they train on, that a recording does the same, and how a wrong one is told."""

import numpy as np
import pytest

from tinyfcn import on
from tinyfcn.bench import steps
from tinyfcn.bench.steps import Step, Task, expect_agreement, images_of
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import Operations
from tinyfcn.reference.compose_m2nist import compose_m2nist


def test_batches_are_what_the_network_takes():
    task = Task("skip", 3, scale=2)
    images, labels = images_of(task)
    assert images.shape == labels.shape == (8, 128, 168)
    (x, found), (other, _), *_ = batches = Step(task, on("cpu")).batches()
    assert len(batches) == steps.COMPARED and not np.array_equal(x, other)
    assert x.shape == (3, 1, 128, 168) and x.dtype == np.float32 and found.dtype == np.int32
    which = [
        next(k for k, image in enumerate(images) if np.array_equal(np.rint(y * 127 + 127), image)) for y in x[:, 0]
    ]
    assert np.array_equal(found, labels[which])
    assert np.array_equal(x[:, :, :64, :84], x[:, :, 64:, 84:]) and np.array_equal(found != 10, x[:, 0] > -1)


def test_a_composed_step_sees_fresh_images():
    digits = steps.drawn_digits()
    for number, (x, labels) in enumerate(Step(Task("skip", 2), on("cpu"), composed=True).batches()):
        fresh, true = compose_m2nist(digits.images, digits.labels, steps.SEED, number, 2)
        assert np.array_equal(x, fresh) and np.array_equal(labels, true)


def test_threads_change_rounding_alone():
    one, two = (Step(Task("skip", 2), on("cpu"), threads=threads).trace() for threads in (1, 2))
    assert 0 < expect_agreement("two threads", two, one)["mean gradients"] < 1e-5


@pytest.mark.slow
def test_a_recorded_step_does_what_the_step_does():
    """On the emulator, so that record and replay are tried, with the plain kernels, which need little compiling."""
    recorded, given = (
        Step(Task("classifier", 1), Operations(Emulator(naive=True))),
        Step(Task("classifier", 1), on("cpu")),
    )
    assert recorded.run != recorded.work and given.run == given.work
    expect_agreement("the emulator", recorded.trace(), given.trace())


def test_equal_bits():
    def step(change):
        made = Step(Task("classifier", 2), on("cpu"))
        made.initial["conv1.weight"][0] += np.float32(1e-7) * change
        return made

    assert steps.same_bits(lambda: step(0), 3)
    changes = iter([0, 1])
    assert not steps.same_bits(lambda: step(next(changes)), 3)


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
    right = steps.trace_of(INITIAL, **RIGHT)
    assert expect_agreement("it", right, right) == dict.fromkeys(steps.TOLERANCES, 0)
    with pytest.raises(TinyfcnError, match=f"it and our step do not do the same, so neither is timed.*{what}"):
        expect_agreement("it", steps.trace_of(INITIAL, **RIGHT | wrong), right)
