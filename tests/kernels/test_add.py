"""Tests kernels/add.cu against its reference. Both round alike, so the results must be equal."""

import numpy as np
import pytest
from helpers.bugs import NEVER_WRITTEN, OUTSIDE, RACE, UNWRITTEN, Bug, Planted
from helpers.closeness import assert_equal, on_device
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn.operations import on
from tinyfcn.ops import Operations

reference = on("cpu")

SHAPES = [(1,), (255,), (256,), (257,), (3, 7, 11, 5), (2, 600)]


def inputs(shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """a, b and dz."""
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for _ in range(3)]


def check_forward(ops: Operations, shape: tuple[int, ...], scale: float, seed: int = 0) -> None:
    """z = scale * (a + b)."""
    a, b, _ = inputs(shape, seed)
    expected = np.float32(scale) * (a + b)
    assert_equal(ops.to_numpy(ops.add(*on_device(ops, a, b), scale)), expected, "z")
    assert_equal(reference.add(a, b, scale), expected, "the reference's z")


def check_backward(ops: Operations, shape: tuple[int, ...], scale: float, seed: int = 0) -> None:
    """da = db = scale * dz."""
    dz = inputs(shape, seed)[2]
    expected = np.float32(scale) * dz
    assert_equal(ops.to_numpy(ops.add_backward(ops.asarray(dz), scale)), expected, "da")
    assert_equal(reference.add_backward(dz, scale), expected, "the reference's da")


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    st.sampled_from([1, 0.5, 1 / 3, -2]),
    st.integers(0, 999),
)
def test_forward_and_backward(ops: Operations, shape: tuple[int, ...], scale: float, seed: int) -> None:
    check_forward(ops, shape, scale, seed)
    check_backward(ops, shape, scale, seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_and_partial_blocks(ops: Operations, shape: tuple[int, ...]) -> None:
    for scale in (1, 0.5):
        check_forward(ops, shape, scale)
        check_backward(ops, shape, scale)


def test_the_summands_are_not_modified_and_the_sum_is_a_new_array(ops: Operations) -> None:
    for each in (ops, on("cpu")):
        a, b, _ = inputs((3, 5))
        given = on_device(each, a, b)
        z = each.add(*given)
        z += 1
        assert_equal(each.to_numpy(given[0]), a)
        assert_equal(each.to_numpy(given[1]), b)


def test_the_gradient_of_a_plain_sum_is_passed_through_without_a_launch(ops: Operations) -> None:
    dz = ops.asarray(inputs((3, 5))[2])
    assert ops.add_backward(dz) is dz
    assert reference.add_backward(ops.to_numpy(dz)).shape == (3, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_keeps_the_dtype(dtype: type) -> None:
    a, b, dz = (array.astype(dtype) for array in inputs((3, 5)))
    assert reference.add(a, b, 0.5).dtype == reference.add_backward(dz, 0.5).dtype == dtype


def test_mismatched_shapes_are_reported(ops: Operations) -> None:
    a, b = on_device(ops, np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32))
    with pytest.raises(ValueError, match=r"add: b must have shape \(2, 3\), got \(2, 1\)"):
        ops.add(a, b)


def check_a_mean(ops: Operations) -> None:
    check_forward(ops, (3, 7, 11, 5), 0.5)


def check_a_means_gradient(ops: Operations) -> None:
    check_backward(ops, (3, 7, 11, 5), 0.5)


PLANTED = {
    "add_forward": Planted(
        check_a_mean,
        [
            ("only a is scaled", "scale * (a[element] + b[element])", "scale * a[element] + b[element]"),
            ("b is subtracted", "a[element] + b", "a[element] - b"),
        ],
    ),
    "add_backward": Planted(
        check_a_means_gradient,
        [
            ("the scale is forgotten", "scale * dz[element]", "dz[element]"),
            ("the last element is left out", "element >= count", "element >= count - 1"),
        ],
    ),
}

ZOO = {
    "add_forward": [
        Bug("the sum is added to an output without an initial value", {"z[element] = ": "z[element] += "},
            "check", UNWRITTEN, ("z[element] += ",), "initcheck"),
        Bug("b is read one element too far", {"b[element]": "b[element + 1]"},
            "check", OUTSIDE, ("b[element + 1]",), "memcheck"),
    ],
    "add_backward": [
        Bug("each block processes the whole array",
            {"if (element >= count) return; ... dz[element];": """for (int e = element; e < count; e += blockDim.x)
        da[e] = scale * dz[e];"""},
            "check", RACE, ("da[e] = ",)),
        Bug("the last element has no thread", {"element >= count": "element >= count - 1"},
            "check", NEVER_WRITTEN, ("void add_backward(",)),  # a missing element has no line but that of the kernel
    ],
}  # fmt: skip
