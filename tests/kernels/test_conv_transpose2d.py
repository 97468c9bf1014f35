"""Tests kernels/conv_transpose2d.cu against its reference, and the reference against plain loops."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from helpers.bugs import OUTSIDE, RACE, WRONG, Bug, Planted
from helpers.closeness import assert_close, assert_equal, float64, on_device, positive
from helpers.reference_gradients import check_by_finite_differences, check_dtype_need_dx_and_out
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyfcn.operations import on
from tinyfcn.ops import Operations

reference = on("cpu")


@dataclass(frozen=True)
class Transposed:
    """Sizes of a transposed convolution, and its inputs: x, weight, bias, dout."""

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: int = 1
    padding: int = 0
    seed: int = 0

    @property
    def y(self) -> tuple[int, int, int, int]:
        height, width = (
            (size - 1) * self.stride + kernel - 2 * self.padding
            for size, kernel in zip(self.x[2:], self.weight[2:], strict=True)
        )
        return self.x[0], self.weight[1], height, width

    def inputs(self) -> list[np.ndarray]:
        random = np.random.default_rng(self.seed)
        return [positive(random, *shape) for shape in (self.x, self.weight, self.weight[1:2], self.y)]


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Transposed:
    kernel = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    n, c, o = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    stride, seed = draw(st.integers(1, 4)), draw(st.integers(0, 999))
    max_padding = min((height - 1) * stride + kernel[0] - 1, (width - 1) * stride + kernel[1] - 1) // 2
    padding = draw(st.integers(0, min(max_padding, 4)))
    return Transposed((n, c, height, width), (c, o, *kernel), stride, padding, seed)


# Several blocks of 256 for x and y, none of them full, and no two sizes alike.
SEVERAL_BLOCKS = Transposed((3, 2, 7, 9), (2, 4, 3, 5), stride=2, padding=1)
LAYERS = [  # of the networks: up1, up2, and up1 of --upsample once
    Transposed((2, 10, 4, 5), (10, 10, 4, 4), stride=2),
    Transposed((1, 16, 6, 7), (16, 16, 6, 6), stride=2),
    Transposed((2, 10, 3, 4), (10, 10, 12, 12), stride=4),
]
SMALLEST = [Transposed((1, 1, 1, 1), (1, 1, 1, 1)), Transposed((1, 2, 1, 1), (2, 3, 5, 6), stride=3, padding=2)]
FIXED = [SEVERAL_BLOCKS, *LAYERS, *SMALLEST]


def check_forward(ops: Operations, case: Transposed) -> None:
    """Compares the kernel's output with the reference."""
    x, weight, bias, _ = case.inputs()
    found = ops.to_numpy(ops.conv_transpose2d(*on_device(ops, x, weight, bias), case.stride, case.padding))
    assert found.dtype == np.float32
    expected = reference.conv_transpose2d(*float64(x, weight, bias), case.stride, case.padding)
    assert_close(found, expected, "one kernel", "y")


def check_backward(ops: Operations, case: Transposed) -> None:
    """Compares the kernels' gradients with the reference."""
    x, weight, _, dout = case.inputs()
    found = ops.conv_transpose2d_backward(*on_device(ops, dout, x, weight), case.stride, case.padding)
    expected = reference.conv_transpose2d_backward(*float64(dout, x, weight), case.stride, case.padding)
    for name, a, b in zip(("dx", "dweight", "dbias"), found, expected, strict=True):
        assert_close(ops.to_numpy(a), b, "one kernel", name)


@given(transposed_convolutions())
def test_forward(naive_ops: Operations, case: Transposed) -> None:
    check_forward(naive_ops, case)


@given(transposed_convolutions())
def test_backward(naive_ops: Operations, case: Transposed) -> None:
    check_backward(naive_ops, case)


@pytest.mark.parametrize("case", FIXED, ids=str)
def test_sizes_of_the_networks_and_extremes(naive_ops: Operations, case: Transposed) -> None:
    check_forward(naive_ops, case)
    check_backward(naive_ops, case)


