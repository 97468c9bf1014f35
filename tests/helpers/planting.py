"""Bugs planted in copies of the kernels, and the cases of sanitize run on any device.

    python planting.py OPERATION KERNELS [DEVICE]

runs the cases of an operation with the kernels of a folder, by default on a GPU, so that compute-sanitizer can watch
them. It prints an error of a kernel but exits with 0: only the verdict of the tool counts.
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
COMMON_FUNCTIONS = {
    "add_up_losses": "softmax_cross_entropy",
    "block_sum": "softmax_cross_entropy",
    "loss_and_gradient": "softmax_cross_entropy",
    "philox": "compose_m2nist",
    "thread_number": "relu",
}
# A function of a kernel file -> the kernels whose cases call it.
DEVICE_FUNCTIONS = {
    "load_row": {"fast_conv_forward", "fast_conv_backward_input"},
    "copy_to_shared": {"fast_conv_forward", "fast_conv_backward_input"},
    "copy_four_to_shared": {"fast_conv_forward", "fast_conv_backward_input"},
    "copy_weights_to_shared": {"fast_conv_forward", "fast_conv_backward_input"},
    "reduce_splits": {"fast_conv_forward", "fast_conv_backward_input"},
    "store_row": {"fast_conv_forward", "fast_conv_backward_input"},
}
DETECTED = 77  # the exit code of compute-sanitizer if it finds an error


def operation_of(name: str) -> str:
    """The operation of a kernel or device function. For a function of common.cuh it is an operation that calls it."""
    if name in COMMON_FUNCTIONS:
        return COMMON_FUNCTIONS[name]
    return kernel_source.kernels()[min(DEVICE_FUNCTIONS.get(name, {name}))].operation


def plant(name: str, changes: Mapping[str, str], folder: Path) -> Path:
    """Copies the kernels into `folder`, with some texts of one kernel or device function replaced.

    Each text must occur in the function exactly once. " ... " in a text matches anything between two texts.
    """
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("__*"))
    file = folder / (COMMON if name in COMMON_FUNCTIONS else f"{operation_of(name)}.cu")
    whole = file.read_text(encoding="utf-8")
    source = kernel_source.Source(whole, file.stem)
    (function,) = [source.text[each.start : each.end] for each in source.functions if each.name == name]
    edited = function
    for text, replacement in changes.items():
        matches = re.findall(".*?".join(map(re.escape, text.split(" ... "))), edited, re.DOTALL)
        assert len(matches) == 1, f"{file.name}: {text!r} occurs {len(matches)} times in {name}"
        edited = edited.replace(matches[0], replacement)
    file.write_text(whole.replace(function, edited), encoding="utf-8")
    return folder


def line_of(text: str, operation: str, kernels: Path) -> str:
    """ "conv2d.cu:57": the only line of an operation's file and common.cuh that contains a text."""
    found = [
        f"{file}:{number}"
        for file in (f"{operation}.cu", COMMON)
        for number, line in enumerate((kernels / file).read_text(encoding="utf-8").splitlines(), 1)
        if text in line
    ]
    assert len(found) == 1, f"{text!r} is on the lines {found}"
    return found[0]


def run_cases(operation: str, device: Device, draw: Draw | None = None) -> str:
    """Runs an operation's cases, or those of `draw`, up to the first error. Returns its text, or an empty one."""
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
    """The reason why compute-sanitizer cannot be used on this machine, or None if it can."""
    if not shutil.which("compute-sanitizer"):
        return "not on PATH"
    return "no GPU" if cuda.why_not() else None


def compute_sanitizer(
    tool: str, operation: str, kernels: Path, device: str = "cuda"
) -> subprocess.CompletedProcess[str]:
    """Runs an operation's cases under compute-sanitizer, whose exit code is DETECTED if the tool finds an error."""
    sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(DETECTED)]
    program = [sys.executable, __file__, operation, str(kernels), device]
    environment = os.environ | {"CUDA_LAUNCH_BLOCKING": "1"}  # each launch reports its own errors
    return subprocess.run(
        [*sanitizer, *program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def main(operation: str, kernels: str, device: str = "cuda") -> None:
    if device == "cuda":
        # Allocates each array separately, so that memcheck knows its end, and initcheck knows that it is new.
        cuda.import_cupy().cuda.set_allocator(None)
    print(run_cases(operation, {"cuda": cuda.Cuda, "emulator": Emulator}[device](Path(kernels))))


if __name__ == "__main__":
    main(*sys.argv[1:])
