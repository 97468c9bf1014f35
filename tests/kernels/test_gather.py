"""Tests kernels/gather.cu and the packing of weights against orders written by hand. Copied values must be equal."""

import numpy as np
import pytest
from helpers.bugs import NEVER_WRITTEN, OUTSIDE, Bug, Planted
from helpers.closeness import assert_equal, on_device
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn.operations import on
from tinyfcn.ops import Operations
from tinyfcn.packed_weight import FlatWeight, backward_input_order, forward_order, packed_index, unpacked

reference = on("cpu")


def check(ops: Operations, count: int, size: int, seed: int = 0) -> None:
    """Each value is 1 more than its index, so that 0 is none of them."""
    random = np.random.default_rng(seed)
    values = np.arange(1, size + 1, dtype=np.float32)
    index = random.integers(-2, size + 2, count, dtype=np.int32)
    expected = np.array([at + 1 if 0 <= at < size else 0 for at in index.tolist()], np.float32)
    assert_equal(ops.to_numpy(ops.gather(*on_device(ops, values, index))), expected)
    assert_equal(reference.gather(values, index), expected, "of the reference")


@given(st.integers(1, 600), st.integers(1, 300), st.integers(0, 999))
def test_any_sizes(ops: Operations, count: int, size: int, seed: int) -> None:
    check(ops, count, size, seed)


@pytest.mark.parametrize("count", [1, 255, 256, 257])
def test_full_and_partial_blocks(ops: Operations, count: int) -> None:
    check(ops, count, 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_reference_keeps_the_dtype(dtype: type) -> None:
    assert reference.gather(np.ones(3, dtype), np.array([0, 9], np.int32)).dtype == dtype


def test_wrong_arguments_are_reported(ops: Operations) -> None:
    values, index = on_device(ops, np.ones((2, 3), np.float32), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=r"gather: values must have shape \(any\), got \(2, 3\)"):
        ops.gather(values, index)
    with pytest.raises(TypeError, match="gather: index must hold int32, got float32"):
        ops.gather(values.reshape(-1), values.reshape(-1))


def packed(order: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return reference.gather(weight.ravel(), order.ravel()).reshape(order.shape)


@given(*[st.integers(1, 9)] * 2, *[st.integers(1, 6)] * 2, st.integers(1, 4))
def test_a_packed_weight_has_each_element_where_its_kernel_reads_it(
    o: int, c: int, kernel_height: int, kernel_width: int, stride: int
) -> None:
    """(C, KH, KW, O) and (O, KH, KW, C), the channels rounded up to 4 with zeros, KH to a multiple of the stride."""
    weight = np.random.default_rng(0).uniform(1, 2, (o, c, kernel_height, kernel_width))
    forward = packed(forward_order(weight.shape), weight)
    backward = packed(backward_input_order(weight.shape, stride), weight)
    assert forward.shape == (c, kernel_height, kernel_width, (o + 3) // 4 * 4)
    assert backward.shape[1] % stride == 0 <= backward.shape[1] - kernel_height < stride
    for at in np.ndindex(weight.shape):
        assert forward[at[1], at[2], at[3], at[0]] == weight[at] == backward[at[0], at[2], at[3], at[1]]
    assert np.count_nonzero(forward) == np.count_nonzero(backward) == weight.size


def test_weights_of_a_flat_array_are_packed_one_after_another() -> None:
    parameters = np.arange(1, 200, dtype=np.float32)
    weights = FlatWeight(3, (5, 2, 3, 3), 2), FlatWeight(120, (3, 6, 2, 2), 1)
    flat = reference.gather(parameters, packed_index(weights))
    for each, found in zip(weights, unpacked(flat, weights), strict=True):
        assert found.stride == each.stride
        weight = parameters[each.start :][: np.prod(each.shape)].reshape(each.shape)
        for order, part in zip(each.orders, (found.forward, found.backward_input), strict=True):
            assert_equal(part.reshape(order.shape), packed(order, weight))


def test_a_weight_packed_for_another_stride_serves_too(ops: Operations) -> None:
    """As that of a strided convolution in a network, which names the strides of its transposed convolutions alone."""
    x, weight, bias, dout = on_device(ops, *map(positive_floats, ((2, 3, 9, 9), (4, 3, 5, 5), (4,), (2, 4, 3, 3))))
    weights = (FlatWeight(0, weight.shape, 1),)
    (given,) = unpacked(ops.gather(weight.reshape(-1), ops.asarray(packed_index(weights))), weights)
    y, dx = ops.conv2d(x, weight, bias, 2, packed=given), ops.conv2d_backward(dout, x, weight, 2, packed=given)[0]
    assert_equal(ops.to_numpy(y), ops.to_numpy(ops.conv2d(x, weight, bias, 2)))
    assert_equal(ops.to_numpy(dx), ops.to_numpy(ops.conv2d_backward(dout, x, weight, 2)[0]))


def positive_floats(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(0.5, 1.5, shape).astype(np.float32)


def check_partial_block(ops: Operations) -> None:
    check(ops, 300, 40)


PLANTED = {
    "gather": Planted(
        check_partial_block,
        [
            ("an index outside gives the first value", ": 0.0f", ": values[0]"),
            ("the last value is taken for one outside", "from < P", "from < P - 1"),
            ("values are scattered", "gathered[element] = 0 <= from && from < P ? values[from] : 0.0f;",
             "if (0 <= from && from < P && element < P) gathered[from] = values[element];"),
        ],
    ),
}  # fmt: skip

ZOO = {
    "gather": [
        Bug("the surplus threads of the last block write too", {"if (element >= M) return;": ""},
            "check", OUTSIDE, ("int from = index[element];",), "memcheck"),
        Bug("an index below 0 is taken", {"0 <= from && from < P": "from < P"},
            "check", OUTSIDE, ("values[from]",), "memcheck"),
        Bug("the last element has no thread", {"element >= M": "element >= M - 1"},
            "check", NEVER_WRITTEN, ("void gather(",)),
    ],
}  # fmt: skip
