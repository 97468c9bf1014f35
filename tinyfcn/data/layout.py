"""Notices images of another layout than MNIST's: dark on white, or transposed."""

import numpy as np

ENOUGH = 20  # images of a digit, at least, that are asked
SOME = 1000  # images, at most


def are_inverted(images: np.ndarray) -> bool:
    """Whether images, uint8 (N, H, W), are dark on white: their borders are bright. MNIST's are black."""
    some = images[:: len(images) // SOME + 1]
    return bool(np.median(np.concatenate([some[:, [0, -1]].ravel(), some[:, :, [0, -1]].ravel()])) > 191)


def are_transposed(images: np.ndarray, labels: np.ndarray) -> bool:
    """Whether digits, uint8 (N, 28, 28), white on black, are transposed, as those in EMNIST's files are.

    Upright digits of all kinds are on average taller than wide, the ones most: 1 is a vertical line, -1 a horizontal
    one, and MNIST's digits have 0.1 to 0.8. All kinds must be wide, since in another script the one may be.
    """
    kinds = [images[labels == digit][:SOME] for digit in range(10)]
    if min(map(len, kinds)) < ENOUGH:
        return False
    tall = [_height_over_width(kind.astype(np.float64)).mean() for kind in kinds]
    return bool(max(tall) < 0 and tall[1] < -0.4)


def _height_over_width(images: np.ndarray) -> np.ndarray:
    """Of each image: how much more the ink's place varies along the height than along the width, -1 .. 1."""
    height, width = (_variance(images.sum(axis=axis)) for axis in (2, 1))
    return (height - width) / np.maximum(height + width, 1e-9)


def _variance(ink: np.ndarray) -> np.ndarray:
    """The variance of the place of the ink, (N, 28) -> (N,)."""
    share = ink / np.maximum(ink.sum(axis=1, keepdims=True), 1)
    place = np.arange(ink.shape[1])
    return share @ place**2 - (share @ place) ** 2
