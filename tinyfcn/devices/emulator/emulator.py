"""The device "emulator": NumPy arrays, and kernels called through ctypes."""

import ctypes
import math
import mmap
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device
from tinyfcn.devices.emulator import binary, build
from tinyfcn.errors import DeviceError, KernelError

MODES = ("trap", "check")
ORDERS = ("forward", "reverse", "random")  # numbered as in state.h
PRECISIONS = ("single", "double")

NAN_BYTE = 0xFF  # a float of any width whose bits are all set is a NaN
UNWRITTEN_BYTE = 0xA5  # an integer array starts as 0xA5A5...: -1515870811 as int32, 165 as uint8
CANNOT_TELL = -1  # of bytes, 165 may be a value like any other

MAX_BLOCKS = 1 << 28  # of a launch, which would take minutes even if they did nothing
MAX_SHARED = 48 * 1024  # bytes a kernel may ask for at launch without opting in to more, as floats
GUARD = 1 << 24  # bytes after each array that must not be touched
ALIGNMENT = 16  # of an array's beginning, for vector loads

# A library's launch keeps its state in static variables, so there is one launch at a time.
_one_launch = threading.Lock()

_SHORT = {"unsigned": "unsigned int", "uint": "unsigned int", "uchar": "unsigned char"}

# As in shadow.cpp.
_ACCESS = [("block", "i4"), ("epoch", "i4"), ("clock", "i4"), ("thread", "i2"), ("kind", "i2"), ("code", "u8")]
_RECORD = np.dtype([(kind, np.dtype(_ACCESS, align=True), 4) for kind in ("reads", "writes", "atomics")])


class _Region(ctypes.Structure):
    """As in state.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("unit", ctypes.c_uint),
        ("unwritten", ctypes.c_int),
        ("shared", ctypes.c_int),
        ("records", ctypes.c_void_p),
    ]


class _Launch(ctypes.Structure):
    """As in state.h."""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("check", ctypes.c_int),
        ("stoppable", ctypes.c_int),
        ("regions", ctypes.c_void_p),
        ("region_count", ctypes.c_int),
        ("accesses", ctypes.c_ulonglong),
        ("stopped", ctypes.c_int),
    ]


@dataclass
class Statistics:
    """What was run of a kernel; `accesses` are those that check mode looked at."""

    launches: int = 0
    threads: int = 0
    accesses: int = 0


class _KernelFile:
    """A kernel file, compiled and loaded."""

    def __init__(self, operation: str, kernels: Path, check: bool, double: bool) -> None:
        self.path = build.library(operation, kernels, check, double)
        try:
            library = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise DeviceError(f"cannot load {self.path}: {error}; delete it, or set TINYFCN_CACHE elsewhere") from None
        self.launch = library.emulator_launch
        self.launch.restype = ctypes.c_char_p
        self.types = binary.shared_types(kernel_source.read(operation, kernels))
        offsets, self.variables = binary.symbols(self.path, frozenset(self.types))
        self.kernels = {name: _address(getattr(library, f"kernel_{name}")) for name in offsets}
        self.base = next((self.kernels[name] - offset for name, offset in offsets.items()), 0)

    def memory(self, shared_bytes: int, dtypes: Mapping[str, np.dtype]) -> Iterator[tuple[Any, ...]]:
        """The kernels' own variables, then the launch's dynamic shared memory, in the order of _Region's fields."""
        for v in self.variables:
            name, unit = _elements(v.name, self.types.get(v.name, set()), dtypes)
            yield name.encode(), self.base + v.address, v.bytes, unit, CANNOT_TELL, v.is_shared
        dynamic = {name: {t[7:] for t in types if t.startswith("extern ")} for name, types in self.types.items()}
        dynamic = {name: types for name, types in dynamic.items() if types}
        if shared_bytes or dynamic:  # of no bytes too, so that what a launch forgot to ask for has a name
            name, unit = _elements(" or ".join(dynamic), set().union(*dynamic.values()), dtypes)
            yield name.encode(), None, shared_bytes, unit, CANNOT_TELL, True


def _elements(name: str, types: set[str], dtypes: Mapping[str, np.dtype]) -> tuple[str, int]:
    """How to name the elements of memory declared under these types, and their bytes: of a float4 the floats, and the
    bytes alone where there are several types or unknown ones."""
    scalars = {re.sub(r"(?<=[a-z])[234]$", "", type_) for type_ in types}
    scalar = _SHORT.get(*scalars, *scalars) if len(scalars) == 1 else ""
    if scalar not in dtypes:
        return f"(char*){name}", 1
    return name if types == scalars else f"({scalar}*){name}", dtypes[scalar].itemsize


