"""Where batches come from, and which pictures are tested on. All of it lies on the device, before the first step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.data import Digits, M2nist, load_digits, read_m2nist, split_indices
from tinyfcn.networks import BACKGROUND, Design
from tinyfcn.ops import Operations
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.reference.philox import permutation

TEST_SEED = 1  # of the composed test pictures, whatever seed training has: they are made of other digits
TEST_COUNT = 1000
ORDERED_STEPS = 128  # whose batches are chosen, and brought to the device, at once


class Stored:
    """Batches of given pictures, uint8 (M, H, W), with labels (M,) or (M, H, W): each once an epoch, in a new order."""

    def __init__(self, ops: Operations, pictures: np.ndarray, labels: np.ndarray, batch: int, seed: int) -> None:
        self.ops, self.size, self.seed = ops, batch, seed
        self.pictures, self.labels = ops.asarray(pictures), ops.asarray(labels.astype(np.uint8))
        self.order = ops.asarray(np.zeros((ORDERED_STEPS, batch), np.int32))
        self._ordered = range(0)  # the steps whose batches `order` holds
        self._epochs: dict[int, np.ndarray] = {}  # the orders of those that `indices` was asked for last

    def prepare(self, step: int) -> None:
        """Sees to it that the device knows what the batch of this step is."""
        if step not in self._ordered:
            first = step - step % ORDERED_STEPS
            self._ordered = range(first, first + ORDERED_STEPS)
            self.ops.write(self.order, self.indices(self._ordered))

    def batch(self, step: Any) -> tuple[Any, Any]:
        """Network input and labels of the step that a device array (1,) counts, which must have been prepared."""
        return self.ops.gather_batch(self.pictures, self.labels, self.order, step)

    def indices(self, steps: range) -> np.ndarray:
        """Which pictures, int32 (len(steps), batch): a function of (seed, step).

        A batch may end one epoch and begin the next.
        """
        count = len(self.labels)
        places = np.arange(steps.start * self.size, steps.stop * self.size)
        epochs = range(places[0] // count, places[-1] // count + 1)
        known = self._epochs
        self._epochs = {
            epoch: known[epoch] if epoch in known else permutation(count, self.seed, epoch) for epoch in epochs
        }
        return np.concatenate([*self._epochs.values()])[places - epochs.start * count].reshape(len(steps), self.size)


class Composed:
    """Batches of M2NIST pictures that are composed of the digits as they are needed, so that none comes twice."""

    def __init__(self, ops: Operations, digits: Digits, design: Design, batch: int, seed: int) -> None:
        self.ops, self.size, self.seed, self.background = ops, batch, seed, design.background
        self.digits = ops.asarray(digits.images), ops.asarray(digit_labels(design, digits))

    def prepare(self, step: int) -> None:
        """Nothing: the device composes what it is asked for."""

    def batch(self, step: Any) -> tuple[Any, Any]:
        """Network input and labels of a step, which is a number or counted by a device array (1,)."""
        return self.ops.compose_m2nist(*self.digits, self.seed, step, self.size, self.background)


def digit_labels(design: Design, digits: Digits) -> np.ndarray:
    """What ink of each digit is labelled, uint8 (M,): the digit, or 0."""
    return np.zeros_like(digits.labels) if design.labels == "binary" else digits.labels


def design_labels(design: Design, labels: np.ndarray) -> np.ndarray:
    """Labels 0 .. 10 as the design has them, int32: unchanged, or 0 for ink and 1 for background."""
    if design.labels == "binary":
        return (labels == BACKGROUND).astype(np.int32)
    return labels.astype(np.int32)


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    """Network inputs (N, 1, H, W) as the bytes that they were made of: uint8 (N, H, W)."""
    return np.rint(pictures[:, 0] * 127 + 127).astype(np.uint8)


def composed_test(ops: Operations, design: Design, digits: Digits) -> tuple[Any, Any]:
    """The 1,000 pictures that every run is tested on, network inputs and labels, composed of test digits."""
    return Composed(ops, digits, design, TEST_COUNT, TEST_SEED).batch(0)


def m2nist_part(design: Design, files: M2nist, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 and the design's labels at the indices `part` of the published files."""
    return files.pictures[part], design_labels(design, files.labels[part])


def m2nist_test(ops: Operations, design: Design, files: M2nist) -> tuple[Any, Any]:
    """Those of the published files that every run is tested on, network inputs and labels."""
    return on_device(ops, *m2nist_part(design, files, split_indices(len(files))[1]))


def digits_test(ops: Operations, digits: Digits) -> tuple[Any, Any]:
    """Test digits, network inputs and labels."""
    return on_device(ops, digits.images, digits.labels.astype(np.int32))


def on_device(ops: Operations, pictures: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """Network inputs (N, 1, H, W) of pictures uint8 (N, H, W), and their int32 labels."""
    everyone = np.arange(len(pictures), dtype=np.int32)
    return ops.gather_normalise(ops.asarray(pictures), ops.asarray(everyone)), ops.asarray(labels)


def evaluation_pictures(
    ops: Operations, design: Design, dataset: str, data_dir: Path | None, m2nist: Path | None
) -> tuple[Any, Any]:
    """Network inputs (N, 1, H, W) and labels int32 (N, H, W) to test on, on the device, composed or from files."""
    if m2nist is None:
        return composed_test(ops, design, load_digits("test", dataset, data_dir))
    return m2nist_test(ops, design, read_m2nist(m2nist))


def composed_chunks(digits: Digits, seed: int, count: int, chunk: int = 500) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`count` M2NIST pictures, uint8 (n, 64, 84), and labels (n, 64, 84), a chunk at a time."""
    for step, start in enumerate(range(0, count, chunk)):
        size = min(chunk, count - start)
        pictures, labels = compose_m2nist(digits.images, digits.labels, seed, step, size)
        yield as_bytes(pictures), labels
