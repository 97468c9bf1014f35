"""Tests kernels/segmentation_counts.cu against its reference, and the reference against a loop over pixels."""

from dataclasses import dataclass

import numpy as np
import pytest
from helpers.bugs import ORDER, RACE, UNWRITTEN, Bug, Planted
from helpers.closeness import assert_equal, on_device
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.operations import on
from tinyfcn.ops import Operations

reference = on("cpu")

THRESHOLD = 0.1


@dataclass(frozen=True)
class Counted:
    """The logits' shape, the number of foreground channels, and whether some labels have no channel.

    Logits are multiples of 1/16, so that many tie. No probability is near the threshold, where rounding would decide.
    """

    shape: tuple[int, int, int, int]
    foreground: int
    unlabelled: bool = False
    seed: int = 0

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(self.seed)
        n, k, *image = self.shape
        logits = np.round(random.normal(0, 2, self.shape) * 16).astype(np.float32) / 16
        labels = random.integers(0, k + self.unlabelled, (n, *image)).astype(np.int32)
        close = abs(reference.softmax(logits.astype(np.float64)) - THRESHOLD) < 1e-5
        logits[np.broadcast_to(close.any(axis=1, keepdims=True), self.shape)] = 0.5  # all equal
        return logits, labels


SEVERAL = [
    Counted((3, 11, 13, 21), 10),  # some threads of a block have two pixels
    Counted((2, 10, 16, 16), 10, unlabelled=True),
    Counted((4, 2, 5, 3), 1),
    Counted((1, 32, 9, 31), 31, unlabelled=True),
]


def check_counts(ops: Operations, case: Counted) -> None:
    """Compares both results with the reference. They are integers, so they must be equal."""
    logits, labels = case.inputs()
    found = ops.segmentation_counts(*on_device(ops, logits, labels), case.foreground, THRESHOLD)
    expected = reference.segmentation_counts(logits, labels, case.foreground, THRESHOLD)
    for name, a, b in zip(("confusion", "overlap"), found, expected, strict=True):
        assert_equal(ops.to_numpy(a), b, name)


def check_several(ops: Operations) -> None:
    for case in SEVERAL:
        check_counts(ops, case)


@given(
    st.builds(
        lambda shape, less, **rest: Counted(shape, max(shape[1] - less, 0), **rest),
        st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 10, 11]), st.integers(1, 20), st.integers(1, 20)),
        st.integers(0, 2),
        unlabelled=st.booleans(),
        seed=st.integers(0, 999),
    )
)
def test_kernel_against_reference(ops: Operations, case: Counted) -> None:
    check_counts(ops, case)


@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_full_and_partial_blocks(ops: Operations, case: Counted) -> None:
    check_counts(ops, case)


@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_reference_against_a_loop(case: Counted) -> None:
    logits, labels = case.inputs()
    k = case.shape[1]
    confusion, overlap = np.zeros((len(labels), k, k), np.int32), np.zeros((len(labels), 2), np.int32)
    for n, y, x in np.ndindex(labels.shape):
        pixel, true = logits[n, :, y, x].astype(np.float64), int(labels[n, y, x])
        predicted = max(range(k), key=lambda channel, pixel=pixel: (pixel[channel], -channel))
        if true < k:
            confusion[n, true, predicted] += 1
        p = np.exp(pixel) / np.exp(pixel).sum()
        for channel in range(case.foreground):
            claimed = p[channel] > THRESHOLD
            overlap[n] += claimed and true == channel, claimed or true == channel
    for found, expected in zip(
        reference.segmentation_counts(logits, labels, case.foreground, THRESHOLD), (confusion, overlap), strict=True
    ):
        assert_equal(found, expected)


def test_by_hand(ops: Operations) -> None:
    """The pixel in the header of the kernel; one with a tie; one without a channel; one with a certain prediction."""
    logits = np.array([[5, 4.8, 1], [2, 2, 2], [0, 9, 0], [-50, 50, -50]], np.float32).T.reshape(1, 3, 2, 2)
    labels = np.array([[[1, 2], [3, 1]]], np.int32)
    for where in (ops, reference):
        counts = where.segmentation_counts(*on_device(where, logits, labels), 2, 0.4)
        confusion, overlap = map(where.to_numpy, counts)
        assert confusion.tolist() == [[[0, 0, 0], [1, 1, 0], [1, 0, 0]]], "the first of equal logits is the prediction"
        assert overlap.tolist() == [[2, 4]], "the claim of the third pixel counts, although its label has no channel"


