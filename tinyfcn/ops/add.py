"""Launches kernels/add.cu."""

from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import expect_shape
from tinyfcn.ops.launcher import Launcher


class Add(Launcher):
    """The scaled sum of two arrays, where a skip connection joins."""

    def add(self, a: Array, b: Array, scale: float = 1.0) -> Array:
        """scale * (a + b); a and b have the same shape. scale 1/2 gives the mean.

        Raises:
            ValueError: a and b differ in shape.
        """
        expect_shape("add: b", b, a.shape)
        z = self.device.empty(a.shape, a.dtype)
        self.device.launch_for_each("add_forward", a.size, (a, b, z, scale, a.size))
        return z

    def add_backward(self, dz: Array, scale: float = 1.0) -> Array:
        """The gradient of a and of b: scale * dz."""
        if scale == 1:
            return dz
        da = self.device.empty(dz.shape, dz.dtype)
        self.device.launch_for_each("add_backward", dz.size, (dz, da, scale, dz.size))
        return da
