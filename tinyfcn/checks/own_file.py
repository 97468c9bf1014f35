"""Checks the kernels of a person's own `.cu` file, launched as the person says.

A call says how a kernel is launched: on the command line, or in Python. Python's calls come from a function in a file
of its own, by default the file of the same name beside the kernels:

    # saxpy.py
    import numpy as np
    from tinyfcn.checks.own_file import Call

    def calls(random):
        x, y = random.standard_normal((2, 1000))
        yield Call("saxpy", grid=4, block=256, arguments=[1000, 2.0, x, y], expected={"y": 2 * x + y})

One array object in several calls is one array on the device, so what one call writes the next one reads.
"""

import re
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.checks.gradcheck import relative_error
from tinyfcn.checks.watched import Found, Watched
from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Array, Device
from tinyfcn.devices.emulator.emulator import ORDERS, Emulator
from tinyfcn.devices.kernel_source import Kernel, Parameter
from tinyfcn.devices.launch import DTYPES, element_of
from tinyfcn.errors import DataError, KernelError, in_brief

FUNCTION = "calls"  # in the Python file
_CONSTANT = re.compile(r"__constant__\s+(?:static\s+)?(\w[\w ]*?)\s+(\w+)\s*(?:\[[^\]]*\]\s*)*;")  # not initialised
FILLS: dict[str, Callable[[np.random.Generator, tuple[int, ...], np.dtype], np.ndarray]] = {
    "random": lambda random, shape, dtype: (
        random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 10, shape)
    ),
    "zeros": lambda random, shape, dtype: np.zeros(shape),
    "ones": lambda random, shape, dtype: np.ones(shape),
    "range": lambda random, shape, dtype: np.arange(np.prod(shape)).reshape(shape),
}


@dataclass(frozen=True)
class Empty:
    """An array that nothing has written yet. Without a dtype, it has that of the kernel's parameter."""

    shape: int | tuple[int, ...]
    dtype: Any = None


@dataclass(frozen=True)
class Call:
    """A launch of a kernel: `grid` blocks of `block` threads, each a number or up to three of them.

    arguments: numbers, NumPy arrays (floats and integers are brought to the size that the parameter has), `Empty`, or
    None. template: the values of the parameters of a kernel that is a template. constants: what the host stores before
    in __constant__ variables, as arrays of their dtypes. expected: what arrays hold afterwards, by the parameters'
    names, to a relative error of `tolerance`, norm(found - expected) / norm(expected).
    """

    kernel: str
    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    arguments: Sequence[Any]
    expected: Mapping[str, Any] = field(default_factory=dict)
    shared_bytes: int = 0
    template: tuple[Any, ...] = ()
    tolerance: float = 1e-5
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


def read_calls(file: Path) -> list[Call]:
    """The calls of a Python file, for a generator of seed 0.

    Raises:
        DataError: the file cannot be read, its code raises an error, or it has no function `calls` that yields calls.
    """
    try:
        function = runpy.run_path(str(file)).get(FUNCTION)
        made = list(function(np.random.default_rng(0))) if callable(function) else None
    except Exception as error:  # whatever the person's code raises
        lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == str(file)]
        place = f"{file}:{lines[-1]}" if lines else file
        raise DataError(f"{place} fails: {type(error).__name__}: {in_brief(error)}") from error
    if made is None or not all(isinstance(call, Call) for call in made):
        raise DataError(f"{file} needs a function {FUNCTION}(random) that yields tinyfcn.checks.own_file.Call")
    return made


def parse_call(
    file: Path,
    kernel: str | None,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[str],
    shared_bytes: int = 0,
    template: tuple[str, ...] = (),
    constants: Sequence[str] = (),
) -> Call:
    """The call that the command line describes; see `parse_argument` for an argument, or a constant.

    Raises:
        KernelError: there is no such kernel, or more than one to choose from.
        DataError: an argument is missing, unknown, or not understood.
    """
    declared = kernel_source.kernels(file)
    if kernel is None and len(declared) == 1:
        (kernel,) = declared
    if kernel not in declared:
        if not declared:
            raise kernel_source.no_kernel(kernel, file)
        wanted = f"no kernel named {kernel}" if kernel else "more than one kernel"
        raise KernelError(f"{file} has {wanted}: choose one of {', '.join(declared)} with --kernel")
    given = dict(each.partition("=")[::2] for each in arguments)
    names = [parameter.name for parameter in declared[kernel].parameters]
    wrong = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    if wrong or missing:
        text = f"no parameter {wrong[0]}" if wrong else f"no value for {missing[0]}"
        raise DataError(f"{text}; {usage(declared[kernel])}")
    takes = declared[kernel].template
    if not declared[kernel].required <= len(template) <= len(takes):
        raise DataError(f"{kernel} is a template of {len(takes)} parameters ({', '.join(takes)}): give --template")
    random = np.random.default_rng(0)
    parameters = declared[kernel].instantiated(template).parameters
    values = [parse_argument(parameter, given[parameter.name], random) for parameter in parameters]
    stored = parse_constants(file, constants, random)
    return Call(kernel, grid, block, values, shared_bytes=shared_bytes, template=template, constants=stored)


