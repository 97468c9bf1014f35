"""Tests kernels/max_pool2d.cu against its reference, and the reference against plain loops, with many ties."""

from dataclasses import dataclass

import numpy as np
import pytest
from helpers.bugs import OUTSIDE, UNWRITTEN, WRONG, Bug, Planted
from helpers.closeness import assert_close, assert_equal, on_device, positive
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn.operations import on
from tinyfcn.ops import Operations

reference = on("cpu")


@dataclass(frozen=True)
class Pooling:
    """Sizes of a max-pooling, and its inputs: x, dout. x has `levels` different values: few levels make many ties."""

    x: tuple[int, int, int, int]
    size: int = 2
    stride: int = 2
    levels: int = 3
    seed: int = 0

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(self.seed)
        height, width = ((side - self.size) // self.stride + 1 for side in self.x[2:])
        x = random.permutation(np.arange(np.prod(self.x)) % self.levels).reshape(self.x)
        return (x - 1).astype(np.float32) / 2, positive(random, *self.x[:2], height, width)


@st.composite
def poolings(draw: st.DrawFn) -> Pooling:
    size, stride = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width = draw(st.integers(size, 12)), draw(st.integers(size, 12))
    # Distinct values as in gradient checks, or ties everywhere as after a ReLU.
    levels = draw(st.sampled_from([1, 2, 3, 10_000]))
    return Pooling((n, c, height, width), size, stride, levels, draw(st.integers(0, 999)))


# Several blocks of 256 for x and y, none of them full; windows that overlap, that tile, and that leave gaps.
SEVERAL_BLOCKS = [
    Pooling((3, 2, 13, 17), 3, 1),
    Pooling((3, 2, 15, 19), 2, 2, levels=10_000),
    Pooling((3, 5, 18, 23), 2, 3),
]


def check_forward(ops: Operations, case: Pooling) -> None:
    """Compares maxima and max indices with the reference. There is no arithmetic, so they must be equal."""
    x, _ = case.inputs()
    found = ops.max_pool2d(ops.asarray(x), case.size, case.stride)
    for name, a, b in zip(("y", "max_index"), found, reference.max_pool2d(x, case.size, case.stride), strict=True):
        assert_equal(ops.to_numpy(a), b, name)


def check_backward(ops: Operations, case: Pooling) -> None:
    """Compares the kernel's gradient with the reference, both from the reference's max indices."""
    x, dout = case.inputs()
    _, max_index = reference.max_pool2d(x, case.size, case.stride)
    found = ops.max_pool2d_backward(*on_device(ops, dout, max_index), x.shape, case.size, case.stride)
    expected = reference.max_pool2d_backward(dout.astype(np.float64), max_index, x.shape, case.size, case.stride)
    assert_close(ops.to_numpy(found), expected, "one kernel", "dx")


@given(poolings())
def test_forward(ops: Operations, case: Pooling) -> None:
    check_forward(ops, case)


@given(poolings())
def test_backward(ops: Operations, case: Pooling) -> None:
    check_backward(ops, case)


@pytest.mark.parametrize("case", SEVERAL_BLOCKS, ids=str)
def test_several_blocks(ops: Operations, case: Pooling) -> None:
    for array in case.inputs():
        assert array.size > 256 and array.size % 256
    check_forward(ops, case)
    check_backward(ops, case)


def check_ties(ops: Operations) -> None:
    """The first of equal maxima in row-major order is chosen, and it alone gets the gradient."""
    x = np.array([[0, 0, 5, 1], [0, 0, 1, 5], [1, 2, -3, -3], [2, 2, -3, -3]], np.float32)[None, None]
    y, max_index = ops.max_pool2d(ops.asarray(x))
    assert_equal(ops.to_numpy(y), np.array([[[[0, 5], [2, -3]]]], np.float32))
    assert_equal(ops.to_numpy(max_index), np.array([[[[0, 2], [9, 10]]]], np.int32))
    dout = np.array([[[[1, 2], [3, 4]]]], np.float32)
    dx = ops.max_pool2d_backward(ops.asarray(dout), max_index, x.shape)
    expected = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [0, 3, 4, 0], [0, 0, 0, 0]], np.float32)
    assert_equal(ops.to_numpy(dx)[0, 0], expected)


