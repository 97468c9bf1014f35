"""Checks the arguments of every launch, on every device, against the declaration of the kernel.

A GPU accepts any argument: a Python float would be passed as a double, and a transposed view as if it were contiguous,
so that the kernel silently reads garbage. So every launch passes these checks first.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyfcn.devices.declarations import full_name
from tinyfcn.devices.kernel_source import Kernel, Parameter
from tinyfcn.errors import KernelError

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "half": np.dtype(np.float16),
    "__half": np.dtype(np.float16),
    "__nv_bfloat16": np.dtype(np.uint16),  # which NumPy has not: its bits
    "bool": np.dtype(np.bool_),
    "char": np.dtype(np.int8),
    "short": np.dtype(np.int16),
    "int": np.dtype(np.int32),
    "long long": np.dtype(np.int64),
    "long": np.dtype(np.int64),  # where CUDA and the emulator run, but for Windows
    "signed char": np.dtype(np.int8),
    "unsigned char": np.dtype(np.uint8),
    "unsigned short": np.dtype(np.uint16),
    "unsigned int": np.dtype(np.uint32),
    "unsigned long long": np.dtype(np.uint64),
    "unsigned long": np.dtype(np.uint64),
}
_VECTOR = re.compile(r"(u?)(char|short|int|long|longlong|float|double|half|__half|__nv_bfloat16)([1234])")
MAX_THREADS_IN_BLOCK = 1024
MAX_BLOCK = (1024, 1024, 64)  # threads in x, y, z; the same on all current GPUs
MAX_GRID = ((1 << 31) - 1, 65535, 65535)  # blocks in x, y, z
MAX_ELEMENTS = np.iinfo(np.int32).max - MAX_THREADS_IN_BLOCK  # the last block's surplus threads are numbered too


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def as_dim3(dimensions: int | Sequence[int]) -> tuple[int, int, int]:
    """A grid or block as (x, y, z)."""
    x, y, z = (*((dimensions,) if isinstance(dimensions, int) else dimensions), 1, 1)[:3]
    return int(x), int(y), int(z)


def launched_from() -> str:
    """ "tinyfcn/ops/fast_conv.py:103": the caller of the launch, outside tinyfcn/devices."""
    frame = sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].startswith("tinyfcn.devices"):
        frame = frame.f_back
    name, file = frame.f_globals["__name__"], frame.f_code.co_filename
    file = f"{name.replace('.', '/')}.py" if name.startswith("tinyfcn.") else file
    return f"{file}:{frame.f_lineno}"


def checked_arguments(
    kernel: Kernel, arguments: Sequence[Any], array_type: type[Any], dtypes: Mapping[str, np.dtype] = DTYPES
) -> list[Any]:
    """The checked arguments: arrays and None unchanged, numbers as NumPy scalars of the declared types.

    `dtypes` maps a parameter's type to its dtype on the device: "float" is float64 where kernels compile for double.

    Raises:
        KernelError: too few or too many arguments, because kernel and launcher were not changed together.
        TypeError: an array of another dtype or device, or a number in place of an array.
        ValueError: an array that is not C-contiguous, or an integer out of range.
    """
    expected = len(kernel.parameters)
    if len(arguments) != expected:
        raise KernelError(
            f"{kernel.name} at {kernel.operation}.cu:{kernel.line} takes {expected} arguments, and its launch gives "
            f"{len(arguments)}: change the two together ({launched_from()})"
        )
    return [
        _checked(f"{kernel.name}: argument '{parameter.name}'", parameter, argument, array_type, dtypes)
        for parameter, argument in zip(kernel.parameters, arguments, strict=True)
    ]


def element_of(type_: str, dtypes: Mapping[str, np.dtype] = DTYPES) -> tuple[np.dtype | None, int]:
    """The dtype of a C++ type, and how many of it the type holds: 4 in a float4. None for a structure."""
    name = type_.removeprefix("std::")
    vector = _VECTOR.fullmatch(name)
    if not vector:
        return dtypes.get(full_name(name)), 1
    scalar = vector[2].replace("longlong", "long long")
    return dtypes["unsigned " + scalar if vector[1] else scalar], int(vector[3])


def is_structure(type_: str) -> bool:
    """Whether a type is none that NumPy knows. Its size is known to the compiler alone."""
    return type_ != "void" and element_of(type_)[0] is None


def _checked(
    what: str, parameter: Parameter, argument: Any, array_type: type[Any], dtypes: Mapping[str, np.dtype]
) -> Any:
    type_ = parameter.type
    if type_.endswith(("*", "&")):
        sort = "an array of pointers" if parameter.is_array else "a reference"
        raise TypeError(f"{what} has the type {type_}{'*' * parameter.is_array}, {sort}, which a launch cannot give")
    dtype, count = element_of(type_, dtypes)
    if argument is None and parameter.is_optional:
        return None
    if not parameter.is_array:
        return _checked_structure(what, type_, dtype, count, argument)
    if not isinstance(argument, array_type):
        expects = f"{array_type.__module__}.{array_type.__name__}"
        hint = f"; for one number, write {type_} {parameter.name}" if np.ndim(argument) == 0 else ""
        raise TypeError(f"{what} expects an array ({expects}), got {type(argument).__name__}{hint}")
    are_structures = argument.dtype.kind == "V" and (dtype is None or argument.itemsize == count * dtype.itemsize)
    if type_ != "void" and not are_structures and argument.dtype != dtype:
        expects = f"a structured dtype for {type_}" if dtype is None else str(dtype)
        raise TypeError(f"{what} expects {expects}, got {argument.dtype}")
    if not are_structures and argument.size % count:
        raise ValueError(f"{what} holds {type_}: its {argument.size} elements are not a multiple of {count}")
    if argument.size > MAX_ELEMENTS:
        raise ValueError(f"{what} has {argument.size} elements, more than a 32-bit index can number")
    if not argument.flags.c_contiguous:
        raise ValueError(f"{what} must be C-contiguous, got strides {argument.strides}")
    return argument


def _checked_structure(what: str, type_: str, dtype: np.dtype | None, count: int, argument: Any) -> np.generic:
    """A number as a NumPy scalar; a structure, or a vector given as its elements, as the bytes of one."""
    if isinstance(argument, (bytes, np.void)):
        value = np.void(argument if isinstance(argument, bytes) else argument.tobytes())
    elif isinstance(argument, np.ndarray) and argument.dtype.kind == "V" and argument.ndim == 0:
        value = np.void(argument.tobytes())
    elif dtype is not None and count == 1:
        return _checked_scalar(what, dtype, argument)
    elif dtype is None or np.shape(argument) != (count,):
        expects = f"bytes or a NumPy structure of type {type_}" if dtype is None else f"{count} numbers"
        raise TypeError(f"{what} expects {expects}, got {type(argument).__name__}")
    else:
        value = np.void(np.array([_checked_scalar(what, dtype, each) for each in argument], dtype).tobytes())
    if dtype is not None and value.nbytes != count * dtype.itemsize:
        raise ValueError(f"{what} has {value.nbytes} bytes, and a {type_} has {count * dtype.itemsize}")
    return value


def _checked_scalar(what: str, dtype: np.dtype, argument: Any) -> np.generic:
    is_bool = isinstance(argument, (bool, np.bool_))
    if dtype.kind == "b":
        if not is_bool and argument not in (0, 1):
            raise TypeError(f"{what} expects True or False, got {type(argument).__name__}")
        return dtype.type(argument)
    if np.ndim(argument) != 0 or is_bool:
        raise TypeError(f"{what} expects one number of type {dtype}, got {type(argument).__name__}")
    if dtype.kind == "f":
        return dtype.type(argument)
    if not isinstance(argument, (int, np.integer)):
        raise TypeError(f"{what} expects an integer, got {type(argument).__name__} {argument!r}")
    limits = np.iinfo(dtype)
    if not limits.min <= int(argument) <= limits.max:
        raise ValueError(f"{what} is {argument}, which does not fit {dtype}")
    return dtype.type(argument)
