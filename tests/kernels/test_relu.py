"""Tests kernels/relu.cu against its reference. Nothing is rounded, so the results must be equal."""

import numpy as np
import pytest
from helpers.bugs import NAN, OUTSIDE, WRONG, Bug, Planted
from helpers.closeness import assert_equal, on_device
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn.operations import on
from tinyfcn.ops import Operations

reference = on("cpu")

# Sizes around a block of 256, and any number of axes.
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
def test_full_and_partial_blocks(ops: Operations, shape: tuple[int, ...]) -> None:
    check_forward(ops, shape)
    check_backward(ops, shape)


def test_a_nan_propagates(ops: Operations) -> None:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    for each in (ops, on("cpu")):
        np.testing.assert_array_equal(each.to_numpy(each.relu(each.asarray(x))), [np.nan, np.inf, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_keeps_the_dtype(dtype: type) -> None:
    x, dout = (array.astype(dtype) for array in inputs((3, 5)))
    assert reference.relu(x).dtype == reference.relu_backward(dout, x).dtype == dtype


def test_mismatched_shapes_are_reported(ops: Operations) -> None:
    y, dout = on_device(ops, np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"relu_backward: dout must have shape \(2, 3\), got \(3, 2\)"):
        ops.relu_backward(dout, y)


def check_several_blocks_forward(ops: Operations) -> None:
    check_forward(ops, (3, 7, 11, 5))


def check_several_blocks_backward(ops: Operations) -> None:
    check_backward(ops, (3, 7, 11, 5))


PLANTED = {
    "relu_forward": Planted(
        check_several_blocks_forward,
        [
            ("negative inputs leak", "0.0f : x[element]", "0.01f * x[element] : x[element]"),
            ("the comparison is reversed", "x[element] < 0.0f", "x[element] > 0.0f"),
            ("the last element is left out", "element >= count", "element >= count - 1"),
        ],
    ),
    "relu_backward": Planted(
        check_several_blocks_backward,
        [
            ("the gradient passes at 0", "y[element] > 0.0f", "y[element] >= 0.0f"),
            ("dout is compared in place of y", "y[element] > 0.0f", "dout[element] > 0.0f"),
        ],
    ),
}

ZOO = {
    "relu_forward": [
        Bug("the guard lets one thread too many pass", {"element >= count": "element > count"},
            "check", OUTSIDE, ("y[element] = ",), "memcheck"),
        Bug("float4 loads start after the left-over floats, unaligned",
            {"int element ... 0.0f : x[element];": """int left_over = count % 4;
    int first = left_over + 4 * thread_number();
    if (thread_number() < left_over) y[thread_number()] = fmaxf(x[thread_number()], 0.0f);
    if (first >= count) return;
    float4 four = *reinterpret_cast<const float4*>(x + first);
    y[first] = fmaxf(four.x, 0.0f);
    y[first + 1] = fmaxf(four.y, 0.0f);
    y[first + 2] = fmaxf(four.z, 0.0f);
    y[first + 3] = fmaxf(four.w, 0.0f);"""},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<const float4*>(x + first)",), "memcheck"),
        Bug("surplus threads return before a barrier",
            {"if (element >= count) return;": """__shared__ float tile[256];
    if (element >= count) return;
    tile[threadIdx.x] = x[element];
    __syncthreads();  // for the tile""",
             "x[element] < 0.0f ? 0.0f : x[element]": "fmaxf(tile[threadIdx.x], 0.0f)"},
            "trap", "wait at __syncthreads", ("__syncthreads();  // for the tile",)),
        Bug("the launch gives no dynamic shared memory",
            {"if (element >= count) return;": "extern __shared__ float tile[];\nif (element >= count) return;",
             "y[element] = x[element]": "tile[threadIdx.x] = x[element];\n    y[element] = tile[threadIdx.x]"},
            "trap", "touches tile[0] (tile has 0 elements)", ("tile[threadIdx.x] = ",), "memcheck"),
    ],
    "relu_backward": [
        Bug("the gradient passes where the output is 0", {"y[element] > 0.0f": "y[element] >= 0.0f"},
            "double", WRONG, ("dx[element] = ",)),
        Bug("the slope is y / |y|, which is NaN at 0",
            {"y[element] > 0.0f ? dout[element] : 0.0f": "dout[element] * (y[element] / fabsf(y[element]))"},
            "check", NAN, ("dx[element] = ",)),
    ],
}  # fmt: skip