def test_images_are_counted_separately(ops: Operations) -> None:
    logits, labels = Counted((3, 4, 9, 7), 3).inputs()
    together = [ops.to_numpy(each) for each in ops.segmentation_counts(*on_device(ops, logits, labels), 3, THRESHOLD)]
    for n in range(3):
        alone = ops.segmentation_counts(*on_device(ops, logits[n : n + 1], labels[n : n + 1]), 3, THRESHOLD)
        for name, a, b in zip(("confusion", "overlap"), alone, together, strict=True):
            assert_equal(ops.to_numpy(a)[0], b[n], name)


def test_large_logits_do_not_overflow(ops: Operations) -> None:
    logits = np.array([1e4, -1e4, 9e3], np.float32).reshape(1, 3, 1, 1)
    found = ops.segmentation_counts(*on_device(ops, logits, np.zeros((1, 1, 1), np.int32)), 3, THRESHOLD)
    assert [ops.to_numpy(each).ravel().tolist() for each in found] == [[1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 1]]


def test_mismatched_inputs_are_reported(ops: Operations) -> None:
    logits, labels = on_device(ops, np.zeros((2, 33, 3, 4), np.float32), np.zeros((2, 3, 4), np.int32))
    with pytest.raises(ValueError, match="segmentation_counts: the number of classes must be 1 to 32, got 33"):
        ops.segmentation_counts(logits, labels, 2, THRESHOLD)
    assert "constexpr int MAX_CLASSES = 32;\n" in (KERNELS / "segmentation_counts.cu").read_text()
    few = ops.asarray(np.zeros((2, 5, 3, 4), np.float32))
    for foreground in (-1, 6):
        with pytest.raises(ValueError, match=f"foreground must be 0 to 5, got {foreground}"):
            ops.segmentation_counts(few, labels, foreground, THRESHOLD)
    with pytest.raises(ValueError, match=r"segmentation_counts: labels must have shape \(2, 3, 4\), got \(1, 3, 4\)"):
        ops.segmentation_counts(few, labels[:1], 4, THRESHOLD)
    with pytest.raises(ValueError, match=r"segmentation_counts: logits must have shape .*, got \(2, 5, 12\)"):
        ops.segmentation_counts(few.reshape(2, 5, 12), labels, 4, THRESHOLD)
    with pytest.raises(TypeError, match="segmentation_counts: labels must hold int32, got int64"):
        ops.segmentation_counts(few, *on_device(ops, np.zeros((2, 3, 4), np.int64)), 4, THRESHOLD)


PLANTED = {
    "segmentation_counts": Planted(
        check_several,
        [
            ("true and predicted label are swapped", "label * K + predicted", "predicted * K + label"),
            ("the last of equal logits is the prediction", "> largest", ">= largest"),
            ("the last class is never predicted", "k < K; ++k) {", "k < K - 1; ++k) {"),
            ("only the first pixels are counted", "s += blockDim.x", "s += S"),
            ("logits are read from the wrong image", "logits + n * K * S", "logits + n * S"),
            ("softmax is not normalised", "/ sum > threshold", "> threshold"),
            ("the background claims too", "k < F;", "k < K;"),
            ("claimed pixels count as both", "claimed && k == label", "claimed"),
            ("true pixels do not count as either", "claimed || k == label", "claimed"),
            ("a missing barrier before counting", "__syncthreads();  // until all", "// until all"),
        ],
    ),
}

ZOO = {
    "segmentation_counts": [
        Bug("a counter is incremented without atomicAdd",
            {"atomicAdd(&pixels[label * K + predicted], 1)": "pixels[label * K + predicted] += 1"},
            "check", RACE, ("pixels[label * K + predicted] += 1",), "racecheck"),
        Bug("threads count before all counters are 0", {"__syncthreads();  // until all": "// until all"},
            "check", RACE, ("pairs[threadIdx.x] = 0;", "atomicAdd(&pairs[1]")),
        Bug("pixels without a class are counted past the counters", {"if (label >= 0 && label < K) ": ""},
            "check", UNWRITTEN, ("atomicAdd(&pixels[",)),
        Bug("threads without a pixel return before the barrier",
            {"int both = 0;": "if (threadIdx.x >= S) return;\n    int both = 0;"},
            "trap", "have exited", ("__syncthreads();  // until every thread has counted",)),
        Bug("a counter keeps the number of the first thread to arrive",
            {"atomicAdd(&pairs[1], either);": "atomicCAS(&pairs[1], 0, either);"},
            "order", ORDER, ("if (threadIdx.x < 2) overlap[",)),
    ],
}  # fmt: skip
