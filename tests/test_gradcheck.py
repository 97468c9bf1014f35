"""The checker of gradients: that it passes what is right, and fails what is wrong, not a number, or missing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tinyfcn import gradcheck
from tinyfcn.gradcheck import Case, Verdict, cases, check_all, check_gradient, check_kernel, check_reference
from tinyfcn.operations import Operations, on
from tinyfcn.ops import __all__ as OPERATIONS

CASES = {f"{case.operation} {case.detail}".strip(): case for case in cases()}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@all_cases
def test_references_by_finite_differences(case: Case) -> None:
    verdicts = list(check_reference(case))
    assert [verdict.gradient for verdict in verdicts] == [f"d{name}" for name in case.gradients]
    for verdict in verdicts:
        assert verdict.passed and verdict.error <= 1e-7, verdict


@all_cases
def test_kernels_against_references(ops: Operations, case: Case) -> None:
    verdicts = list(check_kernel(case, ops))
    assert [verdict.gradient for verdict in verdicts] == ["output", *(f"d{name}" for name in case.gradients)]
    for verdict in verdicts:
        assert verdict.passed and verdict.error <= 1e-4 and verdict.device == ops.device_name, verdict


def test_every_operation_with_a_gradient_has_a_case() -> None:
    backward = {name.removesuffix("_backward") for name in OPERATIONS if name.endswith("_backward")}
    assert {case.operation for case in cases()} == backward | {"softmax_cross_entropy"}
    assert gradcheck.operations() == list(dict.fromkeys(case.operation for case in cases()))


def test_every_differentiable_input_is_checked() -> None:
    for case in cases():
        floats = {name for name, value in case.inputs.items() if getattr(value, "dtype", None) == np.float64}
        assert floats == {*case.gradients}, case.operation


@all_cases
def test_inputs_come_back_as_they_were(case: Case) -> None:
    before = {name: np.copy(value) for name, value in case.inputs.items()}
    list(check_reference(case))
    for name, value in case.inputs.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def planted(case: Case, wrong: Any) -> Case:
    """The case with something done to the gradients that backward returns, one at a time: wrong(gradient)."""

    def backward(ops: Operations, dout: Any, **given: Any) -> tuple[Any, ...]:
        return tuple(wrong(gradient) for gradient in case.backward(ops, dout, **given))

    return replace(case, backward=backward)


def missing_one_entry(gradient: np.ndarray) -> np.ndarray:
    gradient = np.array(gradient)
    gradient.flat[np.abs(gradient).argmax()] = 0
    return gradient


def with_nan(gradient: np.ndarray) -> np.ndarray:
    gradient = np.array(gradient)
    gradient.flat[-1] = np.nan
    return gradient


WRONG = {
    "a factor": lambda gradient: gradient * 1.00001,
    "the sign": lambda gradient: -gradient,
    "nothing at all": np.zeros_like,
    "one entry missing": missing_one_entry,
    "a NaN": with_nan,
    "infinity": lambda gradient: gradient * np.inf,
    "shifted by one place": lambda gradient: np.roll(gradient, 1),
    "a constant added": lambda gradient: gradient + 1e-4,
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@all_cases
def test_a_wrong_gradient_fails_against_finite_differences(case: Case, wrong: Any) -> None:
    assert not any(verdict.passed for verdict in check_reference(planted(case, wrong)))


@pytest.mark.parametrize("wrong", ["the sign", "one entry missing", "a NaN", "shifted by one place"])
@all_cases
def test_a_wrong_gradient_fails_against_the_reference(case: Case, wrong: str) -> None:
    """check_kernel, given a reference in float64 and, for a kernel, the reference with something wrong."""

    def backward(ops: Operations, dout: Any, **given: Any) -> tuple[Any, ...]:
        found = case.backward(ops, dout, **given)
        return found if dout.dtype == np.float64 else tuple(map(WRONG[wrong], found))

    output, *gradients = check_kernel(replace(case, backward=backward), on("cpu"))
    assert output.passed and not any(verdict.passed for verdict in gradients)


def test_too_few_or_too_many_gradients_are_an_error() -> None:
    case = CASES["conv2d 3x5 stride 1 padding 1"]
    for gradients in (("x", "weight"), ("x", "weight", "bias", "x")):
        with pytest.raises(ValueError, match="zip"):
            list(check_reference(replace(case, gradients=gradients)))


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([3, 4], [3, 4], 0),
        ([3, 5], [3, 4], 0.2),
        ([0, 0], [3, 4], 1),
        ([0, 0], [0, 0], 0),
        ([0, 1e-30], [0, 0], np.inf),
        ([np.nan, 4], [3, 4], np.inf),
        ([np.nan, 4], [np.nan, 4], np.inf),
        ([3, 4], [np.nan, 4], np.inf),
        ([np.inf, 4], [np.inf, 4], np.inf),
        ([[3, 4]], [3, 4], np.inf),
        ([3], [3, 3], np.inf),
        ([], [], 0),
    ],
)
def test_relative_error(found: list, expected: list, error: float) -> None:
    for dtype in (np.float32, np.float64):
        computed = gradcheck.relative_error(np.array(found, dtype), np.array(expected, dtype))
        assert computed == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize(
    ("error", "passed"), [(0, True), (1e-7, True), (1.1e-7, False), (np.inf, False), (np.nan, False)]
)
def test_no_verdict_passes_on_what_is_not_a_number(error: float, passed: bool) -> None:
    verdict = Verdict("conv2d", "", "dx", "finite differences", "cpu", error)
    assert verdict.passed is passed


def test_known_derivatives() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))

    def function() -> float:
        return float(np.sum(np.sin(x)))

    assert check_gradient(function, x, np.cos(x)) < 1e-9
    assert check_gradient(function, x, np.cos(x) + 1e-5) > 1e-7
    assert check_gradient(function, x, np.cos(x) * (1 + 1e-6)) > 1e-7
    assert check_gradient(lambda: float("nan"), x, np.cos(x)) == np.inf
    alone = gradcheck.numerical_gradient(function, x, entries=100, seed=1)[gradcheck.PROJECTIONS :]
    np.testing.assert_allclose(np.sort(alone), np.sort(np.cos(x).ravel()), rtol=1e-8, err_msg="all twelve, once each")


def test_directions_are_at_least_three_dense_ones_and_then_single_entries() -> None:
    assert gradcheck.PROJECTIONS >= 3
    directions = list(gradcheck.directions(np.zeros((4, 5)), entries=7, seed=0))
    assert len(directions) == gradcheck.PROJECTIONS + 7
    for direction in directions:
        assert direction.shape == (4, 5) and np.linalg.norm(direction) == pytest.approx(1)
    assert all((direction != 0).all() for direction in directions[: gradcheck.PROJECTIONS])
    entries = [int(np.flatnonzero(direction).item()) for direction in directions[gradcheck.PROJECTIONS :]]
    assert len({*entries}) == 7


def test_all_checks(ops: Operations) -> None:
    lines = list(check_all(None, ops))
    assert all(line.passed for line in lines)
    assert {line.method for line in lines} == {"finite differences", "kernel"}
    assert {line.device for line in lines} == {"cpu", ops.device_name}
    assert {line.operation for line in lines} == {*gradcheck.operations(), "adam"}
    assert {line.method for line in check_all(None, on("cpu"))} == {"finite differences"}
    assert {line.method for line in check_all(None, None)} == {"finite differences"}
    some = list(check_all("max_pool2d", ops))
    assert some == [line for line in lines if line.operation == "max_pool2d"] and len(some) == 6
    assert [line.operation for line in check_all("adam", ops)] == ["adam"]
