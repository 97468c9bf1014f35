"""The roofline: the least time that a part of a step could take on a GPU, and what its kernels use of one.

No program can work on arrays in memory in less time than memory takes to move the bytes, or the multiply-adds take to
do the flops (Williams, Waterman & Patterson, "Roofline", 2009). What a cache holds from the kernel before comes faster.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from tinyfcn.bench.parts import READ_IN_PART, Part
from tinyfcn.bench.timing import Clock, TimeBudget, in_turn
from tinyfcn.devices import nvrtc
from tinyfcn.devices.device import Device, Launch
from tinyfcn.devices.launch import ceil_div
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import peak
from tinyfcn.reference import peak as peak_reference
from tinyfcn.reference.conv2d import conv2d
from tinyfcn.reference.conv_transpose2d import conv_transpose2d

MEASURED = "measured in this run"  # the source of peaks that are not a datasheet's


@dataclass(frozen=True)
class Peaks:
    """A GPU's highest rates: bytes that memory moves a second, float32 flops a second; a multiply-add is two flops."""

    name: str
    architecture: str
    bandwidth: float
    flops: float
    source: str = MEASURED

    def least_seconds(self, byte_count: float, flops: float) -> float:
        """The time of moving the bytes or of doing the flops, whichever is longer."""
        return max(byte_count / self.bandwidth, flops / self.flops)


# What datasheets promise is never shown beside times that were measured on a card.
CARDS = {
    "t4": Peaks("NVIDIA T4", "sm_75", 0.300e12, 8.1e12, "T4 datasheet"),
    "a100": Peaks("NVIDIA A100 SXM 80 GB", "sm_80", 2.039e12, 19.5e12, "A100 datasheet"),
    "h100": Peaks("NVIDIA H100 SXM", "sm_90", 3.35e12, 67e12, "H100 datasheet"),
    "h200": Peaks("NVIDIA H200 SXM", "sm_90", 4.8e12, 67e12, "H200 datasheet"),
    "rtx5090": Peaks("NVIDIA GeForce RTX 5090", "sm_120", 1.792e12, 104.8e12, "RTX Blackwell whitepaper"),
}


def measure_peaks(
    device: Device,
    clock: Clock,
    budget: TimeBudget,
    copied: int = 1 << 27,  # floats, 512 MB: several times what a cache holds
    threads: int = 1 << 20,  # more than any GPU runs at once
    rounds: int = 8192,
) -> tuple[float, float]:
    """Bandwidth and flops, by the two kernels in peak.cu. Raises TinyfcnError where one gives a wrong result."""
    scale, shift = 0.999, 0.001  # towards 1: no number overflows or becomes too small
    x = np.random.default_rng(0).random(max(copied, threads), np.float32)
    to_copy, starts = device.asarray(x[:copied]), device.asarray(x[:threads])
    programs = {
        "copy": lambda: peak.copy(device, to_copy),
        "multiply_add": lambda: peak.multiply_add(device, starts, scale, shift, rounds),
    }
    sums = peak_reference.multiply_add(x[:threads].astype(np.float64), scale, shift, rounds)
    for name, expected, rtol in (("copy", x[:copied], 0.0), ("multiply_add", sums, 1e-3)):
        if not np.allclose(device.to_numpy(programs[name]()), expected, rtol, atol=0):
            raise TinyfcnError(f"peak_{name} gives a wrong result: its time would say nothing")
    times = in_turn({name: device.record(program).replay for name, program in programs.items()}, clock, budget)
    flop_count = 2 * peak_reference.CHAINS * rounds * threads
    return 2 * to_copy.nbytes / times["copy"].seconds, flop_count / times["multiply_add"].seconds


# The least that a part must do


def least_bytes(part: Part) -> int:
    """The bytes that no program can do without: each array that the part needs read once, each result written once."""
    arguments = part.arguments
    if part.operation == "adam_step":
        state = arguments["state"]
        written = [arguments["parameters"], state.m, state.v]
        return sum(array.nbytes for array in [*written, *written, state.l2, arguments["gradients"]])
    unused = {"": set(), "dx": set() if arguments.get("through_relu") else {"x"}, "dweight": {"weight", "add"}}
    needed = {name: array for name, array in arguments.items() if name not in unused[part.what]}
    largest = max((result.size for result in part.results), default=0)
    return sum(result.nbytes for result in part.results) + sum(
        min(array.nbytes, largest) if name in READ_IN_PART else array.nbytes
        for name, array in needed.items()
        if hasattr(array, "nbytes")
    )


