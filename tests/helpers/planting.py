"""Bugs planted in copies of the kernels, and the cases of sanitize run on any device.

    python planting.py OPERATION KERNELS [DEVICE]

runs the cases of an operation from a folder of kernels, on a GPU unless told otherwise: a program for compute-sanitizer
to watch. It prints an error of a kernel and does not fail: only the tool's verdict counts.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinyfcn.checks.pieces import cases_of
from tinyfcn.checks.sanitize import Draw
from tinyfcn.devices import cuda, kernel_source
from tinyfcn.devices.device import Device
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import COMMON, KERNELS
from tinyfcn.errors import KernelError
from tinyfcn.ops import Operations

SEEDS = range(8)  # of the cases
# A function of common.cuh -> the operation whose cases call it.
COMMON_FUNCTIONS = {"block_sum": "softmax_cross_entropy", "philox": "compose_m2nist", "thread_number": "relu"}
# Of fast_conv.cu: functions that its kernels call.
DEVICE_FUNCTIONS = dict.fromkeys(("load_row", "reduce_splits", "store_row"), "fast_conv")
DETECTED = 77  # the exit code of compute-sanitizer when it found something


def operation_of(name: str) -> str:
    """The operation of a kernel or device function; for a function of common.cuh one that calls it."""
    functions = COMMON_FUNCTIONS | DEVICE_FUNCTIONS
    return functions.get(name) or kernel_source.kernels()[name].operation


def plant(name: str, changes: Mapping[str, str], folder: Path) -> Path:
    """Copies the kernels into `folder` with some texts of one kernel or device function replaced.

    Each text stands in the function once. " ... " in it stands for anything between two texts.
    """
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("__*"))
    file = folder / (COMMON if name in COMMON_FUNCTIONS else f"{operation_of(name)}.cu")
    whole = file.read_text(encoding="utf-8")
    # From the function's name to the brace that ends it: alone at the beginning of a line, or at the end of the first.
    pattern = rf"\b{name}\((?:[^()]|\([^()]*\))*\) \{{(?:[^\n]*\}}|.*?^\}})\n"
    found = re.search(pattern, whole, re.DOTALL | re.MULTILINE)
    assert found, f"{file.name} has no function {name}"
    function = edited = found[0]
    for text, instead in changes.items():
        places = re.findall(".*?".join(map(re.escape, text.split(" ... "))), edited, re.DOTALL)
        assert len(places) == 1, f"{file.name}: {text!r} stands {len(places)} times in {name}"
        edited = edited.replace(places[0], instead)
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


def run_cases(operation: str, device: Device, draw: Draw | None = None) -> str:
    """Runs an operation's cases, or those that `draw` gives, up to the first error. Returns it, or an empty text."""
    ops, draw = Operations(device), draw or cases_of(operation).sanitize_cases
    try:
        for seed in SEEDS:
            for case in draw(np.random.default_rng(seed)):
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


def compute_sanitizer(
    tool: str, operation: str, kernels: Path, device: str = "cuda"
) -> subprocess.CompletedProcess[str]:
    """Has compute-sanitizer watch an operation's cases; its exit code is DETECTED if the tool finds something."""
    watch = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(DETECTED)]
    program = [sys.executable, __file__, operation, str(kernels), device]
    waits = os.environ | {"CUDA_LAUNCH_BLOCKING": "1"}  # each launch raises its own error, not that of an earlier one
    return subprocess.run([*watch, *program], env=waits, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main(operation: str, kernels: str, device: str = "cuda") -> None:
    if device == "cuda":
        # Each array is an allocation of its own, so that memcheck knows where it ends and initcheck that it is new.
        cuda.import_cupy().cuda.set_allocator(None)
    print(run_cases(operation, {"cuda": cuda.Cuda, "emulator": Emulator}[device](Path(kernels))))


if __name__ == "__main__":
    main(*sys.argv[1:])
