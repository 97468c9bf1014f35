"""Are the gradients right? Finite differences against the references, and the kernels against the references.

Two links of proof. First, in float64, each gradient that a reference computes is compared with what the loss does
when its input is moved a little: (f(x + eps) - f(x - eps)) / (2 eps). Then, in float32, each result of a kernel is
compared with the reference's. Relative error is norm(a - b) / norm(b) over a whole tensor; single entries near zero
would be worse by orders of magnitude and say nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyfcn.operations import Operations, on
from tinyfcn.reference.adam import AdamState

EPSILON = 1e-6  # truncation falls with its square, rounding grows with its inverse: float64 is best near here
PROJECTIONS = 3
TOLERANCES = {
    # What -> largest relative error. Finite differences leave 1e-10 to 1e-8; a wrong term leaves 1e-2 and more.
    "finite differences": 1e-7,
    # float32 carries 6e-8 a rounding, and sums of some thousand products of random sign lose a few digits more.
    "kernel": 1e-4,
}


@dataclass(frozen=True)
class Verdict:
    """One line of the table: `gradient` is what was checked, `method` a key of TOLERANCES."""

    operation: str
    detail: str
    gradient: str
    method: str
    device: str
    error: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance; NaN is not."""
        return bool(self.error <= TOLERANCES[self.method])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """norm(found - expected) / norm(expected); infinite where a value is not finite or the shapes differ.

    Where `expected` is 0 throughout: 0 if `found` is too, else infinite.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return np.inf
    difference, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    if size == 0:
        return 0.0 if difference == 0 else np.inf
    return float(difference / size)


def numerical_gradient(function: Callable[[], float], x: np.ndarray, entries: int, seed: int) -> np.ndarray:
    """Centred differences of function() as x (float64, changed in place and restored) moves.

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


@dataclass(frozen=True)
class Case:
    """An operation with inputs to check it on.

    forward(ops, **inputs) gives the output; backward(ops, dout, **inputs) gives the gradients of the inputs named in
    `gradients`. Inputs are float64 or integer arrays and plain numbers. `detail` tells cases of one operation apart.
    """

    operation: str
    detail: str
    inputs: dict[str, Any]
    gradients: tuple[str, ...]
    forward: Callable[..., Any]
    backward: Callable[..., tuple[Any, ...]]


def cases(seed: int = 0) -> list[Case]:
    """At least one case for each operation, with sizes that divide neither blocks nor strides."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal

    def conv(name: str, weight_shape: tuple[int, ...], channels: int, stride: int, padding: int) -> Case:
        inputs = {
            "x": normal((2, 3, 9, 11)),
            "weight": normal(weight_shape),
            "bias": normal(channels),
            "stride": stride,
            "padding": padding,
        }

        def forward(ops: Operations, **given: Any) -> Any:
            return getattr(ops, name)(**given)

        def backward(ops: Operations, dout: Any, bias: Any, **given: Any) -> tuple[Any, ...]:
            return getattr(ops, f"{name}_backward")(dout, **given)

        detail = f"{weight_shape[2]}x{weight_shape[3]} stride {stride} padding {padding}"
        return Case(name, detail, inputs, ("x", "weight", "bias"), forward, backward)

    # A shuffled, evenly spaced sequence has no ties, and gaps that finite differences do not close.
    spaced = random.permutation(2 * 3 * 9 * 11).reshape(2, 3, 9, 11) / 100.0
    away_from_kink = normal((3, 5, 7))
    away_from_kink += np.sign(away_from_kink) * 1e-3

    def pool_backward(ops: Operations, dout: Any, x: Any, size: int, stride: int) -> tuple[Any, ...]:
        _, winner = ops.max_pool2d(x, size, stride)
        return (ops.max_pool2d_backward(dout, winner, x.shape, size, stride),)

    def loss_case(unlabelled: str | None) -> Case:
        inputs = {"logits": normal((2, 7, 5, 3)), "labels": random.integers(0, 7, (2, 5, 3)).astype(np.int32)}
        ignore = {} if unlabelled is None else {"ignore_index": 6, "unlabelled": unlabelled}

        def forward(ops: Operations, **given: Any) -> Any:
            return ops.softmax_cross_entropy(**given, **ignore)[0]

        def backward(ops: Operations, dout: Any, **given: Any) -> tuple[Any, ...]:
            return (ops.softmax_cross_entropy(**given, **ignore)[1],)

        detail = f"unlabelled {unlabelled}" if unlabelled else "all labelled"
        return Case("softmax_cross_entropy", detail, inputs, ("logits",), forward, backward)

    return [
        conv("conv2d", (4, 3, 3, 5), 4, 1, 1),
        conv("conv2d", (4, 3, 2, 3), 4, 2, 0),
        conv("conv_transpose2d", (3, 4, 4, 6), 4, 2, 1),
        conv("conv_transpose2d", (3, 4, 3, 2), 4, 3, 0),
        *(
            Case(
                "max_pool2d",
                f"{size}x{size} stride {stride}",
                {"x": spaced, "size": size, "stride": stride},
                ("x",),
                lambda ops, **given: ops.max_pool2d(**given)[0],
                pool_backward,
            )
            for size, stride in ((2, 2), (3, 2))
        ),
        Case(
            "relu",
            "",
            {"x": away_from_kink},
            ("x",),
            lambda ops, x: ops.relu(x),
            lambda ops, dout, x: (ops.relu_backward(dout, ops.relu(x)),),
        ),
        Case(
            "add",
            "scale 0.5",
            {"a": normal((3, 5, 7)), "b": normal((3, 5, 7)), "scale": 0.5},
            ("a", "b"),
            lambda ops, a, b, scale: ops.add(a, b, scale),
            lambda ops, dout, a, b, scale: (ops.add_backward(dout, scale),) * 2,
        ),
        loss_case(None),
        loss_case("zero"),
    ]


def operations() -> list[str]:
    """The operations that have gradients, in the order of `cases`."""
    return list(dict.fromkeys(case.operation for case in cases()))


def check_reference(case: Case, seed: int = 0) -> Iterator[Verdict]:
    """Finite differences against the reference's gradients, float64."""
    ops = on("cpu")
    output = case.forward(ops, **case.inputs)
    # Upstream gradients must be random: with ones, errors can cancel in the sums. The loss has only its own, 1.
    dout = np.ones(1) if output.size == 1 else np.random.default_rng(seed).standard_normal(output.shape)
    found = case.backward(ops, dout, **case.inputs)
    for name, gradient in zip(case.gradients, found, strict=True):

        def function() -> float:
            return float(np.sum(dout * case.forward(ops, **case.inputs)))

        error = check_gradient(function, case.inputs[name], gradient, seed=seed)
        yield Verdict(case.operation, case.detail, f"d{name}", "finite differences", "cpu", error)