def test_the_fixed_sizes_fill_several_blocks_and_none_evenly() -> None:
    for array in SEVERAL_BLOCKS.inputs()[0], SEVERAL_BLOCKS.inputs()[3]:
        assert array.size > 256 and array.size % 256


def check_adjoint(ops: Operations) -> None:
    """<conv2d(x), y> = <x, conv_transpose2d(y)> with the same weight: the definition of the transpose."""
    random = np.random.default_rng(0)
    for stride, padding, (kernel_height, kernel_width) in itertools.product([1, 2, 3], [0, 1], [(3, 4), (5, 2)]):
        weight, y = positive(random, 3, 2, kernel_height, kernel_width), positive(random, 2, 3, 4, 5)
        height, width = 3 * stride + kernel_height - 2 * padding, 4 * stride + kernel_width - 2 * padding
        x = positive(random, 2, 2, height, width)
        convolved = ops.conv2d(*on_device(ops, x, weight, np.zeros(3, np.float32)), stride, padding)
        transposed = ops.conv_transpose2d(*on_device(ops, y, weight, np.zeros(2, np.float32)), stride, padding)
        products = [np.vdot(*float64(ops.to_numpy(a), b)) for a, b in ((convolved, y), (transposed, x))]
        assert_close(products[0], products[1], "one kernel", f"stride {stride} padding {padding}")


def test_it_is_the_adjoint_of_conv2d(naive_ops: Operations) -> None:
    check_adjoint(naive_ops)
    check_adjoint(on("cpu"))


def test_gradients_are_written_into_out_and_nowhere_else(ops: Operations) -> None:
    x, weight, bias, dout = SEVERAL_BLOCKS.inputs()
    _, dweight, dbias = reference.conv_transpose2d_backward(dout, x, weight, 2, 1)
    flat = ops.asarray(np.full(3 + weight.size + bias.size + 2, 7, np.float32))
    into = flat[3 : 3 + weight.size].reshape(weight.shape), flat[3 + weight.size : -2]
    given = on_device(ops, dout, x, weight)
    dx, *returned = ops.conv_transpose2d_backward(*given, 2, 1, need_dx=False, out=into)
    assert dx is None
    assert [id(array) for array in returned] == [id(array) for array in into]
    expected = np.concatenate([np.full(3, 7), dweight.ravel(), dbias, np.full(2, 7)])
    assert_close(ops.to_numpy(flat), expected, "one kernel")
    assert_equal(ops.to_numpy(flat)[[0, 1, 2, -2, -1]], np.full(5, 7, np.float32))
    for before, after in zip((dout, x, weight), given, strict=True):
        assert_equal(ops.to_numpy(after), before)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "padding", "message"),
    [
        ((2, 3, 9), (3, 4, 3, 3), (4,), 0, r"conv_transpose2d: x must have shape \(any, any, any, any\), got"),
        ((2, 3, 5, 5), (4, 3, 3, 3), (4,), 0, r"conv_transpose2d: weight must have shape \(3, any, any, any\), got"),
        ((2, 3, 5, 5), (3, 4, 3), (4,), 0, "conv_transpose2d: weight"),
        ((2, 3, 5, 5), (3, 4, 3, 3), (3,), 0, r"conv_transpose2d: bias must have shape \(4\), got \(3,\)"),
        ((2, 3, 1, 5), (3, 4, 2, 3), (4,), 1, "output's height would be 0: padding 1 crops all that a 2x3 kernel"),
        ((2, 3, 5, 0), (3, 4, 3, 1), (4,), 0, r"conv_transpose2d: x must not be empty, got shape \(2, 3, 5, 0\)"),
    ],
)
def test_mismatched_shapes_are_reported(ops: Operations, x, weight, bias, padding: int, message: str) -> None:
    arrays = [np.ones(shape, np.float32) for shape in (x, weight, bias)]
    with pytest.raises(ValueError, match=message):
        ops.conv_transpose2d(*on_device(ops, *arrays), padding=padding)


