"""A case: an operation and its inputs, the same on every device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyfcn.ops import Operations

# Heights and widths of random images. 8 is drawn more often, so that some sums have 64 terms and arrays 256 elements.
EXTENTS = (1, 2, 3, 5, 8, 8, 13)
# Sizes of random arrays, around the blocks of 256 threads and of SUM_THREADS.
COUNTS = (1, 63, 64, 65, 255, 256, 257, 512, 700)

Results = dict[str, Any]  # arrays on the device, by name


@dataclass(frozen=True)
class Case:
    """An operation with inputs to check it on.

    forward(ops, **inputs) returns the outputs by name; gradients are of the first output. backward(ops, dout, outputs,
    **inputs) returns the gradients of the inputs named in `gradients`. Inputs are float64 or integer arrays and plain
    numbers. `detail` distinguishes the cases of one operation. Finite differences need an output that is `smooth`.
    naive: the case runs the naive kernels where there are fast ones. repeats: another case checks the same reference.

    exact: all arrays of floats, dout too, are rounded to multiples of 1/8. Sums of some thousand products of them are
    exact in float32. So a sum that cancels is the reference's too, and its relative error has a meaning.
    """

    operation: str
    detail: str
    inputs: dict[str, Any]
    forward: Callable[..., Results]
    gradients: tuple[str, ...] = ()
    backward: Callable[..., tuple[Any, ...]] | None = None
    smooth: bool = True
    naive: bool = False
    repeats: bool = False
    exact: bool = False

    def inputs_on(self, ops: Operations) -> dict[str, Any]:
        """Copies of the inputs on the device."""
        return {name: to_device(ops, value, self.exact) for name, value in self.inputs.items()}

    @contextmanager
    def form(self, ops: Operations) -> Iterator[None]:
        """Inside the context, the device runs the form of the kernels, naive or fast, that the case checks."""
        before, ops.device.naive = ops.device.naive, self.naive
        try:
            yield
        finally:
            ops.device.naive = before

    def run(self, ops: Operations, outputs: dict[str, np.ndarray] | None = None, seed: int = 0) -> Results:
        """All results by name: outputs, then gradients. The backward pass starts from `outputs` if they are given."""
        inputs = self.inputs_on(ops)
        with self.form(ops):
            results = self.forward(ops, **inputs)
            if self.backward is None:
                return results
            dout = to_device(ops, upstream(next(iter(results.values())).shape, seed), self.exact)
            saved = {name: to_device(ops, value) for name, value in outputs.items()} if outputs else results
            gradients = self.backward(ops, dout, saved, **inputs)
        return results | {f"d{name}": gradient for name, gradient in zip(self.gradients, gradients, strict=True)}


def upstream(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """dout. It is random, because with ones errors can cancel in the sums. The gradient of a loss is 1."""
    return np.ones(1) if shape == (1,) else np.random.default_rng(seed).standard_normal(shape)


def to_device(ops: Operations, value: Any, in_eighths: bool = False) -> Any:
    """A copy of an array on the device, with the device's float type; a plain number unchanged."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind == "f":
        value = (np.round(8 * value) / 8 if in_eighths else value).astype(ops.device.dtypes["float"])
    return ops.asarray(value)


def naive(case: Case) -> Case:
    """The case for the naive kernels."""
    return replace(case, detail=", ".join([*[case.detail] * bool(case.detail), "naive"]), naive=True)


def both_forms(case: Case) -> list[Case]:
    """The case for the fast kernels, and for the naive ones."""
    return [case, replace(naive(case), repeats=True)]
