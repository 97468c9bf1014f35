"""A training step as an object: what it trains on, and that a recording does the same."""

import numpy as np
import pytest

from tinyfcn import on
from tinyfcn.bench.agreement import expect_agreement, trace
from tinyfcn.devices.emulator import Emulator
from tinyfcn.ops import Operations
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.training import step as steps
from tinyfcn.training.step import Step, Task, images_of

pytestmark = pytest.mark.usefixtures("few_digits")


def test_batches_are_what_the_network_takes():
    task = Task("skip", 3, scale=2)
    images, labels = images_of(task)
    assert images.shape == labels.shape == (8, 128, 168)
    (x, found), (other, _), *_ = batches = Step(task, on("cpu")).batches(4)
    assert len(batches) == 4 and not np.array_equal(x, other)
    assert x.shape == (3, 1, 128, 168) and x.dtype == np.float32 and found.dtype == np.int32
    which = [
        next(k for k, image in enumerate(images) if np.array_equal(np.rint(y * 127 + 127), image)) for y in x[:, 0]
    ]
    assert np.array_equal(found, labels[which])
    assert np.array_equal(x[:, :, :64, :84], x[:, :, 64:, 84:]) and np.array_equal(found != 10, x[:, 0] > -1)


def test_a_composed_step_sees_fresh_images():
    digits = steps.drawn_digits()
    for number, (x, labels) in enumerate(Step(Task("skip", 2), on("cpu"), composed=True).batches(4)):
        fresh, true = compose_m2nist(digits.images, digits.labels, steps.SEED, number, 2)
        assert np.array_equal(x, fresh) and np.array_equal(labels, true)


@pytest.mark.slow
def test_a_recorded_step_does_what_the_step_does():
    """On the emulator, so that record and replay are tried, with the plain kernels, which need little compiling."""
    recorded, given = (
        Step(Task("classifier", 1), Operations(Emulator(naive=True))),
        Step(Task("classifier", 1), on("cpu")),
    )
    assert recorded.run != recorded.work and given.run == given.work
    expect_agreement("the emulator", trace(recorded), trace(given))
