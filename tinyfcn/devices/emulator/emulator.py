"""The device "emulator": NumPy arrays, and kernels called through ctypes."""

import ctypes
import math
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device, Launch
from tinyfcn.devices.emulator import build, profile
from tinyfcn.devices.emulator.library import NO_FILL_BYTE, ORDERS, UNKNOWN_LINE, Library, Memory
from tinyfcn.devices.emulator.profile import SAMPLE, LaunchProfile, Sample
from tinyfcn.devices.emulator.trace import LaunchTrace, TracedArray
from tinyfcn.devices.launch import element_of, is_structure
from tinyfcn.errors import KernelError

MODES = ("trap", "check", "trace", "profile")
PRECISIONS = ("single", "double")

# A new array is filled with one byte, which marks the elements that no kernel has written.
FLOAT_FILL_BYTE = 0xFF  # a float of any width whose bits are all set is a NaN
INTEGER_FILL_BYTE = 0xA5  # -1515870811 as int32, 165 as uint8

MAX_BLOCKS = 1 << 28  # in a launch: more would take minutes even if the kernel did nothing
MAX_SHARED = 48 * 1024  # bytes of shared memory (in floats) that CUDA gives a block without an opt-in
GUARD = 1 << 24  # bytes of protected memory after each array
ALIGNMENT = 16  # bytes, of the start of an array, for vector loads

_UNWRITTEN = re.compile(r"reads (\w+)\[\d+\] .*, which no thread has written")

# The runtime keeps the state of a launch in static variables, so there is one launch at a time.
_one_launch = threading.Lock()


@dataclass
class Statistics:
    """What was run of a kernel: its launches, their threads, and the accesses that check mode examined."""

    launches: int = 0
    threads: int = 0
    accesses: int = 0


