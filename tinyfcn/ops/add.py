"""Launches kernels/add.cu."""

from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import checked, expect_array, expect_number
from tinyfcn.ops.launcher import Launcher


def check_add(a: Array, b: Array, scale: float) -> None:
    expect_array("add: a", a, None)
    expect_array("add: b", b, a.shape, a.dtype)
    expect_number("add: scale", scale)


def check_add_backward(dz: Array, scale: float) -> None:
    expect_array("add_backward: dz", dz, None)
    expect_number("add_backward: scale", scale)


class Add(Launcher):
    """The scaled sum of two arrays, where a skip connection joins."""

    @checked(check_add)
    def add(self, a: Array, b: Array, scale: float = 1.0) -> Array:
        """scale * (a + b); a and b have the same shape. scale 1/2 gives the mean.

        Raises:
            ValueError: a and b differ in shape.
        """
        z = self.device.empty(a.shape, a.dtype)
        self.device.launch_for_each("add_forward", a.size, (a, b, z, scale, a.size))
        return z

    @checked(check_add_backward)
    def add_backward(self, dz: Array, scale: float = 1.0) -> Array:
        """The gradient of a and of b: scale * dz.

        Raises:
            TypeError: dz does not hold floats.
        """
        if scale == 1:
            return dz
        da = self.device.empty(dz.shape, dz.dtype)
        self.device.launch_for_each("add_backward", dz.size, (dz, da, scale, dz.size))
        return da
