"""What the launchers in `tinyfcn/ops` ask of a place where kernels run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

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
)
from tinyfcn.errors import KernelError

Array: TypeAlias = Any  # NumPy's on the emulator and the cpu, CuPy's on a GPU

THREADS = 256  # a block of the plain kernels in which every thread owns one element


def address(array: Any) -> int:
    """Where an array lies, as a number."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


@dataclass(frozen=True)
class Launch:
    """A kernel, with all that it was launched with. Arguments are arrays, None, or NumPy scalars.

    branch: 0 for what runs one after another; what was launched `beside` has the number of its branch, which begins
    after what was launched before it in branch 0. joins: it waits for all branches that were begun before.
    """

    kernel: kernel_source.Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: list[Any]
    shared_bytes: int
    branch: int = 0
    joins: bool = False


@dataclass
class Recording:
    """The launches of some work, in order, to be run again on the same arrays, which it keeps alive."""

    device: "Device"
    launches: list[Launch] = field(default_factory=list)

    def replay(self) -> None:
        """Runs all launches."""
        for launch in self.launches:
            self.device._launch(launch)


class Device(ABC):
    """Allocates arrays, moves them, launches kernels. Arrays are NumPy's on the emulator, CuPy's on a GPU.

    `dtypes` gives the NumPy dtype of each type that a kernel's parameters may have. Where a kernel has a fast form,
    the launchers take it, unless the device is `naive`.
    """

    name: str
    array_type: type
    dtypes: Mapping[str, np.dtype] = DTYPES

    def __init__(self, kernels: Path = kernel_source.KERNELS, naive: bool = False) -> None:
        self.kernels = Path(kernels)
        self.naive = naive
        self._declared = kernel_source.kernels(self.kernels)
        self._recording: Recording | None = None
        self._branch, self._branches, self._joins = 0, 0, False

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """An array whose values a kernel will write; without a dtype, of the kernels' float."""

    @abstractmethod
    def asarray(self, array: np.ndarray) -> Any:
        """A C-contiguous copy on the device."""

    @abstractmethod
    def write(self, array: Any, values: np.ndarray) -> None:
        """Sets all of an array on the device to values of its shape and dtype from the host."""

    @abstractmethod
    def to_numpy(self, array: Any) -> np.ndarray:
        """A copy on the host; waits for the kernels before it."""

    @abstractmethod
    def _launch(self, launch: Launch) -> None:
        """Runs a kernel whose arguments have been checked."""

    def record(self, work: Callable[[], Any]) -> Recording:
        """Calls `work` once, with its launches noted and not run. They run when the recording is replayed.

        A replay uses the arrays and numbers that `work` used: what is to change from one replay to the next must be
        read and written by kernels.

        Raises:
            KernelError: `work` brings an array to the host or from it, or records something itself.
        """
        self._expect_no_recording("a step is recorded")
        recording = Recording(self)
        self._recording, self._branches, self._joins = recording, 0, False
        try:
            work()
        finally:
            self._recording = None
        return recording

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Launches inside may run at the same time as those that follow, up to the next `join`.

        They do where the step is a recording on a GPU. Elsewhere launches come one after another.

        Raises:
            KernelError: inside of another `beside`: a branch has no branches.
        """
        if self._branch:
            raise KernelError("beside within beside: a branch of a step has no branches of its own")
        self._branches += 1
        self._branch = self._branches
        try:
            yield
        finally:
            self._branch = 0

    def join(self) -> None:
        """What is launched from here on waits for all that was launched `beside`."""
        self._joins = True

    def _expect_no_recording(self, what: str) -> None:
        if self._recording is not None:
            raise KernelError(f"{what} while a step is recorded: a replay would not do it again")

    def launch(
        self,
        kernel_name: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        arguments: Sequence[Any],
        shared_bytes: int = 0,
        template: tuple[int, ...] = (),
    ) -> None:
        """Runs `kernel_name` over grid x block threads. `template`: the parameters of a kernel that is a C++ template.

        Arrays must be contiguous and of the declared dtype; Python numbers become the declared type.

        Raises:
            KernelError: no kernel of that name and so many template parameters, or it does not compile.
            TypeError, ValueError: an argument or a block size that the kernel cannot take.
        """
        try:
            kernel = self._declared[kernel_name]
        except KeyError:
            raise KernelError(f"no kernel named {kernel_name} in {self.kernels}/*.cu") from None
        if len(template) != len(kernel.template):
            raise KernelError(
                f"{kernel.name} at {kernel.operation}.cu:{kernel.line} has {len(kernel.template)} template parameters, "
                f"and its launch gives {len(template)}"
            )
        grid, block = as_dim3(grid), as_dim3(block)
        threads = block[0] * block[1] * block[2]
        too_large = any(size > most for size, most in zip((*grid, *block), (*MAX_GRID, *MAX_BLOCK), strict=True))
        if min(*grid, *block) < 1 or threads > MAX_THREADS_IN_BLOCK or too_large:
            raise ValueError(
                f"{kernel_name}: grid {grid} and block {block} must be positive, the grid at most {MAX_GRID}, "
                f"the block at most {MAX_BLOCK} with at most {MAX_THREADS_IN_BLOCK} threads"
            )
        checked = checked_arguments(kernel, arguments, self.array_type, self.dtypes)
        kernel = replace(kernel, instance=tuple(template))
        launch = Launch(kernel, grid, block, checked, shared_bytes, self._branch, self._joins)
        self._joins = False
        if self._recording is None:
            self._launch(launch)
        else:
            self._recording.launches.append(launch)

    def launch_for_each(self, kernel_name: str, count: int, arguments: Sequence[Any]) -> None:
        """Runs a kernel with one thread for each of `count` elements, in blocks of 256.

        Raises:
            ValueError: more elements than a 32-bit index can number, surplus threads of the last block included.
        """
        if count > np.iinfo(np.int32).max - THREADS:
            raise ValueError(f"{kernel_name}: {count} elements are more than a 32-bit index can number")
        if count:
            self.launch(kernel_name, ceil_div(count, THREADS), THREADS, arguments)
