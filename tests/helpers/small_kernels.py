"""Small kernels with one fault each, and what the emulator must report of it."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with

from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError

# Every kernel takes y (256 floats), x (256 floats from 0.5 to 1.5) and n. This one has no fault.
SOUND = """\
extern "C" __global__ void sound(float* y, const float* x, int n) { y[threadIdx.x] = n; }
"""


@dataclass(frozen=True)
class Fault:
    """How a kernel is launched, and patterns of the messages in trap mode and in check mode. None: no message."""

    n: int
    blocks: int  # of 64 threads
    trap: str | None
    check: str


def both(n: int, blocks: int, message: str) -> Fault:
    """A fault for which both modes have the same message."""
    return Fault(n, blocks, message, message)


def kernel_names(text: str) -> set[str]:
    """The kernels of a text."""
    return {*re.findall(r"void (\w+)\(", text)}


def wrong_folder(folder: Path, text: str = "") -> Path:
    """A folder of kernels with one file, wrong.cu, which holds the text and the kernel `sound`."""
    return folder_with(folder, wrong=text + SOUND)


def launch(device: Emulator, kernel: str, n: int, blocks: int = 1) -> np.ndarray:
    """Launches a kernel on an x of its own. Returns y."""
    x = np.random.default_rng(0).uniform(0.5, 1.5, 256).astype(device.dtypes["float"])
    y = device.empty((256,))
    device.launch(kernel, blocks, 64, [y, device.asarray(x), n], 64 * x.itemsize)
    return y


def marked_lines(text: str, kernel: str, mark: str) -> set[str]:
    """The lines with a comment `// mark` in a kernel of wrong.cu and in the function before it."""
    before, after = text.split(f" {kernel}(")
    first = before.rfind("\n}") + 2  # after the end of the function before it
    part = before[first:] + after[: after.index("\n}")]
    start = text[:first].count("\n") + 1
    return {f"wrong.cu:{start + i}" for i, line in enumerate(part.split("\n")) if f"// {mark}" in line}


def check_fault(folder: Path, text: str, kernel: str, fault: Fault, mode: str) -> None:
    """Launches a faulty kernel of a `wrong_folder`. Fails unless the mode reports the fault with its line.

    In the text, `// here` marks the line that must be named, and `// there` the other line of a race.
    """
    device = Emulator(folder, mode)
    pattern = fault.check if mode == "check" else fault.trap
    if pattern is None:
        launch(device, kernel, fault.n, fault.blocks)
        return
    with pytest.raises(KernelError) as caught:
        launch(device, kernel, fault.n, fault.blocks)
    message = str(caught.value)
    assert message.startswith(f"{kernel} in wrong.cu: ")
    assert re.search(pattern, message), message
    named = set(re.findall(r"wrong\.cu:\d+", message))
    here, there = (marked_lines(text, kernel, mark) for mark in ("here", "there"))
    assert here <= named <= here | there, message
    assert "race" not in message or there <= named, message
    launch(device, "sound", 1)  # the next launch is not affected
