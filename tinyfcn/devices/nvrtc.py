"""Compiles the kernels for real GPUs without having one, and reads off what they would use.

NVRTC, CUDA's run-time compiler, is a library like any other: given sm_XX it makes machine code on any computer and,
asked by --ptxas-options=-v, tells each kernel's registers, shared memory and spills.
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
    """What a kernel uses: registers a thread, bytes of shared memory a block, bytes spilled to local memory."""

    kernel: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


def compile_for(
    operation: str, architecture: str, kernels: Path = kernel_source.KERNELS, instances: Sequence[str] = ()
) -> list[Resources]:
    """Compiles one `.cu` file for "sm_XX"; what each of its kernels uses.

    Kernels that are templates are compiled for the `instances`, such as "conv2d_forward<8, 16>".

    Raises:
        DeviceError: NVRTC is not installed.
        KernelError: the file does not compile; with the compiler's message, file and line.
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
