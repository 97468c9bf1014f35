"""kernels/gather_normalise.cu through its launcher against its reference: the same roundings, so exactly."""

import numpy as np
import pytest
from closeness import assert_close, assert_equal, on_device
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn import reference
from tinyfcn.operations import Operations

Shape = tuple[int, int, int]


def inputs(images: Shape, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    bytes_ = random.integers(0, 256, images).astype(np.uint8)
    return bytes_, random.integers(0, images[0], count).astype(np.int32)


def check_gather(ops: Operations, images: Shape, count: int, seed: int = 0) -> None:
    """(images[indices] - 127) / 127, with one channel."""
    bytes_, indices = inputs(images, count, seed)
    found = ops.to_numpy(ops.gather_normalise(*on_device(ops, bytes_, indices)))
    assert_equal(found, reference.gather_normalise(bytes_, indices), "batch")


@given(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), st.integers(1, 12), st.integers(0, 999))
def test_kernel_against_reference(ops: Operations, images: Shape, count: int, seed: int) -> None:
    check_gather(ops, images, count, seed)


@pytest.mark.parametrize(
    ("images", "count"), [((7, 28, 28), 5), ((3, 16, 16), 4), ((600, 1, 1), 601), ((2, 64, 84), 3)]
)
def test_blocks_full_and_not(ops: Operations, images: Shape, count: int) -> None:
    check_gather(ops, images, count)


def test_every_byte_and_repeated_pictures(ops: Operations) -> None:
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    indices = np.array([1, 1, 0], np.int32)
    found = ops.to_numpy(ops.gather_normalise(*on_device(ops, images, indices)))
    assert found.shape == (3, 1, 8, 16)
    expected = [(byte - 127) / 127 for byte in range(256)]
    assert_close(found[[2, 0]].ravel(), np.array(expected), "one kernel")
    assert_equal(found[0], found[1])
    assert found.min() == -1 and (found == 0).sum() == 1, "black is -1, and 127 is 0"


def test_reference_by_hand() -> None:
    images = np.array([[[0, 127]], [[254, 255]]], np.uint8)
    batch = reference.gather_normalise(images, np.array([1, 0, 1], np.int32))
    assert_equal(batch, np.array([[[[1, 128 / 127]]], [[[-1, 0]]], [[[1, 128 / 127]]]], np.float32))


def test_arrays_that_do_not_fit_are_named(ops: Operations) -> None:
    images, indices = inputs((4, 3, 3), 2)
    with pytest.raises(ValueError, match=r"gather_normalise: images must have shape \(any, any, any\), got \(4, 9\)"):
        ops.gather_normalise(*on_device(ops, images.reshape(4, 9), indices))
    with pytest.raises(ValueError, match=r"gather_normalise: indices must have shape \(any\), got \(1, 2\)"):
        ops.gather_normalise(*on_device(ops, images, indices[None]))
    with pytest.raises(TypeError, match="gather_normalise: argument 'indices' expects int32, got int64"):
        ops.gather_normalise(*on_device(ops, images, indices.astype(np.int64)))
    with pytest.raises(TypeError, match="gather_normalise: argument 'images' expects uint8, got float32"):
        ops.gather_normalise(*on_device(ops, images.astype(np.float32), indices))
