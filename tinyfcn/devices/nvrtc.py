"""Compiles the kernels for real GPUs on a machine without one, and reports the resources that they need.

NVRTC, CUDA's run-time compiler, needs no GPU: it generates machine code for any sm_XX. With --ptxas-options=-v its log
lists the registers, shared memory and spills of each kernel.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyfcn.devices import kernel_source
from tinyfcn.devices.cuda import load_nvrtc
from tinyfcn.errors import KernelError

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_120")  # Turing, Ampere, Hopper, Blackwell

_KERNEL = re.compile(r"Function properties for (\w+)\n(.*)\n.*?Used (\d+) registers(.*)")


@dataclass(frozen=True)
class Resources:
    """The resources of a kernel: registers a thread, bytes of shared memory a block, bytes spilled to local memory."""

    kernel: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


def compile_for(
    operation: str, architecture: str, kernels: Path = kernel_source.KERNELS, instances: Sequence[str] = ()
) -> list[Resources]:
    """Compiles one `.cu` file for "sm_XX" and returns the resources of each kernel.

    Kernels that are templates are compiled for the `instances`, such as "conv2d_forward<8, 16>".

    Raises:
        DeviceError: NVRTC is not installed.
        KernelError: the file does not compile. The text is the compiler's, with file and line.
    """
    nvrtc = load_nvrtc()
    program = nvrtc.createProgram(kernel_source.read(operation, kernels), f"{operation}.cu", (), ())
    for instance in instances:
        nvrtc.addNameExpression(program, instance)
    options = (f"-arch={architecture}", "-std=c++17", "-ftz=true", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, options)
        log = nvrtc.getProgramLog(program)
        names = {nvrtc.getLoweredName(program, instance): instance for instance in instances}
    except nvrtc.NVRTCError:
        log = nvrtc.getProgramLog(program)
        raise KernelError(f"{operation}.cu does not compile for {architecture}:\n{log.strip()}") from None
    finally:
        nvrtc.destroyProgram(program)
    found = [_resources(*match.groups()) for match in _KERNEL.finditer(log)]
    return [replace(each, kernel=names.get(each.kernel, each.kernel)) for each in found]


def _resources(kernel: str, stack: str, registers: str, rest: str) -> Resources:
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", stack))
    shared = re.search(r"(\d+) bytes smem", rest)
    return Resources(kernel, int(registers), int(shared[1]) if shared else 0, spilled)
