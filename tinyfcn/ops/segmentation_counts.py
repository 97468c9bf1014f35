"""Launches kernels/segmentation_counts.cu."""

import numpy as np

from tinyfcn.devices.device import THREADS, Array
from tinyfcn.ops.checks import INT32, checked, expect_array, expect_integer, expect_number
from tinyfcn.ops.launcher import Launcher

MAX_CLASSES = 32  # as in kernels/segmentation_counts.cu


def check_segmentation_counts(logits: Array, labels: Array, foreground: int, threshold: float) -> None:
    expect_array("segmentation_counts: logits", logits, (None,) * 4)
    n, k, height, width = logits.shape
    expect_array("segmentation_counts: labels", labels, (n, height, width), INT32)
    expect_integer("segmentation_counts: the number of classes", k, 1, MAX_CLASSES)
    expect_integer("segmentation_counts: foreground", foreground, 0, k)
    expect_number("segmentation_counts: threshold", threshold)


class SegmentationCounts(Launcher):
    """The counts from which the scores of a segmentation are computed."""

    @checked(check_segmentation_counts)
    def segmentation_counts(
        self, logits: Array, labels: Array, foreground: int, threshold: float
    ) -> tuple[Array, Array]:
        """Each image's confusion, int32 (N, K, K)[true, predicted], and overlap, int32 (N, 2): both, either.

        Args:
            logits: (N, K, H, W), at most 32 channels. The largest is the prediction, among equals the first.
            labels: int32 (N, H, W). Pixels with other labels than 0 .. K - 1 are not in the confusion.
            foreground: the number of foreground channels, which come first.
            threshold: a pixel is claimed for each foreground channel where softmax is above it. Among all pairs of a
                pixel and such a channel, `both` are claimed and true, `either` are claimed or true.

        Raises:
            ValueError: mismatched logits and labels, or more classes than the kernel can count.
        """
        n, k, height, width = logits.shape
        confusion = self.device.empty((n, k, k), np.int32)
        overlap = self.device.empty((n, 2), np.int32)
        arguments = (logits, labels, confusion, overlap, k, height * width, foreground, threshold)
        self.device.launch("segmentation_counts", n, THREADS, arguments)
        return confusion, overlap
