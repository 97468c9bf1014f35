"""Compiles instances of kernel templates in advance on all cores, which halves the time of a test."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices.device import Device, Launch
from tinyfcn.devices.emulator import Emulator, build
from tinyfcn.devices.kernel_source import Kernel
from tinyfcn.errors import KernelError


class Dry(Emulator):
    """An emulator that runs nothing, whose arrays take no memory. `launched` lists the kernels of its launches."""

    def __init__(self, kernels: Path) -> None:
        super().__init__(kernels)
        self.launched: list[Kernel] = []

    def empty(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        return np.empty(shape, self.dtypes["float"] if dtype is None else dtype)  # memory is taken when it is written

    def _launch(self, launch: Launch) -> None:
        self.launched.append(launch.kernel)


def compile_for(device: Device, work: Callable[[], Any]) -> None:
    """Compiles the kernels that `work` launches on an emulator. `work` must be recordable: see Device.record."""
    if isinstance(device, Emulator):
        compile_all(device, (launch.kernel for launch in device.record(work).launches))


def compile_all(device: Emulator, kernels: Iterable[Kernel]) -> None:
    """Compiles kernels, among them instances of templates, for an emulator."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kernel in {kernel.expression: kernel for kernel in kernels}.values():
            pool.submit(compile_one, device, kernel)


def compile_one(device: Emulator, kernel: Kernel) -> None:
    """Compiles one kernel. An error is ignored here, because the launch of the kernel raises it again."""
    instance = kernel if kernel.instance else None
    with suppress(KernelError):
        build.library(kernel.operation, device.kernels, device.mode, device.double, instance)