def constants_of(file: Path) -> dict[str, Parameter]:
    """The __constant__ variables that the host has to fill, as if they were parameters."""
    found = _CONSTANT.findall(kernel_source.source(file.stem, file).text)
    return {name: Parameter(name, type_, is_array=True, is_const=True) for type_, name in found}


def parse_constants(file: Path, given: Sequence[str], random: np.random.Generator) -> dict[str, np.ndarray]:
    """What the command line stores in __constant__ variables."""
    declared, stored = constants_of(file), {}
    for name, _, text in (each.partition("=") for each in given):
        if name not in declared:
            raise DataError(f"no constant {name} that the host fills in {file}: it has {', '.join(declared) or 'none'}")
        value = parse_argument(declared[name], text, random)
        if isinstance(value, Empty):
            raise DataError(f"{name}={text}: a constant takes random:, zeros:, ones: or range:")
        stored[name] = value
    return stored


def parse_argument(parameter: Parameter, text: str, random: np.random.Generator) -> Any:
    """The value of an argument.

    A number; or for an array its shape, 1000 or 16x3x64x84, after a word that says what it holds: random:, zeros:,
    ones:, range: or empty:. Without a word a const array is random, and another one is empty.
    """
    if not parameter.is_array:
        if parameter.type == "bool" and text.lower() in ("0", "1", "false", "true"):
            return text.lower() in ("1", "true")
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
        raise DataError(f"{parameter.name}={text}: {parameter.type} {parameter.name} takes a number")
    fill, _, shape = text.rpartition(":")
    fill = fill or ("random" if parameter.is_const else "empty")
    if not re.fullmatch(r"\d+(x\d+)*", shape) or fill not in (*FILLS, "empty"):
        kinds = ", ".join(f"{each}:" for each in (*FILLS, "empty"))
        raise DataError(
            f"{parameter.name}={text}: {parameter.type}* {parameter.name} takes a shape such as 1000 or 16x3x64x84, "
            f"after one of {kinds}"
        )
    width = element_of(parameter.type)[1]  # a float4 is four numbers
    sizes = tuple(map(int, shape.split("x"))) + (width,) * (width > 1)
    dtype = dtype_of(parameter)
    return Empty(sizes) if fill == "empty" else FILLS[fill](random, sizes, dtype).astype(dtype)


def dtype_of(parameter: Parameter, dtypes: Mapping[str, np.dtype] = DTYPES) -> np.dtype:
    """The dtype of the arrays that a parameter takes: float32 for float4*. Bytes for a structure and for void*.

    dtypes: those of a device.
    """
    return element_of(parameter.type, dtypes)[0] or np.dtype(np.uint8)


def usage(kernel: Kernel) -> str:
    """The options that launch a kernel, for a person to fill in."""
    is_whole = {p.name: p.is_array or np.dtype(dtype_of(p)).kind in "iub" for p in kernel.parameters}
    arguments = (f"--arg {name}={'1000' if whole else '1.0'}" for name, whole in is_whole.items())
    return f"for example: --kernel {kernel.name} --grid 4 --block 256 {' '.join(arguments)}"


def instance(file: Path, call: Call) -> str | None:
    """The expression of the kernel that a call launches, which NVRTC needs unless the kernel is extern "C"."""
    kernel = kernel_source.kernels(file).get(call.kernel)
    return kernel.instantiated(call.template).expression if kernel and not kernel.is_c else None


@dataclass
class Outcome:
    """What the calls gave: findings and notes, one line each; and the arrays that the last call could write."""

    findings: list[str]
    notes: list[str]
    arrays: dict[str, np.ndarray]
    launches: int = 0
    accesses: int = 0


