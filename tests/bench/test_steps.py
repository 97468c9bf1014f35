"""Training steps as they are timed: the same wherever their batches come from, and unlike a step that is wrong."""

from dataclasses import replace

import numpy as np
import pytest

from tinyfcn import on
from tinyfcn.bench import steps
from tinyfcn.bench.steps import Step, Task, Trace, batches_of, differences, expect_agreement
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import Operations
from tinyfcn.training.sources import as_bytes

reference = on("cpu")


def test_batches_are_what_the_network_takes():
    batches = batches_of(Task("skip", 3, scale=2))
    assert batches.images.shape == (8, 128, 168) and batches.order.shape == (steps.SETS, 3)
    x, labels = batches.floats()[1]
    assert x.shape == (3, 1, 128, 168) and x.dtype == np.float32 and labels.dtype == np.int32
    assert np.array_equal(np.rint(x[:, 0] * 127 + 127), batches.images[batches.order[1]])
    assert np.array_equal(x[:, :, :64, :84], x[:, :, 64:, 84:])
    assert np.array_equal(labels != 10, x[:, 0] > -1)
    assert not np.array_equal(batches.order[0], batches.order[1])


@pytest.mark.parametrize("task", [Task("classifier", 4), Task("skip", 2)], ids=str)
def test_wherever_batches_come_from_the_step_is_the_same(task):
    batches, ops = batches_of(task), on("cpu")
    given, gathered = (Step(task, batches, ops, source).trace() for source in ("given", "gathered"))
    initial = Step(task, batches, ops, "given").initial
    assert set(differences(gathered, given, initial).values()) == {0.0}
    again = differences(Step(task, batches, ops, "given", threads=2).trace(), given, initial)
    assert 0 < again["mean gradients"] < 1e-5


def test_a_composed_step_sees_fresh_images():
    task, ops = Task("skip", 2), on("cpu")
    batches = batches_of(task)
    digits = batches.digits
    fresh = [reference.compose_m2nist(digits.images, digits.labels, 0, step, 2) for step in range(steps.SETS)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*fresh, strict=True))
    order = np.arange(steps.SETS * 2, dtype=np.int32).reshape(steps.SETS, 2)
    same = replace(batches, images=as_bytes(images), labels=labels.astype(np.uint8), order=order)
    composed, given = Step(task, batches, ops, "composed").trace(), Step(task, same, ops, "given").trace()
    assert composed.losses.tolist() == given.losses.tolist()


def test_a_recorded_step_does_what_the_step_does():
    """On the emulator, so that record and replay are tried, with the plain kernels, which need little compiling."""
    task, ops = Task("classifier", 1), Operations(Emulator(naive=True))
    batches = batches_of(task)
    step = Step(task, batches, ops, "gathered")
    assert step.run != step.work
    expected = Step(task, batches, on("cpu"), "given").trace()
    expect_agreement("the emulator", differences(step.trace(), expected, step.initial), steps.TOLERANCES)


def test_equal_bits():
    task = Task("classifier", 2)
    batches, seeds = batches_of(task), iter(range(9))

    def other():
        step = Step(task, batches, on("cpu"), "gathered")
        step.initial["conv1.weight"][0] += np.float32(1e-7) * next(seeds)
        return step

    assert steps.same_bits(lambda: Step(task, batches, on("cpu"), "gathered"), 3)
    assert not steps.same_bits(other, 3)


RIGHT = Trace(np.ones(4), {"a": np.ones(3), "b": np.full(2, 1e-6)}, {"a": np.ones(3), "b": np.ones(2)})


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (replace(RIGHT, losses=np.ones(4) * 1.001), "losses by 1.0e-03, more than 1e-05"),
        (replace(RIGHT, losses=np.array([1, 1, np.nan, 1])), "losses by inf"),
        (replace(RIGHT, means=RIGHT.means | {"b": np.full(2, 2e-6)}), "mean gradients by 1.0e"),  # small, but all wrong
        (replace(RIGHT, parameters=RIGHT.parameters | {"b": np.zeros(2)}), "parameters by"),
    ],
)
def test_disagreement_is_an_error(wrong, what):
    initial = {"a": np.zeros(3), "b": np.zeros(2)}
    assert differences(RIGHT, RIGHT, initial) == dict.fromkeys(steps.TOLERANCES, 0)
    with pytest.raises(TinyfcnError, match=f"it and our step do not do the same, so neither is timed.*{what}"):
        expect_agreement("it", differences(wrong, RIGHT, initial), steps.TOLERANCES)
