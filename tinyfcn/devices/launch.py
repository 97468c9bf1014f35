"""Checks the arguments of every launch, on every device, against the declaration of the kernel.

A GPU accepts any argument: a Python float would be passed as a double, and a transposed view as if it were contiguous,
so that the kernel silently reads garbage. So every launch passes these checks first.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyfcn.devices.kernel_source import Kernel
from tinyfcn.errors import KernelError

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "int": np.dtype(np.int32),
    "unsigned int": np.dtype(np.uint32),
    "unsigned char": np.dtype(np.uint8),
    "unsigned long long": np.dtype(np.uint64),
}
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
    checked: list[Any] = []
    for parameter, argument in zip(kernel.parameters, arguments, strict=True):
        what = f"{kernel.name}: argument '{parameter.name}'"
        if parameter.type not in dtypes:
            raise TypeError(f"{what} has the type {parameter.type}; launches support {', '.join(dtypes)}")
        dtype = dtypes[parameter.type]
        if argument is None and parameter.is_optional:
            checked.append(None)
        elif parameter.is_array:
            if not isinstance(argument, array_type):
                expects = f"{array_type.__module__}.{array_type.__name__}"
                raise TypeError(f"{what} expects an array ({expects}), got {type(argument).__name__}")
            if argument.dtype != dtype:
                raise TypeError(f"{what} expects {dtype}, got {argument.dtype}")
            if argument.size > MAX_ELEMENTS:
                raise ValueError(f"{what} has {argument.size} elements, more than a 32-bit index can number")
            if not argument.flags.c_contiguous:
                raise ValueError(f"{what} must be C-contiguous, got strides {argument.strides}")
            checked.append(argument)
        else:
            checked.append(_checked_scalar(what, dtype, argument))
    return checked


def _checked_scalar(what: str, dtype: np.dtype, argument: Any) -> np.generic:
    if np.ndim(argument) != 0 or isinstance(argument, (bool, np.bool_)):
        raise TypeError(f"{what} expects one number of type {dtype}, got {type(argument).__name__}")
    if dtype.kind == "f":
        return dtype.type(argument)
    if not isinstance(argument, (int, np.integer)):
        raise TypeError(f"{what} expects an integer, got {type(argument).__name__} {argument!r}")
    limits = np.iinfo(dtype)
    if not limits.min <= int(argument) <= limits.max:
        raise ValueError(f"{what} is {argument}, which does not fit {dtype}")
    return dtype.type(argument)
