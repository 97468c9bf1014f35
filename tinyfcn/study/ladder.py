"""Ladders: from the plainest kernel of an operation to the one that trains, one idea a rung.

A rung is a file in kernels/ladder/OPERATION, or for the last one the kernels of tinyfcn themselves. This module
launches them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn import files
from tinyfcn.checks.parts import Part, kernel_resources
from tinyfcn.checks.profile import Profiled
from tinyfcn.devices.device import THREADS, Array, Device
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.profile import LANES, SAMPLE, Sample
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.devices.launch import ceil_div
from tinyfcn.errors import DeviceError, KernelError
from tinyfcn.ops import Operations

LADDERS = KERNELS / "ladder"
TILE = 8, 20  # outputs of a block, in the rungs that have tiles: rows and columns
SPLITS = 16  # of the sum over images and tiles


@dataclass(frozen=True)
class Rung:
    """One step of a ladder. number: counted from 1. file: None for the last rung, the kernels that train."""

    ladder: str
    number: int
    name: str
    file: Path | None

    @property
    def idea(self) -> str:
        """The first line of the file, without its full stop."""
        if self.file is None:
            return "the kernels that train"
        return self.file.read_text(encoding="utf-8").splitlines()[0].removeprefix("// ").removesuffix(".")

    def prepared(
        self, device_of: Callable[[Path], Device], inputs: Mapping[str, Any]
    ) -> tuple[Device, Callable[[], Array]]:
        """A device, and what computes the result there, from the inputs that `Ladder.inputs` gives.

        device_of: makes a device with a folder's kernels.
        """
        ladder = LADDER[self.ladder]
        device = device_of(self.file.parent if self.file else KERNELS)
        given = inputs_on(device, inputs)
        if self.file is None:
            return device, partial(ladder.trained, Operations(device), **given)
        return device, partial(ladder.rungs[self.name], device, **given)

    def run(self, device_of: Callable[[Path], Device], inputs: Mapping[str, Any]) -> Array:
        """The result; see `prepared`."""
        _, work = self.prepared(device_of, inputs)
        return work()


@dataclass(frozen=True)
class Ladder:
    """The rungs of an operation.

    rungs: by the names of their files, how each is launched. layer: the arguments of `inputs` for the layer that the
    table of counts is made with. inputs: makes random inputs of given sizes. operation, what: the operation of tinyfcn
    whose first result the rungs compute, and which of its results, as in Part. more: its further arguments.
    """

    rungs: Mapping[str, Callable[..., Array]]
    layer: Mapping[str, int]
    inputs: Callable[..., dict[str, Any]]
    operation: str
    what: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def part(self, inputs: Mapping[str, Any]) -> Part:
        """The operation with its arguments, without outputs and launches."""
        return Part(self.operation, self.what, "", {**inputs, **self.more}, None)

    def trained(self, ops: Operations, **inputs: Any) -> Array:
        """The result, by the operation itself."""
        part = self.part(inputs)
        return part.chosen(getattr(ops, self.operation)(**part.arguments))[0]


def inputs_on(device: Device, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with their arrays on the device, in its precision."""

    def moved(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return device.asarray(value.astype(device.dtypes["float"]) if value.dtype.kind == "f" else value)

    return {name: moved(value) for name, value in inputs.items()}


def rungs(ladder: str) -> list[Rung]:
    """The rungs of a ladder, in order. Raises KernelError for a ladder that there is not."""
    if ladder not in LADDER:
        raise KernelError(f"no ladder named {ladder!r}; there are {', '.join(LADDER)}")
    found = sorted(files.visible(LADDERS / ladder, "*.cu"), key=lambda file: int(file.name.partition("_")[0]))
    numbered = [Rung(ladder, number, file.stem.partition("_")[2], file) for number, file in enumerate(found, 1)]
    return [*numbered, Rung(ladder, len(numbered) + 1, "trains", None)]


# --- conv2d ---


def conv_inputs(
    random: np.random.Generator, n: int, c: int, h: int, w: int, o: int, kernel: int, stride: int, padding: int
) -> dict[str, Any]:
    """x, weight and bias of a convolution."""
    shapes = {"x": (n, c, h, w), "weight": (o, c, kernel, kernel), "bias": (o,)}
    return {name: random.standard_normal(shape) for name, shape in shapes.items()} | {
        "stride": stride,
        "padding": padding,
    }


def conv2d(name: str, channels: int = 1, groups: int = 1) -> Callable[..., Array]:
    """Launches a rung of conv2d, whose threads compute `channels` channels. groups: of threads that share a tile."""

    def run(device: Device, x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
        (n, c, h, w), (o, _, kernel, _) = x.shape, weight.shape
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
        y = device.empty((n, o, height, width))
        arguments, template = [x, weight, bias, y, n, c, h, w, o, height, width], (kernel, kernel, stride)
        if name == "output_per_thread":
            device.launch_for_each(f"conv2d_{name}", y.size, [*arguments, kernel, kernel, stride, padding])
        elif "tile" in name or "pixels" in name:
            tiles = ceil_div(height, TILE[0]) * ceil_div(width, TILE[1])
            threads = TILE[0] * TILE[1]
            grid = tiles, ceil_div(o, channels * groups), n
            device.launch(f"conv2d_{name}", grid, threads, [*arguments, padding], template=template)
        else:
            grid = ceil_div(n * ceil_div(o, channels) * height * width, THREADS), 1, 1
            device.launch(f"conv2d_{name}", grid, THREADS, [*arguments, padding], template=template)
        return y

    return run


# --- conv_transpose2d ---


def transposed_inputs(random: np.random.Generator, **sizes: int) -> dict[str, Any]:
    """x, weight and bias of a transposed convolution."""
    inputs = conv_inputs(random, **sizes)
    return inputs | {"weight": np.ascontiguousarray(inputs["weight"].swapaxes(0, 1))}


def conv_transpose2d(name: str) -> Callable[..., Array]:
    """Launches a rung of conv_transpose2d."""

    def run(device: Device, x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
        (n, c, h, w), (_, o, kernel, _) = x.shape, weight.shape
        height, width = ((size - 1) * stride + kernel - 2 * padding for size in (h, w))
        columns = (width - 1 + padding) // stride + 1  # of inputs over which outputs lie
        y = device.empty((n, o, height, width))
        arguments, template = [x, weight, bias, y, n, c, h, w, o, height, width], (kernel, kernel, stride)
        kernel_name = f"conv_transpose2d_{name}"
        if name == "scatter":
            device.launch_for_each("conv_transpose2d_bias", y.size, [bias, y, n, o, height * width])
            without_bias = [x, weight, *arguments[3:], kernel, kernel, stride, padding]
            device.launch_for_each(kernel_name, x.size, without_bias)
        elif name == "gather":
            device.launch_for_each(kernel_name, y.size, [*arguments, kernel, kernel, stride, padding])
        elif name == "shared":
            grid = ceil_div(height, TILE[0]) * ceil_div(columns, TILE[1]), ceil_div(o, 4), n
            device.launch(kernel_name, grid, TILE[0] * TILE[1], [*arguments, padding], template=template)
        else:
            threads = n * o * height * (columns if name == "phases_per_thread" else width)
            device.launch(kernel_name, ceil_div(threads, THREADS), THREADS, [*arguments, padding], template=template)
        return y

    return run


# --- The gradient of conv2d's weights ---


def gradient_inputs(random: np.random.Generator, **sizes: int) -> dict[str, Any]:
    """x, weight (for its shape alone) and dout of a convolution."""
    inputs = conv_inputs(random, **sizes)
    (n, _, h, w), (o, _, kernel, _) = inputs["x"].shape, inputs["weight"].shape
    outputs = ((size + 2 * sizes["padding"] - kernel) // sizes["stride"] + 1 for size in (h, w))
    return {"dout": random.standard_normal((n, o, *outputs))} | {
        name: inputs[name] for name in inputs if name != "bias"
    }


def weight_gradient(name: str) -> Callable[..., Array]:
    """Launches a rung of the weight gradient."""

    def run(device: Device, dout: Array, x: Array, weight: Array, stride: int, padding: int) -> Array:
        (n, c, h, w), (o, _, kernel, _), (*_, height, width) = x.shape, weight.shape, dout.shape
        dweight = device.empty(weight.shape)
        sizes, template = [n, c, h, w, o, height, width], (kernel, kernel, stride)
        kernel_name = f"weight_gradient_{name}"
        if name == "block_per_weight":
            device.launch(kernel_name, dweight.size, 64, [dout, x, dweight, *sizes, kernel, kernel, stride, padding])
        elif name == "block_per_pair":
            device.launch(kernel_name, (c, o), 64, [dout, x, dweight, *sizes, padding], template=template)
        elif name == "tiles":
            grid = ceil_div(c, 8), ceil_div(o, 8)
            device.launch(kernel_name, grid, 64, [dout, x, dweight, *sizes, padding], template=template)
        else:
            workspace = device.empty((SPLITS, *weight.shape))
            split_grid = ceil_div(c, 8), ceil_div(o, 8), SPLITS
            device.launch(kernel_name, split_grid, 64, [dout, x, workspace, *sizes, padding], template=template)
            device.launch_for_each("weight_gradient_reduce", dweight.size, [workspace, dweight, dweight.size, SPLITS])
        return dweight

    return run


# --- The mean loss ---


def loss_inputs(random: np.random.Generator, n: int, k: int, h: int, w: int) -> dict[str, Any]:
    """logits and labels."""
    labels = random.integers(0, k, (n, h, w), dtype=np.int32)
    return {"logits": 3 * random.standard_normal((n, k, h, w)), "labels": labels}


def mean_loss(name: str) -> Callable[..., Array]:
    """Launches a rung of the mean loss."""

    def run(device: Device, logits: Array, labels: Array) -> Array:
        losses, mean = device.empty((labels.size,)), device.empty((1,))
        plane = logits.shape[2] * logits.shape[3]
        arguments = [logits, labels, losses, labels.size, logits.shape[1], plane]
        device.launch_for_each("losses_of_positions", labels.size, arguments)
        device.launch(f"mean_by_{name}", 1, THREADS, [losses, mean, labels.size])
        return mean

    return run


CONTEXT = {"n": 16, "c": 32, "h": 14, "w": 19, "o": 32, "kernel": 3, "stride": 1, "padding": 1}  # of the design skip
UP2 = {"n": 16, "c": 16, "h": 30, "w": 40, "o": 16, "kernel": 6, "stride": 2, "padding": 0}

LADDER: dict[str, Ladder] = {
    "conv2d": Ladder(
        {
            "output_per_thread": conv2d("output_per_thread"),
            "sizes_known": conv2d("sizes_known"),
            "channels_per_thread": conv2d("channels_per_thread", 4),
            "input_tile": conv2d("input_tile", 4),
            "weight_tile": conv2d("weight_tile", 4),
            "pixels_per_thread": conv2d("pixels_per_thread", 4, 4),
            "channel_tiles": conv2d("channel_tiles", 4, 4),
        },
        CONTEXT,
        conv_inputs,
        "conv2d",
    ),
    "conv_transpose2d": Ladder(
        {name: conv_transpose2d(name) for name in ("scatter", "gather", "phase_only", "phases_per_thread", "shared")},
        UP2,
        transposed_inputs,
        "conv_transpose2d",
    ),
    "weight_gradient": Ladder(
        {
            name: weight_gradient(name)
            for name in ("block_per_weight", "block_per_pair", "tiles", "split_k", "window", "odd_pitch")
        },
        CONTEXT,
        gradient_inputs,
        "conv2d_backward",
        "dweight",
        {"need_dx": False, "through_relu": False},
    ),
    "mean_loss": Ladder(
        {name: mean_loss(name) for name in ("one_thread", "tree", "shuffles")},
        {"n": 16, "k": 11, "h": 64, "w": 84},
        loss_inputs,
        "softmax_cross_entropy",
    ),
}


# --- What a rung costs ---


@dataclass(frozen=True)
class Counts:
    """What the launches of a rung ask of memory, for the ladder's layer.

    requests: to global memory, and wavefronts of shared memory: for each multiply-add of a warp, or for each 32 losses.
    registers: the most that a kernel uses; None without NVRTC.
    """

    bytes_by_lanes: float
    l1_bytes: float
    requests: float
    wavefronts: float
    multiply_adds: int
    registers: int | None
    spilled_bytes: int | None


def profile_rung(rung: Rung, inputs: Mapping[str, Any], sample: Sample = SAMPLE) -> list[Profiled]:
    """The launches of a rung. Raises DeviceError where there is no C++ compiler."""
    devices: list[Emulator] = []

    def device_of(kernels: Path) -> Device:
        devices.append(Emulator(kernels, mode="profile", sample=sample))
        return devices[-1]

    rung.run(device_of, inputs)
    return [Profiled(f"rung {rung.number}: {rung.idea}", each) for each in devices[0].profiles]


def counts(rung: Rung, architecture: str, sample: Sample = SAMPLE) -> Counts:
    """Counts a rung's launches in profile mode.

    Raises:
        DeviceError: there is no C++ compiler.
        KernelError: NVRTC does not compile the rung.
    """
    ladder = LADDER[rung.ladder]
    inputs = ladder.inputs(np.random.default_rng(0), **ladder.layer)
    profiled = profile_rung(rung, inputs, sample)
    products = ladder.part(inputs).products()
    of_warps = (products or inputs["labels"].size) / LANES
    memory = [(each.scale, traffic) for each in profiled for traffic in each.profile.traffic if not traffic.is_shared]
    launches = [(rung.name, each.launch) for each in profiled]
    try:
        resources = kernel_resources(launches, architecture, profiled[0].profile.kernels)
    except KernelError:
        raise  # a kind of DeviceError
    except DeviceError:
        resources = []  # without NVRTC
    return Counts(
        sum(scale * traffic.by_lanes for scale, traffic in memory),
        sum(each.totals()["l1_bytes"] for each in profiled),
        sum(each.sum("requests", shared=False) for each in profiled) / of_warps,
        sum(each.sum("parts", shared=True) for each in profiled) / of_warps,
        products,
        max((each["registers"] for each in resources), default=None),
        sum(each["spilled_bytes"] for each in resources) if resources else None,
    )