def check_kernel(case: Case, ops: Operations, seed: int = 0) -> Iterator[Verdict]:
    """The kernels' output and gradients on `ops` against the reference's, float32 against float64."""
    reference = on("cpu")
    expected = case.forward(reference, **case.inputs)
    dout = np.ones(1) if expected.size == 1 else np.random.default_rng(seed).standard_normal(expected.shape)
    expected_gradients = case.backward(reference, dout, **case.inputs)

    def to_device(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return ops.asarray(value.astype(np.float32) if value.dtype.kind == "f" else value)

    given = {name: to_device(value) for name, value in case.inputs.items()}
    found = ops.to_numpy(case.forward(ops, **given))
    yield Verdict(case.operation, case.detail, "output", "kernel", ops.device_name, relative_error(found, expected))
    gradients = case.backward(ops, to_device(dout), **given)
    for name, gradient, wanted in zip(case.gradients, gradients, expected_gradients, strict=True):
        error = relative_error(ops.to_numpy(gradient), wanted)
        yield Verdict(case.operation, case.detail, f"d{name}", "kernel", ops.device_name, error)


def check_adam(ops: Operations, seed: int = 0) -> Iterator[Verdict]:
    """Three steps of Adam on `ops` against the reference's."""
    random = np.random.default_rng(seed)
    start, l2 = random.standard_normal(301), random.uniform(0, 0.1, 301)
    gradients = random.standard_normal((3, 301))

    def run(ops: Operations, dtype: Any) -> np.ndarray:
        parameters = ops.asarray(start.astype(dtype))
        state = AdamState.create(ops, l2.astype(dtype), base_rate=0.01, steps=5, warmup=2)
        for gradient in gradients.astype(dtype):
            ops.adam_step(parameters, ops.asarray(gradient), state)
        return ops.to_numpy(parameters) - start

    error = relative_error(run(ops, np.float32), run(on("cpu"), np.float64))
    yield Verdict("adam", "3 steps", "parameters", "kernel", ops.device_name, error)


def check_all(operation: str | None, ops: Operations | None) -> Iterator[Verdict]:
    """Every check of one operation or of all; the kernels' on `ops`, or none where it is None or the cpu."""
    for case in cases():
        if operation in (None, case.operation):
            yield from check_reference(case)
            if ops is not None and ops.device is not None:
                yield from check_kernel(case, ops)
    if operation in (None, "adam") and ops is not None and ops.device is not None:
        yield from check_adam(ops)