def test_the_first_of_equal_maxima_is_chosen(ops: Operations) -> None:
    check_ties(ops)
    check_ties(on("cpu"))


def check_overlap(ops: Operations) -> None:
    """A pixel that is the maximum of several windows gets the sum of their gradients."""
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 2] = 1
    y, max_index = ops.max_pool2d(ops.asarray(x), size=2, stride=1)
    assert_equal(ops.to_numpy(y)[0, 0], np.array([[0, 1, 1], [0, 1, 1], [0, 0, 0]], np.float32))
    dout = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    dx = ops.to_numpy(ops.max_pool2d_backward(ops.asarray(dout), max_index, x.shape, size=2, stride=1))
    assert dx[0, 0, 1, 2] == 2 + 3 + 5 + 6
    assert dx.sum() == dout.sum()


def test_windows_may_overlap(ops: Operations) -> None:
    check_overlap(ops)
    check_overlap(on("cpu"))


def test_no_window_covers_the_rows_and_columns_left_over(ops: Operations) -> None:
    x = np.zeros((1, 1, 5, 5), np.float32)
    x[:, :, 4], x[:, :, :, 4] = 9, 9
    for each in (ops, on("cpu")):
        y, max_index = each.max_pool2d(each.asarray(x))
        assert each.to_numpy(y).max() == 0
        dx = each.to_numpy(
            each.max_pool2d_backward(each.asarray(np.ones((1, 1, 2, 2), np.float32)), max_index, x.shape)
        )
        assert not dx[0, 0, 4].any() and not dx[0, 0, :, 4].any() and dx.sum() == 4


def test_minus_infinity_and_large_numbers_are_compared_like_others(ops: Operations) -> None:
    x = np.array([[-np.inf, -1e38], [-3e38, -2e38]], np.float32)[None, None]
    for each in (ops, on("cpu")):
        y, max_index = each.max_pool2d(each.asarray(x))
        assert each.to_numpy(y).item() == np.float32(-1e38) and each.to_numpy(max_index).item() == 1


