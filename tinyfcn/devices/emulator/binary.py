"""What a compiled kernel file tells of itself: its shared variables, and the line of each of its instructions."""

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tinyfcn.errors import DeviceError

# "0000000000005100 0000000000000100 b (anonymous namespace)::kernels::block_sum(float)::partial"; in a kernel, which is
# an extern "C" function, "... b reverse::tile".
_VARIABLE = re.compile(r"^(\w+) (\w+) [bBdDrR] (.*)::(\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class Variable:
    """A variable at a fixed place, in bytes from where the library is loaded."""

    name: str
    address: int
    bytes: int
    is_shared: bool  # or else __constant__ or __device__


@cache
def symbols(library: Path, kernels: tuple[str, ...]) -> tuple[int, list[Variable]]:
    """Where emulator_launch lies in a library, and the shared, constant and device variables of its kernels."""
    said = _said("nm", "--print-size", "--demangle", str(library))
    start = int(re.search(r"^(\w+) .* emulator_launch$", said, re.MULTILINE)[1], 16)
    found = []
    for address, size, scope, name in _VARIABLE.findall(said):
        ours = scope in kernels or "(anonymous namespace)::kernels" in scope
        if ours and not name.startswith("emulator_gap_"):
            found.append(Variable(name, int(address, 16), int(size, 16), not scope.endswith("::kernels")))
    return start, found


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
