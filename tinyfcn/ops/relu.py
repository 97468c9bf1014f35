"""Launches kernels/relu.cu."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_shape


def relu(device: Device, x: Any) -> Any:
    """max(x, 0), of any shape."""
    y = device.empty(x.shape, x.dtype)
    device.launch_for_each("relu_forward", x.size, (x, y, x.size))
    return y


def relu_backward(device: Device, dout: Any, y: Any) -> Any:
    """dx from dout and the output y, all of one shape: dout where y > 0, else 0.

    Raises:
        ValueError: dout and y differ in shape.
    """
    expect_shape("relu_backward: dout", dout, y.shape)
    dx = device.empty(y.shape, y.dtype)
    device.launch_for_each("relu_backward", y.size, (dout, y, dx, y.size))
    return dx