def test_strides_below_one_are_refused(ops: Operations) -> None:
    x, weight, bias, dout = on_device(ops, *SEVERAL_BLOCKS.inputs())
    for stride in (0, -1):
        with pytest.raises(ValueError, match=f"conv_transpose2d: stride must be at least 1, got {stride}"):
            ops.conv_transpose2d(x, weight, bias, stride)
        with pytest.raises(ValueError, match=f"conv_transpose2d: stride must be at least 1, got {stride}"):
            ops.conv_transpose2d_backward(dout, x, weight, stride)


@pytest.mark.parametrize(
    ("dout", "dweight", "dbias", "message"),
    [
        ((2, 4, 7, 6), (3, 4, 3, 3), (4,), r"conv_transpose2d_backward: dout must have shape \(2, 4, 7, 7\), got"),
        ((2, 4, 7, 7), (4, 3, 3, 3), (4,), r"conv_transpose2d_backward: dweight must have shape \(3, 4, 3, 3\)"),
        ((2, 4, 7, 7), (3, 4, 3, 3), (3,), r"dbias must have shape \(4\), got \(3,\)"),
    ],
)
def test_mismatched_gradients_are_reported(ops: Operations, dout, dweight, dbias, message: str) -> None:
    x, weight = np.ones((2, 3, 5, 5), np.float32), np.ones((3, 4, 3, 3), np.float32)
    out = tuple(on_device(ops, np.ones(dweight, np.float32), np.ones(dbias, np.float32)))
    with pytest.raises(ValueError, match=message):
        ops.conv_transpose2d_backward(*on_device(ops, np.ones(dout, np.float32), x, weight), out=out)


