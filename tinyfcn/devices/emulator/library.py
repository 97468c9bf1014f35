"""A kernel file, compiled and loaded: its kernels, its variables, and the source line of each of its instructions."""

import ctypes
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.declarations import full_name
from tinyfcn.devices.emulator import binutils, build
from tinyfcn.devices.emulator.profile import Result, Sample
from tinyfcn.devices.launch import element_of
from tinyfcn.errors import DataError, DeviceError

ORDERS = ("forward", "reverse", "random")  # numbered as in state.h
UNKNOWN_LINE = "an unknown line"
NO_FILL_BYTE = -1  # of memory whose elements may have any value, so that an unwritten one is not recognised

# "0000000000005100 0000000000000100 b (anonymous namespace)::kernels::block_sum(float)::partial", or "... b
# reverse::tile" in a kernel that is an extern "C" function. The letter is b where memory starts as 0, and r where it is
# read-only.
_VARIABLE = re.compile(r"^(\w+) (\w+) ([bBdDrR]) (.*)::(\w+)$", re.MULTILINE)
_FUNCTION = re.compile(r"(\w+)(?:<[^()]*>)?(?:\(|$)")
_KERNEL = re.compile(r"^(\w+) \w+ T kernel_(\w+)$", re.MULTILINE)

# As in shadow.cpp.
_ACCESS = [("block", "i4"), ("epoch", "i4"), ("clock", "i4"), ("thread", "i2"), ("kind", "i2"), ("code", "u8")]
RECORD = np.dtype([(kind, np.dtype(_ACCESS, align=True), 4) for kind in ("reads", "writes", "atomics")])
TRACED = np.dtype(
    [
        ("code", "u8"),
        ("offset", "u8"),
        *((name, "i4") for name in ("region", "block", "thread")),
        *((name, "i2") for name in ("kind", "bytes")),
        ("before", "u1", 16),
    ]
)


# The bytes of each __device__ variable when its library was first loaded. Every `Library` starts with them.
_first_values: dict[str, bytes] = {}


class Memory(NamedTuple):
    """Memory that a kernel may use: an array, or a variable of the kernel file."""

    name: bytes
    start: int | None  # the address; None for the dynamic shared memory of the launch
    bytes: int
    unit: int  # bytes of an element
    fill_byte: int  # the value of all bytes of an unwritten element, or NO_FILL_BYTE
    is_shared: bool