def by_loops(x: np.ndarray, dout: np.ndarray, size: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, max_index and dx, window by window."""
    y, max_index, dx = np.zeros(dout.shape), np.zeros(dout.shape, np.int32), np.zeros(x.shape)
    for index in np.ndindex(*dout.shape):
        n, c, i, j = index
        best = -np.inf
        for u in range(size):
            for v in range(size):
                h, w = i * stride + u, j * stride + v
                if x[n, c, h, w] > best:
                    best, max_index[index] = x[n, c, h, w], h * x.shape[3] + w
        y[index] = best
        dx[n, c].flat[max_index[index]] += dout[index]
    return y, max_index, dx


@given(poolings())
def test_reference_is_the_formula(case: Pooling) -> None:
    x, dout = case.inputs()
    y, max_index = reference.max_pool2d(x, case.size, case.stride)
    dx = reference.max_pool2d_backward(dout.astype(np.float64), max_index, x.shape, case.size, case.stride)
    expected_y, expected_max_index, expected_dx = by_loops(x, dout, case.size, case.stride)
    assert_equal(y, expected_y.astype(np.float32), "y")
    assert_equal(max_index, expected_max_index, "max_index")
    assert_close(dx, expected_dx, "float64", "dx")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_keeps_the_dtype_and_its_input(dtype: type) -> None:
    x, dout = (array.astype(dtype) for array in SEVERAL_BLOCKS[0].inputs())
    before = x.copy()
    y, max_index = reference.max_pool2d(x, 3, 1)
    assert (y.dtype, max_index.dtype) == (dtype, np.int32)
    assert reference.max_pool2d_backward(dout, max_index, x.shape, 3, 1).dtype == dtype
    assert_equal(x, before)


def test_mismatched_shapes_are_reported(ops: Operations) -> None:
    x = ops.asarray(np.zeros((2, 3, 4, 9), np.float32))
    with pytest.raises(ValueError, match="max_pool2d: the output's height would be 0: a 5x5 window over 4x9 pixels"):
        ops.max_pool2d(x, 5)
    with pytest.raises(ValueError, match="max_pool2d: the output's width would be 0: a 2x2 window over 2x1 pixels"):
        ops.max_pool2d(ops.asarray(np.zeros((1, 1, 2, 1), np.float32)))
    y, max_index = ops.max_pool2d(x)
    with pytest.raises(ValueError, match=r"max_pool2d_backward: dout must have shape \(2, 3, 2, 4\), got \(2, 3, 4"):
        ops.max_pool2d_backward(x, max_index, x.shape)
    with pytest.raises(
        ValueError, match=r"max_pool2d_backward: max_index must have shape \(2, 3, 2, 4\), got \(2, 3, 2"
    ):
        ops.max_pool2d_backward(y, max_index[:, :, :, :3], x.shape)
    with pytest.raises(ValueError, match=r"max_pool2d: x must have shape \(any, any, any, any\), got \(3, 4, 9\)"):
        ops.max_pool2d(x[0])
    with pytest.raises(ValueError, match="max_pool2d: size must be at least 1, got 0"):
        ops.max_pool2d(x, 0)
    with pytest.raises(ValueError, match="max_pool2d: stride must be at least 1, got 0"):
        ops.max_pool2d_backward(y, max_index, x.shape, 2, 0)


def check_several_blocks_forward(ops: Operations) -> None:
    for case in SEVERAL_BLOCKS:
        check_forward(ops, case)


def check_several_blocks_backward(ops: Operations) -> None:
    for case in SEVERAL_BLOCKS:
        check_backward(ops, case)


PLANTED = {
    "max_pool2d_forward": Planted(
        check_several_blocks_forward,
        [
            ("the last of equal maxima is chosen", "value > largest", "value >= largest"),
            ("the last column is left out", "v < size", "v < size - 1"),
            (
                "the search starts at the corner of the plane",
                "int best = i * stride * W + j * stride;",
                "int best = 0;",
            ),
            ("max_index is relative to its row", "max_index[element] = best;", "max_index[element] = best % W;"),
        ],
    ),
    "max_pool2d_backward": Planted(
        check_several_blocks_backward,
        [
            ("a pixel gets the gradient of one window only", "sum += dout", "sum = dout"),
            (
                "pixels other than the max index get the gradient too",
                "if (max_index[first + i * OW + j] == h * W + w) ",
                "",
            ),
            ("rows between strides get the gradient too", "row % stride != 0 || ", ""),
            ("the last window is left out", "j >= OW)", "j >= OW - 1)"),
        ],
    ),
}

ZOO = {
    "max_pool2d_forward": [
        Bug("max_index is not written if the first pixel is the maximum",
            {"best = candidate;": "best = candidate;\nmax_index[element] = best;",
             "largest;\n    max_index[element] = best;": "largest;"},
            "check", UNWRITTEN, ("if (max_index[first",), "initcheck"),  # the line that reads it
        Bug("max_index is not updated with the maximum", {"best = candidate;": ""},
            "double", WRONG, ("max_index[element] = best;",)),
        Bug("the window is one column too wide", {"v < size": "v <= size"},
            "check", OUTSIDE, ("float value = plane[candidate];",), "memcheck"),
    ],
    "max_pool2d_backward": [
        Bug("a pixel gets the gradient of the last of its windows only", {"sum += dout": "sum = dout"},
            "double", WRONG, ("dx[element] = sum;",)),
        Bug("windows past the end of the image are read", {"if (i >= OH || j >= OW) continue;": ""},
            "check", OUTSIDE, ("if (max_index[first",), "memcheck"),
    ],
}  # fmt: skip
