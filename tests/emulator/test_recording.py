"""Tests recorded steps: a replay gives the same bits as a plain step, and launches that may overlap do not conflict."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.closeness import assert_equal, on_device
from helpers.instances import compile_for
from helpers.tiny_digits import TRAIN, draw

from tinyfcn.adam_state import AdamState
from tinyfcn.checks.conflicts import conflicts, launched_before
from tinyfcn.data import Digits
from tinyfcn.devices import cuda
from tinyfcn.devices.device import Recording
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import DeviceError, KernelError
from tinyfcn.networks import BACKGROUND, Design
from tinyfcn.operations import on
from tinyfcn.ops import Operations
from tinyfcn.training import ParallelNetwork, Trainer
from tinyfcn.training.sources import Composed, Stored
from tinyfcn.training.step import Task, launches_of_step

DESIGNS = {
    "classifier": Design("classifier"),
    "skip": Design("skip"),
    "skip, frozen": Design("skip", freeze=True),
    "early": Design("early"),
    "early, article's skip": Design("early", article_skip=True),
    "early, decoder's ReLUs": Design("early", decoder_relu=True),
}


class Step:
    """The step of a trainer, without the rest of the trainer."""

    def __init__(self, ops: Operations, design: Design, batch: int = 1) -> None:
        digits = Digits(*draw(TRAIN, 0, odd=False), "mnist")
        if design.name == "classifier":
            images = Stored(ops, digits.images, digits.labels, batch, 0)
            images.prepare(0)
        else:
            images = Composed(ops, digits, design, batch, 0)
        network = design.build(ops, seed=1)
        first = network.first_trained(design.freeze)
        coefficients = network.l2_coefficients(1e-4)[first:]
        self.trainer = SimpleNamespace(
            network=network,
            batches=images,
            parallel=ParallelNetwork(network, 1),
            state=AdamState.create(ops, coefficients, base_rate=0.01, steps=10, warmup=2),
            first_trained=first,
            ignore_index=BACKGROUND if design.name == "early" else None,
            unlabelled="zero",
        )
        self.ops = ops

    def __call__(self) -> None:
        Trainer.work(self.trainer)

    def result(self) -> dict[str, np.ndarray]:
        """All arrays that the step changes."""
        network, state = self.trainer.network, self.trainer.state
        arrays = {"parameters": network.parameters, "gradients": network.gradients}
        kept = {name: getattr(state, name) for name in ("step", "rates", "m", "v", "losses")}
        return {name: self.ops.to_numpy(array) for name, array in (arrays | kept).items()}


def test_recording_runs_nothing_and_replaying_runs_everything(ops: Operations) -> None:
    x, y, z = on_device(ops, *np.zeros((3, 5), np.float32))
    results = []
    recording = ops.device.record(lambda: results.append(ops.relu(ops.add(x, y))))
    assert [launch.kernel.name for launch in recording.launches] == ["add_forward", "relu_forward"]
    (total,) = results
    total[...] = 7
    assert_equal(ops.to_numpy(total), np.full(5, 7, np.float32))
    for value in (1, 2):
        x[...], y[...] = value, value
        recording.replay()
        assert_equal(ops.to_numpy(total), np.full(5, 2 * value, np.float32))
    assert_equal(ops.to_numpy(ops.add(x, z)), np.full(5, 2, np.float32))  # launches run again


def test_the_streams_that_no_launch_of_the_main_stream_follows() -> None:
    """Of a step of skip: conv1's gradient of weights, and the kernel that adds up its sums."""
    launches = launches_of_step(Task("skip", 2))
    last = cuda.streams_at_the_end(launches)
    (number,) = last
    found = [each.kernel for each in launches if each.stream == number]
    assert [kernel.name for kernel in found] == ["fast_conv_backward_weight", "fast_conv_reduce_split_k"]
    assert found[0].instance[:2] == ("5", "5")
    assert launches[-1].kernel.name == "adam_step" and launches[-1].joins
    without_join = [replace(each, joins=False) for each in launches]
    assert not cuda.streams_at_the_end(without_join), "what follows without a join may have to wait"


@pytest.mark.parametrize("name", ["classifier", pytest.param("skip", marks=pytest.mark.slow)])
def test_replays_give_the_bits_of_plain_steps(ops: Operations, name: str) -> None:
    """The device counts the steps: the second replay uses other images and another rate than the first."""
    plain, recorded, untouched = (Step(ops, DESIGNS[name]) for _ in range(3))
    compile_for(ops.device, plain)
    recording = ops.device.record(recorded)
    before = recorded.result()
    for name, value in untouched.result().items():
        np.testing.assert_array_equal(before[name], value, f"{name} has changed")  # NaNs too: not yet written
    for _ in range(3):
        plain()
        recording.replay()
        expected = plain.result()
        for name, value in recorded.result().items():
            assert_equal(value, expected[name], name)
    assert expected["step"] == 3 and len(np.unique(expected["losses"][:3])) == 3


