"""Tests gradcheck: it passes correct gradients, and fails gradients that are wrong, NaN or missing."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.closeness import assert_close
from helpers.forms import expect_form, launched_names
from helpers.planting import line_of, operation_of, plant

from tinyfcn.checks import gradcheck
from tinyfcn.checks.case import Case
from tinyfcn.checks.gradcheck import Verdict, check_all, check_differences, check_gradient, check_kernel
from tinyfcn.devices.emulator import Emulator
from tinyfcn.operations import on, operation_names
from tinyfcn.ops import Operations

reference = on("cpu")

CASES = {
    f"{case.operation} {case.detail}".strip(): case
    for operation in gradcheck.operations()
    for case in gradcheck.cases(operation)
}
SMOOTH = {name: case for name, case in CASES.items() if case.smooth and case.gradients}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
smooth_cases = pytest.mark.parametrize("case", SMOOTH.values(), ids=SMOOTH)
with_gradients = pytest.mark.parametrize(
    "case", {name: case for name, case in CASES.items() if case.gradients}.values()
)


@pytest.fixture(scope="module")
def double() -> Operations:
    """The kernels compiled for float64."""
    device = Emulator(precision="double")
    assert device.double
    return Operations(device)


@smooth_cases
def test_references_by_finite_differences(case: Case) -> None:
    verdicts = list(check_differences(case, on("cpu")))
    assert [verdict.result for verdict in verdicts] == [f"d{name}" for name in case.gradients]
    for verdict in verdicts:
        assert verdict.passed and verdict.error <= 1e-7 and verdict.device == "cpu", verdict


@smooth_cases
def test_kernels_in_double_by_finite_differences(double: Operations, case: Case) -> None:
    verdicts = list(check_differences(case, double))
    assert [verdict.result for verdict in verdicts] == [f"d{name}" for name in case.gradients]
    for verdict in verdicts:
        assert verdict.passed and verdict.error <= 1e-7 and verdict.device == "emulator", verdict


def names_of_results(case: Case) -> list[str]:
    return [*case.forward(on("cpu"), **case.inputs_on(on("cpu"))), *(f"d{name}" for name in case.gradients)]


@all_cases
def test_kernels_against_references(kernel_device: str, case: Case) -> None:
    ops = on(kernel_device)
    with launched_names(ops.device) as names:
        verdicts = list(check_kernel(case, ops))
    expect_form(names, case.naive)
    assert [verdict.result for verdict in verdicts] == names_of_results(case)
    for verdict in verdicts:
        assert verdict.passed and verdict.error <= 1e-4 and verdict.device == ops.device_name, verdict
        assert verdict.method == "kernel" and not verdict.where


@all_cases
def test_kernels_in_double_against_references(double: Operations, case: Case) -> None:
    verdicts = list(check_kernel(case, double))
    assert [verdict.result for verdict in verdicts] == names_of_results(case)
    for verdict in verdicts:
        assert verdict.passed and verdict.error <= 1e-14 and verdict.method == "kernel in double", verdict


@all_cases
def test_all_floats_are_float64_in_double(double: Operations, case: Case) -> None:
    for name, result in case.run(double).items():
        expected = np.int32 if name in ("max_index", "step") else np.float64
        assert double.to_numpy(result).dtype == expected, name


def test_images_in_double(double: Operations) -> None:
    """The references of these operations return float32, so gradcheck has no cases of them."""
    random = np.random.default_rng(0)
    digits, labels = random.integers(0, 256, (5, 28, 28)).astype(np.uint8), np.arange(5, dtype=np.uint8)
    images, indices = (double.asarray(array) for array in (digits, np.array([3, 1, 1], np.int32)))
    found = double.to_numpy(double.gather_normalise(images, indices))
    assert_close(found, (digits[[3, 1, 1], None] - 127.0) / 127, "float64")
    batch, ink = double.compose_m2nist(images, double.asarray(labels), 1, 2, 3)
    expected, expected_ink = reference.compose_m2nist(digits, labels, 1, 2, 3)
    assert_close(double.to_numpy(batch), np.round(127 * expected.astype(np.float64)) / 127, "float64")
    np.testing.assert_array_equal(double.to_numpy(ink), expected_ink)


def test_every_operation_with_a_gradient_has_a_case() -> None:
    backward = {name.removesuffix("_backward") for name in operation_names() if name.endswith("_backward")}
    assert len(CASES) == sum(len(gradcheck.cases(operation)) for operation in gradcheck.operations())
    losses = {"softmax_cross_entropy", "linear_cross_entropy"}
    assert {case.operation for case in SMOOTH.values()} == backward | losses
    assert {*gradcheck.operations()} == backward | losses | {"fast_conv", "adam"}
    for operation in gradcheck.operations():
        assert {case.operation for case in gradcheck.cases(operation)} == {operation}


def test_each_reference_is_checked_by_finite_differences() -> None:
    checked = {case.detail: case for case in SMOOTH.values() if not case.repeats}
    assert {case.operation for case in checked.values()} == {*gradcheck.operations()} - {"fast_conv", "adam"}


def test_every_differentiable_input_is_checked() -> None:
    for case in SMOOTH.values():
        floats = {name for name, value in case.inputs.items() if getattr(value, "dtype", None) == np.float64}
        assert floats == {*case.gradients}, case.operation


@all_cases
def test_checks_restore_their_inputs(case: Case) -> None:
    before = {name: np.copy(value) for name, value in case.inputs.items()}
    list(check_differences(case, on("cpu")))
    list(check_kernel(case, on("cpu")))
    for name, value in case.inputs.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def planted(case: Case, wrong: Any, where: Operations | None = None) -> Case:
    """The case with wrong(gradient) in place of each gradient that backward returns on `where`."""

    def backward(ops: Operations, *given: Any, **inputs: Any) -> tuple[Any, ...]:
        gradients = case.backward(ops, *given, **inputs)
        return gradients if where not in (None, ops) else tuple(wrong(gradient) for gradient in gradients)

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
    "wrong by a factor": lambda gradient: gradient * 1.00001,
    "wrong sign": lambda gradient: -gradient,
    "all zeros": np.zeros_like,
    "one entry missing": missing_one_entry,
    "a NaN": with_nan,
    "infinity": lambda gradient: gradient * np.inf,
    "shifted by one element": lambda gradient: np.roll(gradient, 1),
    "a constant added": lambda gradient: gradient + 1e-4,
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@smooth_cases
def test_a_wrong_gradient_fails_against_finite_differences(case: Case, wrong: Any) -> None:
    assert not any(verdict.passed for verdict in check_differences(planted(case, wrong), on("cpu")))


@pytest.mark.parametrize(
    "wrong", ["wrong by a factor", "wrong sign", "one entry missing", "a NaN", "shifted by one element"]
)
@with_gradients
def test_a_wrong_gradient_fails_against_the_reference(case: Case, wrong: str) -> None:
    """Runs check_kernel on references with wrong gradients in place of the kernels."""
    kernels = on("cpu")
    verdicts = list(check_kernel(planted(case, WRONG[wrong], kernels), kernels))
    assert [verdict.result for verdict in verdicts if not verdict.passed] == [f"d{name}" for name in case.gradients]


def test_too_few_or_too_many_gradients_are_an_error() -> None:
    case = CASES["conv2d 3x5 stride 1 padding 1, naive"]
    for gradients in (("x", "weight"), ("x", "weight", "bias", "x")):
        with pytest.raises(ValueError, match="zip"):
            list(check_differences(replace(case, gradients=gradients), on("cpu")))


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


def test_integers_must_be_equal() -> None:
    numbers = np.array([[1_000_000, 1_000_000]], np.int32)
    for found, error in ((numbers, 0), (numbers + 1, np.inf), (numbers[0], np.inf)):
        assert gradcheck.relative_error(found, numbers) == error


@pytest.mark.parametrize(
    ("error", "passed"), [(0, True), (1e-7, True), (1.1e-7, False), (np.inf, False), (np.nan, False)]
)
def test_nan_infinity_and_large_errors_do_not_pass(error: float, passed: bool) -> None:
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
    np.testing.assert_allclose(np.sort(alone), np.sort(np.cos(x).ravel()), rtol=1e-8, err_msg="each entry once")


def test_directions_are_at_least_three_dense_ones_and_then_single_entries() -> None:
    assert gradcheck.PROJECTIONS >= 3
    directions = list(gradcheck.directions(np.zeros((4, 5)), entries=7, seed=0))
    assert len(directions) == gradcheck.PROJECTIONS + 7
    for direction in directions:
        assert direction.shape == (4, 5) and np.linalg.norm(direction) == pytest.approx(1)
    assert all((direction != 0).all() for direction in directions[: gradcheck.PROJECTIONS])
    entries = [int(np.flatnonzero(direction).item()) for direction in directions[gradcheck.PROJECTIONS :]]
    assert len({*entries}) == 7


@pytest.mark.slow
def test_all_checks(kernel_device: str) -> None:
    ops = on(kernel_device)
    lines = list(check_all(None, ops))
    assert all(line.passed for line in lines)
    assert {line.method for line in lines} == {"finite differences", "kernel"}
    assert {line.device for line in lines} == {"cpu", ops.device_name}
    assert {line.operation for line in lines} == {*gradcheck.operations()}
    assert {line.method for line in check_all(None, on("cpu"))} == {"finite differences"}
    some = list(check_all("max_pool2d", ops))
    assert some == [line for line in lines if line.operation == "max_pool2d"] and len(some) == 11
    assert {line.result for line in check_all("adam", ops)} == {"step", "rates", "losses", "m", "v", "parameters"}
    assert not list(check_all("adam", on("cpu")))


@pytest.mark.slow
def test_all_checks_in_double(double: Operations) -> None:
    lines = list(check_all(None, double))
    assert all(line.passed for line in lines)
    assert {(line.method, line.device) for line in lines} == {
        ("finite differences", "cpu"),
        ("finite differences", "emulator"),
        ("kernel in double", "emulator"),
    }


# (kernel or function, precision, its text, the replacement), result -> message with {} for lines, texts on these lines.
WRONG_RESULTS = {
    "a wrong number": (
        ("add_forward", "double", "z[element] = scale", "z[element] = 2 * scale"),
        {"z": r"z\[\d, \d, \d\] is \S+, should be \S+: stored by add_forward at {}$"},
        ["z[element] = 2"],
    ),
    "a wrong max_index, but not the gradient computed from it": (
        ("max_pool2d_forward", "double", "max_index[element] = best;", "max_index[element] = best + W;"),
        {"max_index": r"max_index\[0, 0, 0, 0\] is \d+, should be \d+: stored by max_pool2d_forward at {}$"},
        ["max_index[element] = best"],
    ),
    "a wrong term of a sum": (
        ("softmax_cross_entropy_naive", "single", "ignored ? 0.0f : logf", "ignored ? 1.0f : logf"),
        {"loss": r"loss.* by \w+_mean_naive at {}, from 'losses' stored by softmax_cross_entropy_naive at {}$"},
        ["loss[0] = total", "losses[position] ="],
    ),
    "an element that is never written": (
        ("relu_forward", "double", "y[element] = x", "if (element != 7) y[element] = x"),
        {"y": r"y: no kernel wrote element 7 .*; relu_forward at relu\.cu:\d+ was the last"},
        [],
    ),
    "a missing barrier": (
        ("block_sum", "single", "__syncthreads();", ""),
        {"loss": r"softmax_cross_entropy_mean_naive in softmax_cross_entropy\.cu: .* partial\[\d\].* at {}"},
        ["total += partial"],
    ),
}


@pytest.mark.parametrize("bug", WRONG_RESULTS.values(), ids=WRONG_RESULTS)
def test_a_wrong_result_is_reported_with_its_line(bug: tuple, tmp_path: Path) -> None:
    (name, precision, text, replacement), messages, texts = bug
    kernels, operation = plant(name, {text: replacement}, tmp_path / "kernels"), operation_of(name)
    lines = [re.escape(line_of(each, operation, kernels)) for each in texts]
    verdicts = list(check_all(operation, Operations(Emulator(kernels, precision=precision))))
    wrong = [verdict for verdict in verdicts if not verdict.passed and verdict.method != "finite differences"]
    assert {verdict.result for verdict in wrong} == {*messages}
    for verdict in wrong:
        assert re.match(messages[verdict.result].format(*lines), verdict.where), verdict.where


def test_wrong_kernels_fail_finite_differences_too(tmp_path: Path) -> None:
    kernels = plant("add_backward", {"= scale *": "= 1.00001f * scale *"}, tmp_path / "kernels")
    verdicts = list(check_differences(CASES["add scale 0.5"], Operations(Emulator(kernels, precision="double"))))
    assert [verdict.passed for verdict in verdicts] == [False, False]


def test_double_precision_detects_an_error_as_small_as_float32_rounding(tmp_path: Path) -> None:
    kernels = plant("add_forward", {"= scale *": "= 1.00000003f * scale *"}, tmp_path / "kernels")
    verdict, *_ = check_kernel(CASES["add scale 0.5"], Operations(Emulator(kernels, precision="double")))
    assert not verdict.passed and verdict.error == pytest.approx(3e-8)
