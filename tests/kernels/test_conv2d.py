"""Tests kernels/conv2d.cu against its reference, and the reference against plain loops."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from helpers.bugs import NEVER_WRITTEN, ORDER, OUTSIDE, RACE, WRONG, Bug, Planted
from helpers.closeness import assert_close, assert_equal, float64, on_device, positive
from helpers.reference_gradients import check_by_finite_differences, check_dtype_need_dx_and_out
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyfcn.operations import on
from tinyfcn.ops import Operations

reference = on("cpu")


@dataclass(frozen=True)
class Convolution:
    """Sizes of a convolution, and its inputs: x, weight, bias, dout."""

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: int = 1
    padding: int = 0
    seed: int = 0

    @property
    def y(self) -> tuple[int, int, int, int]:
        height, width = (
            (size + 2 * self.padding - kernel) // self.stride + 1
            for size, kernel in zip(self.x[2:], self.weight[2:], strict=True)
        )
        return self.x[0], self.weight[0], height, width

    def inputs(self) -> list[np.ndarray]:
        random = np.random.default_rng(self.seed)
        return [positive(random, *shape) for shape in (self.x, self.weight, self.weight[:1], self.y)]


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    padding = draw(st.integers(0, 3))
    height, width = (draw(st.integers(max(1, k - 2 * padding), k + 7)) for k in kernel)
    n, c, o = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    stride, seed = draw(st.integers(1, 4)), draw(st.integers(0, 999))
    return Convolution((n, c, height, width), (o, c, *kernel), stride, padding, seed)


# Several blocks of 256 for each array, none of them full, and no two sizes alike.
SEVERAL_BLOCKS = Convolution((3, 2, 13, 17), (3, 2, 3, 5), stride=2, padding=2)
LAYERS = [  # of the networks: conv1, conv2, dense32 in the classifier and in the design skip, two layers of 1x1
    Convolution((2, 1, 28, 28), (8, 1, 5, 5)),
    Convolution((2, 8, 12, 12), (8, 8, 3, 3)),
    Convolution((2, 8, 5, 5), (32, 8, 5, 5)),
    Convolution((1, 8, 6, 7), (32, 8, 5, 5), padding=2),
    Convolution((2, 32, 1, 1), (10, 32, 1, 1)),
    Convolution((1, 1, 16, 20), (16, 1, 1, 1)),
]
SMALLEST = [Convolution((1, 1, 1, 1), (1, 1, 1, 1)), Convolution((1, 1, 1, 1), (2, 1, 1, 1), stride=3, padding=2)]
FIXED = [SEVERAL_BLOCKS, *LAYERS, *SMALLEST]


def check_forward(ops: Operations, case: Convolution) -> None:
    """Compares the kernel's output with the reference."""
    x, weight, bias, _ = case.inputs()
    found = ops.to_numpy(ops.conv2d(*on_device(ops, x, weight, bias), case.stride, case.padding))
    assert found.dtype == np.float32
    expected = reference.conv2d(*float64(x, weight, bias), case.stride, case.padding)
    assert_close(found, expected, "one kernel", "y")


def check_backward(ops: Operations, case: Convolution) -> None:
    """Compares the kernels' gradients with the reference."""
    x, weight, _, dout = case.inputs()
    found = ops.conv2d_backward(*on_device(ops, dout, x, weight), case.stride, case.padding)
    expected = reference.conv2d_backward(*float64(dout, x, weight), case.stride, case.padding)
    for name, a, b in zip(("dx", "dweight", "dbias"), found, expected, strict=True):
        assert_close(ops.to_numpy(a), b, "one kernel", name)


@given(convolutions())
def test_forward(naive_ops: Operations, case: Convolution) -> None:
    check_forward(naive_ops, case)


@given(convolutions())
def test_backward(naive_ops: Operations, case: Convolution) -> None:
    check_backward(naive_ops, case)


@pytest.mark.parametrize("case", FIXED, ids=str)
def test_sizes_of_the_networks_and_extremes(naive_ops: Operations, case: Convolution) -> None:
    check_forward(naive_ops, case)
    check_backward(naive_ops, case)


def test_the_fixed_sizes_fill_several_blocks_and_none_evenly() -> None:
    for array in SEVERAL_BLOCKS.inputs()[0], SEVERAL_BLOCKS.inputs()[3]:
        assert array.size > 256 and array.size % 256


