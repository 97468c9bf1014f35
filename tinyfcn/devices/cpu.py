"""The device `cpu` runs no kernels: arrays are NumPy's, and operations are the functions of `tinyfcn.reference`."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from tinyfcn.devices.device import Array, Device, Launch
from tinyfcn.devices.launch import DTYPES
from tinyfcn.errors import KernelError


class Cpu(Device):
    """NumPy arrays on the host. The references keep the dtype of their inputs; checks give them float64."""

    name = "cpu"
    array_type = np.ndarray
    dtypes: Mapping[str, np.dtype] = {**DTYPES, "float": np.dtype(np.float64)}
    runs_kernels = False

    def empty(self, shape: Sequence[int], dtype: Any = None) -> Array:
        return np.empty(shape, self.dtypes["float"] if dtype is None else dtype)

    def asarray(self, array: np.ndarray) -> Array:
        return np.array(array, order="C")

    def write(self, array: Array, values: np.ndarray) -> None:
        array[...] = values

    def to_numpy(self, array: Array) -> np.ndarray:
        return np.array(array)

    def side_stream(self) -> AbstractContextManager[None]:
        """Does nothing: each operation ends before the next begins. Threads may share the device: it keeps no state."""
        return nullcontext()

    def join(self) -> None:
        """Does nothing: no work is pending."""

    def _launch(self, launch: Launch) -> None:
        raise KernelError(f"{launch.kernel.name} cannot be launched: the device cpu runs no kernels")
