"""The device "emulator": NumPy arrays, and kernels called through ctypes."""

import ctypes
import math
import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device, Launch
from tinyfcn.devices.emulator import build
from tinyfcn.devices.emulator.library import CANNOT_TELL, ORDERS, Library
from tinyfcn.errors import KernelError

MODES = ("trap", "check")
PRECISIONS = ("single", "double")

NAN_BYTE = 0xFF  # a float of any width whose bits are all set is a NaN
UNWRITTEN_BYTE = 0xA5  # an integer array starts as 0xA5A5...: -1515870811 as int32, 165 as uint8

MAX_BLOCKS = 1 << 28  # of a launch, which would take minutes even if they did nothing
MAX_SHARED = 48 * 1024  # bytes a kernel may ask for at launch without opting in to more, as floats
GUARD = 1 << 24  # bytes after each array that must not be touched
ALIGNMENT = 16  # of an array's beginning, for vector loads

# A library's launch keeps its state in static variables, so there is one launch at a time.
_one_launch = threading.Lock()


@dataclass
class Statistics:
    """What was run of a kernel; `accesses` are those that check mode looked at."""

    launches: int = 0
    threads: int = 0
    accesses: int = 0


class Emulator(Device):
    """Runs the kernels of a folder on the CPU. docs/emulator.md tells how, and what each mode finds.

    Args:
        kernels: a folder with `common.cuh` and one `.cu` file an operation.
        mode: "trap" finds what leaves memory or waits for ever; "check" also races, uninitialised reads, NaNs.
        order: of a block's threads between two barriers, and of the blocks: "forward", "reverse" or "random".
        seed: of the random order.
        precision: "double" widens every float of the kernels; arrays are float64 then.
        naive: take the plain kernels also where there are fast ones.

    Raises:
        DeviceError: this machine has no C++ compiler.
        ValueError: no mode, order or precision of that name.
    """

    name = "emulator"
    array_type = np.ndarray

    def __init__(
        self,
        kernels: Path = kernel_source.KERNELS,
        mode: str = "trap",
        order: str = "forward",
        seed: int = 0,
        precision: str = "single",
        naive: bool = False,
    ) -> None:
        super().__init__(kernels, naive)
        for what, given, known in ("mode", mode, MODES), ("order", order, ORDERS), ("precision", precision, PRECISIONS):
            if given not in known:
                raise ValueError(f"no {what} named {given!r}; there are {', '.join(known)}")
        build.compiler()
        self.check, self.double = mode == "check", precision == "double"
        self.order, self.seed = order, seed
        if self.double:
            self.dtypes = {**self.dtypes, "float": np.dtype(np.float64)}
        self.statistics = {name: Statistics() for name in self._declared}
        self._libraries: dict[str, Library] = {}
        # In check mode: which kernel was given an array to write last, and what instruction wrote each element.
        self._writers: dict[int, tuple[kernel_source.Kernel, np.ndarray]] = {}

    def empty(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        """Floats start as NaN, integers as 0xA5A5..., so that an element which no kernel wrote is noticed."""
        return self._allocate(tuple(shape), np.dtype(self.dtypes["float"] if dtype is None else dtype))

    def asarray(self, array: np.ndarray) -> np.ndarray:
        self._expect_no_recording("an array is brought to the device")
        array = np.asarray(array)
        copy = self._allocate(array.shape, array.dtype)
        copy[...] = array
        return copy

    def write(self, array: np.ndarray, values: np.ndarray) -> None:
        self._expect_no_recording("an array is brought to the device")
        array[...] = values

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """A copy. In check mode KernelError if no kernel wrote some of it."""
        self._expect_no_recording("an array is brought to the host")
        copy = np.array(array)
        byte = _unwritten(copy.dtype)
        if self.check and byte != CANNOT_TELL:
            left = (copy.reshape(-1, 1).view(np.uint8) == byte).all(axis=1)
            if left.any():
                kernel = self.given_to(array)
                text = f"no kernel wrote element {left.argmax()} of an array of shape {array.shape}"
                if kernel:
                    text += f"; {kernel.name} at {kernel.operation}.cu:{kernel.line} was the last to be given it"
                raise KernelError(text)
        return copy

    def given_to(self, array: np.ndarray) -> kernel_source.Kernel | None:
        """In check mode: the last kernel that could write an array, if there was one."""
        kernel, _ = self._writers.get(array.ctypes.data, (None, None))
        return kernel

    def written_at(self, array: np.ndarray, index: int) -> str | None:
        """ "relu_forward at relu.cu:25": who wrote an element (by its number) last, as far as check mode saw it."""
        kernel, codes = self._writers.get(array.ctypes.data, (None, None))
        if kernel is None or index >= len(codes) or not codes[index]:
            return None
        library = self._library(kernel)
        return f"{kernel.name} at {library.line(f'{codes[index] - library.base:x}')}"

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array that ends where memory begins that must not be touched."""
        size = math.prod(shape) * dtype.itemsize
        before = -size % mmap.PAGESIZE // ALIGNMENT * ALIGNMENT
        length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, length + GUARD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        bytes_ = np.frombuffer(memory, np.uint8)
        _forbid(bytes_.ctypes.data + length, GUARD)
        bytes_[:length] = NAN_BYTE if dtype.kind == "f" else UNWRITTEN_BYTE
        array = bytes_[before : before + size].view(dtype).reshape(shape)
        self._writers.pop(array.ctypes.data, None)
        return array

    def _launch(self, launch: Launch) -> None:
        kernel, grid, block, shared_bytes = launch.kernel, launch.grid, launch.block, launch.shared_bytes
        if math.prod(grid) > MAX_BLOCKS:
            raise KernelError(f"{kernel.name}: {math.prod(grid)} blocks are more than the emulator's {MAX_BLOCKS}")
        limit = MAX_SHARED * (1 + self.double)
        if shared_bytes > limit:
            raise KernelError(f"{kernel.name}: {shared_bytes} bytes of dynamic shared memory are more than {limit}")
        given = zip(kernel.parameters, launch.arguments, strict=True)
        arrays = [(p, a) for p, a in given if p.is_array and a is not None]
        memory = [(p.name.encode(), a.ctypes.data, a.nbytes, a.itemsize, _unwritten(a.dtype), False) for p, a in arrays]
        library = self._library(kernel)
        memory += library.memory(shared_bytes)
        settings = self.order, self.seed, self.check
        with _one_launch:
            outcome = library.launch(kernel.name, grid, block, launch.arguments, shared_bytes, memory, *settings)
        statistics = self.statistics[kernel.name]
        statistics.launches += 1
        statistics.threads += math.prod(grid) * math.prod(block)
        statistics.accesses += outcome.accesses
        if self.check:
            for (parameter, array), record in zip(arrays, outcome.records, strict=False):
                if not parameter.is_const:
                    writes, atomics = record["writes"][:, 0], record["atomics"][:, 0]
                    codes = np.where(writes["block"] > 0, writes["code"], atomics["code"])
                    self._writers[array.ctypes.data] = kernel, codes
        if outcome.message:
            error = KeyboardInterrupt if outcome.stopped else KernelError
            raise error(f"{kernel.name} in {kernel.operation}.cu: {outcome.message}")

    def _library(self, kernel: kernel_source.Kernel) -> Library:
        instance = kernel if kernel.instance else None
        name = kernel.expression if instance else kernel.operation
        if name not in self._libraries:
            settings = self.check, self.double, self.dtypes
            self._libraries[name] = Library(kernel.operation, self.kernels, *settings, instance)
        return self._libraries[name]


def _unwritten(dtype: np.dtype) -> int:
    """The byte that all bytes of an element are which nobody wrote."""
    return NAN_BYTE if dtype.kind == "f" else UNWRITTEN_BYTE if dtype.itemsize >= 4 else CANNOT_TELL


def _forbid(address: int, size: int) -> None:
    """Makes pages of memory such that touching them is a fault."""
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0)
