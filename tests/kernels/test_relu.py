"""kernels/relu.cu through its launcher against its reference: no rounding, so exactly."""

import numpy as np
import pytest
from helpers.closeness import assert_equal, on_device
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn import reference
from tinyfcn.operations import Operations, on

# Some elements more than a block, and less; any number of axes.
SHAPES = [(1,), (255,), (256,), (257,), (3, 7, 11, 5), (2, 600)]


def inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x, with zeros of both signs and numbers near them, and dout."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(shape).astype(np.float32)
    x.flat[::5], x.flat[1::7], x.flat[2::11], x.flat[3::13] = 0, -0.0, 1e-30, -1e-30
    return x, random.standard_normal(shape).astype(np.float32)


def check_forward(ops: Operations, shape: tuple[int, ...], seed: int = 0) -> None:
    """y = max(x, 0)."""
    x, _ = inputs(shape, seed)
    assert_equal(ops.to_numpy(ops.relu(ops.asarray(x))), np.where(x > 0, x, np.float32(0)), "y")
    assert_equal(reference.relu(x), np.where(x > 0, x, np.float32(0)), "the reference's y")


def check_backward(ops: Operations, shape: tuple[int, ...], seed: int = 0) -> None:
    """dx = dout where y > 0, else 0: at 0 too."""
    x, dout = inputs(shape, seed)
    y = np.maximum(x, 0)
    expected = np.where(x > 0, dout, np.float32(0))
    assert_equal(ops.to_numpy(ops.relu_backward(*on_device(ops, dout, y))), expected, "dx")
    assert_equal(reference.relu_backward(dout, y), expected, "the reference's dx")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), st.integers(0, 999))
def test_forward_and_backward(ops: Operations, shape: tuple[int, ...], seed: int) -> None:
    check_forward(ops, shape, seed)
    check_backward(ops, shape, seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_full_and_not(ops: Operations, shape: tuple[int, ...]) -> None:
    check_forward(ops, shape)
    check_backward(ops, shape)


def test_a_nan_is_passed_on(ops: Operations) -> None:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    for each in (ops, on("cpu")):
        np.testing.assert_array_equal(each.to_numpy(each.relu(each.asarray(x))), [np.nan, np.inf, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_keeps_the_dtype(dtype: type) -> None:
    x, dout = (array.astype(dtype) for array in inputs((3, 5)))
    assert reference.relu(x).dtype == reference.relu_backward(dout, x).dtype == dtype


def test_shapes_that_do_not_fit_are_named(ops: Operations) -> None:
    y, dout = on_device(ops, np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"relu_backward: dout must have shape \(2, 3\), got \(3, 2\)"):
        ops.relu_backward(dout, y)
