"""kernels/compose_m2nist.cu through its launcher against its reference, exactly: integers and pixels."""

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

# The module: of the same name is the function that tinyfcn.reference hands on.
REFERENCE = importlib.import_module("tinyfcn.reference.compose_m2nist")
LARGEST = 2**32 - 1


@pytest.fixture
def ops(either: Operations) -> Operations:
    """All tests here are of both forms of the kernels."""
    return either


def digits(count: int = 23, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures that are half ink of random strength up to their edges, and labels: where a pixel is from shows."""
    random = np.random.default_rng(seed)
    ink = random.integers(1, 256, (count, SIDE, SIDE)) * random.integers(0, 2, (count, SIDE, SIDE))
    return ink.astype(np.uint8), random.integers(0, 10, count).astype(np.uint8)


def check_place(ops: Operations, digit_count: int, seed: int, step: int, count: int) -> None:
    """The naive kernel's boxes are the reference's. Those of the fast kernel show in its images alone."""
    expected = place_m2nist(digit_count, seed, step, count)
    assert_equal(ops.to_numpy(place_m2nist_naive(ops.device, digit_count, seed, step, count)), expected, "boxes")


def check_compose(ops: Operations, seed: int, step: int, count: int, background: int = 10) -> None:
    """The kernels' images and labels are the reference's."""
    images, names = digits()
    found = ops.compose_m2nist(*on_device(ops, images, names), seed, step, count, background)
    expected = reference.compose_m2nist(images, names, seed, step, count, background)
    for name, a, b in zip(("batch", "labels"), found, expected, strict=True):
        assert_equal(ops.to_numpy(a), b, name)


@given(st.integers(1, 60_000), st.integers(0, LARGEST), st.integers(0, LARGEST), st.integers(1, 40))
def test_the_kernel_chooses_the_references_positions(naive_ops: Operations, digit_count, seed, step, count) -> None:
    check_place(naive_ops, digit_count, seed, step, count)


@pytest.mark.parametrize("count", [1, 256, 257, 700])
def test_blocks_full_and_not(naive_ops: Operations, count: int) -> None:
    check_place(naive_ops, 60_000, 1, 2, count)


@pytest.mark.parametrize("count", [0, 1, 16, MAX_SHARED_IMAGES, MAX_SHARED_IMAGES + 1])
def test_blocks_that_share_a_image_and_one_for_each(ops: Operations, count: int) -> None:
    check_compose(ops, 1, 2, count)


@pytest.mark.parametrize("tries", [32, 64, 96])
def test_images_that_take_many_tries(ops: Operations, tries: int, monkeypatch) -> None:
    """The lanes of a warp try 32 times at once: some of these images are placed in a later round."""
    check_compose(ops, 0, 3, 100)
    boxes = place_m2nist(23, 0, 3, 100)
    monkeypatch.setattr(REFERENCE, "TRIES", tries)
    assert (place_m2nist(23, 0, 3, 100) != boxes).any(axis=(1, 2)).sum() >= 3


@pytest.mark.parametrize("step", [0, 1, 2**31 - 1, 2**31, LARGEST])
def test_a_step_is_a_number_or_counted_on_the_device(ops: Operations, step: int) -> None:
    """With the counter's bits read as unsigned."""
    images, names = digits()
    counter = np.array([step], np.uint32).view(np.int32)
    expected = reference.compose_m2nist(images, names, 7, step, 3)
    for each in (ops, on("cpu")):
        arrays = on_device(each, images, names)
        for form in (step, np.uint32(step), each.asarray(counter)):
            found = each.compose_m2nist(*arrays, 7, form, 3)
            for name, a, b in zip(("batch", "labels"), found, expected, strict=True):
                assert_equal(each.to_numpy(a), b, name)


def test_a_recorded_step_goes_by_the_counter(ops: Operations) -> None:
    images, names = digits()
    arrays, counter = on_device(ops, images, names), ops.asarray(np.zeros(1, np.int32))
    ops.compose_m2nist(*arrays, 7, counter, 2)
    results = []
    recording = ops.device.record(lambda: results.extend(ops.compose_m2nist(*arrays, 7, counter, 2)))
    for step in (5, 9):
        counter[...] = ops.asarray(np.array([step], np.int32))
        recording.replay()
        assert_equal(ops.to_numpy(results[1]), reference.compose_m2nist(images, names, 7, step, 2)[1], "labels")
    with pytest.raises(KernelError, match="while a step is recorded"):
        ops.device.record(lambda: ops.compose_m2nist(*arrays, 7, 5, 2))


def test_sizes_are_the_kernels() -> None:
    text = (KERNELS / "compose_m2nist.cu").read_text()
    assert re.search(r"^constexpr int COMPOSE_THREADS = (\d+);", text, re.MULTILINE)[1] == str(COMPOSE_THREADS)
    assert COMPOSE_THREADS % 32 == 0, "whole warps"


@settings(max_examples=15)
@given(st.integers(0, LARGEST), st.integers(0, LARGEST), st.integers(1, 5), st.integers(0, 10))
def test_the_kernel_draws_the_references_images(ops: Operations, seed, step, count, background) -> None:
    check_compose(ops, seed, step, count, background)


def test_images_by_hand(ops: Operations) -> None:
    """Pixel by pixel from the boxes: the box that covers it, or black."""
    images, names = digits()
    for each in (ops, on("cpu")):
        batch, labels = (
            each.to_numpy(array) for array in each.compose_m2nist(*on_device(each, images, names), 5, 6, 8)
        )
        assert batch.shape == (8, 1, HEIGHT, WIDTH) and labels.shape == (8, HEIGHT, WIDTH)
        assert (batch.dtype, labels.dtype) == (np.float32, np.int32)
        for n, boxes in enumerate(place_m2nist(len(names), 5, 6, 8)):
            pixels, truth = np.zeros((HEIGHT, WIDTH), int), np.full((HEIGHT, WIDTH), 10)
            for digit, top, left in boxes:
                for h, w in np.ndindex(SIDE, SIDE) if digit >= 0 else ():
                    pixels[top + h, left + w] = images[digit, h, w]
                    if images[digit, h, w] > 0:
                        truth[top + h, left + w] = names[digit]
            np.testing.assert_array_equal(np.rint(batch[n, 0] * 127 + 127), pixels)
            np.testing.assert_array_equal(labels[n], truth)
            assert ((labels[n] != 10) == (batch[n, 0] > -1)).all(), "a label wherever there is ink, and only there"


def test_background_is_the_label_where_no_ink_is(ops: Operations) -> None:
    images, names = digits()
    for each in (ops, on("cpu")):
        ink_or_not = on_device(each, images, np.zeros_like(names))
        batch, labels = each.compose_m2nist(*ink_or_not, 1, 2, 3, background=1)
        np.testing.assert_array_equal(each.to_numpy(labels), (each.to_numpy(batch)[:, 0] == -1).astype(np.int32))


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """For each image whether two of its digits' boxes (count, 3, 3) share a pixel."""
    shared = np.zeros(len(boxes), bool)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        there = (boxes[:, a, 0] >= 0) & (boxes[:, b, 0] >= 0)
        shared |= there & (abs(boxes[:, a, 1:] - boxes[:, b, 1:]) < SIDE).all(axis=1)
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
    assert (present[:, 0] & (present[:, 1] | ~present[:, 2])).all(), "those there are come first"
    counts = np.bincount(present.sum(axis=1), minlength=4)
    assert counts[0] == 0
    assert abs(counts[1:] - 10_000).max() < 330, "10,000 each, within 4 standard deviations of 82"


def test_digits_and_places_are_spread_evenly(many: np.ndarray) -> None:
    chosen = many[:, :, 0][many[:, :, 0] >= 0]
    tenths = np.bincount(chosen * 10 // 60_000, minlength=10)
    assert abs(tenths - len(chosen) / 10).max() < 4.5 * np.sqrt(len(chosen) * 0.09)
    alone = many[many[:, 1, 0] < 0, 0]  # a single digit is free to lie anywhere
    for axis, places in ((1, HEIGHT - SIDE + 1), (2, WIDTH - SIDE + 1)):
        counts = np.bincount(alone[:, axis], minlength=places)
        assert len(counts) == places
        squares = np.sum((counts - len(alone) / places) ** 2) / (len(alone) / places)
        assert squares < places + 4 * np.sqrt(2 * places), "chi-squared"


def test_images_are_a_function_of_seed_step_and_number() -> None:
    some = place_m2nist(500, seed=3, step=4, count=50)
    assert_equal(place_m2nist(500, seed=3, step=4, count=9), some[:9], "the first of a longer batch")
    for seed, step in ((3, 5), (4, 4), (4, 3)):
        other = place_m2nist(500, seed, step, 50)
        assert (other[:, 0] == some[:, 0]).all(axis=1).sum() == 0


@pytest.mark.parametrize("tries", [1, 31, 32, 40])
def test_when_no_try_serves_the_boxes_stand_side_by_side(ops: Operations, tries: int, tmp_path: Path, monkeypatch):
    """With few tries many images of three digits find no place, in a copy of the kernels as in NumPy."""
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
    digits_there = (boxes[:, :, 0] >= 0).sum(axis=1)
    assert not in_a_row[digits_there == 1].any(), "a single digit always finds a place"
    three = in_a_row[digits_there == 3]
    assert abs(three.mean() - (47 / 48) ** tries) < 0.2 and three[:20].sum() > 2


@pytest.mark.parametrize("tries", [1, 31, 32, 33, 64, 70])
def test_the_reference_makes_as_many_tries_as_it_says(tries: int, monkeypatch) -> None:
    """It makes them 32 at a time; here one after another."""
    monkeypatch.setattr(REFERENCE, "TRIES", tries)
    rows, columns = HEIGHT - SIDE + 1, WIDTH - SIDE + 1
    for n, boxes in enumerate(place_m2nist(10, 1, 2, 40)):
        count = (boxes[:, 0] >= 0).sum()
        for attempt in range(1, tries + 1):
            words = reference_words(attempt, n)
            places = [(int(word) % (rows * columns) // columns, int(word) % columns) for word in words]
            if not any(
                abs(places[a][0] - places[b][0]) < SIDE and abs(places[a][1] - places[b][1]) < SIDE
                for a in range(count)
                for b in range(a)
            ):
                break
        else:
            places = [(top, k * SIDE) for k, (top, _) in enumerate(places)]
        assert [tuple(box[1:]) for box in boxes.tolist()] == places, f"image {n}"


def reference_words(attempt: int, n: int) -> np.ndarray:
    """The three words of a try for image n with seed 1 and step 2."""
    return REFERENCE.philox((attempt, n, 2, 0), (1, 0))[:3]


def test_arrays_that_do_not_fit_are_named(ops: Operations) -> None:
    images, names = digits(4)
    with pytest.raises(ValueError, match=r"compose_m2nist: digits must have shape \(any, 28, 28\), got \(4, 28, 27\)"):
        ops.compose_m2nist(*on_device(ops, images[:, :, 1:], names), 0, 0, 1)
    with pytest.raises(ValueError, match=r"compose_m2nist: digit_labels must have shape \(4\), got \(3,\)"):
        ops.compose_m2nist(*on_device(ops, images, names[1:]), 0, 0, 1)
    with pytest.raises(ValueError, match="compose_m2nist: the number of digits must be at least 1, got 0"):
        ops.compose_m2nist(*on_device(ops, images[:0], names[:0]), 0, 0, 1)
    with pytest.raises(ValueError, match="argument 'seed' is 4294967296, which does not fit uint32"):
        ops.compose_m2nist(*on_device(ops, images, names), 2**32, 0, 1)
    with pytest.raises(ValueError, match="compose_m2nist: step is 4294967296, which does not fit uint32"):
        ops.compose_m2nist(*on_device(ops, images, names), 0, 2**32, 1)
    with pytest.raises(ValueError, match=r"compose_m2nist: step must have shape \(1\), got \(2,\)"):
        ops.compose_m2nist(*on_device(ops, images, names), 0, ops.asarray(np.zeros(2, np.int32)), 1)
    with pytest.raises(TypeError, match="argument 'digits' expects uint8, got int32"):
        ops.compose_m2nist(*on_device(ops, images.astype(np.int32), names), 0, 0, 1)


def check_boxes(ops: Operations) -> None:
    check_place(ops, 60_000, 1, 2, 300)


def check_images(ops: Operations) -> None:
    check_compose(ops, 1, 2, 100, background=1)


PLANTED = {
    "compose_m2nist_place_naive": Planted(
        check_boxes,
        [
            ("never three", "choice.word[0] % 3", "choice.word[0] % 2"),
            ("last two may overlap", "b < a; ++b)", "b < a && b < 1; ++b)"),
            ("apart both ways", "< SIDE && abs(left", "< SIDE || abs(left"),
            ("touching counts", "abs(left[a] - left[b]) < SIDE", "abs(left[a] - left[b]) <= SIDE"),
            ("the first word twice", "choice.word[k + 1]", "choice.word[k]"),
            ("rows for columns", "position / COLUMNS", "position / ROWS"),
            ("step forgotten", "philox(attempt, n, now, 0, seed, 0)", "philox(attempt, n, 0, 0, seed, 0)"),
        ],
        naive=True,
    ),
    "compose_m2nist_draw_naive": Planted(
        check_images,
        [
            ("last row of a box left out", "h >= SIDE ||", "h >= SIDE - 1 ||"),
            ("faint ink is none", "if (pixel > 0)", "if (pixel > 127)"),
            ("digits lie on their side", "* SIDE + h) * SIDE + w]", "* SIDE + w) * SIDE + h]"),
            ("background always 10", "int label = background;", "int label = 10;"),
            ("boxes of another picture", "/ (WIDTH * HEIGHT) * 9", "/ (WIDTH * HEIGHT) * 3"),
            ("black is 0", "(pixel - 127) / 127.0f", "pixel / 127.0f"),
        ],
        naive=True,
    ),
    "compose_m2nist": Planted(
        check_images,
        [
            ("never three", "choice.word[0] % 3", "choice.word[0] % 2"),
            ("the first word twice", "choice.word[k + 1]", "choice.word[k]"),
            ("step forgotten", "philox(attempt, n, now, 0, seed, 0)", "philox(attempt, n, 0, 0, seed, 0)"),
            ("tries counted from 0", "first = 1;", "first = 0;"),
            ("the first 32 tries alone", "fitting == 0; first += 32", "fitting == 0; first += TRIES"),
            ("all three must fit", "a < count && rows_apart", "rows_apart"),
            ("apart both ways", "rows_apart < SIDE && columns", "rows_apart < SIDE || columns"),
            ("touching counts", "columns_apart < SIDE)", "columns_apart <= SIDE)"),
            ("the last lane that fits", "__ffs(fitting) - 1", "31 - __clz(fitting)"),
            ("a lane's own try", "__shfl_sync(0xffffffff, position[k], chosen)", "position[k]"),
            ("digits without a box", "k < count ? position[k] / COLUMNS : HEIGHT", "position[k] / COLUMNS"),
            ("last row of a box left out", "h >= SIDE)", "h >= SIDE - 1)"),
            ("faint ink is none", "pixel[i] > 0 ?", "pixel[i] > 127 ?"),
            ("digits lie on their side", "* SIDE + h) * SIDE + w]", "* SIDE + w) * SIDE + h]"),
            ("background always 10", "ink[i] : background", "ink[i] : 10"),
            ("the label of the first digit", "ink[i] = name[k]", "ink[i] = name[0]"),
            ("the third of four twice", "value[2], value[3]", "value[2], value[2]"),
            ("the first label for two", "make_int4(label[0], label[1]", "make_int4(label[0], label[0]"),
        ],
    ),
}

ZOO = {
    "compose_m2nist_place_naive": [
        Bug("one word too far: four were drawn", {"choice.word[k + 1]": "choice.word[k + 2]"},
            "trap", "the index 4 of an array of type 'unsigned int [4]'", ("choice.word[k + 2]",)),
        Bug("random numbers by a product that an int does not hold",
            {"words.word[k] % (ROWS * COLUMNS)": "abs((n * 3 + k) * 1103515245 + 12345) % (ROWS * COLUMNS)"},
            "trap", "which overflows 'int'", ("1103515245",)),
        Bug("a thread writes its picture where the last one to come has ended",
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
        Bug("boxes are taken to have ten numbers a picture", {"/ (WIDTH * HEIGHT) * 9": "/ (WIDTH * HEIGHT) * 10"},
            "check", OUTSIDE, ("int w = column - image_boxes[k * 3 + 2];",), "memcheck"),
    ],
    "compose_m2nist": [
        Bug("lanes whose try fits leave before the vote",
            {"fitting = __ballot_sync": "if (fits) break;\nfitting = __ballot_sync"},
            "trap", "wait at __ballot_sync", ("fitting = __ballot_sync",), "synccheck"),
        Bug("lanes of the last warp that have nothing to draw return before the vote",
            {"int position[3];": "if (blockIdx.y * COMPOSE_THREADS + threadIdx.x >= 1340) return;\nint position[3];"},
            "trap", "wait at __ballot_sync", ("fitting = __ballot_sync",), "synccheck"),
        Bug("the first lane to come wins, not the lowest",
            {"fitting = __ballot_sync(0xffffffff, fits);": """__shared__ int lowest_lanes[COMPOSE_THREADS / 32];
        int* lowest = lowest_lanes + threadIdx.x / 32;
        if (lane == 0) *lowest = -1;
        __syncwarp();
        if (fits) atomicCAS(lowest, -1, lane);
        __syncwarp();
        fitting = *lowest < 0 ? 0 : 1u << *lowest;
        __syncwarp();"""},
            "order", ORDER, ("reinterpret_cast<float4*>(batch)[at] =",)),
        Bug("fours are counted as if they were pixels",
            {"reinterpret_cast<float4*>(batch)[at]": "*reinterpret_cast<float4*>(batch + at)"},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<float4*>(batch + at)",), "memcheck"),
        Bug("one four too many", {"four < HEIGHT * FOURS": "four <= HEIGHT * FOURS"},
            "check", OUTSIDE, ("reinterpret_cast<float4*>(batch)[at] =",), "memcheck"),
        Bug("the blocks of a picture all draw its first part",
            {"four = blockIdx.y * COMPOSE_THREADS + threadIdx.x": "four = threadIdx.x"},
            "check", "nothing orders blocks", ("reinterpret_cast<float4*>(batch)[at] =",)),
        Bug("above the box is taken for inside", {"h < 0 || ": ""},
            "check", OUTSIDE, ("pixel[i] = digits[",), "memcheck"),
    ],
}  # fmt: skip
