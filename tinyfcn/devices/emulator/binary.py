"""What a compiled kernel file tells of itself: its variables, and the line of each of its instructions."""

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tinyfcn.errors import DeviceError

# "0000000000005100 0000000000000100 b (anonymous namespace)::kernels::block_sum(float)::partial"; in a kernel, which is
# an extern "C" function, "... b reverse::tile". The letter is b where memory begins as 0, r where it is only read.
_VARIABLE = re.compile(r"^(\w+) (\w+) ([bBdDrR]) (.*)::(\w+)$", re.MULTILINE)
_KERNEL = re.compile(r"^(\w+) \w+ T kernel_(\w+)$", re.MULTILINE)
# __shared__ float tile[16][17], sum;    extern __shared__ float4 tile[];
_SHARED = re.compile(r"(extern\s+)?__shared__\s+(?:__align__\s*\(\d+\)\s*)?([^;(){}=]*);")


@dataclass(frozen=True)
class Variable:
    """A variable of kernels at a fixed place, in bytes from where the library is loaded."""

    name: str
    address: int
    bytes: int
    is_shared: bool  # or else __constant__, __device__ or a table


@cache
def symbols(library: Path, shared: frozenset[str]) -> tuple[dict[str, int], list[Variable]]:
    """Where the kernels of a library begin; and their variables. `shared`: the names that __shared__ declares."""
    said = _said("nm", "--print-size", "--demangle", str(library))
    kernels = {name: int(address, 16) for address, name in _KERNEL.findall(said)}
    variables = []
    for address, size, letter, scope, name in _VARIABLE.findall(said):
        ours = scope.split("::")[0] in kernels or "(anonymous namespace)::kernels" in scope
        if ours and not name.startswith("emulator_gap_"):
            variables.append(Variable(name, int(address, 16), int(size, 16), letter in "bB" and name in shared))
    return kernels, variables


def shared_types(text: str) -> dict[str, set[str]]:
    """The types under which a kernel file declares each name of a __shared__ variable; of dynamic ones "extern ..."."""
    types: dict[str, set[str]] = {}
    for extern, declaration in _SHARED.findall(text):
        first, *others = re.sub(r"\[[^\]]*\]", "", declaration).split(",")
        *words, name = first.split()
        for each in [name, *others]:
            types.setdefault(each.strip(), set()).add(" ".join([*extern.split(), *words]))
    return types


@cache
def line(library: Path, addresses: str) -> str:
    """ "conv2d.cu:57" for the first instruction (hexadecimal, separated by commas) that a kernel's text made."""
    places = _said("addr2line", "--exe", str(library), "--inlines", *addresses.strip(",").split(","))
    for place in places.splitlines():
        file, _, number = place.split(" ")[0].rpartition(":")
        if file.endswith((".cu", ".cuh")) and number.isdigit():
            return f"{Path(file).name}:{number}"
    return "an unknown line"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceError(f"the emulator needs {command[0]}, of binutils, and it failed: {error}") from None
