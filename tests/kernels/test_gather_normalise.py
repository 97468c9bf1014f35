"""Tests kernels/gather_normalise.cu against its reference. Both round alike, so the results must be equal."""

import numpy as np
import pytest
from helpers.bugs import OUTSIDE, RACE, Bug, Planted
from helpers.closeness import assert_close, assert_equal, on_device
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyfcn.operations import on
from tinyfcn.ops import Operations

reference = on("cpu")

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
def test_full_and_partial_blocks(ops: Operations, images: Shape, count: int) -> None:
    check_gather(ops, images, count)


def stored(images: Shape, count: int, steps: int, seed: int, one_each: bool) -> tuple[np.ndarray, ...]:
    """Images, labels (one a pixel, or one an image) and the batches of some steps."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 256, images[:1] if one_each else images).astype(np.uint8)
    order = random.integers(0, images[0], (steps, count)).astype(np.int32)
    return inputs(images, count, seed)[0], labels, order


def check_batch(
    ops: Operations, images: Shape, count: int, steps: int = 3, seed: int = 0, one_each: bool = True
) -> None:
    """Compares the images and labels of several steps. After the last row of `order`, the first one follows."""
    bytes_, labels, order = stored(images, count, steps, seed, one_each)
    given = on_device(ops, bytes_, labels, order)
    for step in (0, steps - 1, steps, 5 * steps - 2):
        step = np.array([step], np.int32)
        found = map(ops.to_numpy, ops.gather_batch(*given, ops.asarray(step)))
        expected = reference.gather_batch(bytes_, labels, order, step)
        for name, a, b in zip(("batch", "labels"), found, expected, strict=True):
            assert_equal(a, b, name)


@settings(max_examples=20)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 999),
    st.booleans(),
)
def test_batches_against_reference(
    ops: Operations, images: Shape, count: int, steps: int, seed: int, one_each: bool
) -> None:
    check_batch(ops, images, count, steps, seed, one_each)


@pytest.mark.parametrize("one_each", [True, False])
@pytest.mark.parametrize(("images", "count"), [((7, 28, 28), 5), ((3, 16, 16), 4), ((600, 1, 1), 601)])
def test_batches_of_full_and_partial_blocks(ops: Operations, images: Shape, count: int, one_each: bool) -> None:
    check_batch(ops, images, count, one_each=one_each)


def test_a_batch_follows_the_step_counter_on_the_device(ops: Operations) -> None:
    """Each replay reads the step counter again, so the same launch gives another batch."""
    images = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    order = np.array([[0, 1], [2, 3], [4, 5]], np.int32)
    given = on_device(ops, images, np.arange(6, dtype=np.uint8), order, np.zeros(1, np.int32))
    batches = []
    recording = ops.device.record(lambda: batches.append(ops.gather_batch(*given)))
    for step, expected in ((0, [0, 1]), (2, [4, 5]), (4, [2, 3])):
        given[3][...] = ops.asarray(np.array([step], np.int32))
        recording.replay()
        assert ops.to_numpy(batches[0][1]).tolist() == expected
        assert np.rint(ops.to_numpy(batches[0][0])[:, 0, 0, 0] * 127 + 127).tolist() == expected
    given[2][...] = ops.asarray(order[::-1])
    recording.replay()
    assert ops.to_numpy(batches[0][1]).tolist() == [2, 3], "a replay must use a new order"


def test_every_byte_and_repeated_images(ops: Operations) -> None:
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


def test_reference_of_a_batch_by_hand() -> None:
    images = np.array([[[0, 127]], [[254, 255]]], np.uint8)
    order = np.array([[0, 1, 0], [1, 1, 0]], np.int32)
    batch, labels = reference.gather_batch(images, np.array([7, 9], np.uint8), order, np.array([5], np.int32))
    assert_equal(batch, reference.gather_normalise(images, order[1]))
    assert_equal(labels, np.array([9, 9, 7], np.int32))


def test_mismatched_batch_arrays_are_reported(ops: Operations) -> None:
    images, labels, order = on_device(ops, *stored((4, 3, 5), 2, 3, seed=0, one_each=False))
    (step,) = on_device(ops, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match=r"gather_batch: images must have shape \(any, any, any\), got \(4, 15\)"):
        ops.gather_batch(images.reshape(4, 15), labels, order, step)
    for wrong, shape in ((labels[:3], r"\(4, 3, 5\), got \(3, 3, 5\)"), (labels[:3, 0, 0], r"\(4\), got \(3,\)")):
        with pytest.raises(ValueError, match=f"gather_batch: labels must have shape {shape}"):
            ops.gather_batch(images, wrong, order, step)
    with pytest.raises(ValueError, match=r"gather_batch: labels must have shape \(4, 3\), got \(4, 5\)"):
        ops.gather_batch(images, labels[:, 0], order, step)
    with pytest.raises(ValueError, match=r"gather_batch: order must have shape \(any, any\), got \(2,\)"):
        ops.gather_batch(images, labels, order[0], step)
    with pytest.raises(ValueError, match=r"gather_batch: order must not be empty, got shape \(0, 2\)"):
        ops.gather_batch(images, labels, order[:0], step)
    with pytest.raises(ValueError, match=r"gather_batch: step must have shape \(1\), got \(2,\)"):
        ops.gather_batch(images, labels, order, order[0])
    with pytest.raises(TypeError, match="gather_batch: labels must hold uint8, got int32"):
        ops.gather_batch(images, *on_device(ops, np.zeros(4, np.int32)), order, step)


def test_mismatched_arrays_are_reported(ops: Operations) -> None:
    images, indices = inputs((4, 3, 3), 2)
    with pytest.raises(ValueError, match=r"gather_normalise: images must have shape \(any, any, any\), got \(4, 9\)"):
        ops.gather_normalise(*on_device(ops, images.reshape(4, 9), indices))
    with pytest.raises(ValueError, match=r"gather_normalise: indices must have shape \(any\), got \(1, 2\)"):
        ops.gather_normalise(*on_device(ops, images, indices[None]))
    with pytest.raises(TypeError, match="gather_normalise: indices must hold int32, got int64"):
        ops.gather_normalise(*on_device(ops, images, indices.astype(np.int64)))
    with pytest.raises(TypeError, match="gather_normalise: images must hold uint8, got float32"):
        ops.gather_normalise(*on_device(ops, images.astype(np.float32), indices))


def check_images(ops: Operations) -> None:
    check_gather(ops, (7, 28, 28), 5)


def check_batches(ops: Operations) -> None:
    check_batch(ops, (7, 28, 28), 5)
    check_batch(ops, (7, 9, 5), 5, one_each=False)


PLANTED = {
    "gather_normalise": Planted(
        check_images,
        [
            ("127 is off by one", "- 127)", "- 128)"),
            ("pixels are confused", "* S + element % S", "* S + element / S"),
            ("indices are ignored", "indices[element / S]", "(element / S)"),
        ],
    ),
    "gather_batch": Planted(
        check_batches,
        [
            ("always the batch of the first step", "step[0] % R * N", "step[0] % 1 * N"),
            ("the order does not repeat", "step[0] % R * N", "min(step[0], R - 1) * N"),
            ("the batch of the next step", "step[0] % R", "(step[0] + 1) % R"),
            ("labels of other images", "all_labels[image * L", "all_labels[n * L"),
            ("only the first label is written", "if (pixel < L)", "if (pixel < 1)"),
            ("all pixels get the first label", "image * L + pixel]", "image * L]"),
            ("127 is off by one", "- 127)", "- 128)"),
        ],
    ),
}

ZOO = {
    "gather_normalise": [
        Bug("images and pixels are swapped",
            {"indices[element / S] * S + element % S": "indices[element % S] * S + element / S"},
            "check", OUTSIDE, ("indices[element % S] * S + element / S",), "memcheck"),
        Bug("four bytes at once from images that are not aligned",
            {"if (element >= N * S) return; ... / 127.0f;": """if (4 * element >= N * S) return;
    int pixel = 4 * element;
    uchar4 four = *reinterpret_cast<const uchar4*>(images + indices[pixel / S] * S + pixel % S);
    batch[pixel] = (four.x - 127) / 127.0f;
    batch[pixel + 1] = (four.y - 127) / 127.0f;
    batch[pixel + 2] = (four.z - 127) / 127.0f;
    batch[pixel + 3] = (four.w - 127) / 127.0f;"""},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<const uchar4*>",), "memcheck"),
    ],
    "gather_batch": [
        Bug("the step is not reduced modulo the number of batches", {"step[0] % R * N": "step[0] * N"},
            "check", OUTSIDE, ("step[0] * N + n",), "memcheck"),
        Bug("the thread of each pixel stores the label of its image",
            {"if (pixel < L) labels[n * L + pixel]": "labels[n * L + pixel % L]"},
            "check", RACE, ("labels[n * L + pixel % L]",)),
    ],
}  # fmt: skip
