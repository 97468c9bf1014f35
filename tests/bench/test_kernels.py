"""The parts of a step: each launch is in one of them, and nothing is timed where forms of a part differ."""

from dataclasses import replace

import numpy as np
import pytest

from tinyfcn import Operations, on
from tinyfcn.adam_state import AdamState
from tinyfcn.bench import kernels
from tinyfcn.bench.kernels import Form, time_parts
from tinyfcn.bench.parts import Recorder, note_calls, parts_of, split
from tinyfcn.bench.roofline import flops
from tinyfcn.bench.steps import Step, Task, batches_of
from tinyfcn.bench.timing import TimeBudget, wall_clock
from tinyfcn.devices.device import address
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import TinyfcnError

reference = on("cpu")

HASTE = TimeBudget(0.01, 2, 0)


@pytest.mark.parametrize("task", [Task("classifier", 2), Task("skip", 1)], ids=str)
def test_every_launch_of_a_step_is_in_one_part(task, monkeypatch):
    batches = batches_of(task)
    monkeypatch.setattr(Emulator, "_launch", lambda device, launch: None)
    parts = parts_of(task, batches, on("cpu"))
    step = Step(task, batches, on("emulator"), "composed" if task.design == "skip" else "gathered")
    found = [launch.kernel.expression for part in parts for launch in part.launches]
    assert sorted(found) == sorted(launch.kernel.expression for launch in step.ops.device.record(step.work).launches)
    layers = {name.split(".")[0] for name in step.network.parameter}
    assert {part.layer for part in parts} == layers | {""}
    for layer in layers:
        kinds = sorted(part.what for part in parts if part.layer == layer)
        assert kinds == (["", "dweight"] if layer in ("conv1", "skip0") else ["", "dweight", "dx"])
    assert (1 if task.design == "skip" else 0.01) * 1e8 < sum(map(flops, parts)) < 1.3e8


@pytest.mark.parametrize("naive", [False, True], ids=["fast", "naive"])
def test_each_half_of_a_backward_pass_is_written_by_its_own_launches(naive):
    task = Task("skip", 1)
    device = Recorder(naive=naive)
    for part in parts_of(task, batches_of(task), on("cpu")):
        if part.what:
            outputs, function = [], Form(Operations(device)).function(part)
            arguments = part.copied_arguments(np.ascontiguousarray)
            launches = device.record(lambda f=function, a=arguments, o=outputs: o.extend(f(**a))).launches
            written = {
                address(argument)
                for launch in part.own(launches)
                for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
                if parameter.is_array and not parameter.is_const and argument is not None
            }
            assert {address(result) for result in part.chosen(tuple(outputs))} <= written, (part, naive)


def parts_on_the_emulator():
    """Parts that need no template to be compiled, and their two forms."""
    ops, x = Operations(Emulator()), np.random.default_rng(0).standard_normal(300).astype(np.float32)
    calls = note_calls(ops)
    ops.add(ops.relu(ops.asarray(x)), ops.asarray(x))
    parts = [part for call in calls for part in split(call, ops.device)]
    return parts, {"fast": Form(on("emulator")), "naive": Form(on("emulator", naive=True))}


def test_parts_are_timed(monkeypatch):
    monkeypatch.setattr(kernels, "COPIED_BYTES", 1)
    parts, forms = parts_on_the_emulator()
    messages = []
    for timed in time_parts(parts, forms, wall_clock, HASTE, messages.append):
        assert {*timed} == {"fast", "naive"} and timed["fast"].seconds > 0
        assert timed["fast"].runs == 20  # in one graph
    assert messages == ["1 of 2: relu 300", "2 of 2: add 300"]


class Wrong(Form):
    """Another form of NumPy's or the kernels' results, of which one operation's are 1 % too large."""

    wrong = ""

    def results(self, part):
        return [result * np.float32(1.01 if part.operation == self.wrong else 1) for result in super().results(part)]


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    monkeypatch.setattr(kernels, "in_turn", lambda *arguments: pytest.fail("timed"))
    parts, forms = parts_on_the_emulator()
    forms["naive"] = Wrong(on("emulator", naive=True))
    forms["naive"].wrong = "add"
    with pytest.raises(TinyfcnError, match=r"add 300: fast and naive differ by 9.9e-03, .* so none is timed"):
        time_parts(parts, forms, None, HASTE, print)
    nan = replace(parts[0], arguments={"x": np.full(300, np.nan, np.float32)})
    with pytest.raises(TinyfcnError, match=r"relu 300: fast and naive differ by inf"):
        time_parts([nan], forms, None, HASTE, print)


def test_nothing_is_timed_in_numpy_that_differs_from_pytorch(monkeypatch):
    monkeypatch.setattr(kernels, "in_turn", lambda *arguments: pytest.fail("timed"))
    task = Task("skip", 1)
    parts = [part.whole() for part in parts_of(task, batches_of(task), on("cpu")) if not part.comes_with_dx()]
    forms = {"numpy": Form(on("cpu")), "torch": Wrong(on("cpu"))}
    forms["torch"].wrong = "conv_transpose2d_backward"
    with pytest.raises(TinyfcnError, match=r"conv_transpose2d_backward up2: numpy and torch differ by 9.9e-03"):
        time_parts(parts, forms, None, HASTE, print)


def test_numpy_takes_turns_with_copies(monkeypatch):
    ops, places = on("cpu"), []
    calls = note_calls(ops)
    parameters, gradients = np.ones(3, np.float32), np.ones(3, np.float32)
    state = AdamState.create(ops, gradients, 1.0, 1)
    state.rates[:] = 1
    ops.adam_step(parameters, gradients, state, gradients[:1])
    after = parameters.copy()
    cpu = on("cpu")

    def adam_step(parameters, gradients, state, loss):
        places.append((address(parameters), address(state.m)))
        parameters -= gradients
        state.m += 1

    monkeypatch.setattr(cpu, "adam_step", adam_step)
    once = Form(cpu).program(calls[0], copies=2, rounds=9)
    for _ in range(4):
        once()
    assert places[:2] == places[2:] and len({*places}) == 2
    assert (address(parameters), address(state.m)) not in places and np.array_equal(parameters, after)
