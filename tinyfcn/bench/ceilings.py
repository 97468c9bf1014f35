"""Launches kernels/ceilings.cu: the two rates that every kernel's time is held against."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyfcn.bench.timing import Clock, Patience, in_turn
from tinyfcn.devices.device import Device
from tinyfcn.devices.launch import ceil_div
from tinyfcn.errors import TinyfcnError

COPY_THREADS, COPY_FOURS, CHAINS = 256, 4, 8  # as in kernels/ceilings.cu

COPIED = 1 << 27  # floats, 512 MB: several times what a cache holds
THREADS = 1 << 20  # more than any card runs at once
ROUNDS = 8192
SCALE, SHIFT = 0.999, 0.001  # towards 1: no number overflows or becomes too small


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second that a large copy moves, read and written; operations a second of multiply-adds."""

    bandwidth: float
    operations: float


def copy(device: Device, x: Any) -> Any:
    """A copy of x (I,), I a multiple of 4.

    Raises:
        ValueError: I is no multiple of 4.
    """
    if x.size % 4:
        raise ValueError(f"ceilings_copy moves four floats at a time, and {x.size} is no multiple of 4")
    y = device.empty(x.shape, x.dtype)
    fours = x.size // 4
    device.launch("ceilings_copy", ceil_div(fours, COPY_THREADS * COPY_FOURS), COPY_THREADS, (x, y, fours))
    return y


def multiply_add(device: Device, x: Any, scale: float, shift: float, rounds: int) -> Any:
    """y (I,): the sum of CHAINS numbers x + 0, x + 1, ... after `rounds` times c = c * scale + shift."""
    y = device.empty(x.shape, x.dtype)
    device.launch_for_each("ceilings_multiply_add", x.size, (x, y, scale, shift, rounds, x.size))
    return y


def expected_multiply_add(x: np.ndarray, scale: float, shift: float, rounds: int) -> np.ndarray:
    """The same in NumPy, by the formula of a geometric series; scale is not 1."""
    grown = scale**rounds
    chains = x[:, None] + np.arange(CHAINS)
    return (chains * grown + shift * (1 - grown) / (1 - scale)).sum(axis=1)


def measure(
    device: Device, clock: Clock, patience: Patience, copied: int = COPIED, threads: int = THREADS, rounds: int = ROUNDS
) -> Ceilings:
    """Checks both kernels' results, then times them.

    Raises:
        TinyfcnError: a wrong result.
    """
    random = np.random.default_rng(0)
    numbers = random.random(max(copied, threads), np.float32)
    to_copy, starts = device.asarray(numbers[:copied]), device.asarray(numbers[:threads])
    if not np.array_equal(device.to_numpy(copy(device, to_copy)), numbers[:copied]):
        raise TinyfcnError("ceilings_copy gives a wrong copy: its time would say nothing")
    found = device.to_numpy(multiply_add(device, starts, SCALE, SHIFT, rounds))
    expected = expected_multiply_add(numbers[:threads].astype(np.float64), SCALE, SHIFT, rounds)
    if not np.allclose(found, expected, rtol=1e-3):
        raise TinyfcnError("ceilings_multiply_add gives a wrong result: its time would say nothing")
    work = {
        "copy": device.record(lambda: copy(device, to_copy)).replay,
        "multiply-add": device.record(lambda: multiply_add(device, starts, SCALE, SHIFT, rounds)).replay,
    }
    taken = in_turn(work, clock, patience)
    return Ceilings(
        2 * to_copy.nbytes / taken["copy"].seconds, 2 * CHAINS * rounds * threads / taken["multiply-add"].seconds
    )
