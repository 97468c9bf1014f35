"""Comparisons of arrays in these tests, their tolerances, and inputs whose sums do not cancel."""

from typing import Any

import numpy as np

from tinyfcn.checks import gradcheck

# Kind of comparison -> the largest relative error, norm(found - expected) / norm(expected) over a whole tensor.
TOLERANCES = {
    # From the package: finite differences 1e-7, and 1e-4 for a result that passed through many kernels, such as a
    # network's gradients, where rounding errors of one layer pass through all later ones.
    **gradcheck.TOLERANCES,
    # One kernel in float32 against its reference in float64. A rounding is 6e-8. With the inputs of `positive`,
    # which do not cancel, the sums here (at most some thousand terms) stay below 1e-6. A missing or wrong term is 1e-3.
    "one kernel": 1e-5,
    # Two ways to compute the same result in float64: some hundred roundings of 1e-16.
    "float64": 1e-13,
    # Finite differences through a whole network. The difference of two losses near 3 has an error of some 1e-16,
    # divided by 2e-6: 1e-10, and a derivative along a random direction may be as small as 1e-3. Few steps of 1e-6 cross
    # a kink; with the seeds of these tests none does.
    "whole network": 1e-6,
}


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: str, what: str = "result") -> None:
    """Fails unless shapes agree, all values are finite, and the relative error is within TOLERANCES[tolerance]."""
    error = gradcheck.relative_error(found, expected)
    assert error <= TOLERANCES[tolerance], f"{what}: relative error {error:.2e} > {TOLERANCES[tolerance]} ({tolerance})"


def assert_equal(found: np.ndarray, expected: np.ndarray, what: str = "result") -> None:
    """Fails unless both arrays have the same dtype and equal, finite elements."""
    assert found.dtype == expected.dtype, f"{what}: {found.dtype}, expected {expected.dtype}"
    assert np.isfinite(found).all(), f"{what} is not finite"
    np.testing.assert_array_equal(found, expected, err_msg=what)


def positive(random: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 between 0.5 and 1.5. Sums of their products never cancel.

    So even a single sum keeps the accuracy of float32, and a term that is missing, or read from a wrong element, shows.
    The inputs of gradcheck.cases have both signs.
    """
    return random.uniform(0.5, 1.5, shape).astype(np.float32)


def float64(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays in float64, so that the references are more accurate than the kernels."""
    return [array.astype(np.float64) for array in arrays]


def on_device(ops: Any, *arrays: np.ndarray) -> list[Any]:
    """The arrays on the device of `ops`."""
    return [ops.asarray(array) for array in arrays]
