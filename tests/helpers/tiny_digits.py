"""A substitute for MNIST that trains in a second: seven-segment digits, 200 for training and 60 for testing.

Every byte of ink is even in a training digit and odd in a test digit, so that the pixels of an image show its split.
"""

from pathlib import Path

import numpy as np
from helpers.idx_files import write_idx

TRAIN, TEST = 200, 60
# Segments a (top), then clockwise b, c, d, e, f, and g in the middle, for the digits 0 .. 9.
LIT = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
SEGMENTS = {
    "a": np.s_[4:7, 9:19],
    "b": np.s_[4:14, 16:19],
    "c": np.s_[13:23, 16:19],
    "d": np.s_[20:23, 9:19],
    "e": np.s_[13:23, 9:12],
    "f": np.s_[4:14, 9:12],
    "g": np.s_[12:15, 9:19],
}


def draw(count: int, seed: int, odd: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, 28, 28), each moved by up to 2 pixels, and labels uint8 (count,): 0, 1, ..., 9, 0, ..."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = np.zeros((count, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        ink = np.zeros((28, 28), bool)
        for segment in LIT[label]:
            ink[SEGMENTS[segment]] = True
        ink = np.roll(ink, random.integers(-2, 3, 2), (0, 1))
        image[ink] = 2 * random.integers(40, 127, ink.sum()) + odd
    return images, labels


def write_tiny_digits(folder: Path) -> Path:
    """Writes the four files into `folder` and returns it, for --data-dir."""
    for prefix, count, seed in (("train", TRAIN, 0), ("t10k", TEST, 1)):
        images, labels = draw(count, seed, odd=prefix == "t10k")
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return folder
