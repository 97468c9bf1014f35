"""The device "emulator": NumPy arrays, and kernels called through ctypes."""

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device
from tinyfcn.devices.emulator import build
from tinyfcn.errors import KernelError

NAN_BYTE = 0xFF  # a float of any width whose bits are all set is a NaN
UNWRITTEN_BYTE = 0xA5  # an integer array starts as 0xA5A5...: -1515870811 as int32, 165 as uint8

# A library's launch keeps its state in static variables, so there is one launch at a time.
_one_launch = threading.Lock()


class Emulator(Device):
    """Runs the kernels of a folder on the CPU.

    Args:
        kernels: a folder with `common.cuh` and one `.cu` file an operation.

    Raises:
        DeviceError: this machine has no C++ compiler.
    """

    name = "emulator"
    array_type = np.ndarray

    def __init__(self, kernels: Path = kernel_source.KERNELS) -> None:
        super().__init__(kernels)
        build.compiler()
        self._functions: dict[str, Callable[..., bytes]] = {}

    def empty(self, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        """Floats start as NaN, integers as 0xA5A5..., so that an element which no kernel wrote is noticed."""
        dtype = np.dtype(dtype)
        byte = NAN_BYTE if dtype.kind == "f" else UNWRITTEN_BYTE
        return np.full(math.prod(shape) * dtype.itemsize, byte, np.uint8).view(dtype).reshape(shape)

    def asarray(self, array: np.ndarray) -> np.ndarray:
        return np.array(array, order="C")

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def _launch(
        self,
        kernel: kernel_source.Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: list[Any],
        shared_bytes: int,
    ) -> None:
        # A kernel takes an array's address or a number; the launch wants a pointer to each.
        values = [np.asarray(a.ctypes.data if isinstance(a, np.ndarray) else a) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        dimensions = ctypes.c_uint * 3
        function = self._function(kernel)
        with _one_launch:
            message = function(dimensions(*grid), dimensions(*block), shared_bytes, pointers).decode()
        if message:
            raise KernelError(f"{kernel.name} in {kernel.operation}.cu: {message}")

    def _function(self, kernel: kernel_source.Kernel) -> Callable[..., bytes]:
        if kernel.name not in self._functions:
            library = build.library(kernel.operation, self.kernels)
            for name in build.kernel_names(kernel.operation, self.kernels):
                function = getattr(library, f"launch_{name}")
                function.restype = ctypes.c_char_p
                self._functions[name] = function
        return self._functions[kernel.name]
