"""The highest rates of memory and of multiply-adds that a GPU reaches, measured: the roofline of what is timed on it.

No program can work on arrays in memory in less time than memory takes to move the bytes, or the multiply-adds take to
do the flops (Williams, Waterman & Patterson, "Roofline", 2009). What a cache holds from the kernel before comes faster.
"""

import numpy as np

from tinyfcn.bench.timing import Clock, TimeBudget, in_turn
from tinyfcn.devices.device import Device
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import peak
from tinyfcn.reference import peak as peak_reference


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
