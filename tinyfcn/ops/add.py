"""Launches kernels/add.cu."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_shape


def add(device: Device, a: Any, b: Any, scale: float = 1.0) -> Any:
    """scale * (a + b); a and b of one shape. scale 1/2 gives the mean.

    Raises:
        ValueError: a and b differ in shape.
    """
    expect_shape("add: b", b, a.shape)
    z = device.empty(a.shape, a.dtype)
    device.launch_for_each("add_forward", a.size, (a, b, z, scale, a.size))
    return z


def add_backward(device: Device, dz: Any, scale: float = 1.0) -> Any:
    """The gradient of a, which is that of b too: scale * dz."""
    if scale == 1:
        return dz
    da = device.empty(dz.shape, dz.dtype)
    device.launch_for_each("add_backward", dz.size, (dz, da, scale, dz.size))
    return da
