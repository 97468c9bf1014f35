"""Launches kernels/compose_m2nist.cu."""

from typing import Any

import numpy as np

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_at_least_one, expect_shape

HEIGHT, WIDTH, SIDE = 64, 84, 28  # as in kernels/compose_m2nist.cu


def compose_m2nist(
    device: Device, digits: Any, digit_labels: Any, seed: int, step: int, count: int, background: int = 10
) -> tuple[Any, Any]:
    """`count` pictures, floats (count, 1, 64, 84) = (pixel - 127) / 127, and their labels, int32 (count, 64, 84).

    Args:
        digits: uint8 (M, 28, 28) with labels uint8 (M,), 0 .. 9.
        seed, step: below 2^32; the pictures are a function of them and of the digits.

    A label is the digit's where there is ink (pixel > 0) and `background` elsewhere. One to three digits a picture,
    boxes never overlapping.

    Raises:
        ValueError: digits and labels that do not fit each other.
    """
    expect_shape("compose_m2nist: digits", digits, (None, SIDE, SIDE))
    expect_shape("compose_m2nist: digit_labels", digit_labels, (len(digits),))
    expect_at_least_one("compose_m2nist: the number of digits", len(digits))
    boxes = device.empty((count, 3, 3), np.int32)
    device.launch_for_each("compose_m2nist_place", count, (boxes, len(digits), count, seed, step))
    batch = device.empty((count, 1, HEIGHT, WIDTH))
    labels = device.empty((count, HEIGHT, WIDTH), np.int32)
    device.launch_for_each(
        "compose_m2nist_draw", labels.size, (boxes, digits, digit_labels, batch, labels, count, background)
    )
    return batch, labels
