"""M2NIST images composed of MNIST digits, in NumPy: the same integers as in kernels/compose_m2nist.cu."""

import numpy as np

from tinyfcn.reference.philox import philox

HEIGHT, WIDTH, SIDE = 64, 84, 28
TRIES = 512


def place_m2nist(digit_count: int, seed: int, step: int | np.ndarray, count: int) -> np.ndarray:
    """The boxes of the digits: int32 (count, 3, 3) of digit, top, left; digit -1 where an image has fewer than three.

    Every try draws all boxes of an image anew, until none overlap. So all layouts are equally likely. Boxes that still
    overlap after 512 tries (in 2 of 100,000 images of three digits) stand side by side.
    """
    if isinstance(step, np.ndarray):
        step = int(step[0]) % 2**32
    image = np.arange(count)
    choice = philox((0, image, step, 0), (seed, 0))
    digits = 1 + choice[0] % 3
    columns = WIDTH - SIDE + 1

    boxes = np.full((count, 3, 3), -1, np.int32)
    waiting = image
    for first in range(1, TRIES + 1, 32):  # most images need at most 32 tries
        tries = np.arange(first, min(first + 32, TRIES + 1))
        position = philox((tries[:, None], waiting, step, 0), (seed, 0))[:3] % ((HEIGHT - SIDE + 1) * columns)
        top, left = (position // columns).astype(np.int32), (position % columns).astype(np.int32)
        fits = np.ones(top.shape[1:], bool)
        for a, b in ((1, 0), (2, 0), (2, 1)):
            overlap = (abs(top[a] - top[b]) < SIDE) & (abs(left[a] - left[b]) < SIDE)
            fits &= ~overlap | (a >= digits[waiting])
        chosen = np.where(fits.any(axis=0), fits.argmax(axis=0), len(tries) - 1)
        at = np.arange(len(waiting))
        boxes[waiting, :, 1] = top[:, chosen, at].T
        boxes[waiting, :, 2] = left[:, chosen, at].T
        waiting = waiting[~fits.any(axis=0)]
        if not len(waiting):
            break
    boxes[waiting, :, 2] = np.arange(3) * SIDE
    present = np.arange(3) < digits[:, None]
    boxes[:, :, 0] = np.where(present, (choice[1:] % np.uint32(digit_count)).T.astype(np.int64), -1)
    return boxes


def compose_m2nist(
    digits: np.ndarray,
    digit_labels: np.ndarray,
    seed: int,
    step: int | np.ndarray,
    count: int,
    background: int = 10,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` images, float32 (count, 1, 64, 84) = (pixel - 127) / 127, and their labels, int32 (count, 64, 84).

    Args:
        digits: uint8 (M, 28, 28) with labels uint8 (M,), 0 .. 9.
        seed, step: 0 .. 2^32 - 1; the images are a function of them and of the digits. step: a Python int, or an
            int32 array (1,) whose bits are read as unsigned.

    A label is the digit's where there is ink (pixel > 0) and `background` elsewhere. One to three digits an image;
    their boxes do not overlap.
    """
    pixels = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    labels = np.full((count, HEIGHT, WIDTH), background, np.int32)
    for n, boxes in enumerate(place_m2nist(len(digits), seed, step, count)):
        for digit, top, left in boxes[boxes[:, 0] >= 0]:
            box = np.s_[n, top : top + SIDE, left : left + SIDE]
            pixels[box] = digits[digit]
            labels[box][digits[digit] > 0] = digit_labels[digit]
    return ((pixels.astype(np.float32) - 127) / np.float32(127))[:, None], labels