class Emulator(Device):
    """Runs the kernels of a folder on the CPU. docs/emulator.md explains how, and what each mode finds.

    Args:
        kernels: a folder with `common.cuh` and one `.cu` file per operation; or a single `.cu` file.
        mode: "trap" finds accesses out of bounds and deadlocks; "check" also finds races, uninitialised reads, NaNs;
            "trace" is "check", and keeps every access of each launch; "profile" counts what accesses ask of a GPU's
            memory, in some of each launch's blocks.
        order: the order of the blocks, and of a block's threads between two barriers: "forward", "reverse" or "random".
        seed: the seed of the random order.
        precision: "single", or "double", which widens every float of the kernels; the arrays are then float64.
        naive: use the plain kernels even where there are fast ones.
        sample: in profile mode, the blocks of each launch to run. The results of a launch are then incomplete.

    Raises:
        DeviceError: this machine has no C++ compiler.
        ValueError: there is no mode, order or precision of that name.
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
        sample: Sample = SAMPLE,
    ) -> None:
        super().__init__(kernels, naive)
        for what, given, known in ("mode", mode, MODES), ("order", order, ORDERS), ("precision", precision, PRECISIONS):
            if given not in known:
                raise ValueError(f"no {what} named {given!r}; there are {', '.join(known)}")
        build.compiler()
        self.mode, self.check, self.double = mode, mode in ("check", "trace"), precision == "double"
        self.order, self.seed, self.sample = order, seed, sample
        self.profiles: list[LaunchProfile] = []  # of the launches in profile mode
        self.traces: list[LaunchTrace] = []  # of the launches in trace mode
        if self.double:
            self.dtypes = {**self.dtypes, "float": np.dtype(np.float64)}
        self.statistics = {name: Statistics() for name in self._declared}
        self.constants: dict[str, np.ndarray] = {}  # what the host has stored in __constant__ variables, by their names
        self._libraries: dict[str, Library] = {}
        # In check mode, by the address of an array: the last kernel that could write the array, and the address of the
        # instruction that wrote each element last.
        self._writers: dict[int, tuple[kernel_source.Kernel, np.ndarray]] = {}

    def settings(self) -> dict[str, Any]:
        modes = {"mode": self.mode, "order": self.order, "seed": self.seed}
        return {**super().settings(), **modes, "precision": PRECISIONS[self.double]}

    def empty(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        """An array that is filled with NaN, or with 0xA5A5... if it holds integers. So an unwritten element shows."""
        return self._allocate(tuple(shape), np.dtype(self.dtypes["float"] if dtype is None else dtype))

    def asarray(self, array: np.ndarray) -> np.ndarray:
        self._expect_no_recording("an array is brought to the device")
        array = np.asarray(array)
        copy = self._allocate(array.shape, array.dtype, _offset(array))
        copy[...] = array
        return copy

    def write(self, array: np.ndarray, values: np.ndarray) -> None:
        self._expect_no_recording("an array is brought to the device")
        array[...] = values

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """A copy.

        Raises:
            KernelError: in check mode, no kernel wrote one of the elements.
        """
        self._expect_no_recording("an array is brought to the host")
        copy = np.array(array)
        byte = _fill_byte(copy.dtype)
        if self.check and byte != NO_FILL_BYTE:
            unwritten = (copy.reshape(-1, 1).view(np.uint8) == byte).all(axis=1)
            if unwritten.any():
                kernel = self.given_to(array)
                text = f"no kernel wrote element {unwritten.argmax()} of an array of shape {array.shape}"
                if kernel:
                    text += f"; {kernel.name} at {kernel.operation}.cu:{kernel.line} was the last to be given it"
                raise KernelError(text)
        return copy

    def given_to(self, array: np.ndarray) -> kernel_source.Kernel | None:
        """In check mode: the last kernel that could write an array; None if there was none."""
        writer = self._writers.get(array.ctypes.data)
        return writer[0] if writer else None

    def written_at(self, array: np.ndarray, index: int) -> str | None:
        """In check mode: where an element was last written, such as "relu_forward at relu.cu:25"; None if unknown.

        `index` is the element's number in the flattened array.
        """
        writer = self._writers.get(array.ctypes.data)
        if writer is None:
            return None
        kernel, codes = writer
        if index >= len(codes) or not codes[index]:
            return None
        library = self._library(kernel)
        return f"{kernel.name} at {library.line(f'{int(codes[index]) - library.base:x}')}"

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype, offset: int = 0) -> np.ndarray:
        """An array with protected memory behind it, at most 15 bytes after its end.

        In profile mode it begins as on a GPU instead: at a multiple of 256 bytes, or `offset` bytes after one.
        """
        size = math.prod(shape) * dtype.itemsize
        before = offset if self.mode == "profile" else -size % mmap.PAGESIZE // ALIGNMENT * ALIGNMENT
        length = -(-(before + size) // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, length + GUARD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        bytes_ = np.frombuffer(memory, np.uint8)
        _protect(bytes_.ctypes.data + length, GUARD)
        bytes_[:length] = FLOAT_FILL_BYTE if dtype.kind == "f" else INTEGER_FILL_BYTE
        array = bytes_[before : before + size].view(dtype).reshape(shape)
        self._writers.pop(array.ctypes.data, None)
        return array

    def _launch(self, launch: Launch) -> None:
        kernel, grid, block, shared_bytes = launch.kernel, launch.grid, launch.block, launch.shared_bytes
        if math.prod(grid) > MAX_BLOCKS:
            raise KernelError(f"{kernel.name}: {math.prod(grid)} blocks are more than the emulator's {MAX_BLOCKS}")
        given = zip(kernel.parameters, launch.arguments, strict=True)
        arrays = [(p, a) for p, a in given if p.is_array and a is not None]
        memory = [
            Memory(name.encode(), a.ctypes.data, a.nbytes, unit, _fill_byte(a.dtype), False)
            for p, a in arrays  # of an array of structures, each byte
            for name, unit in [(f"(char*){p.name}", 1) if a.dtype.kind == "V" else (p.name, a.itemsize)]
        ]
        library = self._library(kernel)
        variables, limit = library.shared_variables(kernel.name), MAX_SHARED * (1 + self.double)
        if variables + shared_bytes > limit:
            raise KernelError(
                f"{kernel.name}: {variables} bytes of shared variables and {shared_bytes} of dynamic shared memory are "
                f"more than the {limit} that a block has"
            )
        self._check_structures(launch, library)
        library.store(self.constants)
        memory += library.memory(shared_bytes)
        held = [a.copy() for _, a in arrays] if self.mode == "trace" else []
        with _one_launch:
            outcome = library.launch(
                kernel.name,
                grid,
                block,
                launch.arguments,
                shared_bytes,
                memory,
                self.order,
                self.seed,
                self.check,
                self.mode == "trace",
                self.sample if self.mode == "profile" else None,
            )
            if self.mode == "profile" and not outcome.message:
                regions = [(m.name.decode(), m.bytes, m.is_shared) for m in memory]
                counts = profile.read(outcome.profile, regions, lambda at: library.places(f"{at - library.base:x}"))
                blocks = outcome.blocks_run, math.prod(grid)
                self.profiles.append(LaunchProfile(launch, self.kernels, *blocks, outcome.accesses, *counts))
        if self.mode == "trace" and not outcome.message:
            shared = self._traced_variables(kernel, memory[len(arrays) :])
            traced = [TracedArray(p.name, a.dtype, False, b, a.copy()) for (p, a), b in zip(arrays, held, strict=True)]
            self.traces.append(LaunchTrace(launch, [*traced, *shared], outcome.traced, partial(_line, library)))
        statistics = self.statistics[kernel.name]
        statistics.launches += 1
        statistics.threads += math.prod(grid) * math.prod(block)
        statistics.accesses += outcome.accesses
        unwritten = _UNWRITTEN.search(outcome.message)
        before = [self.given_to(a) for p, a in arrays if unwritten and p.name == unwritten[1]]
        if self.check:
            for (parameter, array), record in zip(arrays, outcome.records, strict=False):
                if not parameter.is_const:
                    writes, atomics = record["writes"][:, 0], record["atomics"][:, 0]
                    codes = np.where(writes["block"] > 0, writes["code"], atomics["code"])
                    self._writers[array.ctypes.data] = kernel, codes
        if outcome.message:
            error = KeyboardInterrupt if outcome.stopped else KernelError
            text = "".join(f"; {k.name} at {k.operation}.cu:{k.line} was given it before" for k in before if k)
            # Where a compiler leaves no way back from a fault to the kernel's code, the kernel's first line must do.
            where = f"{UNKNOWN_LINE} of the kernel at {kernel.operation}.cu:{kernel.line}"
            message = outcome.message.replace(UNKNOWN_LINE, where)
            raise error(f"{kernel.name} in {kernel.operation}.cu: {message}{text}")

    def compile(self, kernels: Iterable[kernel_source.Kernel]) -> None:
        """Compiles kernels and instances of templates on all cores.

        Raises:
            KernelError: a kernel file does not compile.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._library, kernels))

    def _traced_variables(self, kernel: kernel_source.Kernel, memory: Iterable[Memory]) -> Iterator[TracedArray]:
        """The variables of a kernel file. One of an unknown type, or of several types, is taken as bytes."""
        declared = kernel_source.source(kernel.operation, self.kernels).shared
        types = {name: each.type for each in declared for name in each.names}
        for each in memory:
            name = each.name.decode().rpartition(")")[2]
            dtype, _ = element_of(types.get(name, ""), self.dtypes)
            sound = dtype if dtype and dtype.itemsize == each.unit else np.dtype(np.uint8)
            yield TracedArray(name, sound, each.is_shared, None, None)

    def _check_structures(self, launch: Launch, library: Library) -> None:
        """Raises a ValueError if the bytes of a structure are not those that the compiler gives its type."""
        kernel = launch.kernel
        for number, (parameter, given) in enumerate(zip(kernel.parameters, launch.arguments, strict=True)):
            if given is not None and is_structure(parameter.type):
                expected = library.bytes_of(kernel.name, number)
                if given.itemsize != expected:
                    raise ValueError(
                        f"{kernel.name}: argument '{parameter.name}': a {parameter.type} has {expected} bytes, and a "
                        f"{given.dtype} has {given.itemsize}"
                    )

    def _library(self, kernel: kernel_source.Kernel) -> Library:
        instance = kernel if kernel.instance else None
        name = kernel.expression if instance else kernel.operation
        if name not in self._libraries:
            self._libraries[name] = Library(
                kernel.operation, self.kernels, self.mode, self.double, self.dtypes, instance
            )
        return self._libraries[name]


def _fill_byte(dtype: np.dtype) -> int:
    """The fill byte that marks an unwritten element, or NO_FILL_BYTE for bytes and structures, which may have any."""
    is_marked = dtype.itemsize >= 4 and dtype.kind != "V"
    return FLOAT_FILL_BYTE if dtype.kind == "f" else INTEGER_FILL_BYTE if is_marked else NO_FILL_BYTE


def _line(library: Library, code: int) -> str:
    return library.line(f"{code - library.base:x}")


def _offset(array: np.ndarray) -> int:
    """How far an array lies behind a multiple of 256 bytes, counted from the start of the memory that it is part of."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return (array.ctypes.data - owner.ctypes.data) % 256


def _protect(address: int, size: int) -> None:
    """Makes every access to some pages of memory a fault."""
    _mprotect()(address, size, 0)


@cache
def _mprotect() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).mprotect
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function