def flops(part: Part) -> int:
    """The flops that its results need."""
    arguments = part.arguments
    if part.operation == "adam_step":
        return 16 * arguments["parameters"].size  # 3 for m, 4 for v, 2 for l2, 7 for the parameter
    if part.operation == "softmax_cross_entropy":  # for each logit: max, -, exp, sum, /, *; for each label: log, -, sum
        return 6 * arguments["logits"].size + 3 * arguments["labels"].size
    if not part.operation.startswith("conv"):
        return sum(result.size for result in part.results)
    return 2 * products(part) + (arguments["dout"].size if part.what == "dweight" else 0)  # and the sums of dbias


def products(part: Part) -> int:
    """The products that a convolution sums up, but those with zeros around the image: a convolution of ones counts."""
    arguments = part.arguments
    (n, _, *size), (first, second, *kernel_size) = arguments["x"].shape, arguments["weight"].shape
    if part.operation == "conv2d_pool_backward":  # one gradient for each window, and no padding
        return arguments["dout"].size * arguments["weight"][0].size
    transposed = part.operation.startswith("conv_transpose2d")
    convolve = conv_transpose2d if transposed else conv2d
    strides = {name: arguments[name] for name in ("stride", "padding") if name in arguments}
    one = convolve(np.ones((1, 1, *size)), np.ones((1, 1, *kernel_size)), np.zeros(1), **strides)
    return n * first * second * int(one.sum())


# What a kernel uses

WARP = 32
# Of a multiprocessor's registers of 32 bits, each quarter has its own for its own warps, given out by the unit.
REGISTERS_OF_QUARTER, REGISTER_UNIT, QUARTERS = 16384, 256, 4


@dataclass(frozen=True)
class Multiprocessor:
    """The most that a multiprocessor holds: warps, blocks, bytes of shared memory.

    CUDA takes `reserved` bytes of shared memory for each block, and gives it out in multiples of `unit` bytes.
    """

    warps: int
    blocks: int
    shared_bytes: int
    reserved: int = 1024
    unit: int = 128


# CUDA C++ Programming Guide, "Technical specifications per compute capability".
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64 * 1024, reserved=0, unit=256),
    "sm_80": Multiprocessor(64, 32, 164 * 1024),
    "sm_86": Multiprocessor(48, 16, 100 * 1024),
    "sm_89": Multiprocessor(48, 24, 100 * 1024),
    "sm_90": Multiprocessor(64, 32, 228 * 1024),
    "sm_100": Multiprocessor(64, 32, 228 * 1024),
    "sm_120": Multiprocessor(48, 24, 100 * 1024),
}


def occupancy(architecture: str, threads: int, registers: int, shared_bytes: int) -> tuple[int | None, float | None]:
    """How many blocks a multiprocessor holds at once, and the share of its warps that are in them, 0 .. 1.

    By the rules of CUDA's occupancy calculator. A block has so many threads and bytes of shared memory, a thread so
    many registers. None for an architecture that is not in MULTIPROCESSORS.
    """
    if architecture not in MULTIPROCESSORS:
        return None, None
    most, warps = MULTIPROCESSORS[architecture], ceil_div(threads, WARP)
    blocks = min(most.blocks, most.warps // warps)
    if registers:
        of_a_warp = ceil_div(registers * WARP, REGISTER_UNIT) * REGISTER_UNIT
        blocks = min(blocks, REGISTERS_OF_QUARTER // of_a_warp * QUARTERS // warps)
    needed = ceil_div(shared_bytes + most.reserved, most.unit) * most.unit
    if needed:
        blocks = min(blocks, most.shared_bytes // needed)
    return blocks, blocks * warps / most.warps


def kernel_resources(parts: Iterable[Part], architecture: str) -> list[dict[str, Any]]:
    """What each kernel of the parts uses, compiled for "sm_XX", and how much of a multiprocessor it can fill.

    Raises DeviceError without NVRTC, KernelError where a kernel does not compile.
    """
    by_kernel: dict[tuple[str, str, int], list[tuple[Launch, Part]]] = {}
    for part in parts:
        for launch in part.launches:
            key = launch.kernel.operation, launch.kernel.expression, prod(launch.block)
            by_kernel.setdefault(key, []).append((launch, part))
    compiled: dict[str, nvrtc.Resources] = {}
    for file in {file for file, _, _ in by_kernel}:
        instances = sorted({name for other, name, _ in by_kernel if other == file and "<" in name})
        compiled |= {each.kernel: each for each in nvrtc.compile_for(file, architecture, instances=instances)}
    rows = []
    for (file, name, threads), launches in by_kernel.items():
        row = {"file": f"{file}.cu", **asdict(compiled[name]), "threads": threads}
        row["shared_bytes"] += launches[0][0].shared_bytes
        row["for"] = [f"{part.layer} {part.what}".strip() for _, part in launches]
        row["blocks"] = max(prod(launch.grid) for launch, _ in launches)
        takes = threads, row["registers"], row["shared_bytes"]
        row["blocks_at_once"], row["occupancy"] = occupancy(architecture, *takes)
        rows.append(row)
    return rows
