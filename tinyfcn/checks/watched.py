"""The emulator in check mode, with what it takes to tell a person where a wrong number comes from."""

from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices.device import Launch
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import Kernel
from tinyfcn.errors import KernelError


class Found(KernelError):
    """What check mode finds wrong with a kernel that compiles; `kernel` is its name, or "" where none is to blame."""

    def __init__(self, kernel: Kernel | None, text: str) -> None:
        super().__init__(text)
        self.kernel = kernel.name if kernel else ""


class Watched(Emulator):
    """The emulator in check mode, which remembers its launches and says whose a finding is: see Found."""

    def __init__(self, kernels: Path, **settings: Any) -> None:
        super().__init__(kernels, mode="check", **settings)
        self.launches: list[Launch] = []

    def _launch(self, launch: Launch) -> None:
        self._library(launch.kernel)  # one that does not compile is a KernelError, and no finding
        self.launches.append(launch)
        try:
            super()._launch(launch)
        except KernelError as error:
            raise Found(launch.kernel, str(error)) from None

    def copies(self, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Results on the host. Found, if a kernel left one unwritten."""
        copies = {}
        for name, result in results.items():
            try:
                copies[name] = self.to_numpy(result)
            except KernelError as error:
                raise Found(self.given_to(result), f"{name}: {error}") from None
        return copies

    def stored_by(self, array: np.ndarray, element: int) -> str:
        """The kernel and line that stored an element; and those of the arrays that this kernel read."""
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


def place(element: int, shape: tuple[int, ...]) -> str:
    """The number of an element as an index: [0, 2, 1]."""
    return str([int(index) for index in np.unravel_index(element, shape)])