def test_work_that_a_replay_cannot_repeat_is_refused(ops: Operations) -> None:
    x = ops.asarray(np.ones(3, np.float32))
    for work, message in (
        (lambda: ops.asarray(np.ones(3)), "an array is brought to the device while a step is recorded"),
        (lambda: ops.to_numpy(x), "an array is brought to the host while a step is recorded"),
        (lambda: ops.device.record(lambda: None), "a step is recorded while a step is recorded"),
    ):
        with pytest.raises(KernelError, match=message):
            ops.device.record(work)
        assert_equal(ops.to_numpy(ops.relu(x)), np.ones(3, np.float32), "the device works as before")


def test_an_error_while_recording_leaves_the_device_as_it_was(ops: Operations) -> None:
    with pytest.raises(ZeroDivisionError):
        ops.device.record(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), ops.side_stream():
        raise ZeroDivisionError
    x = ops.asarray(np.ones(3, np.float32))
    (launch,) = ops.device.record(lambda: ops.relu(x)).launches
    assert launch.stream == 0 and not launch.joins


def test_a_recording_keeps_its_arrays_alive(ops: Operations) -> None:
    x = ops.asarray(np.ones(3, np.float32))
    y: list[Any] = []
    recording = ops.device.record(lambda: y.append(ops.relu(ops.relu(x))))
    between = weakref.ref(recording.launches[0].arguments[1])
    gc.collect()
    assert between() is not None
    recording.replay()
    assert_equal(ops.to_numpy(y[0]), np.ones(3, np.float32))
    del recording
    gc.collect()
    assert between() is None


def marked(ops: Operations, work: Callable[[], Any]) -> list[tuple[int, bool]]:
    return [(launch.stream, launch.joins) for launch in ops.device.record(work).launches]


def test_side_streams_and_joins_are_recorded(ops: Operations) -> None:
    x = ops.asarray(np.ones(3, np.float32))

    def work() -> None:
        ops.relu(x)
        with ops.side_stream():
            ops.relu(x)
            ops.relu(x)
        ops.relu(x)
        with ops.side_stream():
            ops.relu(x)
        ops.join()
        ops.relu(x)
        ops.relu(x)
        ops.join()
        with ops.side_stream():  # the first launch of this stream waits too
            ops.relu(x)
        ops.relu(x)

    expected = [(0, 0), (1, 0), (1, 0), (0, 0), (2, 0), (0, 1), (0, 0), (3, 1), (0, 0)]
    assert marked(ops, work) == expected
    assert marked(ops, work) == expected, "each recording counts its streams anew"


def test_a_recording_is_of_its_own_thread(ops: Operations) -> None:
    x = ops.asarray(np.ones(4, np.float32))

    def elsewhere() -> np.ndarray:
        with ops.side_stream():
            return ops.to_numpy(ops.add(x, x))

    def work() -> None:
        with ops.side_stream():
            ops.relu(x)
            sums.append(other.submit(elsewhere).result())

    sums: list[np.ndarray] = []
    with ThreadPoolExecutor(1) as other:
        launches = ops.device.record(work).launches
    assert [launch.kernel.name for launch in launches] == ["relu_forward"]
    assert sums[0].tolist() == [2, 2, 2, 2]


def test_a_side_stream_has_no_side_streams(ops: Operations) -> None:
    with pytest.raises(KernelError, match="side_stream within side_stream"), ops.side_stream(), ops.side_stream():
        pass


def order(*marks: tuple[int, int]) -> list[set[int]]:
    x = np.ones(3, np.float32)
    (launch,) = RELU.record(lambda: Operations(RELU).relu(x)).launches
    return [{*each} for each in launched_before([replace(launch, stream=b, joins=bool(j)) for b, j in marks])]


RELU = Emulator()


def test_the_order_of_launches() -> None:
    assert order((0, 0), (0, 0), (0, 0)) == [set(), {0}, {0, 1}]
    assert order((0, 0), (1, 0), (1, 0), (0, 0)) == [set(), {0}, {0, 1}, {0}]
    assert order((1, 0), (0, 0), (2, 0), (0, 1)) == [set(), set(), {1}, {0, 1, 2}]
    # After a join, a new side stream starts after the old ones. Without a join it does not, though a GPU may reuse one.
    assert order((1, 0), (2, 0), (5, 0)) == [set(), set(), set()]
    assert order((1, 0), (0, 1), (2, 0)) == [set(), {0}, {0, 1}]
    assert order((1, 0), (2, 1), (0, 0)) == [set(), {0}, {0}]


