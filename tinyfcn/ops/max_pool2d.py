"""Launches kernels/max_pool2d.cu."""

from typing import Any

import numpy as np

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_at_least_one, expect_positive, expect_shape


def max_pool2d(device: Device, x: Any, size: int = 2, stride: int = 2) -> tuple[Any, Any]:
    """y (N, C, OH, OW) and max_index, int32 of the same shape: h * W + w of the maximum, of equals the first.

    x is (N, C, H, W); OH = (H - size) // stride + 1. Rows and columns left over at the end are seen by no window.

    Raises:
        ValueError: a window larger than the picture.
    """
    expect_shape("max_pool2d: x", x, (None,) * 4)
    sizes = _sizes(x.shape, size, stride)
    n, c, _, _, out_height, out_width = sizes
    y = device.empty((n, c, out_height, out_width), x.dtype)
    max_index = device.empty(y.shape, np.int32)
    device.launch_for_each("max_pool2d_forward", y.size, (x, y, max_index, *sizes, size, stride))
    return y, max_index


def max_pool2d_backward(
    device: Device, dout: Any, max_index: Any, input_shape: tuple[int, ...], size: int = 2, stride: int = 2
) -> Any:
    """dx of `input_shape` from dout and max_index (N, C, OH, OW): the sum over the windows that a pixel has won.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    sizes = _sizes(input_shape, size, stride)
    n, c, _, _, out_height, out_width = sizes
    expect_shape("max_pool2d_backward: dout", dout, (n, c, out_height, out_width))
    expect_shape("max_pool2d_backward: max_index", max_index, dout.shape)
    dx = device.empty(input_shape, dout.dtype)
    device.launch_for_each("max_pool2d_backward", dx.size, (dout, max_index, dx, *sizes, size, stride))
    return dx


def _sizes(shape: tuple[int, ...], size: int, stride: int) -> tuple[int, ...]:
    """N, C, H, W, OH, OW as the kernels take them."""
    expect_at_least_one("max_pool2d: size", size)
    expect_at_least_one("max_pool2d: stride", stride)
    n, c, height, width = shape
    out_height, out_width = (height - size) // stride + 1, (width - size) // stride + 1
    why = f"a {size}x{size} window over {height}x{width} pixels"
    expect_positive("max_pool2d: the output's height", out_height, why)
    expect_positive("max_pool2d: the output's width", out_width, why)
    return n, c, height, width, out_height, out_width
