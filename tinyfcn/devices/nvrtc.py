"""Compiles the kernels for real GPUs on a machine without one, and reports the resources that they need.

NVRTC, CUDA's run-time compiler, needs no GPU: it generates machine code for any sm_XX. With --ptxas-options=-v its log
lists the registers, shared memory and spills of each kernel.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from tinyfcn import environment, files
from tinyfcn.devices import kernel_source, sass
from tinyfcn.devices.cuda import header_options, load_nvrtc
from tinyfcn.devices.device import Launch
from tinyfcn.devices.launch import ceil_div
from tinyfcn.errors import DataError, KernelError

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_120")  # Turing, Ampere, Hopper, Blackwell

_KERNEL = re.compile(r"Function properties for (\w+)\n(.*)\n.*?Used (\d+) registers(.*)")


WARP = 32
# Of a multiprocessor's registers of 32 bits, each quarter has its own for its own warps, given out by the unit.
REGISTERS_OF_QUARTER, REGISTER_UNIT, QUARTERS = 16384, 256, 4

# Names that nvcc finds in the host's headers: what NVRTC takes instead.
INSTEAD = {
    **dict.fromkeys(
        ("INFINITY", "NAN"),
        "NVRTC has no INFINITY and no NAN: write __int_as_float(0x7f800000) and __int_as_float(0x7fc00000)",
    ),
    **dict.fromkeys(("FLT_MAX", "FLT_MIN", "FLT_EPSILON"), "NVRTC has no float.h: write the number, 3.402823466e+38f"),
    **dict.fromkeys(("M_PI", "INT_MAX", "INT_MIN"), "NVRTC has no system headers: write the number"),
}


@dataclass(frozen=True)
class Multiprocessor:
    """The most that a multiprocessor holds: warps, blocks, bytes of shared memory.

    CUDA takes `reserved` bytes of shared memory for each block, and gives it out in multiples of `unit` bytes.
    """

    warps: int
    blocks: int
    shared_bytes: int
    reserved: int = 1024
    unit: int = 128


# CUDA C++ Programming Guide, "Technical specifications per compute capability".
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64 * 1024, reserved=0, unit=256),
    "sm_80": Multiprocessor(64, 32, 164 * 1024),
    "sm_86": Multiprocessor(48, 16, 100 * 1024),
    "sm_89": Multiprocessor(48, 24, 100 * 1024),
    "sm_90": Multiprocessor(64, 32, 228 * 1024),
    "sm_100": Multiprocessor(64, 32, 228 * 1024),
    "sm_120": Multiprocessor(48, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Resources:
    """The resources of a kernel: registers a thread, bytes of shared memory a block, bytes spilled to local memory."""

    kernel: str
    registers: int
    shared_bytes: int
    spilled_bytes: int

    def occupancy(
        self, architecture: str, threads: int, dynamic_shared: int = 0
    ) -> tuple[int, float] | tuple[None, None]:
        """How many blocks a multiprocessor holds at once, and the share of its warps that are in them, 0 .. 1.

        By the rules of CUDA's occupancy calculator. None for an architecture that is not in MULTIPROCESSORS.

        Args:
            threads: of a block.
            dynamic_shared: bytes of shared memory that a launch adds to the kernel's own.
        """
        if architecture not in MULTIPROCESSORS:
            return None, None
        most, warps = MULTIPROCESSORS[architecture], ceil_div(threads, WARP)
        blocks = min(most.blocks, most.warps // warps)
        if self.registers:
            of_a_warp = ceil_div(self.registers * WARP, REGISTER_UNIT) * REGISTER_UNIT
            blocks = min(blocks, REGISTERS_OF_QUARTER // of_a_warp * QUARTERS // warps)
        needed = ceil_div(self.shared_bytes + dynamic_shared + most.reserved, most.unit) * most.unit
        if needed:
            blocks = min(blocks, most.shared_bytes // needed)
        return blocks, blocks * warps / most.warps


def compile_for(
    operation: str, architecture: str, kernels: Path = kernel_source.KERNELS, instances: Sequence[str] = ()
) -> list[Resources]:
    """Compiles one `.cu` file for "sm_XX" and returns the resources of each kernel.

    `instances`: expressions of kernels that are not extern "C". Templates are compiled for these alone.

    Raises:
        DeviceError: NVRTC is not installed.
        KernelError: the file does not compile. The text is the compiler's, with file and line.
    """
    log, names, _ = _compiled(
        kernel_source.source(operation, kernels).for_nvrtc, operation, architecture, tuple(instances)
    )
    found = [_resources(*match.groups()) for match in _KERNEL.finditer(log)]
    return [replace(each, kernel=names.get(each.kernel, each.kernel)) for each in found]


@lru_cache(maxsize=32)
def _compiled(
    text: str, operation: str, architecture: str, instances: tuple[str, ...]
) -> tuple[str, dict[str, str], bytes]:
    """The compiler's log, the expression of each mangled name, and the machine code.

    They are kept in the cache folder, where there is room: the kernels of a step take ten seconds.
    """
    nvrtc = load_nvrtc()
    options = [f"-arch={architecture}", "-std=c++17", "-ftz=true", "--ptxas-options=-v", *header_options(text)]
    if nvrtc.getVersion() >= (12, 9):
        options.append("--no-cache")  # on a machine with a driver these versions cache the code, but not the log
    if sass.nvdisasm():
        options.append("-lineinfo")
    made_from = json.dumps([nvrtc.getVersion(), options, operation, instances, text])
    name = f"{operation}-{hashlib.sha256(made_from.encode()).hexdigest()[:24]}.json"
    folder = environment.cache_folder() / "nvrtc"
    with suppress(OSError, ValueError, KeyError):  # none is kept, or it is damaged
        kept = json.loads((folder / name).read_text(encoding="utf-8"))
        return kept["log"], kept["names"], base64.b64decode(kept["code"])

    program = nvrtc.createProgram(text, f"{operation}.cu", (), ())
    for instance in instances:
        nvrtc.addNameExpression(program, instance)
    try:
        nvrtc.compileProgram(program, tuple(options))
        log = nvrtc.getProgramLog(program)
        names = {nvrtc.getLoweredName(program, instance): instance for instance in instances}
        code = nvrtc.getCUBIN(program) + b"\0"  # CuPy takes the last byte for the end of a text
    except nvrtc.NVRTCError:
        log = nvrtc.getProgramLog(program)
        undefined = dict.fromkeys(re.findall(r'identifier "(\w+)" is undefined', log))
        hints = "".join(f"{name}: {INSTEAD[name]}\n" for name in undefined if name in INSTEAD)
        raise KernelError(f"{operation}.cu does not compile for {architecture}:\n{hints}{log.strip()}") from None
    finally:
        nvrtc.destroyProgram(program)
    content = json.dumps({"log": log, "names": names, "code": base64.b64encode(code).decode()})
    with suppress(DataError):
        path = environment.writable_cache(folder) / name
        with files.new_file(path, environment.CACHE_WAY_OUT) as file:
            file.write(content.encode())
    return log, names, code


def machine_code(
    launches: Iterable[Launch], architecture: str, kernels: Path = kernel_source.KERNELS
) -> dict[str, list[sass.Block]]:
    """The machine code of the kernels of some launches, by expressions such as "conv2d_forward<8, 16>".

    Raises DeviceError without NVRTC or nvdisasm, KernelError where a kernel does not compile.
    """
    found: dict[str, list[sass.Block]] = {}
    for file, instances in _instances(launches).items():
        text = kernel_source.source(file, kernels).for_nvrtc
        _, names, code = _compiled(text, file, architecture, tuple(sorted(instances)))
        found |= {names.get(name, name): blocks for name, blocks in sass.disassemble(code).items()}
    return found


def _instances(launches: Iterable[Launch]) -> dict[str, set[str]]:
    """For each kernel file: the expressions of the kernels that are not extern "C"."""
    names: dict[str, set[str]] = {}
    for kernel in (launch.kernel for launch in launches):
        names.setdefault(kernel.operation, set()).update([] if kernel.is_c else [kernel.expression])
    return names


def compile_launched(
    launches: Iterable[Launch], architecture: str, kernels: Path = kernel_source.KERNELS
) -> dict[str, Resources]:
    """What the kernels of some launches use, by expressions such as "conv2d_forward<8, 16>". Raises as compile_for."""
    files = _instances(launches).items()
    compiled = (compile_for(file, architecture, kernels, sorted(instances)) for file, instances in files)
    return {each.kernel: each for found in compiled for each in found}


def _resources(kernel: str, stack: str, registers: str, rest: str) -> Resources:
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", stack))
    shared = re.search(r"(\d+) bytes smem", rest)
    return Resources(kernel, int(registers), int(shared[1]) if shared else 0, spilled)
