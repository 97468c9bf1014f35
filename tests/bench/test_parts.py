"""The parts of a step: each launch is in one, what each must do and use, and none is timed that is wrong."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tinyfcn import Operations, on
from tinyfcn.adam_state import AdamState
from tinyfcn.bench import parts
from tinyfcn.bench.parts import Form, Part, Recorder, note_calls, parts_of, split, time_parts
from tinyfcn.bench.roofline import CARDS, MEASURED, kernel_resources, measure_peaks
from tinyfcn.bench.steps import Step, Task
from tinyfcn.bench.timing import TimeBudget, wall_clock
from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import address
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.nvrtc import MULTIPROCESSORS, Resources
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import peak

HASTE = TimeBudget(0.01, 2, 0)


def noted(ops, device, *work):
    """The parts of what `work` asks of the operations."""
    calls = note_calls(ops)
    for each in work:
        each(ops)
    return [part for call in calls for part in split(call, device)]


@pytest.mark.parametrize("task", [Task("classifier", 2), Task("skip", 1)], ids=str)
def test_every_launch_of_a_step_is_in_one_part(task, monkeypatch):
    monkeypatch.setattr(Emulator, "_launch", lambda device, launch: None)
    found = parts_of(task, on("cpu"))
    step = Step(task, on("emulator"), composed=task.design == "skip")
    expressions = [launch.kernel.expression for launch in step.ops.device.record(step.work).launches]
    assert sorted(launch.kernel.expression for part in found for launch in part.launches) == sorted(expressions)
    layers = {name.split(".")[0] for name in step.network.parameter}
    assert {part.layer for part in found} == layers | {""}
    for layer in layers:
        kinds = sorted(part.what for part in found if part.layer == layer)
        assert kinds == (["", "dweight"] if layer in ("conv1", "skip0") else ["", "dweight", "dx"])
    assert (1 if task.design == "skip" else 0.01) * 1e8 < sum(part.flops for part in found) < 1.3e8


@pytest.mark.parametrize("naive", [False, True], ids=["fast", "naive"])
def test_each_half_of_a_backward_pass_is_written_by_its_own_launches(naive):
    device = Recorder(naive=naive)
    for part in parts_of(Task("skip", 1), on("cpu")):
        if part.what:
            outputs, function = [], getattr(Operations(device), part.operation)
            arguments = part.copied_arguments(np.ascontiguousarray)
            launches = device.record(lambda f=function, a=arguments, o=outputs: o.extend(f(**a))).launches
            written = {
                address(argument)
                for launch in part.own(launches)
                for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
                if parameter.is_array and not parameter.is_const and argument is not None
            }
            assert {address(result) for result in part.chosen(tuple(outputs))} <= written, (part, naive)


class Wrong(Form):
    """A form of which one operation's results are 1 % too large."""

    def __init__(self, ops, operation):
        super().__init__(ops)
        self.operation = operation

    def prepared(self, part):
        run, factor = super().prepared(part), np.float32(1.01 if part.operation == self.operation else 1)
        return lambda: [result * factor for result in run()]


def on_the_emulator():
    """Parts that need no template to be compiled."""
    ops, x = Operations(Emulator()), np.random.default_rng(0).standard_normal(300).astype(np.float32)
    return noted(ops, ops.device, lambda ops: ops.add(ops.relu(ops.asarray(x)), ops.asarray(x)))


def test_parts_are_timed(monkeypatch):
    monkeypatch.setattr(parts, "COPIED_BYTES", 1)
    forms, messages = {"fast": Form(on("emulator")), "naive": Form(on("emulator", naive=True))}, []
    for timed in time_parts(on_the_emulator(), forms, wall_clock, HASTE, messages.append):
        assert {*timed} == {"fast", "naive"} and timed["fast"]["seconds"] > 0
        assert timed["fast"]["runs"] == 20  # in one graph
    assert messages == ["1 of 2: relu 300", "2 of 2: add 300"]


