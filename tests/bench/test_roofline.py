"""What a part must do against counting one by one, known occupancies, and peaks of kernels that are right."""

import itertools

import numpy as np
import pytest

from tinyfcn import on
from tinyfcn.adam_state import AdamState
from tinyfcn.bench import roofline
from tinyfcn.bench.parts import READ_IN_PART, Part, Recorder, note_calls, split
from tinyfcn.bench.roofline import CARDS, MULTIPROCESSORS, flops, measure_peaks, occupancy
from tinyfcn.bench.timing import TimeBudget, wall_clock
from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import peak

reference = on("cpu")


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "share"),
    [  # as CUDA's occupancy calculator has it
        ("sm_75", 256, 32, 0, 4, 1.0),
        ("sm_75", 256, 64, 0, 4, 1.0),
        ("sm_75", 64, 255, 0, 4, 0.25),
        ("sm_75", 32, 16, 0, 16, 0.5),  # no more than 16 blocks
        ("sm_75", 256, 32, 16385, 3, 0.75),
        ("sm_80", 256, 32, 0, 8, 1.0),
        ("sm_80", 256, 33, 0, 6, 0.75),  # 5 registers of 8 more for each warp than at 32
        ("sm_80", 256, 64, 0, 4, 0.5),
        ("sm_80", 128, 40, 0, 12, 0.75),
        ("sm_80", 1024, 64, 0, 1, 0.5),
        ("sm_80", 64, 255, 0, 4, 0.125),
        ("sm_80", 32, 96, 0, 20, 0.3125),  # 5 in each quarter, though all its registers together would do for 21
        ("sm_80", 128, 32, 48 * 1024, 3, 0.1875),  # 49 KB of 164 each: CUDA takes one
        ("sm_80", 100, 32, 0, 16, 1.0),  # 100 threads are four warps
        ("sm_86", 256, 32, 0, 6, 1.0),
        ("sm_90", 32, 32, 0, 32, 0.5),
        ("sm_90", 256, 32, 48 * 1024, 4, 0.5),
        ("sm_120", 256, 32, 0, 6, 1.0),
        ("sm_120", 256, 80, 0, 3, 0.5),
        ("sm_120", 128, 32, 100 * 1024, 0, 0.0),  # nothing is left for CUDA
        ("sm_30", 128, 32, 0, None, None),  # unknown
    ],
)
def test_occupancy(architecture, threads, registers, shared, blocks, share):
    assert occupancy(architecture, threads, registers, shared) == (blocks, share)


def test_cards_and_rooflines():
    assert {*nvrtc.ARCHITECTURES} <= {*MULTIPROCESSORS}
    for card in CARDS.values():
        assert card.architecture in MULTIPROCESSORS and card.source != roofline.MEASURED
        assert 1e11 < card.bandwidth < 1e13 and 1e12 < card.flops < 1e15
    assert CARDS["h200"].least_seconds(4.8e12, 1) == 1 and CARDS["h200"].least_seconds(1, 134e12) == 2


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((7, 9), (3, 4), 1, 2), ((6, 5), (4, 3), 2, 1), ((5, 5), (5, 5), 1, 2), ((4, 6), (1, 1), 3, 0)],
)
def test_flops_of_convolutions(transposed, size, kernel, stride, padding):
    """By looking at each product whether it is one with a zero around the image."""
    name, weight = ("conv_transpose2d", (3, 5, *kernel)) if transposed else ("conv2d", (5, 3, *kernel))
    arguments = {"x": np.zeros((2, 3, *size)), "weight": np.zeros(weight), "stride": stride, "padding": padding}
    y = getattr(reference, name)(**arguments, bias=np.zeros(5))
    (height, width), outputs = (y.shape[2:], size) if transposed else (size, y.shape[2:])
    inside = [
        0 <= i * stride + u - padding < height and 0 <= j * stride + v - padding < width
        for i, j, u, v in itertools.product(*map(range, (*outputs, *kernel)))
    ]
    products = 2 * 3 * 5 * sum(inside)
    arguments["dout"] = y
    assert flops(Part(name, "", "", arguments, y)) == 2 * products
    assert flops(Part(f"{name}_backward", "dx", "", arguments, y)) == 2 * products
    assert flops(Part(f"{name}_backward", "dweight", "", arguments, y)) == 2 * products + y.size


