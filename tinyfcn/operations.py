"""One face for every place to compute: NumPy, the kernels on a GPU, the same kernels on the emulator."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from tinyfcn import ops, reference
from tinyfcn.devices import cuda
from tinyfcn.devices.device import Device
from tinyfcn.devices.emulator import Emulator

DEVICES = ("auto", "cuda", "cpu", "emulator")


class Operations:
    """The operations of `tinyfcn.ops` (or `tinyfcn.reference`) bound to a device: `device_name` says which.

    asarray brings a NumPy array to the device, to_numpy back. Everything else is a function of the same name in
    `tinyfcn.ops`, where its shapes are documented.
    """

    def __init__(self, device: Device | None = None) -> None:
        self.device = device
        self.device_name = device.name if device else "cpu"
        source: ModuleType = ops if device else reference
        for name in ops.__all__:
            function = getattr(source, name)
            setattr(self, name, partial(function, device) if device else function)

    def __repr__(self) -> str:
        return f"tinyfcn.on({self.device_name!r})"

    def side_stream(self) -> AbstractContextManager[None]:
        """What is done inside may be done at the same time as what follows, up to the next `join`: Device.beside."""
        return self.device.side_stream() if self.device else nullcontext()

    def join(self) -> None:
        """What follows needs the results of what was done `beside`."""
        if self.device:
            self.device.join()

    def asarray(self, array: np.ndarray) -> Any:
        """A C-contiguous copy of a NumPy array on the device, of the same dtype."""
        return self.device.asarray(array) if self.device else np.array(array, order="C")

    def write(self, array: Any, values: np.ndarray) -> None:
        """Sets all of an array on the device to values of its shape and dtype from the host."""
        if self.device:
            self.device.write(array, values)
        else:
            array[...] = values

    def to_numpy(self, array: Any) -> np.ndarray:
        """A NumPy copy of an array on the device."""
        return self.device.to_numpy(array) if self.device else np.array(array)


def on(device: str = "auto", naive: bool = False) -> Operations:
    """The operations on a device.

    Args:
        device: "cuda" for the kernels on a GPU; "emulator" for the same kernels compiled by a C++ compiler and
            run on the CPU, slow but everywhere; "cpu" for NumPy; "auto" for "cuda" if there is a GPU, else "cpu".
        naive: take the plain kernels also where there are fast ones.

    Raises:
        DeviceError: the device is not to be had here, with the reason.
        ValueError: no device of that name.
    """
    if device == "auto":
        device = "cpu" if cuda.why_not() else "cuda"
    if device == "cuda":
        return Operations(cuda.Cuda(naive=naive))
    if device == "emulator":
        return Operations(Emulator(naive=naive))
    if device == "cpu":
        return Operations()
    raise ValueError(f"no device named {device!r}; there are {', '.join(DEVICES)}")
