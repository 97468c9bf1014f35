"""Launches kernels/relu.cu."""

from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import checked, expect_array
from tinyfcn.ops.launcher import Launcher


def check_relu(x: Array) -> None:
    expect_array("relu: x", x, None)


def check_relu_backward(dout: Array, y: Array) -> None:
    expect_array("relu_backward: y", y, None)
    expect_array("relu_backward: dout", dout, y.shape, y.dtype)


class Relu(Launcher):
    """The rectified linear unit."""

    @checked(check_relu)
    def relu(self, x: Array) -> Array:
        """max(x, 0), of any shape.

        Raises:
            TypeError: x does not hold floats.
        """
        y = self.device.empty(x.shape, x.dtype)
        self.device.launch_for_each("relu_forward", x.size, (x, y, x.size))
        return y

    @checked(check_relu_backward)
    def relu_backward(self, dout: Array, y: Array) -> Array:
        """dx from dout and the output y, all of one shape: dout where y > 0, else 0.

        Raises:
            ValueError: dout and y differ in shape.
        """
        dx = self.device.empty(y.shape, y.dtype)
        self.device.launch_for_each("relu_backward", y.size, (dout, y, dx, y.size))
        return dx
