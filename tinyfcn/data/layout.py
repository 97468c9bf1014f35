"""Notices images of another layout than MNIST's: dark on white, transposed, mirrored or turned."""

from functools import cache

import numpy as np

from tinyfcn.data.builtin_digits import SIDE, draw_digits

SOME = 1000  # images, at most, that are looked at, of each digit
ALIKE = 0.8  # MNIST's test digits: upright 0.97, mirrored 0.80, transposed 0.55; mixed-up labels: < 0.71
# How images may lie -> what turns them upright: whether rows and columns are swapped, then quarter turns to the left.
ORIENTATIONS = {
    "upright": (False, 0),
    "turned to the right": (False, 1),
    "turned by 180 degrees": (False, 2),
    "turned to the left": (False, 3),
    "transposed, as in EMNIST's files": (True, 0),
    "upside down": (True, 1),
    "transposed and turned by 180 degrees": (True, 2),
    "mirrored": (True, 3),
}


def are_inverted(images: np.ndarray) -> bool:
    """Whether images, uint8 (N, H, W), are dark on white: their borders are bright. MNIST's are black."""
    some = images[:: len(images) // SOME + 1]
    return bool(np.median(np.concatenate([some[:, [0, -1]].ravel(), some[:, :, [0, -1]].ravel()])) > 191)


def orientation(images: np.ndarray, labels: np.ndarray) -> str:
    """How digits, uint8 (N, 28, 28), white on black, with labels (N,), lie: a key of ORIENTATIONS.

    The mean image of each digit is compared with that of upright digits. "upright" is also the answer if a digit is
    missing, or if they look like no digits in any orientation: they may be of another script.
    """
    if len(np.unique(labels)) < 10:
        return "upright"
    means = _means(images, labels)
    alike = {name: _correlation(turn_upright(means, name), _upright_means()) for name in ORIENTATIONS}
    name = max(alike, key=alike.__getitem__)
    return name if alike[name] > ALIKE else "upright"


def cut_out(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Digits, uint8 (M, 28, 28), and their labels (M,), out of images (N, H, W) with a label for each pixel.

    Equal digits in one image are left out, unless they lie so close that they cannot be told from one.
    """
    digits, names = [], []
    for image, truth in zip(images[:SOME], labels[:SOME], strict=True):
        for digit in range(10):
            rows, columns = np.nonzero(truth == digit)
            if len(rows) and max(np.ptp(rows), np.ptp(columns)) < SIDE:
                framed = np.zeros((SIDE, SIDE), np.uint8)
                framed[rows - rows.min(), columns - columns.min()] = image[rows, columns]
                digits.append(framed)
                names.append(digit)
    return np.reshape(digits, (-1, SIDE, SIDE)), np.array(names)


def turn_upright(images: np.ndarray, name: str) -> np.ndarray:
    """Images (N, H, W) of this orientation, turned upright."""
    transposed, turns = ORIENTATIONS[name]
    return np.ascontiguousarray(np.rot90(images.swapaxes(1, 2) if transposed else images, turns, (1, 2)))


@cache
def _upright_means() -> np.ndarray:
    return _means(*draw_digits(500, seed=2))


def _means(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean image of each digit, (10, 27, 27), of windows whose middle is the digit's centre of mass."""
    return np.stack([_centred(images[labels == digit][:SOME]).mean(axis=0) for digit in range(10)])


def _centred(images: np.ndarray) -> np.ndarray:
    place, window = np.arange(SIDE), np.arange(SIDE - 1) - (SIDE // 2 - 1)  # of an odd side, so that it has a middle
    mass = np.maximum(images.sum(axis=(1, 2)), 1)
    row, column = (
        (np.rint(images.sum(axis=axis) @ place / mass).astype(int)[:, None] + window) % SIDE for axis in (2, 1)
    )
    return images[np.arange(len(images))[:, None, None], row[:, :, None], column[:, None]]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The mean, over the images (N, H, W), of the correlation of their pixels."""
    one, other = (images - images.mean(axis=(1, 2), keepdims=True) for images in (one, other))
    norm = np.sqrt((one**2).sum(axis=(1, 2)) * (other**2).sum(axis=(1, 2)))
    return float(((one * other).sum(axis=(1, 2)) / np.maximum(norm, 1e-9)).mean())
