"""A kernel file, compiled and loaded: its kernels, its variables, and the line of each of its instructions."""

import ctypes
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import build
from tinyfcn.errors import DeviceError

ORDERS = ("forward", "reverse", "random")  # numbered as in state.h
CANNOT_TELL = -1  # whether an element was written: it may have any value

# "0000000000005100 0000000000000100 b (anonymous namespace)::kernels::block_sum(float)::partial"; in a kernel, which is
# an extern "C" function, "... b reverse::tile". The letter is b where memory begins as 0, r where it is only read.
_VARIABLE = re.compile(r"^(\w+) (\w+) ([bBdDrR]) (.*)::(\w+)$", re.MULTILINE)
_KERNEL = re.compile(r"^(\w+) \w+ T kernel_(\w+)$", re.MULTILINE)
# __shared__ float tile[16][17], sum;    extern __shared__ float4 tile[];
_SHARED = re.compile(r"(extern\s+)?__shared__\s+(?:__align__\s*\(\d+\)\s*)?((?:[^;(){}=\[]|\[[^\]]*\])*);")
_SHORT = {"unsigned": "unsigned int", "uint": "unsigned int", "uchar": "unsigned char"}

# As in shadow.cpp.
_ACCESS = [("block", "i4"), ("epoch", "i4"), ("clock", "i4"), ("thread", "i2"), ("kind", "i2"), ("code", "u8")]
RECORD = np.dtype([(kind, np.dtype(_ACCESS, align=True), 4) for kind in ("reads", "writes", "atomics")])


class _Region(ctypes.Structure):
    """As in state.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("unit", ctypes.c_uint),
        ("unwritten", ctypes.c_int),
        ("shared", ctypes.c_int),
        ("records", ctypes.c_void_p),
    ]


class _Launch(ctypes.Structure):
    """As in state.h."""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("check", ctypes.c_int),
        ("stoppable", ctypes.c_int),
        ("regions", ctypes.c_void_p),
        ("region_count", ctypes.c_int),
        ("accesses", ctypes.c_ulonglong),
        ("stopped", ctypes.c_int),
    ]


class Library:
    """A kernel file, compiled and loaded. `dtypes`: of the types that its kernels name, as they are compiled.

    With an `instance` of a template it holds that kernel alone, or else all kernels that are no templates.
    """

    def __init__(
        self,
        operation: str,
        kernels: Path,
        check: bool,
        double: bool,
        dtypes: Mapping[str, np.dtype],
        instance: kernel_source.Kernel | None = None,
    ) -> None:
        self.path = build.library(operation, kernels, check, double, instance)
        try:
            library = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise DeviceError(f"cannot load {self.path}: {error}; delete it, or set TINYFCN_CACHE elsewhere") from None
        self._launch = library.emulator_launch
        self._launch.restype = ctypes.c_char_p
        types = shared_types(kernel_source.read(operation, kernels))
        offsets, variables = symbols(self.path, frozenset(types))
        self.kernels = {name: _address(getattr(library, f"kernel_{name}")) for name in offsets}
        self.base = next((self.kernels[name] - offset for name, offset in offsets.items()), 0)
        self._variables = []
        for v in variables:
            name, unit = _elements(v.name, types.get(v.name, set()), dtypes)
            self._variables.append((name.encode(), self.base + v.address, v.bytes, unit, CANNOT_TELL, v.is_shared))
        dynamic = {name: {t[7:] for t in all_ if t.startswith("extern ")} for name, all_ in types.items()}
        dynamic = {name: types for name, types in dynamic.items() if types}
        self._dynamic = bool(dynamic), *_elements(" or ".join(dynamic), set().union(*dynamic.values()), dtypes)

    def memory(self, shared_bytes: int) -> list[tuple[Any, ...]]:
        """The kernels' own variables, then the launch's dynamic shared memory, in the order of _Region's fields."""
        declared, name, unit = self._dynamic
        if not (declared or shared_bytes):  # of no bytes too, so that what a launch forgot to ask for has a name
            return self._variables
        return [*self._variables, (name.encode(), None, shared_bytes, unit, CANNOT_TELL, True)]

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        shared_bytes: int,
        memory: list[tuple[Any, ...]],
        order: str,
        seed: int,
        check: bool,
    ) -> "Outcome":
        """Runs a kernel. `memory`: what it may use, in the order of _Region's fields but for the records."""
        # A kernel takes an array's address (of none 0) or a number; the launch wants a pointer to each.
        given = (np.uint64(0) if a is None else a for a in arguments)
        values = [np.asarray(a.ctypes.data if isinstance(a, np.ndarray) else a) for a in given]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        records = [np.zeros(size // unit if check else 0, RECORD) for _, _, size, unit, _, _ in memory]
        regions = (_Region * len(memory))(
            *(_Region(*of, record.ctypes.data) for of, record in zip(memory, records, strict=True))
        )
        launch = _Launch(
            self.kernels[kernel],
            ctypes.addressof(pointers),
            tuple(grid),
            tuple(block),
            shared_bytes,
            ORDERS.index(order),
            seed,
            check,
            signal.getsignal(signal.SIGINT) is signal.default_int_handler,  # or Ctrl-C is somebody else's
            ctypes.addressof(regions),
            len(regions),
        )
        said = self._launch(ctypes.byref(launch)).decode()
        message = re.sub("<([0-9a-f,]+)>", lambda found: self.line(found[1]), said)
        return Outcome(message, bool(launch.stopped), launch.accesses, records)

    def line(self, offsets: str) -> str:
        """ "conv2d.cu:57" for the first instruction (hexadecimal offsets, separated by commas) that a .cu file made."""
        return line(self.path, offsets)


@dataclass(frozen=True)
class Outcome:
    """Why a launch failed, or an empty text; whether Ctrl-C ended it; the accesses that check mode looked at, and its
    records of each memory."""

    message: str
    stopped: bool
    accesses: int
    records: list[np.ndarray]


def _elements(name: str, types: set[str], dtypes: Mapping[str, np.dtype]) -> tuple[str, int]:
    """How to name the elements of memory declared under these types, and their bytes: of a float4 the floats, and the
    bytes alone where there are several types or unknown ones."""
    scalars = {re.sub(r"(?<=[a-z])[234]$", "", type_) for type_ in types}
    scalar = _SHORT.get(*scalars, *scalars) if len(scalars) == 1 else ""
    if scalar not in dtypes:
        return f"(char*){name}", 1
    return name if types == scalars else f"({scalar}*){name}", dtypes[scalar].itemsize


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


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceError(f"the emulator needs {command[0]} (apt install binutils), and it failed: {error}") from None
