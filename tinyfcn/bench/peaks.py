"""The roofline: the least time that a part of a step could take on a GPU, and what its kernels use of one.

No program can work on arrays in memory in less time than memory takes to move the bytes, or the multiply-adds take to
do the flops (Williams, Waterman & Patterson, "Roofline", 2009). What a cache holds from the kernel before comes faster.
"""

from dataclasses import dataclass

import numpy as np

from tinyfcn.bench.timing import Clock, TimeBudget, in_turn
from tinyfcn.devices.device import Device
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import peak
from tinyfcn.reference import peak as peak_reference

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


@dataclass(frozen=True)
class Card(Peaks):
    """A GPU by its datasheet. lanes: the multiply-adds that each of its multiprocessors does in a cycle."""

    multiprocessors: int = 1
    lanes: int = 128

    @property
    def clock(self) -> float:
        """Cycles a second, at the boost clock for which the datasheet gives its flops."""
        return self.flops / (2 * self.lanes * self.multiprocessors)


# What datasheets promise is never shown beside times that were measured on a card.
CARDS = {
    "t4": Card("NVIDIA T4", "sm_75", 0.300e12, 8.1e12, "T4 datasheet", 40, lanes=64),
    "l4": Card("NVIDIA L4", "sm_89", 0.300e12, 30.3e12, "L4 datasheet", 58),
    "rtx4060-laptop": Card("NVIDIA GeForce RTX 4060 Laptop GPU", "sm_89", 0.256e12, 14.6e12, "Ada whitepaper", 24),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", "sm_89", 1.008e12, 82.6e12, "Ada whitepaper", 128),
    "rtx5090": Card("NVIDIA GeForce RTX 5090", "sm_120", 1.792e12, 104.8e12, "RTX Blackwell whitepaper", 170),
    "a100": Card("NVIDIA A100 SXM 80 GB", "sm_80", 2.039e12, 19.5e12, "A100 datasheet", 108, lanes=64),
    "h100": Card("NVIDIA H100 SXM", "sm_90", 3.35e12, 67e12, "H100 datasheet", 132),
    "h200": Card("NVIDIA H200 SXM", "sm_90", 4.8e12, 67e12, "H200 datasheet", 132),
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
    return 2 * to_copy.nbytes / times["copy"]["seconds"], flop_count / times["multiply_add"]["seconds"]
