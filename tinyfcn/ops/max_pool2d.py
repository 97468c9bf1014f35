"""Launches kernels/max_pool2d.cu."""

import numpy as np

from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import INT32, checked, expect_array, expect_integer, expect_positive
from tinyfcn.ops.launcher import Launcher


def check_max_pool2d(x: Array, size: int, stride: int) -> None:
    expect_array("max_pool2d: x", x, (None,) * 4)
    pooled_sizes(x.shape, size, stride)


def check_max_pool2d_backward(
    dout: Array, max_index: Array, input_shape: tuple[int, ...], size: int, stride: int
) -> None:
    n, c, _, _, out_height, out_width = pooled_sizes(input_shape, size, stride)
    expect_array("max_pool2d_backward: dout", dout, (n, c, out_height, out_width))
    expect_array("max_pool2d_backward: max_index", max_index, dout.shape, INT32)


class MaxPool2d(Launcher):
    """Max-pooling."""

    @checked(check_max_pool2d)
    def max_pool2d(self, x: Array, size: int = 2, stride: int = 2) -> tuple[Array, Array]:
        """y (N, C, OH, OW) and max_index, int32 of the same shape: h * W + w of the maximum, among equals the first.

        x is (N, C, H, W); OH = (H - size) // stride + 1. No window covers the rows and columns left over at the end.

        Raises:
            ValueError: a window larger than the image.
        """
        sizes = pooled_sizes(x.shape, size, stride)
        n, c, _, _, out_height, out_width = sizes
        y = self.device.empty((n, c, out_height, out_width), x.dtype)
        max_index = self.device.empty(y.shape, np.int32)
        self.device.launch_for_each("max_pool2d_forward", y.size, (x, y, max_index, *sizes, size, stride))
        return y, max_index

    @checked(check_max_pool2d_backward)
    def max_pool2d_backward(
        self, dout: Array, max_index: Array, input_shape: tuple[int, ...], size: int = 2, stride: int = 2
    ) -> Array:
        """dx of `input_shape` from dout and max_index (N, C, OH, OW).

        dx of a pixel is the sum of dout over the windows whose maximum it is.

        Raises:
            ValueError: mismatched shapes.
        """
        sizes = pooled_sizes(input_shape, size, stride)
        dx = self.device.empty(input_shape, dout.dtype)
        self.device.launch_for_each("max_pool2d_backward", dx.size, (dout, max_index, dx, *sizes, size, stride))
        return dx


def pooled_sizes(shape: tuple[int, ...], size: int, stride: int) -> tuple[int, ...]:
    """N, C, H, W, OH, OW as the kernels take them."""
    expect_integer("max_pool2d: size", size, 1)
    expect_integer("max_pool2d: stride", stride, 1)
    if len(shape) != 4:
        raise ValueError(f"max_pool2d_backward: input_shape must be (N, C, H, W), got {shape}")
    n, c, height, width = shape
    out_height, out_width = (height - size) // stride + 1, (width - size) // stride + 1
    why = f"a {size}x{size} window over {height}x{width} pixels"
    expect_positive("max_pool2d: the output's height", out_height, why)
    expect_positive("max_pool2d: the output's width", out_width, why)
    return n, c, height, width, out_height, out_width
