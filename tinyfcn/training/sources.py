"""The sources of batches, and the test images. All arrays are on the device before the first step."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinyfcn.data import Digits, M2nist, builtin_digits, load_digits, read_m2nist, split_indices
from tinyfcn.devices.device import Array
from tinyfcn.networks import BACKGROUND, Design
from tinyfcn.ops import Operations
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.reference.philox import permutation

TEST_SEED = 1  # of the composed test images, whatever the training's seed: they are composed of other digits
TEST_COUNT = 1000
ORDERED_STEPS = 128  # steps whose batches are chosen, and written to the device, at once


class Stored:
    """Batches of stored images, uint8 (M, H, W), with labels (M,) or (M, H, W): each once an epoch, in a new order."""

    def __init__(self, ops: Operations, images: np.ndarray, labels: np.ndarray, batch: int, seed: int) -> None:
        self.ops, self.size, self.seed = ops, batch, seed
        self.images, self.labels = ops.asarray(images), ops.asarray(labels.astype(np.uint8))
        self.order = ops.asarray(np.zeros((ORDERED_STEPS, batch), np.int32))
        self._ordered = range(0)  # the steps whose batches `order` holds
        self._epochs: dict[int, np.ndarray] = {}  # the orders of the epochs in the last call of `indices`

    def prepare(self, step: int) -> None:
        """Writes to the device which images the batch of this step holds, unless it is known there already."""
        if step not in self._ordered:
            first = step - step % ORDERED_STEPS
            self._ordered = range(first, first + ORDERED_STEPS)
            self.ops.write(self.order, self.indices(self._ordered))

    def batch(self, step: Array) -> tuple[Array, Array]:
        """Network input and labels of the step whose number a device array (1,) holds. `prepare` comes first."""
        return self.ops.gather_batch(self.images, self.labels, self.order, step)

    def indices(self, steps: range) -> np.ndarray:
        """The indices of the batches' images, int32 (len(steps), batch): a function of (seed, step).

        A batch may end one epoch and begin the next.
        """
        count = len(self.labels)
        positions = np.arange(steps.start * self.size, steps.stop * self.size)
        epochs = range(positions[0] // count, positions[-1] // count + 1)
        known = self._epochs
        self._epochs = {
            epoch: known[epoch] if epoch in known else permutation(count, self.seed, epoch) for epoch in epochs
        }
        return np.concatenate([*self._epochs.values()])[positions - epochs.start * count].reshape(len(steps), self.size)


class Composed:
    """Batches of M2NIST images, composed of the digits when they are needed, so no image is used twice."""

    def __init__(self, ops: Operations, digits: Digits, design: Design, batch: int, seed: int) -> None:
        self.ops, self.size, self.seed, self.background = ops, batch, seed, design.background
        self.digits = ops.asarray(digits.images), ops.asarray(digit_labels(design, digits))

    def prepare(self, step: int) -> None:
        """Does nothing: the device composes each batch when it is needed."""

    def batch(self, step: Array | int) -> tuple[Array, Array]:
        """Network input and labels of a step, whose number is an int or in a device array (1,)."""
        return self.ops.compose_m2nist(*self.digits, self.seed, step, self.size, self.background)


def digit_labels(design: Design, digits: Digits) -> np.ndarray:
    """The label of each digit's ink, uint8 (M,): the digit, or 0."""
    return np.zeros_like(digits.labels) if design.labels == "binary" else digits.labels


def design_labels(design: Design, labels: np.ndarray) -> np.ndarray:
    """The design's labels, int32, from labels 0 .. 10: unchanged, or 0 for ink and 1 for background."""
    if design.labels == "binary":
        return (labels == BACKGROUND).astype(np.int32)
    return labels.astype(np.int32)


def digest(*arrays: np.ndarray) -> str:
    """The SHA-256 of the arrays' shapes and bytes: a resumed run must be trained on the same data."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(repr(array.shape).encode())
        found.update(array.tobytes())
    return found.hexdigest()


def digits_digest(*splits: Digits) -> str:
    """The digest of digits. Built-in ones count by their labels and the code that draws them.

    Another processor adds in another order, so that a pixel of theirs may be rounded otherwise.
    """
    if splits[0].source == "builtin":
        code = np.frombuffer(Path(builtin_digits.__file__).read_bytes(), np.uint8)
        return digest(*(split.labels for split in splits), code)
    return digest(*(array for split in splits for array in (split.images, split.labels)))


def as_bytes(images: np.ndarray) -> np.ndarray:
    """The bytes, uint8 (N, H, W), of which network inputs (N, 1, H, W) were made."""
    return np.rint(images[:, 0] * 127 + 127).astype(np.uint8)


def composed_test(ops: Operations, design: Design, digits: Digits) -> tuple[Array, Array]:
    """Network inputs and labels of the 1,000 images that test every run, composed of test digits."""
    return Composed(ops, digits, design, TEST_COUNT, TEST_SEED).batch(0)


def m2nist_part(design: Design, files: M2nist, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 and the design's labels at the indices `part` of the published files."""
    return files.images[part], design_labels(design, files.labels[part])


def m2nist_test(ops: Operations, design: Design, files: M2nist) -> tuple[Array, Array]:
    """Network inputs and labels of the published files' images that test every run."""
    return on_device(ops, *m2nist_part(design, files, split_indices(len(files))[1]))


def digits_test(ops: Operations, digits: Digits) -> tuple[Array, Array]:
    """Network inputs and labels of test digits."""
    return on_device(ops, digits.images, digits.labels.astype(np.int32))


def on_device(ops: Operations, images: np.ndarray, labels: np.ndarray) -> tuple[Array, Array]:
    """Network inputs (N, 1, H, W) of images uint8 (N, H, W), and their int32 labels."""
    all_indices = np.arange(len(images), dtype=np.int32)
    return ops.gather_normalise(ops.asarray(images), ops.asarray(all_indices)), ops.asarray(labels)


def evaluation_images(
    ops: Operations, design: Design, dataset: str, data_dir: Path | None, m2nist: Path | None
) -> tuple[Array, Array]:
    """Network inputs (N, 1, H, W) and labels int32 (N, H, W) of test images, composed or from files, on the device."""
    if m2nist is None:
        return composed_test(ops, design, load_digits("test", dataset, data_dir))
    return m2nist_test(ops, design, read_m2nist(m2nist))


def composed_chunks(digits: Digits, seed: int, count: int, chunk: int = 500) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`count` M2NIST images, uint8 (n, 64, 84), and labels (n, 64, 84), a chunk at a time."""
    for step, start in enumerate(range(0, count, chunk)):
        size = min(chunk, count - start)
        images, labels = compose_m2nist(digits.images, digits.labels, seed, step, size)
        yield as_bytes(images), labels
