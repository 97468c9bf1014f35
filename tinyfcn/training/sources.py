"""Where batches come from, and which pictures are tested on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.data import Digits, M2nist, load_digits, read_m2nist, split_indices
from tinyfcn.networks import BACKGROUND, Design
from tinyfcn.operations import Operations
from tinyfcn.reference import compose_m2nist, gather_normalise
from tinyfcn.reference.philox import permutation

TEST_SEED = 1  # of the composed test pictures, whatever seed training has: they are made of other digits
TEST_COUNT = 1000


class Stored:
    """Batches of given pictures, uint8 (M, H, W), with int32 labels: each once an epoch, in a new order."""

    def __init__(self, ops: Operations, pictures: np.ndarray, labels: np.ndarray, batch: int, seed: int) -> None:
        self.ops, self.size, self.seed = ops, batch, seed
        self.pictures, self.labels = ops.asarray(pictures), labels
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> tuple[Any, Any]:
        """Network input and labels of a step: a function of (seed, step)."""
        indices = self.indices(step)
        batch = self.ops.gather_normalise(self.pictures, self.ops.asarray(indices))
        return batch, self.ops.asarray(self.labels[indices])

    def indices(self, step: int) -> np.ndarray:
        """Which pictures, int32 (batch,). A batch may end one epoch and begin the next."""
        count = len(self.labels)
        epochs, places = np.divmod(np.arange(step * self.size, (step + 1) * self.size), count)
        orders = {
            epoch: self._orders[epoch] if epoch in self._orders else permutation(count, self.seed, epoch)
            for epoch in np.unique(epochs).tolist()
        }
        self._orders = orders
        chosen = [orders[epoch][place] for epoch, place in zip(epochs.tolist(), places, strict=True)]
        return np.array(chosen, np.int32)


class Composed:
    """Batches of M2NIST pictures that are composed of the digits as they are needed, so that none comes twice."""

    def __init__(self, ops: Operations, digits: Digits, design: Design, batch: int, seed: int) -> None:
        labels = np.zeros_like(digits.labels) if design.labels == "binary" else digits.labels
        self.ops, self.size, self.seed = ops, batch, seed
        self.digits, self.background = (ops.asarray(digits.images), ops.asarray(labels)), design.background

    def batch(self, step: int) -> tuple[Any, Any]:
        """Network input and labels of a step: a function of (seed, step)."""
        return self.ops.compose_m2nist(*self.digits, self.seed, step, self.size, self.background)


def design_labels(design: Design, labels: np.ndarray) -> np.ndarray:
    """Labels 0 .. 10 as the design has them, int32: unchanged, or 0 for ink and 1 for background."""
    if design.labels == "binary":
        return (labels == BACKGROUND).astype(np.int32)
    return labels.astype(np.int32)


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    """Network inputs (N, 1, H, W) as the bytes that they were made of: uint8 (N, H, W)."""
    return np.rint(pictures[:, 0] * 127 + 127).astype(np.uint8)


def composed_test(design: Design, digits: Digits) -> tuple[np.ndarray, np.ndarray]:
    """The 1,000 pictures that every run is tested on, network inputs and labels, composed of test digits."""
    pictures, labels = compose_m2nist(digits.images, digits.labels, TEST_SEED, 0, TEST_COUNT)
    return pictures, design_labels(design, labels)


def m2nist_part(design: Design, files: M2nist, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 and the design's labels at the indices `part` of the published files."""
    return files.pictures[part], design_labels(design, files.labels[part])


def evaluation_pictures(
    design: Design, dataset: str, data_dir: Path | None, m2nist: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Network inputs float32 (N, 1, H, W) and labels int32 (N, H, W) to test on, composed or from files."""
    if m2nist is None:
        return composed_test(design, load_digits("test", dataset, data_dir))
    files = read_m2nist(m2nist)
    pictures, labels = m2nist_part(design, files, split_indices(len(files))[1])
    return gather_normalise(pictures, np.arange(len(pictures))), labels


def composed_chunks(digits: Digits, seed: int, count: int, chunk: int = 500) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`count` M2NIST pictures, uint8 (n, 64, 84), and labels (n, 64, 84), a chunk at a time."""
    for step, start in enumerate(range(0, count, chunk)):
        size = min(chunk, count - start)
        pictures, labels = compose_m2nist(digits.images, digits.labels, seed, step, size)
        yield as_bytes(pictures), labels
