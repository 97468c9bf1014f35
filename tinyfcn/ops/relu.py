"""Launches kernels/relu.cu."""

from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import expect_shape
from tinyfcn.ops.launcher import Launcher


class Relu(Launcher):
    """The rectified linear unit."""

    def relu(self, x: Array) -> Array:
        """max(x, 0), of any shape."""
        y = self.device.empty(x.shape, x.dtype)
        self.device.launch_for_each("relu_forward", x.size, (x, y, x.size))
        return y

    def relu_backward(self, dout: Array, y: Array) -> Array:
        """dx from dout and the output y, all of one shape: dout where y > 0, else 0.

        Raises:
            ValueError: dout and y differ in shape.
        """
        expect_shape("relu_backward: dout", dout, y.shape)
        dx = self.device.empty(y.shape, y.dtype)
        self.device.launch_for_each("relu_backward", y.size, (dout, y, dx, y.size))
        return dx