def test_a_wrong_form_is_not_timed(monkeypatch):
    monkeypatch.setattr(parts, "in_turn", lambda *arguments: pytest.fail("timed"))

    def time(which, **forms):
        time_parts(which, forms, None, HASTE, print)

    some, emulator = on_the_emulator(), on("emulator", naive=True)
    with pytest.raises(TinyfcnError, match=r"add 300: fast and naive differ by 1.0e-02, .* so none is timed"):
        time(some, fast=Form(on("emulator")), naive=Wrong(emulator, "add"))
    nan = replace(some[0], arguments={"x": np.full(300, np.nan, np.float32)})
    with pytest.raises(TinyfcnError, match=r"relu 300: fast and naive differ by inf"):
        time([nan], fast=Form(on("emulator")), naive=Form(emulator))
    step = parts_of(Task("skip", 1), on("cpu"))
    for wrong in ("conv_transpose2d_backward up2", "adam_step"):
        with pytest.raises(TinyfcnError, match=rf"{wrong}.*: numpy and torch differ by 1.0e-02"):
            time(step, numpy=Form(on("cpu")), torch=Wrong(on("cpu"), wrong.split()[0]))


def test_numpy_takes_turns_with_copies(monkeypatch):
    parameters, places, cpu = np.ones(3, np.float32), [], on("cpu")
    state = AdamState.create(cpu, parameters, 1.0, 1)

    def adam_step(parameters, gradients, state, loss):
        places.append((address(parameters), address(state.m)))
        parameters -= gradients
        state.m += 1

    monkeypatch.setattr(cpu, "adam_step", adam_step)
    arguments = {"parameters": parameters, "gradients": parameters.copy(), "state": state, "loss": parameters[:1]}
    once = Form(cpu).program(Part("adam_step", "", "", arguments, None), copies=2, rounds=9)
    for _ in range(4):
        once()
    assert places == places[:2] * 3 and len({*places}) == 2  # each once before
    assert (address(parameters), address(state.m)) not in places and (parameters == 1).all()


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((7, 9), (3, 4), 1, 2), ((6, 5), (4, 3), 2, 1), ((5, 5), (5, 5), 1, 2), ((4, 6), (1, 1), 3, 0)],
)
def test_flops_of_convolutions(name, size, kernel, stride, padding):
    """By looking at each product whether it is one with a zero around the image."""
    transposed = name == "conv_transpose2d"
    weight = np.zeros((3, 5, *kernel) if transposed else (5, 3, *kernel))
    arguments = {"x": np.zeros((2, 3, *size)), "weight": weight, "stride": stride, "padding": padding}
    y = getattr(on("cpu"), name)(**arguments, bias=np.zeros(5))
    (height, width), outputs = (y.shape[2:], size) if transposed else (size, y.shape[2:])
    inside = [
        0 <= i * stride + u - padding < height and 0 <= j * stride + v - padding < width
        for i, j, u, v in itertools.product(*map(range, (*outputs, *kernel)))
    ]
    products = 2 * 3 * 5 * sum(inside)
    arguments["dout"] = y
    assert Part(name, "", "", arguments, y).flops == 2 * products
    assert Part(f"{name}_backward", "dx", "", arguments, y).flops == 2 * products
    assert Part(f"{name}_backward", "dweight", "", arguments, y).flops == 2 * products + y.size


