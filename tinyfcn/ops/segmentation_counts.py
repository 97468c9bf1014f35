"""Launches kernels/segmentation_counts.cu."""

from typing import Any

import numpy as np

from tinyfcn.devices.device import THREADS, Device
from tinyfcn.ops.checks import expect_at_least_one, expect_shape

MAX_CLASSES = 32  # as in kernels/segmentation_counts.cu


def segmentation_counts(device: Device, logits: Any, labels: Any, foreground: int, threshold: float) -> tuple[Any, Any]:
    """Each picture's confusion, int32 (N, K, K)[true, predicted], and overlap, int32 (N, 2): both, either.

    Args:
        logits: (N, K, H, W), at most 32 channels. The largest says what is predicted, the first of equals.
        labels: int32 (N, H, W), 0 and up. A pixel labelled K or more is in no confusion.
        foreground: so many channels, the first ones, stand for something other than background.
        threshold: a pixel is claimed for each of those channels where softmax is above it. Of all pairs of a pixel
            and such a channel, `both` are claimed and true, `either` are claimed or true.

    Raises:
        ValueError: logits and labels that do not fit each other, more classes than the kernel can count.
    """
    expect_shape("segmentation_counts: logits", logits, (None,) * 4)
    n, k, height, width = logits.shape
    expect_shape("segmentation_counts: labels", labels, (n, height, width))
    expect_at_least_one("segmentation_counts: the number of classes", k)
    if k > MAX_CLASSES:
        raise ValueError(f"segmentation_counts: the number of classes must be at most {MAX_CLASSES}, got {k}")
    if not 0 <= foreground <= k:
        raise ValueError(f"segmentation_counts: foreground must be 0 to {k}, the number of classes, got {foreground}")
    confusion = device.empty((n, k, k), np.int32)
    overlap = device.empty((n, 2), np.int32)
    arguments = (logits, labels, confusion, overlap, k, height * width, foreground, threshold)
    device.launch("segmentation_counts", n, THREADS, arguments)
    return confusion, overlap
