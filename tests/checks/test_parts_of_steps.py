"""The parts of a step: what each must do, and what its kernels use."""

import itertools

import numpy as np
import pytest

from tinyfcn import Operations, on
from tinyfcn.adam_state import AdamState
from tinyfcn.checks import parts
from tinyfcn.checks.parts import Part, Recorder, kernel_resources, note_calls, split
from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import address
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.nvrtc import Resources
from tinyfcn.training.step import Step, Task, parts_of


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
        without_dx = layer in ("conv1", "skip0", step.network.head)  # the head's comes with its loss
        assert kinds == (["", "dweight"] if without_dx else ["", "dweight", "dx"])
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
    launches = [("", launch) for part in found for launch in part.launches]
    loss, mean, softmax = kernel_resources(launches, "sm_90")
    assert loss["kernel"] == "softmax_cross_entropy<10>" and mean["kernel"] == "softmax_cross_entropy_mean"
    assert softmax["blocks"] == 13 and softmax["threads"] == 256 and softmax["for"] == ["", ""]
    assert loss["registers"] > 10 and loss["shared_bytes"] == 32 and loss["spilled_bytes"] == 0
    expected = Resources("softmax", softmax["registers"], 0, 0).occupancy("sm_90", 256)
    assert (softmax["blocks_at_once"], softmax["occupancy"]) == expected