def test_least_flops_and_bytes():
    """By hand: flops, and the bytes of all arrays that are read and written, in this order."""
    shapes = (2, 3, 9, 8), (5, 3, 2, 3), (5,), (2, 5, 4, 3), (2, 10, 3, 3)
    x, weight, bias, dy, logits = (np.random.default_rng(0).random(shape, np.float32) for shape in shapes)
    max_index, labels, step = np.zeros(dy.shape, np.int32), np.zeros((2, 3, 3), np.int32), np.zeros(1, np.int32)
    digits, state = (
        (np.zeros((99, 28, 28), np.uint8), np.zeros(99, np.uint8)),
        AdamState.create(on("cpu"), bias, 1.0, 1),
    )
    found = noted(
        on("cpu"),
        Recorder(),
        lambda ops: ops.conv2d_pool(x, weight, bias),
        lambda ops: ops.conv2d_pool_backward(dy, max_index, x, weight),
        lambda ops: ops.conv2d_pool_backward(dy, max_index, x, weight, through_relu=True, add=x.copy()),
        lambda ops: ops.softmax_cross_entropy(logits, labels),
        lambda ops: ops.relu(x),
        lambda ops: ops.compose_m2nist(*digits, 0, step, 2),
        lambda ops: ops.adam_schedule(state),
        lambda ops: ops.adam_step(bias.copy(), bias.copy(), state, bias[:1].copy()),
    )
    x, weight, bias, dy, logits = (array.nbytes for array in (x, weight, bias, dy, logits))
    of_maxima, pixels = 2 * 120 * 3 * 2 * 3, 2 * 64 * 84
    assert [(part.flops, part.byte_count) for part in found] == [
        (2 * 2 * 5 * 8 * 6 * 3 * 2 * 3, x + weight + bias + 2 * dy),  # y and max_index
        (of_maxima, 2 * dy + weight + x),  # dout and max_index; dx
        (of_maxima + 120, 2 * dy + x + weight + bias),
        (of_maxima, 2 * dy + weight + 3 * x),  # and x for the ReLU, add
        (of_maxima + 120, 2 * dy + x + weight + bias),
        (6 * 180 + 3 * 18, 2 * logits + 4 * 18 + 4),
        (432, 2 * x),
        (2 * pixels, 9 * pixels + 99 + 4),  # a float, a label and at most a byte of the digits for each pixel
        (0, 0),
        (16 * 5, (5 + 3) * bias),  # read, and written
    ]
    declared = {parameter.name for kernel in kernel_source.kernels().values() for parameter in kernel.parameters}
    assert declared >= parts.READ_IN_PART


def test_cards_and_rooflines():
    for card in CARDS.values():
        assert card.architecture in MULTIPROCESSORS and card.source != MEASURED
        assert 1e11 < card.bandwidth < 1e13 and 1e12 < card.flops < 1e15
    assert CARDS["h200"].least_seconds(4.8e12, 1) == 1 and CARDS["h200"].least_seconds(1, 134e12) == 2


@pytest.mark.cupy
def test_what_kernels_use():
    logits, labels = np.zeros((2, 10, 40, 40), np.float32), np.zeros((2, 40, 40), np.int32)
    found = noted(
        on("cpu"),
        Recorder(),
        lambda ops: ops.softmax_cross_entropy(logits, labels),
        lambda ops: ops.softmax(logits),
        lambda ops: ops.softmax(logits[:1].copy()),
    )
    loss, mean, softmax = kernel_resources(found, "sm_90")
    assert loss["kernel"] == "softmax_cross_entropy<10>" and mean["kernel"] == "softmax_cross_entropy_mean"
    assert softmax["blocks"] == 13 and softmax["threads"] == 256 and softmax["for"] == ["", ""]
    assert loss["registers"] > 10 and loss["shared_bytes"] == 32 and loss["spilled_bytes"] == 0
    expected = Resources("softmax", softmax["registers"], 0, 0).occupancy("sm_90", 256)
    assert (softmax["blocks_at_once"], softmax["occupancy"]) == expected


def test_peaks():
    assert min(measure_peaks(Emulator(), wall_clock, HASTE, copied=4096, threads=512, rounds=16)) > 1e6


@pytest.mark.parametrize("kernel", ["copy", "multiply_add"])
def test_a_wrong_peak_is_not_timed(monkeypatch, kernel):
    right = getattr(peak, kernel)

    def wrong(device, x, *rest):
        result = right(device, x, *rest)
        result[-1] += 1
        return result

    monkeypatch.setattr(peak, kernel, wrong)
    with pytest.raises(TinyfcnError, match=f"peak_{kernel} gives a wrong"):
        measure_peaks(Emulator(), None, None, copied=64, threads=64, rounds=4)