def by_scattering(case: Transposed, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Each input adds its multiple of the weight to the output. The kernel gathers instead."""
    y = np.zeros(case.y) + bias[:, None, None]
    for n, c, i, j in np.ndindex(*x.shape):
        for o, u, v in np.ndindex(*weight.shape[1:]):
            h, w = i * case.stride + u - case.padding, j * case.stride + v - case.padding
            if 0 <= h < y.shape[2] and 0 <= w < y.shape[3]:
                y[n, o, h, w] += x[n, c, i, j] * weight[c, o, u, v]
    return y


def gradients_by_scattering(case: Transposed, dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape[1])
    for n, o, h, w in np.ndindex(*dout.shape):
        dbias[o] += dout[n, o, h, w]
    for n, c, i, j in np.ndindex(*x.shape):
        for o, u, v in np.ndindex(*weight.shape[1:]):
            h, w = i * case.stride + u - case.padding, j * case.stride + v - case.padding
            if 0 <= h < dout.shape[2] and 0 <= w < dout.shape[3]:
                dx[n, c, i, j] += dout[n, o, h, w] * weight[c, o, u, v]
                dweight[c, o, u, v] += dout[n, o, h, w] * x[n, c, i, j]
    return [dx, dweight, dbias]


TINY = [
    Transposed((2, 2, *size), (2, 3, *kernel), stride, padding, seed)
    for seed, (size, kernel, stride, padding) in enumerate(
        itertools.product([(2, 3), (3, 2)], [(3, 3), (4, 3), (5, 6)], [1, 2, 3, 4], [0, 1])
    )
]


def test_reference_is_the_formula() -> None:
    for case in TINY:
        x, weight, bias, dout = float64(*case.inputs())
        y = reference.conv_transpose2d(x, weight, bias, case.stride, case.padding)
        assert_close(y, by_scattering(case, x, weight, bias), "float64", str(case))
        found = reference.conv_transpose2d_backward(dout, x, weight, case.stride, case.padding)
        expected = gradients_by_scattering(case, dout, x, weight)
        for name, a, b in zip(("dx", "dweight", "dbias"), found, expected, strict=True):
            assert_close(a, b, "float64", f"{name} of {case}")


@settings(max_examples=15)
@given(transposed_convolutions())
def test_reference_gradients_by_finite_differences(case: Transposed) -> None:
    random = np.random.default_rng(case.seed)
    inputs = [random.standard_normal(array.shape) for array in case.inputs()]
    check_by_finite_differences(
        reference.conv_transpose2d, reference.conv_transpose2d_backward, inputs, case.stride, case.padding
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_keeps_the_dtype_and_takes_need_dx_and_out(dtype: type) -> None:
    inputs = [array.astype(dtype) for array in SEVERAL_BLOCKS.inputs()]
    check_dtype_need_dx_and_out(reference.conv_transpose2d, reference.conv_transpose2d_backward, inputs, 2, 1)


def check_several_blocks_forward(ops: Operations) -> None:
    check_forward(ops, SEVERAL_BLOCKS)


def check_several_blocks_backward(ops: Operations) -> None:
    check_backward(ops, SEVERAL_BLOCKS)


PLANTED = {
    "conv_transpose2d_forward_naive": Planted(
        check_several_blocks_forward,
        [
            ("positions between strides add too", " || column % stride != 0", ""),
            ("the bias is forgotten", "float sum = bias[o];", "float sum = 0.0f;"),
            ("the padding is forgotten", "w + padding - v", "w - v"),
            ("the last input row is left out", "i >= H ||", "i >= H - 1 ||"),
            ("the weight is read in the layout of conv2d", "weight[((c * O + o)", "weight[((o * C + c)"),
        ],
        naive=True,
    ),
    "conv_transpose2d_backward_input_naive": Planted(
        check_several_blocks_backward,
        [
            ("the stride is forgotten", "i * stride + u - padding", "i + u - padding"),
            ("the last row is left out", "h >= OH ||", "h >= OH - 1 ||"),
            ("the last channel is left out", "o < O;", "o < O - 1;"),
        ],
        naive=True,
    ),
    "conv_transpose2d_backward_weight_naive": Planted(
        check_several_blocks_backward,
        [
            ("only the first image is summed", "position < N * H * W", "position < H * W"),
            ("dout is read at the channel of the input", "dout[((n * O + o)", "dout[((n * O + c)"),
            ("the stride is forgotten", "j * stride + v - padding", "j + v - padding"),
        ],
        naive=True,
    ),
}

ZOO = {
    "conv_transpose2d_forward_naive": [
        Bug("the threads of several inputs add to the same output",
            {"int element ... y[element] = sum;": """\
    for (int element = thread_number(); element < N * C * H * W; element += gridDim.x * blockDim.x) {
        int j = element % W, i = element / W % H, c = element / (W * H) % C, n = element / (W * H * C);
        for (int o = 0; o < O; ++o)
            for (int u = 0; u < KH; ++u)
                for (int v = 0; v < KW; ++v) {
                    int h = i * stride + u - padding;
                    int w = j * stride + v - padding;
                    if (h < 0 || h >= OH || w < 0 || w >= OW) continue;
                    y[((n * O + o) * OH + h) * OW + w] += x[element] * weight[((c * O + o) * KH + u) * KW + v];
                }
    }"""},
            "check", RACE, ("y[((n * O + o) * OH + h) * OW + w] += ",)),
        Bug("positions between strides add too", {" || column % stride != 0": ""},
            "double", WRONG, ("y[element] = sum;",)),
        Bug("columns left of the image count as inside", {"column < 0 || ": ""},
            "check", OUTSIDE, ("* W + j] * weight",), "memcheck"),
    ],
    "conv_transpose2d_backward_input_naive": [
        Bug("a sum without an initial value", {"float sum = 0.0f;": "float sum;"},
            "trap", "uninitialized", ("float sum;",)),  # at the first use GCC 12 and 14 name different lines
        Bug("the weight is read in the layout of conv2d", {"weight[((c * O + o)": "weight[((o * C + c)"},
            "double", WRONG, ("dx[element] = sum;",)),
    ],
    "conv_transpose2d_backward_weight_naive": [
        Bug("one position too many", {"position < N * H * W": "position <= N * H * W"},
            "check", OUTSIDE, ("* dout[",), "memcheck"),
        Bug("all output channels write to the weights of the first",
            {"dweight[blockIdx.x] = total": "dweight[(c * O * KH + u) * KW + v] = total"},
            "check", RACE, ("dweight[(c * O * KH + u) * KW + v] = total",)),
    ],
}  # fmt: skip
