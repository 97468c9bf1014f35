"""What the launchers in `tinyfcn/ops` ask of a place where kernels run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

THREADS = 256  # a block of the plain kernels in which every thread owns one element


class Device(ABC):
    """Allocates arrays, moves them, launches kernels. Arrays are NumPy's on the emulator, CuPy's on a GPU.

    `dtypes` gives the NumPy dtype of each type that a kernel's parameters may have.
    """

    name: str
    array_type: type
    dtypes: Mapping[str, np.dtype] = DTYPES

    def __init__(self, kernels: Path = kernel_source.KERNELS) -> None:
        self.kernels = Path(kernels)
        self._declared = kernel_source.kernels(self.kernels)

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """An array whose values a kernel will write; without a dtype, of the kernels' float."""

    @abstractmethod
    def asarray(self, array: np.ndarray) -> Any:
        """A C-contiguous copy on the device."""

    @abstractmethod
    def to_numpy(self, array: Any) -> np.ndarray:
        """A copy on the host; waits for the kernels before it."""

    @abstractmethod
    def _launch(
        self,
        kernel: kernel_source.Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: list[Any],
        shared_bytes: int,
    ) -> None:
        """Runs a kernel whose arguments have been checked."""

    def launch(
        self,
        kernel_name: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        arguments: Sequence[Any],
        shared_bytes: int = 0,
    ) -> None:
        """Runs `kernel_name` over grid x block threads.

        Arrays must be contiguous and of the declared dtype; Python numbers become the declared type.

        Raises:
            KernelError: no kernel of that name, or it does not compile.
            TypeError, ValueError: an argument or a block size that the kernel cannot take.
        """
        try:
            kernel = self._declared[kernel_name]
        except KeyError:
            raise KernelError(f"no kernel named {kernel_name} in {self.kernels}/*.cu") from None
        grid, block = as_dim3(grid), as_dim3(block)
        threads = block[0] * block[1] * block[2]
        too_large = any(size > most for size, most in zip((*grid, *block), (*MAX_GRID, *MAX_BLOCK), strict=True))
        if min(*grid, *block) < 1 or threads > MAX_THREADS_IN_BLOCK or too_large:
            raise ValueError(
                f"{kernel_name}: grid {grid} and block {block} must be positive, the grid at most {MAX_GRID}, "
                f"the block at most {MAX_BLOCK} with at most {MAX_THREADS_IN_BLOCK} threads"
            )
        checked = checked_arguments(kernel, arguments, self.array_type, self.dtypes)
        self._launch(kernel, grid, block, checked, shared_bytes)

    def launch_for_each(self, kernel_name: str, count: int, arguments: Sequence[Any]) -> None:
        """Runs a kernel with one thread for each of `count` elements, in blocks of 256.

        Raises:
            ValueError: more elements than a 32-bit index can number, surplus threads of the last block included.
        """
        if count > np.iinfo(np.int32).max - THREADS:
            raise ValueError(f"{kernel_name}: {count} elements are more than a 32-bit index can number")
        if count:
            self.launch(kernel_name, ceil_div(count, THREADS), THREADS, arguments)