def test_flops_of_other_operations():
    x, weight, dout = np.zeros((2, 3, 9, 8)), np.zeros((5, 3, 3, 3)), np.zeros((2, 5, 3, 3))
    pooled = {"x": x, "weight": weight, "dout": dout}
    assert flops(Part("conv2d_pool_backward", "dx", "", pooled, ())) == 2 * dout.size * 3 * 9  # of max indices alone
    assert flops(Part("conv2d_pool_backward", "dweight", "", pooled, ())) == 2 * dout.size * 3 * 9 + dout.size
    assert flops(Part("adam_step", "", "", {"parameters": np.zeros(100)}, None)) == 1600
    arguments = {"logits": np.zeros((2, 10, 3, 3)), "labels": np.zeros((2, 3, 3))}
    assert flops(Part("softmax_cross_entropy", "", "", arguments, ())) == 6 * 180 + 3 * 18
    assert flops(Part("relu", "", "", {}, np.zeros(7))) == 7


def noted_parts(*work):
    """The parts of what `work` asks the references for."""
    ops = on("cpu")
    calls = note_calls(ops)
    for each in work:
        each(ops)
    return [part for call in calls for part in split(call, Recorder())]


def test_least_bytes():
    random = np.random.default_rng(0)
    x, weight, bias, dy = (
        random.random(shape, np.float32) for shape in ((2, 3, 9, 8), (5, 3, 2, 3), (5,), (2, 5, 4, 3))
    )
    max_index = np.zeros(dy.shape, np.int32)
    digits, step = (np.zeros((99, 28, 28), np.uint8), np.zeros(99, np.uint8)), np.zeros(1, np.int32)
    found = noted_parts(
        lambda ops: ops.conv2d_pool(x, weight, bias),
        lambda ops: ops.conv2d_pool_backward(dy, max_index, x, weight),
        lambda ops: ops.conv2d_pool_backward(dy, max_index, x, weight, through_relu=True, add=x.copy()),
        lambda ops: ops.compose_m2nist(*digits, 0, step, 2),
        lambda ops: (
            ops.adam_schedule(state := AdamState.create(ops, bias, 1.0, 1))
            or ops.adam_step(bias.copy(), bias.copy(), state, bias[:1].copy())
        ),
    )
    x, weight, bias, dy = (4 * array.size for array in (x, weight, bias, dy))
    assert [roofline.least_bytes(part) for part in found] == [
        x + weight + bias + 2 * dy,  # y and max_index
        2 * dy + weight + x,  # dout and max_index; dx
        2 * dy + x + weight + bias,
        2 * dy + weight + 3 * x,  # and x for the ReLU, add
        2 * dy + x + weight + bias,
        8 * 2 * 64 * 84 + 2 * 64 * 84 + 99 + 4,  # an image's float and label, and a byte for each pixel at the most
        0,
        (5 + 3) * bias,  # read, and written
    ]


def test_arrays_that_are_read_in_part_are_kernels_parameters():
    read = {parameter.name for kernel in kernel_source.kernels().values() for parameter in kernel.parameters}
    assert read >= READ_IN_PART


def test_what_kernels_use():
    logits = np.zeros((2, 10, 40, 40), np.float32)
    parts = noted_parts(
        lambda ops: ops.softmax_cross_entropy(logits, np.zeros((2, 40, 40), np.int32)),
        lambda ops: ops.softmax(logits),
        lambda ops: ops.softmax(logits[:1].copy()),
    )
    loss, mean, softmax = roofline.kernel_resources(parts, "sm_90")
    assert loss["kernel"] == "softmax_cross_entropy<10>" and mean["kernel"] == "softmax_cross_entropy_mean"
    assert softmax["blocks"] == 13 and softmax["threads"] == 256 and softmax["for"] == ["", ""]
    assert loss["registers"] > 10 and loss["shared_bytes"] == 32 and loss["spilled_bytes"] == 0
    takes = "sm_90", 256, softmax["registers"], 0
    assert (softmax["blocks_at_once"], softmax["occupancy"]) == occupancy(*takes)


def test_peaks():
    budget = TimeBudget(0.01, 2, 0)
    assert min(measure_peaks(Emulator(), wall_clock, budget, copied=4096, threads=512, rounds=16)) > 1e6


@pytest.mark.parametrize("kernel", ["copy", "multiply_add"])
def test_a_wrong_kernel_is_not_timed(monkeypatch, kernel):
    right = getattr(peak, kernel)

    def wrong(device, x, *rest):
        result = right(device, x, *rest)
        result[-1] += 1
        return result

    monkeypatch.setattr(peak, kernel, wrong)
    with pytest.raises(TinyfcnError, match=f"peak_{kernel} gives a wrong"):
        measure_peaks(Emulator(), None, None, copied=64, threads=64, rounds=4)