def test_gradients_are_written_into_out_and_nowhere_else(naive_ops: Operations) -> None:
    x, weight, _, dout = SEVERAL_BLOCKS.inputs()
    _, dweight, dbias = reference.conv2d_backward(dout, x, weight, 2, 2)
    flat = naive_ops.asarray(np.full(3 + weight.size + 3 + 2, 7, np.float32))
    into = flat[3 : 3 + weight.size].reshape(weight.shape), flat[3 + weight.size : -2]
    dx, *returned = naive_ops.conv2d_backward(*on_device(naive_ops, dout, x, weight), 2, 2, need_dx=False, out=into)
    assert dx is None
    assert [id(array) for array in returned] == [id(array) for array in into]
    expected = np.concatenate([np.full(3, 7), dweight.ravel(), dbias, np.full(2, 7)])
    assert_close(naive_ops.to_numpy(flat), expected, "one kernel")
    assert_equal(naive_ops.to_numpy(flat)[[0, 1, 2, -2, -1]], np.full(5, 7, np.float32))


def test_inputs_are_not_modified(naive_ops: Operations) -> None:
    x, weight, bias, dout = SEVERAL_BLOCKS.inputs()
    given = on_device(naive_ops, x, weight, bias, dout)
    naive_ops.conv2d(*given[:3], 2, 2)
    naive_ops.conv2d_backward(given[3], *given[:2], 2, 2)
    for before, after in zip((x, weight, bias, dout), given, strict=True):
        assert_equal(naive_ops.to_numpy(after), before)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 3, 9), (4, 3, 3, 3), (4,), r"conv2d: x must have shape \(any, any, any, any\), got \(2, 3, 9\)"),
        ((2, 3, 9, 9), (4, 2, 3, 3), (4,), r"conv2d: weight must have shape \(any, 3, any, any\), got \(4, 2, 3, 3\)"),
        ((2, 3, 9, 9), (4, 3, 3), (4,), "conv2d: weight"),
        ((2, 3, 9, 9), (4, 3, 3, 3), (3,), r"conv2d: bias must have shape \(4\), got \(3,\)"),
        ((2, 3, 9, 9), (4, 3, 3, 3), (4, 1), "conv2d: bias"),
        ((2, 3, 2, 9), (4, 3, 3, 3), (4,), "output's height would be 0: a 3x3 kernel over 2x9 pixels, padding 0"),
        ((2, 3, 9, 0), (4, 3, 3, 3), (4,), r"conv2d: x must not be empty, got shape \(2, 3, 9, 0\)"),
    ],
)
def test_mismatched_shapes_are_reported(ops: Operations, x, weight, bias, message: str) -> None:
    arrays = [np.ones(shape, np.float32) for shape in (x, weight, bias)]
    with pytest.raises(ValueError, match=message):
        ops.conv2d(*on_device(ops, *arrays))


def test_strides_below_one_are_refused(ops: Operations) -> None:
    x, weight, bias, dout = on_device(ops, *SEVERAL_BLOCKS.inputs())
    for stride in (0, -1):
        with pytest.raises(ValueError, match=f"conv2d: stride must be at least 1, got {stride}"):
            ops.conv2d(x, weight, bias, stride)
        with pytest.raises(ValueError, match=f"conv2d: stride must be at least 1, got {stride}"):
            ops.conv2d_backward(dout, x, weight, stride)


@pytest.mark.parametrize(
    ("dout", "dweight", "dbias", "message"),
    [
        ((2, 4, 8, 7), (4, 3, 3, 3), (4,), r"conv2d_backward: dout must have shape \(2, 4, 7, 7\), got \(2, 4, 8, 7\)"),
        ((2, 4, 7, 7), (4, 3, 3, 2), (4,), r"conv2d_backward: dweight must have shape \(4, 3, 3, 3\)"),
        ((2, 4, 7, 7), (4, 3, 3, 3), (5,), r"dbias must have shape \(4\), got \(5,\)"),
    ],
)
def test_mismatched_gradients_are_reported(ops: Operations, dout, dweight, dbias, message: str) -> None:
    x, weight = np.ones((2, 3, 9, 9), np.float32), np.ones((4, 3, 3, 3), np.float32)
    out = tuple(on_device(ops, np.ones(dweight, np.float32), np.ones(dbias, np.float32)))
    with pytest.raises(ValueError, match=message):
        ops.conv2d_backward(*on_device(ops, np.ones(dout, np.float32), x, weight), out=out)