class Emulator(Device):
    """Runs the kernels of a folder on the CPU. docs/emulator.md tells how, and what each mode finds.

    Args:
        kernels: a folder with `common.cuh` and one `.cu` file an operation.
        mode: "trap" finds what leaves memory or waits for ever; "check" also races, uninitialised reads, NaNs.
        order: of a block's threads between two barriers, and of the blocks: "forward", "reverse" or "random".
        seed: of the random order.
        precision: "double" widens every float of the kernels; arrays are float64 then.

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
    ) -> None:
        super().__init__(kernels)
        for what, given, known in ("mode", mode, MODES), ("order", order, ORDERS), ("precision", precision, PRECISIONS):
            if given not in known:
                raise ValueError(f"no {what} named {given!r}; there are {', '.join(known)}")
        build.compiler()
        self.check, self.double = mode == "check", precision == "double"
        self.order, self.seed = ORDERS.index(order), seed
        if self.double:
            self.dtypes = {**self.dtypes, "float": np.dtype(np.float64)}
        self.statistics = {name: Statistics() for name in self._declared}
        self._files: dict[str, _KernelFile] = {}
        # In check mode: which kernel was given an array to write last, and what instruction wrote each element.
        self._writers: dict[int, tuple[kernel_source.Kernel, np.ndarray]] = {}

    def empty(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        """Floats start as NaN, integers as 0xA5A5..., so that an element which no kernel wrote is noticed."""
        return self._allocate(tuple(shape), np.dtype(self.dtypes["float"] if dtype is None else dtype))

    def asarray(self, array: np.ndarray) -> np.ndarray:
        array = np.asarray(array)
        copy = self._allocate(array.shape, array.dtype)
        copy[...] = array
        return copy

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """A copy. In check mode KernelError if no kernel wrote some of it."""
        copy = np.array(array)
        byte = _unwritten(copy.dtype)
        if self.check and byte != CANNOT_TELL:
            left = (copy.reshape(-1, 1).view(np.uint8) == byte).all(axis=1)
            if left.any():
                kernel, _ = self._writers.get(array.ctypes.data, (None, None))
                text = f"no kernel wrote element {left.argmax()} of an array of shape {array.shape}"
                if kernel:
                    text += f"; {kernel.name} at {kernel.operation}.cu:{kernel.line} was the last to be given it"
                raise KernelError(text)
        return copy

    def written_at(self, array: np.ndarray, index: int) -> str | None:
        """ "conv2d_forward at conv2d.cu:57": who wrote an element (by its number) last, as far as check mode saw it."""
        kernel, codes = self._writers.get(array.ctypes.data, (None, None))
        if kernel is None or index >= len(codes) or not codes[index]:
            return None
        file = self._file(kernel)
        return f"{kernel.name} at {binary.line(file.path, f'{codes[index] - file.base:x}')}"

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

    def _launch(
        self,
        kernel: kernel_source.Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: list[Any],
        shared_bytes: int,
    ) -> None:
        if math.prod(grid) > MAX_BLOCKS:
            raise KernelError(f"{kernel.name}: {math.prod(grid)} blocks are more than the emulator's {MAX_BLOCKS}")
        limit = MAX_SHARED * (1 + self.double)
        if shared_bytes > limit:
            raise KernelError(f"{kernel.name}: {shared_bytes} bytes of dynamic shared memory are more than {limit}")
        file = self._file(kernel)
        # A kernel takes an array's address or a number; the launch wants a pointer to each.
        values = [np.asarray(a.ctypes.data if isinstance(a, np.ndarray) else a) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        arrays = {p: a for p, a in zip(kernel.parameters, arguments, strict=True) if p.is_array}
        memory = [
            (p.name.encode(), a.ctypes.data, a.nbytes, a.itemsize, _unwritten(a.dtype), False)
            for p, a in arrays.items()
        ]
        memory += file.memory(shared_bytes, self.dtypes)
        shadows = [np.zeros(-(-size // unit) if self.check else 0, _RECORD) for _, _, size, unit, _, _ in memory]
        regions = (_Region * len(memory))(
            *(_Region(*of, shadow.ctypes.data) for of, shadow in zip(memory, shadows, strict=True))
        )
        launch = _Launch(
            file.kernels[kernel.name],
            ctypes.addressof(pointers),
            grid,
            block,
            shared_bytes,
            self.order,
            self.seed,
            self.check,
            signal.getsignal(signal.SIGINT) is signal.default_int_handler,  # or Ctrl-C is somebody else's
            ctypes.addressof(regions),
            len(regions),
        )
        with _one_launch:
            message = file.launch(ctypes.byref(launch)).decode()
        statistics = self.statistics[kernel.name]
        statistics.launches += 1
        statistics.threads += math.prod(grid) * math.prod(block)
        statistics.accesses += launch.accesses
        if self.check:
            for (parameter, array), shadow in zip(arrays.items(), shadows, strict=False):
                if not parameter.is_const:
                    writes, atomics = shadow["writes"][:, 0], shadow["atomics"][:, 0]
                    codes = np.where(writes["block"] > 0, writes["code"], atomics["code"])
                    self._writers[array.ctypes.data] = kernel, codes
        if message:
            told = re.sub("<([0-9a-f,]+)>", lambda found: binary.line(file.path, found[1]), message)
            error = KeyboardInterrupt if launch.stopped else KernelError
            raise error(f"{kernel.name} in {kernel.operation}.cu: {told}")

    def _file(self, kernel: kernel_source.Kernel) -> _KernelFile:
        if kernel.operation not in self._files:
            self._files[kernel.operation] = _KernelFile(kernel.operation, self.kernels, self.check, self.double)
        return self._files[kernel.operation]


def _unwritten(dtype: np.dtype) -> int:
    """The byte that all bytes of an element are which nobody wrote."""
    return NAN_BYTE if dtype.kind == "f" else UNWRITTEN_BYTE if dtype.itemsize >= 4 else CANNOT_TELL


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


def _forbid(address: int, size: int) -> None:
    """Makes pages of memory such that touching them is a fault."""
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0)
