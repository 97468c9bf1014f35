"""devices/cuda.py on the stand-in, in every order of the work: its numbers are the emulator's, to the bit."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from helpers.closeness import assert_equal
from standin import bridge

from tinyfcn.devices import cuda
from tinyfcn.devices.device import Array
from tinyfcn.devices.emulator import Emulator
from tinyfcn.ops import Operations

EMULATOR = Operations(Emulator())
ORDERS = [("eager", 0), ("lazy", 0), ("lazy", 1), *(("random", seed) for seed in range(4))]


@pytest.fixture(params=ORDERS, ids=[f"{order} {seed}" for order, seed in ORDERS])
def ops(request: pytest.FixtureRequest) -> Iterator[Operations]:
    """A device of its own, which has compiled nothing yet, in one order of the work."""
    bridge.start(*request.param)
    yield Operations(cuda.Cuda())
    bridge.start("lazy")


def random_floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Step:
    """A step with side streams between joins. It changes its own input, so that every replay has another result."""

    def __init__(self, ops: Operations) -> None:
        self.ops = ops
        self.x, self.total = (ops.asarray(random_floats(3, 2, 9, 11, seed=seed)) for seed in range(2))
        self.weight, self.bias = ops.asarray(random_floats(2, 2, 3, 3)), ops.asarray(random_floats(2))

    def __call__(self) -> None:
        ops = self.ops
        ops.join()  # there is nothing yet to wait for
        y = ops.conv2d(self.x, self.weight, self.bias, padding=1)
        with ops.side_stream():
            side = ops.add(ops.relu(y), self.x, 0.5)
        y = ops.add(ops.relu(ops.add(y, self.x, 0.25)), y, 0.125)
        with ops.side_stream():
            other = ops.relu(ops.add(y, self.total, -0.5))
        y = ops.add(y, y, 0.5)
        ops.join()
        y = ops.add(ops.add(side, other, 0.5), y, 0.25)
        with ops.side_stream():
            last = ops.add(y, side, -0.5)
        self._keep(self.x, ops.relu(y))
        ops.join()
        self._keep(self.total, last)
        with ops.side_stream():  # nothing joins it but the end of the step
            self._keep(self.total, ops.add(self.total, self.x, 0.5))

    def _keep(self, target: Array, source: Array) -> None:
        self.ops.device.launch_for_each("add_forward", target.size, (source, source, target, 0.25, target.size))

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        return self.ops.to_numpy(self.x), self.ops.to_numpy(self.total)


def test_replays_beside_other_work(ops: Operations) -> None:
    """A graph keeps its memory and its order, whatever is allocated, copied and launched before and after it."""
    recorded, plain = Step(ops), Step(EMULATOR)
    recording = ops.device.record(recorded)
    kept = []
    for number in range(4):
        value = random_floats(3, 2, 9, 11, seed=10 + number)
        recorded.ops.write(recorded.total, value)
        EMULATOR.write(plain.total, value)
        recording.replay()
        plain()
        gc.collect()
        others = [ops.asarray(np.full((3, 2, 9, 11), number, np.float32)) for _ in range(12)]
        kept += [(number, each) for each in others[:4]]
        del others
        if number != 1:  # the second and the third replay run with nothing between them that waits
            for found, expected in zip(recorded.result(), plain.result(), strict=True):
                assert_equal(found, expected)
    for number, each in kept:
        assert (ops.to_numpy(each) == number).all(), "an array outside of the recording has changed"
    assert bridge.driver.standin_graphs() == 1
    del recording
    gc.collect()
    assert bridge.driver.standin_graphs() == 0, "the graph outlives its recording"


def test_a_recording_that_is_dropped_while_it_runs(ops: Operations) -> None:
    steps = Step(ops), Step(EMULATOR)
    for _ in range(2):
        recording = ops.device.record(steps[0])
        for _ in range(2):
            recording.replay()
            steps[1]()
        del recording
        junk = [ops.asarray(np.full((3, 2, 9, 11), 9, np.float32)) for _ in range(12)]
        del junk
    for found, expected in zip(steps[0].result(), steps[1].result(), strict=True):
        assert_equal(found, expected)


def test_values_are_copied_at_the_call(ops: Operations) -> None:
    values = random_floats(70, 40)
    expected = np.maximum(values, 0), np.maximum(values.T, 0)
    x = ops.asarray(values)
    first = ops.relu(x)
    ops.write(x, values)
    transposed = ops.relu(ops.asarray(values.T))
    second = ops.relu(x)
    values[:] = 9
    for found, wanted in zip((first, second, transposed), (expected[0], *expected), strict=True):
        assert_equal(ops.to_numpy(found), wanted)


def test_instances_of_a_template_are_told_apart(ops: Operations) -> None:
    for channels in (2, 8, 16, 3):
        x, weight = random_floats(2, channels, 8, 9), random_floats(channels, channels, 3, 3, seed=1)
        bias = random_floats(channels, seed=2)
        found, expected = (
            each.to_numpy(each.conv2d(each.asarray(x), each.asarray(weight), each.asarray(bias), padding=1))
            for each in (ops, EMULATOR)
        )
        assert_equal(found, expected)
    logits = random_floats(3, 11, 4, 5)
    assert_equal(*(each.to_numpy(each.softmax(each.asarray(logits))) for each in (ops, EMULATOR)))


def test_kernels_are_compiled_by_several_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes seconds at first, and a user sees how far it is."""
    monkeypatch.setattr(cuda, "NOTICE_SECONDS", 0)
    ops = Operations(cuda.Cuda())
    recording = ops.device.record(Step(ops))
    ops.device.compile(launch.kernel for launch in recording.launches)
    wanted = {launch.kernel.expression for launch in recording.launches}
    assert {*ops.device._functions} == wanted
    assert f"{len(wanted)} of {len(wanted)} kernels are compiled" in capsys.readouterr().err
