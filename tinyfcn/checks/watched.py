"""The emulator in check mode, which also traces a wrong number to the line that stored it."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.checks.case import Case
from tinyfcn.checks.parts import Recorder
from tinyfcn.devices.device import Launch, address
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import Kernel
from tinyfcn.errors import KernelError
from tinyfcn.ops import Operations


class Found(KernelError):
    """An error that check mode finds in a kernel that compiles. `kernel` is its name, or "" if it is not known."""

    def __init__(self, kernel: Kernel | None, text: str) -> None:
        super().__init__(text)
        self.kernel = kernel.name if kernel else ""


class Watched(Emulator):
    """The emulator in check mode. It records its launches, and its errors are Found, with the name of the kernel."""

    def __init__(self, kernels: Path, **settings: Any) -> None:
        super().__init__(kernels, mode="check", **settings)
        self.launches: list[Launch] = []

    def _launch(self, launch: Launch) -> None:
        self._library(launch.kernel)  # a compile error is a KernelError, but not a finding
        self.launches.append(launch)
        try:
            super()._launch(launch)
        except KernelError as error:
            raise Found(launch.kernel, str(error)) from None

    def copies(self, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies of the results on the host.

        Raises:
            Found: no kernel wrote an element of a result.
        """
        copies = {}
        for name, result in results.items():
            try:
                copies[name] = self.to_numpy(result)
            except KernelError as error:
                raise Found(self.given_to(result), f"{name}: {error}") from None
        return copies

    def stored_by(self, array: np.ndarray, element: int) -> str:
        """The kernel and line that stored an element, and the lines that stored the arrays which this kernel read."""
        text = self.written_at(array, element)
        if text is None:
            return "no kernel"
        writer = self.given_to(array)
        launch = next(launch for launch in reversed(self.launches) if launch.kernel is writer)
        for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True):
            read = parameter.is_array and parameter.is_const and argument is not None
            source = self.written_at(argument, 0) if read else None
            text += f", from '{parameter.name}' stored by {source}" if source else ""
        return text

    def wrong(self, name: str, array: np.ndarray, expected: np.ndarray, whole: np.ndarray | None = None) -> str:
        """The worst element of a wrong array, its value, the right one, and the line that stored it.

        whole: the array of structures of which `array` is a field, whose lines are kept by the byte.
        """
        if array.shape != expected.shape:
            return f"{name} has the shape {array.shape}, should have {expected.shape}"
        worst = int(np.nan_to_num(np.abs(array - expected), nan=np.inf).argmax())
        should_be = array.dtype.type(expected.flat[worst] + 0)  # not -0
        values = f"is {array.flat[worst]!s}, should be {should_be!s}"
        kept, first = array, worst
        if whole is not None:
            index = np.unravel_index(worst, array.shape)
            kept, first = whole, address(array) - address(whole) + int(np.dot(index, array.strides))
        return f"{name}{index_text(worst, array.shape)} {values}: stored by {self.stored_by(kept, first)}"


def launches_of(cases: Iterable[Case], kernels: Path) -> list[Launch]:
    """For each kernel and each instance of a template that the cases launch: one launch, which is not run."""
    recorder = Recorder(kernels)
    found: dict[str, Launch] = {}
    for case in cases:
        recording = recorder.record(partial(case.run, Operations(recorder)))
        found |= {launch.kernel.expression: launch for launch in recording.launches}
    return list(found.values())


def index_text(element: int, shape: tuple[int, ...]) -> str:
    """The number of an element as an index: [0, 2, 1]."""
    return str([int(index) for index in np.unravel_index(element, shape)])
