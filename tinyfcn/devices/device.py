"""The interface of a device, as the launchers in `tinyfcn/ops` use it."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.launch import (
    DTYPES,
    MAX_BLOCK,
    MAX_GRID,
    MAX_THREADS_IN_BLOCK,
    as_dim3,
    ceil_div,
    checked_arguments,
    launched_from,
)
from tinyfcn.errors import KernelError

Array: TypeAlias = Any  # NumPy's on the emulator and the cpu, CuPy's on a GPU

THREADS = 256  # a block, for kernels in which each thread owns one element


def address(array: Any) -> int:
    """The address of an array's first element."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its configuration and its arguments, which are arrays, None, or NumPy scalars.

    stream: 0 for the main stream, whose launches run one after another. Each side stream has its own number, and starts
    after the launches that precede it on the main stream. joins: this launch waits for all side streams.
    """

    kernel: kernel_source.Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: list[Any]
    shared_bytes: int
    stream: int = 0
    joins: bool = False


@dataclass
class Recording:
    """A sequence of launches that can be run again on the same arrays. It keeps the arrays alive."""

    device: "Device"
    launches: list[Launch] = field(default_factory=list)

    def replay(self) -> None:
        """Runs all launches."""
        for launch in self.launches:
            self.device._launch(launch)


class ThreadState(threading.local):
    """What a device is doing for one thread: the recording, and the streams of its next launch."""

    recording: Recording | None = None
    stream, streams, joins = 0, 0, False


MULTIPROCESSORS = 132  # of an H100 or H200, whose launches the emulator gets


class Device(ABC):
    """Allocates arrays, moves them, launches kernels. Arrays are NumPy's on the emulator, CuPy's on a GPU.

    `dtypes` gives the NumPy dtype of each type that a kernel's parameters may have. Where a kernel has a fast form,
    the launchers use it, unless the device is `naive`. `runs_kernels` is false for the cpu alone. `multiprocessors`:
    how many the launchers choose tiles for.

    Threads may share a device. A deep copy is the device itself. An unpickled one is a new one of the same settings.
    """

    name: str
    array_type: type
    dtypes: Mapping[str, np.dtype] = DTYPES
    runs_kernels = True
    multiprocessors = MULTIPROCESSORS

    def __init__(self, kernels: Path = kernel_source.KERNELS, naive: bool = False) -> None:
        self.kernels = Path(kernels)
        self.naive = naive
        self._declared = kernel_source.kernels(self.kernels)
        self._thread = ThreadState()
        self._constants: dict[int, tuple[np.ndarray, Any]] = {}

    def settings(self) -> dict[str, Any]:
        """The arguments that make another device like this one. Another machine has its own folder of kernels."""
        own_kernels = {} if self.kernels == kernel_source.KERNELS else {"kernels": self.kernels}
        return {"naive": self.naive, **own_kernels}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self.settings()), ()

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """An uninitialised array. Without a dtype, its elements are the kernels' floats."""

    @abstractmethod
    def asarray(self, array: np.ndarray) -> Any:
        """A C-contiguous copy on the device."""

    def constant(self, array: np.ndarray) -> Any:
        """The copy on the device of an array that nobody changes, made once. A recording may use it."""
        if id(array) not in self._constants:
            recording, self._thread.recording = self._thread.recording, None  # a replay finds the same values
            try:
                self._constants[id(array)] = array, self.asarray(array)
            finally:
                self._thread.recording = recording
        return self._constants[id(array)][1]

    @abstractmethod
    def write(self, array: Any, values: np.ndarray) -> None:
        """Copies values from the host into an array on the device. Shape and dtype must match."""

    @abstractmethod
    def to_numpy(self, array: Any) -> np.ndarray:
        """A copy on the host; waits for the kernels launched before."""

    def readable(self, array: Any) -> np.ndarray | None:
        """The array itself if the host can read its values now: not on a GPU, and not while a step is recorded."""
        return array if isinstance(array, np.ndarray) and self._thread.recording is None else None

    @abstractmethod
    def _launch(self, launch: Launch) -> None:
        """Runs a kernel; its arguments have been checked."""

    def record(self, work: Callable[[], Any]) -> Recording:
        """Calls `work` once and records its launches without running them. They run when the recording is replayed.

        A replay uses the same arrays and numbers as `work`. Values that change from one replay to the next must be read
        and written by kernels.

        Raises:
            KernelError: `work` copies an array to or from the host, or starts a recording itself.
        """
        self._expect_no_recording("a step is recorded")
        recording = Recording(self)
        thread = self._thread
        thread.recording, thread.streams, thread.joins = recording, 0, False
        try:
            work()
        finally:
            thread.recording = None
        return recording

    def prepare(self, work: Callable[[], Any]) -> None:
        """Where a compiler is slow, compiles the kernels that `work` launches, several at once. Nothing runs."""
        return

    def side_stream(self) -> AbstractContextManager[None]:
        """Work launched inside may overlap later launches until `join`.

        It overlaps only in a recording on a GPU. Elsewhere launches run one after another.

        Raises:
            KernelError: inside another side stream.
        """
        return self._side_stream()

    @contextmanager
    def _side_stream(self) -> Iterator[None]:
        thread = self._thread
        if thread.stream:
            raise KernelError("side_stream within side_stream: a side stream has no side streams of its own")
        thread.streams += 1
        thread.stream = thread.streams
        try:
            yield
        finally:
            thread.stream = 0

    def join(self) -> None:
        """Later launches wait for all work launched on side streams."""
        self._thread.joins = True

    def _expect_no_recording(self, what: str) -> None:
        if self._thread.recording is not None:
            raise KernelError(f"{what} while a step is recorded: a replay would not repeat it")

    def declared(self, kernel_name: str) -> kernel_source.Kernel:
        """The declaration of a kernel.

        Raises:
            KernelError: no kernel has this name.
        """
        try:
            return self._declared[kernel_name]
        except KeyError:
            raise kernel_source.no_kernel(kernel_name, self.kernels) from None

    def launch(
        self,
        kernel_name: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        arguments: Sequence[Any],
        shared_bytes: int = 0,
        template: Sequence[int | str] = (),
    ) -> None:
        """Runs `kernel_name` over grid x block threads.

        `template`: the parameters of a kernel that is a C++ template, such as ("float", 128). The last ones may be left
        out if they have defaults.

        Arrays must be contiguous and of the declared dtype; Python numbers become the declared type.

        Raises:
            KernelError: no kernel has this name or this many template parameters, or the kernel does not compile.
            TypeError, ValueError: an argument, a grid or a block that the kernel cannot be launched with.
        """
        kernel = self.declared(kernel_name)
        if not kernel.required <= len(template) <= len(kernel.template):
            names = f"{len(kernel.template)} template parameters ({', '.join(kernel.template)})"
            raise KernelError(
                f"{kernel.name} at {kernel.operation}.cu:{kernel.line} has {names}, "
                f"and its launch gives {len(template)}: change the two together ({launched_from()})"
            )
        grid, block = as_dim3(grid), as_dim3(block)
        threads = block[0] * block[1] * block[2]
        too_large = any(size > limit for size, limit in zip((*grid, *block), (*MAX_GRID, *MAX_BLOCK), strict=True))
        if min(*grid, *block) < 1 or threads > MAX_THREADS_IN_BLOCK or too_large:
            raise ValueError(
                f"{kernel_name}: grid {grid} and block {block} must be positive, the grid at most {MAX_GRID}, "
                f"the block at most {MAX_BLOCK} with at most {MAX_THREADS_IN_BLOCK} threads"
            )
        kernel = kernel.instantiated(template)  # an object of its own for each launch, which `Watched` looks for
        checked = checked_arguments(kernel, arguments, self.array_type, self.dtypes)
        thread = self._thread
        launch = Launch(kernel, grid, block, checked, shared_bytes, thread.stream, thread.joins)
        thread.joins = False
        if thread.recording is None:
            self._launch(launch)
        else:
            thread.recording.launches.append(launch)

    def launch_for_each(self, kernel_name: str, count: int, arguments: Sequence[Any]) -> None:
        """Runs a kernel with one thread for each of `count` elements, in blocks of 256.

        Raises:
            ValueError: a 32-bit index cannot number the elements and the surplus threads of the last block.
        """
        if count > np.iinfo(np.int32).max - THREADS:
            raise ValueError(f"{kernel_name}: {count} elements are more than a 32-bit index can number")
        if count:
            self.launch(kernel_name, ceil_div(count, THREADS), THREADS, arguments)
