"""Checks of the references of conv2d and conv_transpose2d, whose arguments are the same."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from helpers.closeness import assert_equal

from tinyfcn.checks import gradcheck

Operation = Callable[..., Any]
Inputs = Sequence[np.ndarray]  # x, weight, bias, dout


def check_by_finite_differences(forward: Operation, backward: Operation, inputs: Inputs, *strides: int) -> None:
    """The gradients of x, weight and bias. strides: stride and padding."""
    x, weight, bias, dout = inputs
    found = backward(dout, x, weight, *strides)

    def loss() -> float:
        return float(np.sum(dout * forward(x, weight, bias, *strides)))

    for moved, gradient in zip((x, weight, bias), found, strict=True):
        assert gradcheck.check_gradient(loss, moved, gradient) <= gradcheck.TOLERANCES["finite differences"]


def check_dtype_need_dx_and_out(forward: Operation, backward: Operation, inputs: Inputs, *strides: int) -> None:
    """Results have the dtype of the inputs. Without need_dx there is no dx; gradients are written into `out`."""
    x, weight, bias, dout = inputs
    assert forward(x, weight, bias, *strides).dtype == x.dtype
    expected = backward(dout, x, weight, *strides)
    assert {array.dtype for array in expected} == {x.dtype}
    into = np.zeros_like(weight), np.zeros_like(bias)
    dx, *returned = backward(dout, x, weight, *strides, need_dx=False, out=into)
    assert dx is None and returned[0] is into[0] and returned[1] is into[1]
    assert_equal(into[0], expected[1])
    assert_equal(into[1], expected[2])