def by_loops(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """The formula in the header of kernels/conv2d.cu, product by product."""
    n, c, height, width = x.shape
    o, _, kernel_height, kernel_width = weight.shape
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    out_width = (width + 2 * padding - kernel_width) // stride + 1
    y = np.zeros((n, o, out_height, out_width))
    for index in np.ndindex(*y.shape):
        image, channel, i, j = index
        y[index] = bias[channel]
        for k, u, v in np.ndindex(c, kernel_height, kernel_width):
            h, w = i * stride + u - padding, j * stride + v - padding
            if 0 <= h < height and 0 <= w < width:
                y[index] += x[image, k, h, w] * weight[channel, k, u, v]
    return y


def gradients_by_loops(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, stride: int, padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each product of the forward pass adds to the gradients of its two factors."""
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape[0])
    for n, o, i, j in np.ndindex(*dout.shape):
        dbias[o] += dout[n, o, i, j]
        for c, u, v in np.ndindex(*weight.shape[1:]):
            h, w = i * stride + u - padding, j * stride + v - padding
            if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]:
                dx[n, c, h, w] += dout[n, o, i, j] * weight[o, c, u, v]
                dweight[o, c, u, v] += dout[n, o, i, j] * x[n, c, h, w]
    return dx, dweight, dbias


TINY = [
    Convolution((2, 2, *size), (2, 2, *kernel), stride, padding, seed)
    for seed, (size, kernel, stride, padding) in enumerate(
        itertools.product([(3, 4), (5, 3)], [(1, 1), (2, 3), (3, 2)], [1, 2, 3], [0, 1, 2])
    )
]


def test_reference_is_the_formula() -> None:
    for case in TINY:
        x, weight, bias, dout = float64(*case.inputs())
        y = reference.conv2d(x, weight, bias, case.stride, case.padding)
        assert_close(y, by_loops(x, weight, bias, case.stride, case.padding), "float64", str(case))
        found = reference.conv2d_backward(dout, x, weight, case.stride, case.padding)
        expected = gradients_by_loops(dout, x, weight, case.stride, case.padding)
        for name, a, b in zip(("dx", "dweight", "dbias"), found, expected, strict=True):
            assert_close(a, b, "float64", f"{name} of {case}")


@settings(max_examples=15)
@given(convolutions())
def test_reference_gradients_by_finite_differences(case: Convolution) -> None:
    random = np.random.default_rng(case.seed)
    inputs = [random.standard_normal(array.shape) for array in case.inputs()]
    check_by_finite_differences(reference.conv2d, reference.conv2d_backward, inputs, case.stride, case.padding)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_keeps_the_dtype_and_takes_need_dx_and_out(dtype: type) -> None:
    inputs = [array.astype(dtype) for array in SEVERAL_BLOCKS.inputs()]
    check_dtype_need_dx_and_out(reference.conv2d, reference.conv2d_backward, inputs, 2, 2)


def check_several_blocks_forward(ops: Operations) -> None:
    check_forward(ops, SEVERAL_BLOCKS)


def check_several_blocks_backward(ops: Operations) -> None:
    check_backward(ops, SEVERAL_BLOCKS)


PLANTED = {
    "conv2d_forward_naive": Planted(
        check_several_blocks_forward,
        [
            ("the stride is forgotten", "i * stride + u - padding", "i + u - padding"),
            ("the bias is forgotten", "float sum = bias[o];", "float sum = 0.0f;"),
            ("the bias of another channel", "bias[o]", "bias[0]"),
            ("the last row is left out", "h >= H ||", "h >= H - 1 ||"),
            ("the last channel is left out", "c < C;", "c < C - 1;"),
            ("the axes of the weight are swapped", "* KH + u) * KW + v]", "* KW + v) * KH + u]"),
            ("the last element is left out", "element >= N * O * OH * OW", "element >= N * O * OH * OW - 1"),
        ],
        naive=True,
    ),
    "conv2d_backward_input_naive": Planted(
        check_several_blocks_backward,
        [
            ("rows between strides add too", "row % stride != 0 || ", ""),
            ("the padding is forgotten", "w + padding - v", "w - v"),
            ("the weight is not reversed", "h + padding - u;", "h - padding + u;"),
            ("the last output row is left out", "i >= OH ||", "i >= OH - 1 ||"),
            ("the channels of the weight are swapped", "weight[((o * C + c)", "weight[((c * O + o)"),
        ],
        naive=True,
    ),
    "conv2d_backward_weight_naive": Planted(
        check_several_blocks_backward,
        [
            ("the stride is applied to the weight", "i * stride + u - padding", "i + u * stride - padding"),
            ("only the first image is summed", "position < N * OH * OW", "position < OH * OW"),
            ("only the first channel is summed", "x[((n * C + c)", "x[((n * C)"),
            ("some positions are left out", "position += SUM_THREADS", "position += SUM_THREADS + 1"),
            ("the first column is left out", "w < 0 ||", "w < 1 ||"),
        ],
        naive=True,
    ),
    "conv2d_backward_bias_naive": Planted(
        check_several_blocks_backward,
        [
            ("the sum is not written", "if (threadIdx.x == 0) dbias[o] = total;", ""),
            ("only the first image is summed", "position < N * OH * OW", "position < OH * OW"),
            ("images and channels are confused", "(n * O + o)", "(n + o)"),
        ],
        naive=True,
    ),
}

ZOO = {
    "conv2d_forward_naive": [
        Bug("the stride is forgotten", {"i * stride + u - padding": "i + u - padding"},
            "double", WRONG, ("y[element] = sum;",)),
        Bug("the channels of the weight are swapped", {"weight[((o * C + c)": "weight[((c * O + o)"},
            "double", WRONG, ("y[element] = sum;",)),
        Bug("rows above the image count as inside", {"h < 0 || ": ""},
            "check", OUTSIDE, ("sum += x[((n * C + c) * H + h) * W + w] * weight",), "memcheck"),
        Bug("height and width are swapped", {"* H + h) * W + w]": "* W + h) * H + w]"},
            "check", OUTSIDE, ("* W + h) * H + w]",), "memcheck"),
    ],
    "conv2d_backward_input_naive": [
        Bug("the threads of several outputs add to the same input",
            {"int element ... dx[element] = sum;": """\
    for (int element = thread_number(); element < N * O * OH * OW; element += gridDim.x * blockDim.x) {
        int j = element % OW, i = element / OW % OH, o = element / (OW * OH) % O, n = element / (OW * OH * O);
        for (int c = 0; c < C; ++c)
            for (int u = 0; u < KH; ++u)
                for (int v = 0; v < KW; ++v) {
                    int h = i * stride + u - padding;
                    int w = j * stride + v - padding;
                    if (h < 0 || h >= H || w < 0 || w >= W) continue;
                    dx[((n * C + c) * H + h) * W + w] += dout[element] * weight[((o * C + c) * KH + u) * KW + v];
                }
    }"""},
            "check", RACE, ("dx[((n * C + c) * H + h) * W + w] += ",)),
        Bug("a division by the stride minus 1, which may be 0", {"row % stride != 0": "row % (stride - 1) != 0"},
            "trap", "divides", ("row % (stride - 1) != 0",)),
    ],
    "conv2d_backward_weight_naive": [
        Bug("all threads of a block add to one weight",
            {"float total = block_sum(sum);": "",
             "if (threadIdx.x == 0) dweight[blockIdx.x] = total;": "dweight[blockIdx.x] += sum;"},
            "check", RACE, ("dweight[blockIdx.x] += sum;",)),
        Bug("all threads write the sum that only the first one has", {"if (threadIdx.x == 0) dweight": "dweight"},
            "check", RACE, ("dweight[blockIdx.x] = total;",)),
        Bug("threads without a position return before the barrier of the sum",
            {"float sum = 0.0f;": "if (threadIdx.x >= N * OH * OW) return;\nfloat sum = 0.0f;"},
            "trap", "have exited", ("__syncthreads();  // until every thread",)),
    ],
    "conv2d_backward_bias_naive": [
        Bug("the sum is written by a thread that does not exist", {"threadIdx.x == 0": "threadIdx.x == SUM_THREADS"},
            "check", NEVER_WRITTEN, ("void conv2d_backward_bias_naive(",)),
        Bug("a block reads the result of the block before it",
            {"dbias[o] = total;": "dbias[o] = o > 0 ? dbias[o - 1] + total : total;"},
            "check", "nothing orders blocks", ("dbias[o - 1] + total",)),
        Bug("two sums use the same shared memory",
            {"float sum = 0.0f;": "float sum = 0.0f, squares = 0.0f;",
             "float total = block_sum(sum);": "float total = block_sum(sum) + 0.0f * block_sum(squares);"},
            "check", RACE, ("partial[threadIdx.x] = mine;", "total += partial[thread];"), "racecheck"),
        Bug("a barrier in a loop with fewer rounds for some threads",
            {"for (int position ... position % (OH * OW)];\n    }": """__shared__ float tile[SUM_THREADS];
    for (int position = threadIdx.x; position < N * OH * OW; position += SUM_THREADS) {
        int n = position / (OH * OW);
        tile[threadIdx.x] = dout[(n * O + o) * OH * OW + position % (OH * OW)];
        __syncthreads();  // for the tile
        sum += tile[threadIdx.x];
    }"""},
            "trap", "wait at __syncthreads",
            ("__syncthreads();  // for the tile", "__syncthreads();  // until every thread"), "synccheck"),
        Bug("the first thread to arrive writes the sum, not the one that has it",
            {"if (threadIdx.x == 0) dbias": """__shared__ int written;
    if (threadIdx.x == 0) written = 0;
    __syncthreads();
    if (atomicExch(&written, 1) == 0) dbias"""},
            "order", ORDER, ("dbias[o] = total;",)),
    ],
}  # fmt: skip
