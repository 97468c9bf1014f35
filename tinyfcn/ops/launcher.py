"""The base class of all operations: it holds a device, and copies arrays to it and back."""

from contextlib import AbstractContextManager

import numpy as np

from tinyfcn.devices.device import Array, Device

SUM_THREADS = 64  # as in kernels/common.cuh: the threads of a block that owns one sum


class Launcher:
    """Launches kernels on `device`, whose name is `device_name`."""

    device: Device

    def __init__(self, device: Device) -> None:
        self.device = device

    @property
    def device_name(self) -> str:
        """ "cuda", "emulator" or "cpu"."""
        return self.device.name

    def __repr__(self) -> str:
        return f"tinyfcn.on({self.device_name!r})"

    def side_stream(self) -> AbstractContextManager[None]:
        """Work launched inside may overlap later launches until `join`; see Device.side_stream."""
        return self.device.side_stream()

    def join(self) -> None:
        """Later launches wait for all work launched on side streams."""
        self.device.join()

    def asarray(self, array: np.ndarray) -> Array:
        """A C-contiguous copy of a NumPy array on the device, of the same dtype."""
        return self.device.asarray(array)

    def write(self, array: Array, values: np.ndarray) -> None:
        """Copies values from the host into an array on the device. Shape and dtype must match."""
        self.device.write(array, values)

    def to_numpy(self, array: Array) -> np.ndarray:
        """A NumPy copy of an array on the device."""
        return self.device.to_numpy(array)
