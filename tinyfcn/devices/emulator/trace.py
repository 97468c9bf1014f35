"""Every access of a launch, as trace mode keeps it: who touched which element, what the element held, at which line."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tinyfcn.devices.device import Launch

KINDS = ("read", "write", "atomic")  # numbered as in runtime.h


class Access(NamedTuple):
    """One thread's access of one element. Accesses of one launch are numbered in the order of execution.

    array: the name of the kernel's parameter or shared variable. element: its number in the flattened array. value:
    what the element held before. place: "conv2d.cu:57". block, thread: numbers within the grid and within the block.
    """

    number: int
    array: str
    element: int
    kind: str
    value: float
    place: str
    block: int
    thread: int


class TracedArray(NamedTuple):
    """An array or a shared variable of a launch. before, after: copies of a global array's elements."""

    name: str
    dtype: np.dtype[Any]
    is_shared: bool
    before: np.ndarray | None
    after: np.ndarray | None


@dataclass(frozen=True)
class LaunchTrace:
    """All accesses of one launch to its arrays and shared variables. Registers and local arrays are not traced.

    rows: library.TRACED; `region` numbers the arrays. line: the source line of an instruction.
    """

    launch: Launch
    arrays: Sequence[TracedArray]
    rows: np.ndarray
    line: Callable[[int], str]

    @cached_property
    def lines(self) -> dict[int, str]:
        return {int(code): self.line(int(code)) for code in np.unique(self.rows["code"])}

    def array(self, name: str) -> TracedArray:
        return next(each for each in self.arrays if each.name == name)

    def accesses(self, which: np.ndarray | slice = slice(None)) -> Iterator[Access]:
        """The accesses of the chosen rows; one of a float4 gives four."""
        numbers = np.arange(len(self.rows))[which]
        rows = self.rows[numbers]
        held = np.ascontiguousarray(rows["before"])
        values = {each.dtype: held.view(each.dtype).tolist() for each in self.arrays}
        names = ("region", "offset", "bytes", "kind", "code", "block", "thread")
        columns = zip(numbers.tolist(), *(rows[name].tolist() for name in names), strict=True)
        for at, (number, region, offset, size, kind, code, block, thread) in enumerate(columns):
            array = self.arrays[region]
            first, unit = offset // array.dtype.itemsize, array.dtype.itemsize
            for k in range(size // unit):
                value, place = values[array.dtype][at][k], self.lines[code]
                yield Access(number, array.name, first + k, KINDS[kind], value, place, block, thread)

    def stores(self, name: str, element: int | None = None) -> list[Access]:
        """All writes and atomics to an array, or to one of its elements."""
        region = next(number for number, each in enumerate(self.arrays) if each.name == name)
        rows, size = self.rows, self.arrays[region].dtype.itemsize
        chosen = (rows["region"] == region) & (rows["kind"] != KINDS.index("read"))
        if element is not None:
            at = element * size
            chosen &= (rows["offset"] <= at) & (at < rows["offset"] + rows["bytes"])
        return [access for access in self.accesses(chosen) if element in (None, access.element)]

    def of_block(self, block: int, thread: int | None = None) -> list[Access]:
        """All accesses of a block, or of one of its threads."""
        chosen = self.rows["block"] == block
        if thread is not None:
            chosen &= self.rows["thread"] == thread
        return [*self.accesses(chosen)]