class _Region(ctypes.Structure):
    """As in state.h: the fields of a Memory, and the records of check mode."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("unit", ctypes.c_uint),
        ("fill_byte", ctypes.c_int),
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
        ("trace", ctypes.c_int),
        ("profile", ctypes.c_void_p),
        ("least_blocks", ctypes.c_uint),
        ("enough", ctypes.c_ulonglong),
        ("stoppable", ctypes.c_int),
        ("regions", ctypes.c_void_p),
        ("region_count", ctypes.c_int),
        ("accesses", ctypes.c_ulonglong),
        ("stopped", ctypes.c_int),
        ("blocks_run", ctypes.c_uint),
        ("traced", ctypes.c_void_p),
        ("traced_count", ctypes.c_ulonglong),
    ]


@dataclass(frozen=True)
class Outcome:
    """The result of a launch.

    message: why the launch failed, or an empty text. stopped: whether Ctrl-C ended it. accesses: the number of accesses
    that check mode or profile mode examined. records: check mode's records, for each Memory of the launch. profile: the
    counts of profile mode, which the next launch overwrites. traced: the accesses that trace mode has kept.
    """

    message: str
    stopped: bool
    accesses: int
    records: list[np.ndarray]
    blocks_run: int
    profile: Result
    traced: np.ndarray


class Library:
    """A kernel file, compiled and loaded: all its kernels that are not templates, or one `instance` of a template.

    `mode` is one of the emulator's. `dtypes` gives the NumPy dtype of each type that a kernel names, for the precision
    that is compiled.
    """

    def __init__(
        self,
        operation: str,
        kernels: Path,
        mode: str,
        double: bool,
        dtypes: Mapping[str, np.dtype],
        instance: kernel_source.Kernel | None = None,
    ) -> None:
        self.path = build.library(operation, kernels, mode, double, instance)
        try:
            library = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise DeviceError(
                f"cannot load {self.path}, made by {build.compiler()[0]}: {error}; delete {self.path.parent}, set "
                "TINYFCN_CACHE to another folder, or CXX to another compiler"
            ) from None
        self._library = library
        self._launch = library.emulator_launch
        self._launch.restype = ctypes.c_char_p
        source = kernel_source.source(operation, kernels)
        self._files = source.files
        types: dict[str, set[str]] = {}  # under which the kernel file declares each __shared__ variable
        dynamic: dict[str, set[str]] = {}
        for shared in source.shared:
            for name in shared.names:
                (dynamic if shared.is_dynamic else types).setdefault(name, set()).add(shared.type)
        offsets, variables = symbols(self.path, frozenset(types))
        self.kernels = {name: _address(getattr(library, f"kernel_{name}")) for name in offsets}
        self.base = next((self.kernels[name] - offset for name, offset in offsets.items()), 0)
        self._shared = [v for v in variables if v.is_shared]
        self._variables = []
        self._constants = {v.name: v for v in variables if v.is_kept}
        for v in variables:
            name, unit = _elements(v.name, types.get(v.name, set()), dtypes)
            memory = Memory(name.encode(), self.base + v.offset, v.bytes, unit, NO_FILL_BYTE, v.is_shared)
            self._variables.append(memory)
            if v.is_kept:
                bytes_ = (ctypes.c_char * v.bytes).from_address(self.base + v.offset)
                bytes_.raw = _first_values.setdefault(f"{self.path}:{v.offset}", bytes_.raw)
        self._declares_dynamic = bool(dynamic)
        self._dynamic_elements = _elements(" or ".join(dynamic), set().union(*dynamic.values()), dtypes)

    def bytes_of(self, kernel: str, parameter: int) -> int:
        """The bytes of a kernel's parameter or, if that is an array, of an element. Parameters are counted from 0."""
        function = getattr(self._library, f"bytes_{kernel}")
        function.restype = ctypes.c_size_t
        return function(parameter)

    def store(self, constants: Mapping[str, np.ndarray]) -> None:
        """Stores arrays in variables of the kernel file, as cudaMemcpyToSymbol does.

        Raises:
            DataError: a variable that the kernels do not have, or of another size.
        """
        for name, array in constants.items():
            if name not in self._constants:
                known = ", ".join(self._constants) or "none"
                raise DataError(f"there is no variable {name} that the host can store in: the kernels have {known}")
            variable = self._constants[name]
            if variable.bytes != array.nbytes:
                raise DataError(
                    f"{name} has {variable.bytes} bytes, and {array.nbytes} are given: {array.dtype} {array.shape}"
                )
            ctypes.memmove(self.base + variable.offset, np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def memory(self, shared_bytes: int) -> list[Memory]:
        """The variables of the kernel file, and the dynamic shared memory of a launch.

        A launch may give too little dynamic shared memory, or none. Then a message still names the array.
        """
        if not (self._declares_dynamic or shared_bytes):
            return self._variables
        name, unit = self._dynamic_elements
        return [*self._variables, Memory(name.encode(), None, shared_bytes, unit, NO_FILL_BYTE, True)]

    def shared_variables(self, kernel: str) -> int:
        """The bytes of the shared variables that a kernel declares, without those of functions that it may call."""
        return sum(v.bytes for v in self._shared if v.function == kernel)

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        shared_bytes: int,
        memory: Sequence[Memory],
        order: str,
        seed: int,
        check: bool,
        trace: bool,
        sample: Sample | None = None,
    ) -> Outcome:
        """Runs a kernel. `memory` is all memory that the kernel may use.

        sample: the blocks to run in profile mode.
        """
        # A kernel takes an array as its address, which is 0 for None. The launch takes a pointer to each argument.
        given = (np.uint64(0) if a is None else a for a in arguments)
        values = [np.asarray(a.ctypes.data if isinstance(a, np.ndarray) else a) for a in given]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        records = [np.zeros(m.bytes // m.unit if check else 0, RECORD) for m in memory]
        regions = (_Region * len(memory))(
            *(_Region(*m, record.ctypes.data) for m, record in zip(memory, records, strict=True))
        )
        result = Result()
        launch = _Launch(
            self.kernels[kernel],
            ctypes.addressof(pointers),
            tuple(grid),
            tuple(block),
            shared_bytes,
            ORDERS.index(order),
            seed,
            check,
            trace,
            ctypes.addressof(result) if sample else None,
            sample.blocks if sample else 0,
            sample.accesses if sample else 0,
            signal.getsignal(signal.SIGINT) is signal.default_int_handler,  # otherwise Ctrl-C has another handler
            ctypes.addressof(regions),
            len(regions),
        )
        text = self._launch(ctypes.byref(launch)).decode()
        message = re.sub("<([0-9a-f,]+)>", lambda offsets: self.line(offsets[1]), text)
        kept = ctypes.string_at(launch.traced, launch.traced_count * TRACED.itemsize) if launch.traced_count else b""
        traced = np.frombuffer(kept, TRACED)
        return Outcome(message, bool(launch.stopped), launch.accesses, records, launch.blocks_run, result, traced)

    def line(self, offsets: str) -> str:
        """The source line of an instruction, such as "conv2d.cu:57".

        Of several instructions (hexadecimal offsets, separated by commas), the first that comes from a kernel file.
        """
        return next((place for offset in offsets.strip(",").split(",") for place in self.places(offset)), UNKNOWN_LINE)

    def places(self, offset: str) -> list[str]:
        """The lines of kernel files that an instruction comes from: its own one first, then those that call it."""
        return [
            place for place in binutils.places(self.path, int(offset, 16)) if place.partition(":")[0] in self._files
        ]


def _elements(name: str, types: set[str], dtypes: Mapping[str, np.dtype]) -> tuple[str, int]:
    """What a message calls an array declared under these types, and the bytes of an element.

    An array of float4 is taken as one of floats. An array of an unknown type, or of several types, is taken as bytes.
    """
    scalars = {re.sub(r"(?<=[a-z])[1234]$", "", type_) for type_ in types}
    scalar = scalars.pop() if len(scalars) == 1 else ""
    dtype, _ = element_of(scalar, dtypes)
    if dtype is None:
        return f"(char*){name}", 1
    return name if types == {scalar} else f"({full_name(scalar)}*){name}", dtype.itemsize


@dataclass(frozen=True)
class Variable:
    """A variable of a kernel file that has a fixed offset, in bytes, from where the library is loaded.

    function: the one that declares it, or "" if it stands outside of functions.
    """

    name: str
    function: str
    offset: int
    bytes: int
    is_shared: bool  # otherwise it is __constant__, __device__ or a static const array
    is_kept: bool  # whether a launch finds what the launch before it has written


@cache
def symbols(library: Path, shared: frozenset[str]) -> tuple[dict[str, int], list[Variable]]:
    """The offset of each kernel of a library, and its variables. `shared`: the names that __shared__ declares."""
    listing = library.with_suffix(".symbols").read_text(encoding="utf-8")
    kernels = {name: int(offset, 16) for offset, name in _KERNEL.findall(listing)}
    variables = []
    for offset, size, letter, scope, name in _VARIABLE.findall(listing):
        in_kernel_file = scope.split("::")[0] in kernels or "(anonymous namespace)::kernels" in scope
        if in_kernel_file and not name.startswith("emulator_gap_"):
            function = _FUNCTION.search(scope)
            is_shared = letter in "bB" and name in shared
            is_kept = letter not in "rR" and not is_shared
            place = int(offset, 16), int(size, 16)
            variables.append(Variable(name, function[1] if function else "", *place, is_shared, is_kept))
    return kernels, variables


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None, "a function of a loaded library has an address"
    return address
