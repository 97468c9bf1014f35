"""Tests kernels/compose_m2nist.cu against its reference. The pixels are integers, so the results must be equal."""

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.bugs import ORDER, OUTSIDE, Bug, Planted
from helpers.closeness import assert_equal, on_device
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import KernelError
from tinyfcn.operations import on
from tinyfcn.ops import Operations
from tinyfcn.ops.compose_m2nist import COMPOSE_THREADS, MAX_SHARED_IMAGES, place_m2nist_naive
from tinyfcn.reference.compose_m2nist import HEIGHT, SIDE, WIDTH, place_m2nist

reference = on("cpu")

# The module; the function has the same name.
REFERENCE = importlib.import_module("tinyfcn.reference.compose_m2nist")
LARGEST = 2**32 - 1


@pytest.fixture
def ops(either: Operations) -> Operations:
    """All tests of this file run both forms of the kernels."""
    return either


def digits(count: int = 23, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels. Half of the pixels are random ink, so that a pixel from a wrong position shows."""
    random = np.random.default_rng(seed)
    ink = random.integers(1, 256, (count, SIDE, SIDE)) * random.integers(0, 2, (count, SIDE, SIDE))
    return ink.astype(np.uint8), random.integers(0, 10, count).astype(np.uint8)


def check_place(ops: Operations, digit_count: int, seed: int, step: int, count: int) -> None:
    """Compares the naive kernel's boxes with the reference's. The fast kernel does not store its boxes."""
    expected = place_m2nist(digit_count, seed, step, count)
    assert_equal(ops.to_numpy(place_m2nist_naive(ops.device, digit_count, seed, step, count)), expected, "boxes")


def check_compose(ops: Operations, seed: int, step: int, count: int, background: int = 10) -> None:
    """Compares the kernels' images and labels with the reference's."""
    images, digit_labels = digits()
    found = ops.compose_m2nist(*on_device(ops, images, digit_labels), seed, step, count, background)
    expected = reference.compose_m2nist(images, digit_labels, seed, step, count, background)
    for name, a, b in zip(("batch", "labels"), found, expected, strict=True):
        assert_equal(ops.to_numpy(a), b, name)


@given(st.integers(1, 60_000), st.integers(0, LARGEST), st.integers(0, LARGEST), st.integers(1, 40))
def test_the_kernel_chooses_the_same_positions_as_the_reference(
    naive_ops: Operations, digit_count, seed, step, count
) -> None:
    check_place(naive_ops, digit_count, seed, step, count)


@pytest.mark.parametrize("count", [1, 256, 257, 700])
def test_full_and_partial_blocks(naive_ops: Operations, count: int) -> None:
    check_place(naive_ops, 60_000, 1, 2, count)


@pytest.mark.parametrize("count", [1, 16, MAX_SHARED_IMAGES, MAX_SHARED_IMAGES + 1])
def test_batches_with_several_blocks_an_image_and_with_one(ops: Operations, count: int) -> None:
    check_compose(ops, 1, 2, count)


@pytest.mark.parametrize("tries", [32, 64, 96])
def test_images_that_need_many_tries(ops: Operations, tries: int, monkeypatch) -> None:
    """The lanes of a warp make 32 tries at once. Some of these images need a later round."""
    check_compose(ops, 0, 3, 100)
    boxes = place_m2nist(23, 0, 3, 100)
    monkeypatch.setattr(REFERENCE, "TRIES", tries)
    assert (place_m2nist(23, 0, 3, 100) != boxes).any(axis=(1, 2)).sum() >= 3


@pytest.mark.parametrize("step", [0, 1, 2**31 - 1, 2**31, LARGEST])
def test_the_step_may_be_a_number_or_an_array_on_the_device(ops: Operations, step: int) -> None:
    """The bits of the array are read as unsigned."""
    images, digit_labels = digits()
    counter = np.array([step], np.uint32).view(np.int32)
    expected = reference.compose_m2nist(images, digit_labels, 7, step, 3)
    for each in (ops, on("cpu")):
        arrays = on_device(each, images, digit_labels)
        for form in (step, np.uint32(step), each.asarray(counter)):
            found = each.compose_m2nist(*arrays, 7, form, 3)
            for name, a, b in zip(("batch", "labels"), found, expected, strict=True):
                assert_equal(each.to_numpy(a), b, name)


def test_a_replay_reads_the_step_counter(ops: Operations) -> None:
    images, digit_labels = digits()
    arrays, counter = on_device(ops, images, digit_labels), ops.asarray(np.zeros(1, np.int32))
    ops.compose_m2nist(*arrays, 7, counter, 2)
    results = []
    recording = ops.device.record(lambda: results.extend(ops.compose_m2nist(*arrays, 7, counter, 2)))
    for step in (5, 9):
        counter[...] = ops.asarray(np.array([step], np.int32))
        recording.replay()
        assert_equal(ops.to_numpy(results[1]), reference.compose_m2nist(images, digit_labels, 7, step, 2)[1], "labels")
    with pytest.raises(KernelError, match="while a step is recorded"):
        ops.device.record(lambda: ops.compose_m2nist(*arrays, 7, 5, 2))


def test_launcher_and_kernels_have_the_same_constants() -> None:
    text = (KERNELS / "compose_m2nist.cu").read_text()
    assert re.search(r"^constexpr int COMPOSE_THREADS = (\d+);", text, re.MULTILINE)[1] == str(COMPOSE_THREADS)
    assert COMPOSE_THREADS % 32 == 0, "whole warps"


@settings(max_examples=15)
@given(st.integers(0, LARGEST), st.integers(0, LARGEST), st.integers(1, 5), st.integers(0, 10))
def test_the_kernel_draws_the_same_images_as_the_reference(ops: Operations, seed, step, count, background) -> None:
    check_compose(ops, seed, step, count, background)


def test_images_by_hand(ops: Operations) -> None:
    """Each pixel is that of the box that covers it, or black."""
    images, digit_labels = digits()
    for each in (ops, on("cpu")):
        batch, labels = (
            each.to_numpy(array) for array in each.compose_m2nist(*on_device(each, images, digit_labels), 5, 6, 8)
        )
        assert batch.shape == (8, 1, HEIGHT, WIDTH) and labels.shape == (8, HEIGHT, WIDTH)
        assert (batch.dtype, labels.dtype) == (np.float32, np.int32)
        for n, boxes in enumerate(place_m2nist(len(digit_labels), 5, 6, 8)):
            pixels, truth = np.zeros((HEIGHT, WIDTH), int), np.full((HEIGHT, WIDTH), 10)
            for digit, top, left in boxes:
                for h, w in np.ndindex(SIDE, SIDE) if digit >= 0 else ():
                    pixels[top + h, left + w] = images[digit, h, w]
                    if images[digit, h, w] > 0:
                        truth[top + h, left + w] = digit_labels[digit]
            np.testing.assert_array_equal(np.rint(batch[n, 0] * 127 + 127), pixels)
            np.testing.assert_array_equal(labels[n], truth)
            assert ((labels[n] != 10) == (batch[n, 0] > -1)).all(), "exactly the pixels with ink have a label"


def test_pixels_without_ink_are_labelled_background(ops: Operations) -> None:
    images, digit_labels = digits()
    for each in (ops, on("cpu")):
        arrays = on_device(each, images, np.zeros_like(digit_labels))
        batch, labels = each.compose_m2nist(*arrays, 1, 2, 3, background=1)
        np.testing.assert_array_equal(each.to_numpy(labels), (each.to_numpy(batch)[:, 0] == -1).astype(np.int32))


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """For each image, whether two boxes of its digits overlap; boxes is (count, 3, 3)."""
    shared = np.zeros(len(boxes), bool)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        both_present = (boxes[:, a, 0] >= 0) & (boxes[:, b, 0] >= 0)
        shared |= both_present & (abs(boxes[:, a, 1:] - boxes[:, b, 1:]) < SIDE).all(axis=1)
    return shared


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """The boxes of 30,000 images."""
    return np.concatenate([place_m2nist(60_000, seed=7, step=step, count=1000) for step in range(30)])


def test_boxes_lie_within_the_image_and_never_overlap(many: np.ndarray) -> None:
    assert not overlaps(many).any()
    assert many[:, :, 1:].min() == 0
    assert many[:, :, 1].max() == HEIGHT - SIDE and many[:, :, 2].max() == WIDTH - SIDE


def test_one_to_three_digits_equally_often(many: np.ndarray) -> None:
    present = many[:, :, 0] >= 0
    assert (present[:, 0] & (present[:, 1] | ~present[:, 2])).all(), "present digits come first"
    counts = np.bincount(present.sum(axis=1), minlength=4)
    assert counts[0] == 0
    assert abs(counts[1:] - 10_000).max() < 330, "10,000 each, within 4 standard deviations of 82"


def test_digits_and_positions_are_uniformly_distributed(many: np.ndarray) -> None:
    chosen = many[:, :, 0][many[:, :, 0] >= 0]
    tenths = np.bincount(chosen * 10 // 60_000, minlength=10)
    assert abs(tenths - len(chosen) / 10).max() < 4.5 * np.sqrt(len(chosen) * 0.09)
    alone = many[many[:, 1, 0] < 0, 0]  # a single digit may be anywhere
    for axis, positions in ((1, HEIGHT - SIDE + 1), (2, WIDTH - SIDE + 1)):
        counts = np.bincount(alone[:, axis], minlength=positions)
        assert len(counts) == positions
        chi_squared = np.sum((counts - len(alone) / positions) ** 2) / (len(alone) / positions)
        assert chi_squared < positions + 4 * np.sqrt(2 * positions)


def test_images_are_a_function_of_seed_step_and_number() -> None:
    some = place_m2nist(500, seed=3, step=4, count=50)
    assert_equal(place_m2nist(500, seed=3, step=4, count=9), some[:9], "the first images of a longer batch")
    for seed, step in ((3, 5), (4, 4), (4, 3)):
        other = place_m2nist(500, seed, step, 50)
        assert (other[:, 0] == some[:, 0]).all(axis=1).sum() == 0


@pytest.mark.parametrize("tries", [1, 31, 32, 40])
def test_after_the_last_try_the_boxes_stand_side_by_side(ops: Operations, tries: int, tmp_path: Path, monkeypatch):
    """With few tries many images of three digits get no layout, in a copy of the kernels and in NumPy."""
    shutil.copy(KERNELS / "common.cuh", tmp_path)
    text = (KERNELS / "compose_m2nist.cu").read_text()
    assert "constexpr int TRIES = 512;\n" in text and REFERENCE.TRIES == 512
    (tmp_path / "compose_m2nist.cu").write_text(text.replace("TRIES = 512;", f"TRIES = {tries};"))
    monkeypatch.setattr(REFERENCE, "TRIES", tries)
    few = Operations(type(ops.device)(tmp_path, naive=ops.device.naive))
    check_place(few, 100, 0, 0, 300)
    check_compose(few, 0, 0, 60)
    boxes = place_m2nist(100, 0, 0, 300)
    assert not overlaps(boxes).any()
    in_a_row = (boxes[:, :, 2] == np.arange(3) * SIDE).all(axis=1)
    digit_counts = (boxes[:, :, 0] >= 0).sum(axis=1)
    assert not in_a_row[digit_counts == 1].any(), "a single digit always fits"
    three = in_a_row[digit_counts == 3]
    assert abs(three.mean() - (47 / 48) ** tries) < 0.2 and three[:20].sum() > 2


@pytest.mark.parametrize("tries", [1, 31, 32, 33, 64, 70])
def test_the_reference_makes_the_given_number_of_tries(tries: int, monkeypatch) -> None:
    """The reference makes 32 tries at a time, this test one after another."""
    monkeypatch.setattr(REFERENCE, "TRIES", tries)
    rows, columns = HEIGHT - SIDE + 1, WIDTH - SIDE + 1
    for n, boxes in enumerate(place_m2nist(10, 1, 2, 40)):
        count = (boxes[:, 0] >= 0).sum()
        for attempt in range(1, tries + 1):
            words = reference_words(attempt, n)
            positions = [(int(word) % (rows * columns) // columns, int(word) % columns) for word in words]
            if not any(
                abs(positions[a][0] - positions[b][0]) < SIDE and abs(positions[a][1] - positions[b][1]) < SIDE
                for a in range(count)
                for b in range(a)
            ):
                break
        else:
            positions = [(top, k * SIDE) for k, (top, _) in enumerate(positions)]
        assert [tuple(box[1:]) for box in boxes.tolist()] == positions, f"image {n}"


def reference_words(attempt: int, n: int) -> np.ndarray:
    """The three words of a try for image n with seed 1 and step 2."""
    return REFERENCE.philox((attempt, n, 2, 0), (1, 0))[:3]


def test_mismatched_arrays_are_reported(ops: Operations) -> None:
    images, digit_labels = digits(4)
    with pytest.raises(ValueError, match=r"compose_m2nist: digits must have shape \(any, 28, 28\), got \(4, 28, 27\)"):
        ops.compose_m2nist(*on_device(ops, images[:, :, 1:], digit_labels), 0, 0, 1)
    with pytest.raises(ValueError, match=r"compose_m2nist: digit_labels must have shape \(4\), got \(3,\)"):
        ops.compose_m2nist(*on_device(ops, images, digit_labels[1:]), 0, 0, 1)
    with pytest.raises(ValueError, match=r"compose_m2nist: digits must not be empty, got shape \(0, 28, 28\)"):
        ops.compose_m2nist(*on_device(ops, images[:0], digit_labels[:0]), 0, 0, 1)
    with pytest.raises(ValueError, match="compose_m2nist: seed must be 0 to 4294967295, got 4294967296"):
        ops.compose_m2nist(*on_device(ops, images, digit_labels), 2**32, 0, 1)
    with pytest.raises(ValueError, match="compose_m2nist: step must be 0 to 4294967295, got 4294967296"):
        ops.compose_m2nist(*on_device(ops, images, digit_labels), 0, 2**32, 1)
    with pytest.raises(ValueError, match=r"compose_m2nist: step must have shape \(1\), got \(2,\)"):
        ops.compose_m2nist(*on_device(ops, images, digit_labels), 0, ops.asarray(np.zeros(2, np.int32)), 1)
    with pytest.raises(TypeError, match="compose_m2nist: digits must hold uint8, got int32"):
        ops.compose_m2nist(*on_device(ops, images.astype(np.int32), digit_labels), 0, 0, 1)


def check_boxes(ops: Operations) -> None:
    check_place(ops, 60_000, 1, 2, 300)


def check_images(ops: Operations) -> None:
    check_compose(ops, 1, 2, 100, background=1)


PLANTED = {
    "compose_m2nist_place_naive": Planted(
        check_boxes,
        [
            ("never three digits", "choice.word[0] % 3", "choice.word[0] % 2"),
            ("the last two boxes may overlap", "b < a; ++b)", "b < a && b < 1; ++b)"),
            ("boxes must be apart in both directions", "< SIDE && abs(left", "< SIDE || abs(left"),
            ("touching boxes count as overlapping", "abs(left[a] - left[b]) < SIDE", "abs(left[a] - left[b]) <= SIDE"),
            ("the first random word is used twice", "choice.word[k + 1]", "choice.word[k]"),
            ("ROWS in place of COLUMNS", "position / COLUMNS", "position / ROWS"),
            ("the step is forgotten", "philox(attempt, n, now, 0, seed, 0)", "philox(attempt, n, 0, 0, seed, 0)"),
        ],
        naive=True,
    ),
    "compose_m2nist_draw_naive": Planted(
        check_images,
        [
            ("the last row of a box is left out", "h >= SIDE ||", "h >= SIDE - 1 ||"),
            ("faint ink is not labelled", "if (pixel > 0)", "if (pixel > 127)"),
            ("digits are transposed", "* SIDE + h) * SIDE + w]", "* SIDE + w) * SIDE + h]"),
            ("the background is always 10", "int label = background;", "int label = 10;"),
            ("boxes of another image", "/ (WIDTH * HEIGHT) * 9", "/ (WIDTH * HEIGHT) * 3"),
            ("black is 0", "(pixel - 127) / 127.0f", "pixel / 127.0f"),
        ],
        naive=True,
    ),
    "compose_m2nist": Planted(
        check_images,
        [
            ("never three digits", "choice.word[0] % 3", "choice.word[0] % 2"),
            ("the first random word is used twice", "choice.word[k + 1]", "choice.word[k]"),
            ("the step is forgotten", "philox(attempt, n, now, 0, seed, 0)", "philox(attempt, n, 0, 0, seed, 0)"),
            ("tries are counted from 0", "first = 1;", "first = 0;"),
            ("only the first 32 tries are made", "fitting == 0; first += 32", "fitting == 0; first += TRIES"),
            ("boxes without a digit must fit too", "a < count && rows_apart", "rows_apart"),
            ("boxes must be apart in both directions", "rows_apart < SIDE && columns", "rows_apart < SIDE || columns"),
            ("touching boxes count as overlapping", "columns_apart < SIDE)", "columns_apart <= SIDE)"),
            ("the last lane that fits is chosen", "__ffs(fitting) - 1", "31 - __clz(fitting)"),
            ("each lane uses its own try", "__shfl_sync(0xffffffff, position[k], chosen)", "position[k]"),
            ("digits are drawn without a box", "k < count ? position[k] / COLUMNS : HEIGHT", "position[k] / COLUMNS"),
            ("the last row of a box is left out", "h >= SIDE)", "h >= SIDE - 1)"),
            ("faint ink is not labelled", "pixel[i] > 0 ?", "pixel[i] > 127 ?"),
            ("digits are transposed", "* SIDE + h) * SIDE + w]", "* SIDE + w) * SIDE + h]"),
            ("the background is always 10", "ink[i] : background", "ink[i] : 10"),
            ("every digit has the label of the first", "ink[i] = name[k]", "ink[i] = name[0]"),
            ("the third of four pixels is stored twice", "value[2], value[3]", "value[2], value[2]"),
            (
                "the first of four labels is stored twice",
                "make_int4(label[0], label[1]",
                "make_int4(label[0], label[0]",
            ),
        ],
    ),
}

ZOO = {
    "compose_m2nist_place_naive": [
        Bug("the index of a random word is one too large", {"choice.word[k + 1]": "choice.word[k + 2]"},
            "trap", "the index 4 of an array of type 'unsigned int [4]'", ("choice.word[k + 2]",)),
        Bug("random numbers from a product that overflows an int",
            {"words.word[k] % (ROWS * COLUMNS)": "abs((n * 3 + k) * 1103515245 + 12345) % (ROWS * COLUMNS)"},
            "trap", "which overflows 'int'", ("1103515245",)),
        Bug("threads append their images in the order of arrival",
            {"int n = thread_number();": """__shared__ int next;
    if (threadIdx.x == 0) next = blockIdx.x * blockDim.x;
    __syncthreads();
    int n = thread_number();""",
             "if (n >= N) return;": "if (n >= N) return;\nint slot = atomicAdd(&next, 1);",
             "boxes + (n * 3 + k) * 3": "boxes + (slot * 3 + k) * 3"},
            "order", ORDER, ("box[0] = k < count",)),
    ],
    "compose_m2nist_draw_naive": [
        Bug("a digit is drawn where there is no box", {"digit < 0 || ": ""},
            "check", OUTSIDE, ("pixel = digits[",), "memcheck"),
        Bug("an image's boxes are assumed to be ten numbers", {"/ (WIDTH * HEIGHT) * 9": "/ (WIDTH * HEIGHT) * 10"},
            "check", OUTSIDE, ("int w = column - image_boxes[k * 3 + 2];",), "memcheck"),
    ],
    "compose_m2nist": [
        Bug("lanes whose try fits leave the loop before the ballot",
            {"fitting = __ballot_sync": "if (fits) break;\nfitting = __ballot_sync"},
            "trap", "wait at __ballot_sync", ("fitting = __ballot_sync",), "synccheck"),
        Bug("lanes without pixels return before the ballot",
            {"int position[3];": "if (blockIdx.y * COMPOSE_THREADS + threadIdx.x >= 1340) return;\nint position[3];"},
            "trap", "wait at __ballot_sync", ("fitting = __ballot_sync",)),
        Bug("the first lane to arrive is chosen, not the lowest",
            {"fitting = __ballot_sync(0xffffffff, fits);": """__shared__ int lowest_lanes[COMPOSE_THREADS / 32];
        int* lowest = lowest_lanes + threadIdx.x / 32;
        if (lane == 0) *lowest = -1;
        __syncwarp();
        if (fits) atomicCAS(lowest, -1, lane);
        __syncwarp();
        fitting = *lowest < 0 ? 0 : 1u << *lowest;
        __syncwarp();"""},
            "order", ORDER, ("reinterpret_cast<float4*>(batch)[at] =",)),
        Bug("float4s are indexed as if they were pixels",
            {"reinterpret_cast<float4*>(batch)[at]": "*reinterpret_cast<float4*>(batch + at)"},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<float4*>(batch + at)",), "memcheck"),
        Bug("one float4 too many", {"four < HEIGHT * FOURS": "four <= HEIGHT * FOURS"},
            "check", OUTSIDE, ("reinterpret_cast<float4*>(batch)[at] =",), "memcheck"),
        Bug("all blocks of an image draw its first part",
            {"four = blockIdx.y * COMPOSE_THREADS + threadIdx.x": "four = threadIdx.x"},
            "check", "nothing orders blocks", ("reinterpret_cast<float4*>(batch)[at] =",)),
        Bug("pixels above a box count as inside", {"h < 0 || ": ""},
            "check", OUTSIDE, ("pixel[i] = digits[",), "memcheck"),
    ],
}  # fmt: skip
