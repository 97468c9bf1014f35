"""Bugs planted in copies of the kernels, and their exercise on any device.

    python planting.py OPERATION KERNELS [DEVICE]

runs the exercise of an operation from a folder of kernels, on a GPU unless told otherwise: a program for
compute-sanitizer to watch. An error of a kernel is printed and no failure: the tool's verdict is what is asked for.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from tinyfcn.checks.sanitize import EXERCISES
from tinyfcn.devices import cuda, kernel_source
from tinyfcn.devices.device import Device
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import COMMON, KERNELS
from tinyfcn.errors import KernelError
from tinyfcn.operations import Operations

KERNEL_TESTS = Path(__file__).parents[1] / "kernels"
SEEDS = range(8)  # of the exercises
SEEN_BY = {
    **dict.fromkeys(("add_splits", "finish_row", "load_row"), "conv2d"),
    "block_sum": "softmax_cross_entropy",
    "philox": "compose_m2nist",
    "thread_number": "relu",
}
DETECTED = 77  # the exit code of compute-sanitizer when it found something


def kernel_tests(operation: str) -> ModuleType:
    """The module tests/kernels/test_X.py of an operation."""
    name = f"test_{operation}"
    specification = importlib.util.spec_from_file_location(name, KERNEL_TESTS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(specification)  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def operation_of(name: str) -> str:
    """The operation of a kernel; of a function of common.cuh one that calls it."""
    return SEEN_BY.get(name) or kernel_source.kernels()[name].operation


def plant(name: str, changes: Mapping[str, str], folder: Path) -> Path:
    """Copies the kernels into `folder` with texts of one kernel or function of common.cuh exchanged for others.

    Each text stands in the function once. " ... " in it stands for whatever lies between.
    """
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("__*"))
    file = folder / (COMMON if name in SEEN_BY else f"{operation_of(name)}.cu")
    whole = file.read_text(encoding="utf-8")
    # From the function's name to the brace that ends it: alone at the beginning of a line, or at the end of the first.
    pattern = rf"\b{name}\((?:[^()]|\([^()]*\))*\) \{{(?:[^\n]*\}}|.*?^\}})\n"
    function = edited = re.search(pattern, whole, re.DOTALL | re.MULTILINE)[0]
    for text, instead in changes.items():
        found = re.findall(".*?".join(map(re.escape, text.split(" ... "))), edited, re.DOTALL)
        assert len(found) == 1, f"{file.name}: {text!r} stands {len(found)} times in {name}"
        edited = edited.replace(found[0], instead)
    file.write_text(whole.replace(function, edited), encoding="utf-8")
    return folder


def line_of(text: str, operation: str, kernels: Path) -> str:
    """ "conv2d.cu:57": the one line of an operation's file and common.cuh on which a text stands."""
    found = [
        f"{file}:{number}"
        for file in (f"{operation}.cu", COMMON)
        for number, line in enumerate((kernels / file).read_text(encoding="utf-8").splitlines(), 1)
        if text in line
    ]
    assert len(found) == 1, f"{text!r} stands at {found}"
    return found[0]


def exercise(operation: str, device: Device) -> str:
    """Runs an operation's exercises as far as they go. Returns the first error, or an empty text."""
    ops = Operations(device)
    try:
        for seed in SEEDS:
            for case in EXERCISES[operation](np.random.default_rng(seed)):
                for result in case.run(ops, seed=seed).values():
                    ops.to_numpy(result)
    except KernelError as error:
        return str(error)
    return ""


def why_no_compute_sanitizer() -> str | None:
    """Why no compute-sanitizer can watch kernels on this machine, or None where one can."""
    if not shutil.which("compute-sanitizer"):
        return "none on PATH"
    return "no GPU" if cuda.why_not() else None


def compute_sanitizer(tool: str, operation: str, kernels: Path, device: str = "cuda") -> subprocess.CompletedProcess:
    """Has compute-sanitizer watch an operation's exercise; its exit code is DETECTED if the tool finds something."""
    watch = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(DETECTED)]
    program = [sys.executable, __file__, operation, str(kernels), device]
    waits = os.environ | {"CUDA_LAUNCH_BLOCKING": "1"}  # a launch's error is raised by it, not by what comes after
    return subprocess.run([*watch, *program], env=waits, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main(operation: str, kernels: str, device: str = "cuda") -> None:
    if device == "cuda":
        # Each array an allocation of its own, so that memcheck knows where it ends and initcheck that it is new.
        cuda.import_cupy().cuda.set_allocator(None)
    print(exercise(operation, {"cuda": cuda.Cuda, "emulator": Emulator}[device](Path(kernels))))


if __name__ == "__main__":
    main(*sys.argv[1:])
