"""Checks gradients by finite differences, and kernels against the references.

Two links of proof. First, in float64, each gradient is compared with the change of the loss when its input moves a
little: (f(x + eps) - f(x - eps)) / (2 eps). Then each result of a kernel is compared with the reference's. Finite
differences need float64, so in single precision they check the references alone; kernels that the emulator compiles
for double take both.

The relative error is norm(a - b) / norm(b) over a whole tensor. For a single entry near zero it could be larger by
orders of magnitude, without any error in the code.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from tinyfcn.checks.case import Case, upstream
from tinyfcn.checks.pieces import cases_of
from tinyfcn.checks.pieces import operations as all_operations
from tinyfcn.checks.watched import Watched
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError
from tinyfcn.operations import on
from tinyfcn.ops import Operations

EPSILON = 1e-6  # truncation error falls with its square, rounding error grows with its inverse: float64 is best here
PROJECTIONS = 3
TOLERANCES = {
    # Method -> largest relative error. Finite differences have errors of 1e-10 to 1e-8; a wrong term has 1e-2 or more.
    "finite differences": 1e-7,
    # A rounding in float32 is 6e-8, and sums of some thousand products of random sign lose a few more digits.
    "kernel": 1e-4,
    # A rounding in float64 is 1e-16. A constant that a kernel keeps in float32 has an error of 1e-8.
    "kernel in double": 1e-12,
}


@dataclass(frozen=True)
class Verdict:
    """One line of the table: `result` names the checked array, `method` is a key of TOLERANCES.

    `where` describes a wrong result of the emulator: its worst element, and the kernel and line that stored it.
    """

    operation: str
    detail: str
    result: str
    method: str
    device: str
    error: float
    where: str = field(default="", compare=False)

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return bool(self.error <= TOLERANCES[self.method])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """norm(found - expected) / norm(expected); infinite where a value is not finite or the shapes differ.

    Where all of `expected` is 0, the error is 0 if `found` is 0 too, else infinite. Integers must be equal.
    """
    if np.asarray(expected).dtype.kind in "iu":
        return 0.0 if np.array_equal(found, expected) else np.inf
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return np.inf
    difference, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    if size == 0:
        return 0.0 if difference == 0 else np.inf
    return float(difference / size)


def numerical_gradient(function: Callable[[], float], x: np.ndarray, entries: int, seed: int) -> np.ndarray:
    """Centred differences of function() with respect to x (float64, changed in place and restored).

    Returns the derivatives along PROJECTIONS random directions, then along `entries` random single entries (all, if
    there are fewer), in the order of `directions`.
    """
    derivatives = []
    for direction in directions(x, entries, seed):
        kept = x.copy()
        x += EPSILON * direction
        above = function()
        x[...] = kept - EPSILON * direction
        below = function()
        x[...] = kept
        derivatives.append((above - below) / (2 * EPSILON))
    return np.array(derivatives)


def directions(x: np.ndarray, entries: int, seed: int) -> Iterator[np.ndarray]:
    """Random unit vectors of x's shape, then unit vectors along single entries."""
    generator = np.random.default_rng(seed)
    for _ in range(PROJECTIONS):
        direction = generator.standard_normal(x.shape)
        yield direction / np.linalg.norm(direction)
    for entry in generator.permutation(x.size)[:entries]:
        direction = np.zeros(x.shape)
        direction.flat[entry] = 1
        yield direction


def check_gradient(
    function: Callable[[], float], x: np.ndarray, gradient: np.ndarray, entries: int = 20, seed: int = 0
) -> float:
    """The relative error between `gradient` and centred differences of function(), which reads x."""
    expected = numerical_gradient(function, x, entries, seed)
    found = np.array([np.sum(direction * gradient) for direction in directions(x, entries, seed)])
    return relative_error(found, expected)


def cases(operation: str, seed: int = 0) -> list[Case]:
    """The cases of one operation, the same for one seed.

    Raises:
        KernelError: the operation lacks a file, or does not exist.
    """
    return list(cases_of(operation).gradcheck_cases(np.random.default_rng(seed)))


def operations() -> list[str]:
    """The operations that have cases."""
    return [operation for operation in all_operations() if cases(operation)]


def check_differences(case: Case, ops: Operations, seed: int = 0) -> Iterator[Verdict]:
    """Compares gradients with finite differences, both computed by `ops`, which must work in float64."""
    if not case.smooth:
        return
    results = {name: ops.to_numpy(result) for name, result in case.run(ops, seed=seed).items()}
    dout = upstream(next(iter(results.values())).shape, seed)

    def function() -> float:
        with case.form(ops):
            output = next(iter(case.forward(ops, **case.inputs_on(ops)).values()))
        return float(np.sum(dout * ops.to_numpy(output)))

    for name in case.gradients:
        error = check_gradient(function, case.inputs[name], results[f"d{name}"], seed=seed)
        yield Verdict(case.operation, case.detail, f"d{name}", "finite differences", ops.device_name, error)


def check_kernel(case: Case, ops: Operations, seed: int = 0) -> Iterator[Verdict]:
    """Compares kernels on `ops` with the reference in float64. Both start the backward pass from the same outputs."""
    reference = on("cpu")
    outputs = case.forward(reference, **case.inputs_on(reference))
    expected = case.run(reference, outputs, seed)
    found = {name: ops.to_numpy(result) for name, result in case.run(ops, outputs, seed).items()}
    method = "kernel in double" if works_in_double(ops) else "kernel"
    verdicts = [
        Verdict(case.operation, case.detail, name, method, ops.device_name, relative_error(found[name], wanted))
        for name, wanted in expected.items()
    ]
    wrong = {each.result: (found[each.result], expected[each.result]) for each in verdicts if not each.passed}
    where = locate(case, wrong, ops.device, outputs, seed) if wrong and isinstance(ops.device, Emulator) else {}
    yield from (replace(verdict, where=where.get(verdict.result, "")) for verdict in verdicts)


def works_in_double(ops: Operations) -> bool:
    """Whether the floats of `ops` are float64, which finite differences need."""
    return ops.device.dtypes["float"] == np.float64


def locate(
    case: Case,
    wrong: dict[str, tuple[np.ndarray, np.ndarray]],
    device: Emulator,
    outputs: dict[str, np.ndarray],
    seed: int,
) -> dict[str, str]:
    """For each wrong result (found, expected): the line that stored its worst element, or a finding of check mode."""
    watched = Watched(device.kernels, precision="double" if device.dtypes["float"] == np.float64 else "single")
    try:
        results = case.run(Operations(watched), outputs, seed)
        watched.copies(results)
    except KernelError as error:
        return dict.fromkeys(wrong, str(error))
    return {name: watched.wrong(name, results[name], expected) for name, (_, expected) in wrong.items()}


def check_all(operation: str | None, ops: Operations) -> Iterator[Verdict]:
    """Every check of one operation or of all. Kernels run on `ops`; the cpu has none, so references alone are checked.

    Raises:
        KernelError: the operation lacks a file, or does not exist.
    """
    for name in operations() if operation is None else [operation]:
        for case in cases(name):
            if not case.repeats:
                yield from check_differences(case, on("cpu"))
            if ops.device.runs_kernels:
                yield from check_kernel(case, ops)
                if works_in_double(ops):
                    yield from check_differences(case, ops)
