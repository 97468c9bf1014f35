"""What operations require of their arguments, checked before anything is computed: the same words on every device.

A kernel accepts any pointer, and NumPy broadcasts and counts from the end, so a mismatch would give a wrong result.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

Operation = TypeVar("Operation", bound=Callable[..., Any])

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))  # float64 is for gradient checks
INT_MAX = 2**31 - 1
INT32, UINT8 = np.dtype(np.int32), np.dtype(np.uint8)


def checked(check: Callable[..., None]) -> Callable[[Operation], Operation]:
    """A decorator: each call of the operation first calls `check` with those of its arguments that `check` names.

    NumPy's scalars become Python's numbers. The check stays reachable, as `operation.check`.
    """

    def decorate(operation: Operation) -> Operation:
        return with_check(check, operation, operation)

    return decorate


def with_check(check: Callable[..., None], function: Callable[..., Any], declared: Operation) -> Operation:
    """The method that calls `check` and then `function`; `declared`, a method, gives the signature and the docstring.

    function: a method as well, or a reference, which has no `self`.
    """
    parameters = inspect.signature(declared).parameters
    defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    wanted = [*inspect.signature(check).parameters]

    @wraps(declared)
    def run(*args: Any, **kwargs: Any) -> Any:
        args = tuple(map(_python_number, args))
        kwargs = {name: _python_number(value) for name, value in kwargs.items()}
        given = {**defaults, **dict(zip(parameters, args, strict=False)), **kwargs}
        if given.keys() >= {*wanted}:  # else the call itself raises
            check(*(given[name] for name in wanted))
        return function(*(args if function is declared else args[1:]), **kwargs)

    run.check, run.function = check, function  # type: ignore[attr-defined]  # a function's type has no such attributes
    return run  # type: ignore[return-value]  # wraps keeps the signature


def _python_number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def expect_array(name: str, array: Any, shape: tuple[int | None, ...] | None, dtype: np.dtype | None = None) -> None:
    """Checks an argument that must be an array: of this shape and dtype, not empty, contiguous.

    Args:
        shape: None stands for any size, or for any shape.
        dtype: None stands for float32 and float64.

    Raises:
        TypeError: no array, or another dtype.
        ValueError: another shape, an array without elements, or one that is not contiguous.
    """
    if not (hasattr(array, "dtype") and hasattr(array, "flags")):
        raise TypeError(f"{name} must be an array of this device, as asarray makes it, got {type(array).__name__}")
    if array.dtype != dtype if dtype else array.dtype not in FLOATS:
        raise TypeError(f"{name} must hold {dtype or FLOATS[0]}, got {array.dtype}")
    fits = shape is None or (
        len(array.shape) == len(shape)
        and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape or ())
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(array.shape)}")
    if not array.size:
        raise ValueError(f"{name} must not be empty, got shape {tuple(array.shape)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous, as asarray makes it, got strides {array.strides}")


def expect_integer(name: str, number: Any, minimum: int, maximum: int = INT_MAX) -> None:
    """TypeError unless `number` is an integer, ValueError unless it lies within the bounds: kernels loop up to it."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an integer, got {number!r}")
    if not minimum <= number <= maximum:
        bounds = f"{minimum} to {maximum}" if maximum != INT_MAX or number > maximum else f"at least {minimum}"
        raise ValueError(f"{name} must be {bounds}, got {number}")


def expect_number(name: str, number: Any) -> None:
    """TypeError unless `number` is a Python or NumPy number."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a number, got {number!r}")


def expect_positive(name: str, size: int, why: str) -> None:
    """ValueError unless the size that an operation's output would have is at least 1."""
    if size < 1:
        raise ValueError(f"{name} would be {size}: {why}")


def expect_within(name: str, values: np.ndarray | None, end: int, ignored: int | None = None, hint: str = "") -> None:
    """ValueError unless all values are 0 .. end - 1, or `ignored`. None passes: the host cannot read the values."""
    if values is None or (values.min() >= 0 and values.max() < end):
        return
    wrong = (values < 0) | (values >= end)
    if ignored is not None:
        wrong &= values != ignored
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        besides = "" if ignored is None else f", or {ignored}"
        raise ValueError(f"{name} must be 0 to {end - 1}{besides}, got {values[where]} at {where}{hint}")
