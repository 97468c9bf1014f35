"""Measures the two rates that every kernel's time is held against."""

from dataclasses import dataclass

import numpy as np

from tinyfcn.bench.timing import Clock, Patience, in_turn
from tinyfcn.devices.device import Device
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops.peak import copy, multiply_add
from tinyfcn.reference import peak as reference

COPIED = 1 << 27  # floats, 512 MB: several times what a cache holds
THREADS = 1 << 20  # more than any card runs at once
ROUNDS = 8192
SCALE, SHIFT = 0.999, 0.001  # towards 1: no number overflows or becomes too small


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second that a large copy moves, read and written; operations a second of multiply-adds."""

    bandwidth: float
    operations: float


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
        raise TinyfcnError("peak_copy gives a wrong copy: its time would say nothing")
    found = device.to_numpy(multiply_add(device, starts, SCALE, SHIFT, rounds))
    expected = reference.multiply_add(numbers[:threads].astype(np.float64), SCALE, SHIFT, rounds)
    if not np.allclose(found, expected, rtol=1e-3):
        raise TinyfcnError("peak_multiply_add gives a wrong result: its time would say nothing")
    work = {
        "copy": device.record(lambda: copy(device, to_copy)).replay,
        "multiply-add": device.record(lambda: multiply_add(device, starts, SCALE, SHIFT, rounds)).replay,
    }
    taken = in_turn(work, clock, patience)
    return Ceilings(
        2 * to_copy.nbytes / taken["copy"].seconds,
        2 * reference.CHAINS * rounds * threads / taken["multiply-add"].seconds,
    )