def check_calls(file: Path, calls: Sequence[Call], orders: Sequence[str] = ORDERS) -> Outcome:
    """Runs the calls in check mode, in each order of threads, up to the first finding.

    Raises:
        DeviceError: there is no C++ compiler.
        KernelError: the file does not compile, or has no such kernel.
        DataError: an argument that the kernel cannot be launched with.
    """
    first: list[dict[str, np.ndarray]] = []
    outcome = Outcome([], [], {})
    for order in orders:
        device = Watched(file, order=order)
        try:
            results = [*_run(device, calls)]
        except Found as found:
            outcome.findings.append(f"{found}; threads in {order} order")
            return outcome
        finally:
            outcome.launches += len(device.launches)
            outcome.accesses += sum(each.accesses for each in device.statistics.values())
        first = first or results
        for call, mine, other in zip(calls, results, first, strict=True):
            outcome.arrays = mine
            for name, array in mine.items():
                if array.tobytes() == other[name].tobytes():
                    continue
                differs = f"{call.kernel}: {name} depends on the order of threads ({order})"
                if all(relative_error(*pair) <= call.tolerance for _, *pair in fields_of(array, other[name])):
                    outcome.notes.append(f"{differs}, but by rounding alone, as sums do that atomics add up")
                else:
                    outcome.findings.append(differs)
    return outcome


def launch_calls(device: Device, calls: Sequence[Call]) -> Iterator[tuple[Call, Kernel, dict[str, Array]]]:
    """Each call after its launch, the kernel, and the arrays that it could write.

    Raises DataError, KernelError as check_calls.
    """
    known: dict[int, Array] = {}
    for call in calls:
        kernel = device.declared(call.kernel).instantiated(call.template)
        arguments = []
        for parameter, value in zip(kernel.parameters, call.arguments, strict=False):
            if isinstance(value, (np.ndarray, Empty)) and id(value) not in known:
                known[id(value)] = _on_device(device, parameter, value)
            arguments.append(known.get(id(value), value) if isinstance(value, (np.ndarray, Empty)) else value)
        arguments += call.arguments[len(arguments) :]  # too many: the launch says so
        if isinstance(device, Emulator):
            device.constants = dict(call.constants)
        try:
            device.launch(call.kernel, call.grid, call.block, arguments, call.shared_bytes, call.template)
        except (TypeError, ValueError) as error:
            raise DataError(str(error)) from None
        given = zip(kernel.parameters, arguments, strict=True)
        written = {p.name: a for p, a in given if p.is_array and not p.is_const and a is not None}
        unknown = [name for name in call.expected if name not in written]
        if unknown:
            raise KernelError(f"{call.kernel} writes no array named {unknown[0]}: it writes {', '.join(written)}")
        yield call, kernel, written


def _run(device: Watched, calls: Sequence[Call]) -> Iterator[dict[str, np.ndarray]]:
    """The arrays that each call could write. Raises Found for an error, or for a result that is not as expected."""
    for call, kernel, written in launch_calls(device, calls):
        copies = device.copies(written)
        for name, expected in call.expected.items():
            expected = np.asarray(expected)
            fields = [array.dtype.names for array in (written[name], expected)]
            if fields[0] != fields[1]:
                said = [", ".join(each) if each else "none, since it is no array of structures" for each in fields]
                raise DataError(f"{call.kernel}: {name} has the fields {said[0]}; expected gives {said[1]}")
            whole = written[name] if fields[0] else None
            for field_, found, right in fields_of(written[name], expected):
                if not relative_error(found, right) <= call.tolerance:
                    raise Found(kernel, device.wrong(f"{name}{field_}", found, right, whole))
        yield copies


def fields_of(found: np.ndarray, expected: np.ndarray, name: str = "") -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The fields of two arrays of structures, such as (".x", found["x"], expected["x"]); other arrays as they are."""
    if found.dtype.names is None:
        yield name, found, expected
        return
    for each in found.dtype.names:
        yield from fields_of(found[each], expected[each], f"{name}.{each}")


def _on_device(device: Device, parameter: Parameter, value: np.ndarray | Empty) -> Array:
    dtype = dtype_of(parameter, device.dtypes)
    if isinstance(value, Empty):
        shape = (value.shape,) if isinstance(value.shape, int) else value.shape
        return device.empty(shape, value.dtype or dtype)
    same_kind = value.dtype.kind == dtype.kind or (value.dtype.kind in "iu" and dtype.kind in "iu")
    return device.asarray(value.astype(dtype) if same_kind else value)