def recorded(ops: Operations, name: str) -> Recording:
    return ops.device.record(Step(ops, DESIGNS[name]))


@pytest.mark.parametrize("name", DESIGNS)
def test_a_training_step_has_no_conflicts(either: Operations, name: str) -> None:
    recording = recorded(either, name)
    assert conflicts(recording.launches) == []
    assert {launch.stream for launch in recording.launches} > {0, 1}


def test_without_its_joins_a_step_has_conflicts(ops: Operations) -> None:
    launches = recorded(ops, "skip").launches
    joins = [number for number, launch in enumerate(launches) if launch.joins]
    assert len(joins) >= 2
    for number in joins:
        changed = [*launches]
        changed[number] = replace(launches[number], joins=False)
        assert conflicts(changed), launches[number].kernel.name
    adam = [replace(launch, joins=launch.joins and launch.kernel.name != "adam_step") for launch in launches]
    assert any("(adam_step) takes 'gradients'" in line and "takes 'dweight'" in line for line in conflicts(adam))


def test_a_gradient_that_is_read_too_early_is_a_conflict(ops: Operations) -> None:
    network = Design("classifier").build(ops, seed=0)
    x, dout = on_device(ops, np.ones((1, 1, 28, 28), np.float32), np.ones((1, 10, 1, 1), np.float32))

    def work(waits: Callable[[], None]) -> list[str]:
        def step() -> None:
            network.forward(x)
            network.backward(dout)
            waits()
            ops.relu(network.gradients)

        return conflicts(ops.device.record(step).launches)

    assert work(ops.join) == []
    found = work(lambda: None)
    assert any("(relu_forward) takes 'x'" in line and "takes 'dweight'" in line for line in found)


def test_two_writers_of_an_array_conflict_and_two_readers_do_not(ops: Operations) -> None:
    x = ops.asarray(np.ones(8, np.float32))

    def launch(source: Any, target: Any) -> None:
        ops.device.launch_for_each("relu_forward", target.size, (source, target, target.size))

    y, z = on_device(ops, *np.ones((2, 8), np.float32))

    def side_by_side(first: tuple[Any, Any], second: tuple[Any, Any]) -> list[str]:
        def work() -> None:
            with ops.side_stream():
                launch(*first)
            launch(*second)

        return conflicts(ops.device.record(work).launches)

    assert side_by_side((x, y), (x, z)) == []
    assert side_by_side((x, y[:4]), (x, y[4:])) == [], "views of one array that do not overlap"
    (line,) = side_by_side((x, y[:5]), (x, y[4:]))
    assert line == (
        "launch 1 (relu_forward) takes 'y' and launch 0 (relu_forward) takes 'y': both are the same memory, "
        "at least one launch writes it, and nothing orders the two"
    )
    assert len(side_by_side((x, y), (y[7:], z[7:]))) == 1, "one writes what the other reads"


class FakeArray(np.ndarray):
    """A NumPy array with the method `set` of CuPy's arrays."""

    def set(self, values: np.ndarray) -> None:
        assert values.shape == self.shape and values.dtype == self.dtype
        self[...] = values


