"""Launches kernels/peak.cu. No network uses these kernels, so they are not methods of `Operations`."""

from tinyfcn.devices.device import Array, Device
from tinyfcn.devices.launch import ceil_div

COPY_THREADS, COPY_FOURS = 256, 4  # as in kernels/peak.cu


def copy(device: Device, x: Array) -> Array:
    """A copy of x (I,), I a multiple of 4.

    Raises:
        ValueError: I is not a multiple of 4.
    """
    if x.size % 4:
        raise ValueError(f"peak_copy moves four floats at a time, and {x.size} is not a multiple of 4")
    y = device.empty(x.shape, x.dtype)
    fours = x.size // 4
    device.launch("peak_copy", ceil_div(fours, COPY_THREADS * COPY_FOURS), COPY_THREADS, (x, y, fours))
    return y


def multiply_add(device: Device, x: Array, scale: float, shift: float, rounds: int) -> Array:
    """y (I,): the sum of CHAINS numbers x + 0, x + 1, ... after `rounds` times c = c * scale + shift."""
    y = device.empty(x.shape, x.dtype)
    device.launch_for_each("peak_multiply_add", x.size, (x, y, scale, shift, rounds, x.size))
    return y