class FakeCupy:
    """A fake of CuPy that needs no GPU. It computes nothing; `before` records which launches wait for which."""

    def __init__(self) -> None:
        self.before: list[set[int]] = []  # for each launch, the launches that have ended when it begins
        self.plain: list[str] = []  # the kernels launched outside of a capture
        self.graphs = 0
        self.cuda = self
        self.ndarray, self.asnumpy = FakeArray, np.array
        self.runtime = SimpleNamespace(
            CUDARuntimeError=type("CUDARuntimeError", (Exception,), {}),
            getDevice=lambda: 0,
            getDeviceProperties=lambda number: {"multiProcessorCount": 40},
        )
        self.driver = SimpleNamespace(CUDADriverError=type("CUDADriverError", (Exception,), {}))
        self.memory = SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (Exception,), {}))
        self.compiler = SimpleNamespace(CompileException=type("CompileException", (Exception,), {}))
        self.current: Any = None
        fake = self

        class Stream:
            def __init__(self, non_blocking: bool) -> None:
                assert non_blocking, "else the default stream waits for it, which ends a capture"
                self.ended: set[int] = set()
                self.capturing = False

            def begin_capture(self) -> None:
                fake.before, self.capturing = [], True

            def end_capture(self) -> Any:
                assert self.capturing and self.ended == {*range(len(fake.before))}, "a stream has not been joined"
                return SimpleNamespace(launch=fake.launch_graph)

            def record(self, event: Any) -> Any:
                assert self.capturing, "an event of a stream that is not captured"
                event.ended, event.capturing = {*self.ended}, self.capturing
                return event

            def wait_event(self, event: Any) -> None:
                self.ended |= event.ended
                self.capturing = event.capturing

            def __enter__(self) -> None:
                fake.current = self

            def __exit__(self, *_: object) -> None:
                fake.current = None

        class Event:
            def __init__(self, disable_timing: bool) -> None:
                assert disable_timing

        class MemoryPool:
            malloc = None

        class Device:
            def __enter__(self) -> None: ...
            def __exit__(self, *_: object) -> None: ...

        class RawModule:
            def __init__(self, code: str, options: tuple[str, ...], name_expressions: Any = None) -> None: ...
            def get_function(self, name: str) -> Callable[..., None]:
                return lambda grid, block, arguments, shared_mem: fake.launch(name)

        self.Stream, self.Event, self.MemoryPool, self.Device, self.RawModule = (
            Stream,
            Event,
            MemoryPool,
            Device,
            RawModule,
        )

    def launch(self, name: str) -> None:
        if self.current is None:
            self.plain.append(name)
            return
        assert self.current.capturing
        number = len(self.before)
        self.before.append({*self.current.ended})
        self.current.ended.add(number)

    def launch_graph(self) -> None:
        self.graphs += 1

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype).view(FakeArray)

    def array(self, array: np.ndarray) -> np.ndarray:
        return np.array(array).view(FakeArray)

    @contextmanager
    def using_allocator(self, allocator: Any) -> Iterator[None]:
        yield


@pytest.mark.parametrize("name", DESIGNS)
def test_a_graph_keeps_the_order_of_its_recording(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCupy()
    monkeypatch.setattr(cuda, "import_cupy", lambda: fake)
    monkeypatch.setattr(cuda, "why_not", lambda: None)
    ops = Operations(cuda.Cuda())
    recording = recorded(ops, name)
    launched = [launch.kernel.expression for launch in recording.launches]
    outside = len(fake.plain)  # launches before the recording
    recording.replay()
    assert fake.plain[outside:] == launched and fake.graphs == 0
    wanted = launched_before(recording.launches)
    assert len(fake.before) == len(wanted)
    for number, (found, needed) in enumerate(zip(fake.before, wanted, strict=True)):
        assert found >= needed, f"launch {number}, {launched[number]}"
    assert any(found < {*range(number)} for number, found in enumerate(fake.before)), "no two launches overlap"
    recording.replay()
    recording.replay()
    assert fake.graphs == 2 and len(fake.plain) == outside + len(launched)


def test_cupy_has_all_attributes_of_the_fake() -> None:
    try:
        cupy = cuda.import_cupy()
    except DeviceError:
        pytest.skip("CuPy cannot be imported: on this machine no kernel runs on a GPU")
    fake = FakeCupy()
    for name in ("ndarray", "asnumpy", "empty", "array", "RawModule"):
        assert hasattr(cupy, name) and hasattr(fake, name), name
    for name in ("Stream", "Event", "MemoryPool", "Device", "using_allocator"):
        assert hasattr(cupy.cuda, name) and hasattr(fake, name), name
    for name in ("Stream", "MemoryPool"):
        for method in vars(getattr(fake, name)):
            made_by_python = method in ("__dict__", "__weakref__", "__firstlineno__", "__static_attributes__")
            assert made_by_python or hasattr(getattr(cupy.cuda, name), method), method
    assert issubclass(cupy.cuda.runtime.CUDARuntimeError, Exception)
    assert issubclass(cupy.cuda.driver.CUDADriverError, Exception)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, Exception)
    assert issubclass(cupy.cuda.compiler.CompileException, Exception)
    assert callable(cupy.cuda.Graph.launch) and callable(cupy.RawModule.get_function) and callable(cupy.ndarray.set)


def test_an_unpickled_device_has_the_same_settings() -> None:
    emulator = Emulator(mode="check", order="random", seed=3, precision="double", naive=True)
    for device in (emulator, on("cpu", naive=True).device):
        again = pickle.loads(pickle.dumps(device))
        assert type(again) is type(device) and again.naive and again.kernels == device.kernels
        assert copy.deepcopy(device) is device
    again = pickle.loads(pickle.dumps(emulator))
    assert (again.check, again.order, again.seed, again.double) == (True, "random", 3, True)
