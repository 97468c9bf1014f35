"""Launches kernels/gather_normalise.cu."""

from math import prod

import numpy as np

from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import INT32, UINT8, checked, expect_array, expect_within
from tinyfcn.ops.launcher import Launcher


def check_gather_normalise(self: Launcher, images: Array, indices: Array) -> None:
    expect_array("gather_normalise: images", images, (None,) * 3, UINT8)
    expect_array("gather_normalise: indices", indices, (None,), INT32)
    expect_within("gather_normalise: indices", self.device.readable(indices), len(images))


def check_gather_batch(self: Launcher, images: Array, labels: Array, order: Array, step: Array) -> None:
    expect_array("gather_batch: images", images, (None,) * 3, UINT8)
    expect_array("gather_batch: labels", labels, images.shape[: getattr(labels, "ndim", 1)], UINT8)
    expect_array("gather_batch: order", order, (None,) * 2, INT32)
    expect_array("gather_batch: step", step, (1,), INT32)
    expect_within("gather_batch: order", self.device.readable(order), len(images))


class GatherNormalise(Launcher):
    """A batch gathered from images of bytes on the device."""

    @checked(check_gather_normalise)
    def gather_normalise(self, images: Array, indices: Array) -> Array:
        """(images[indices] - 127) / 127 as floats (N, 1, H, W); images uint8 (M, H, W), indices int32 (N,), 0 .. M - 1.

        Raises:
            ValueError: an array with a wrong number of dimensions.
        """
        _, height, width = images.shape
        batch = self.device.empty((indices.size, 1, height, width))
        arguments = (images, indices, batch, indices.size, height * width)
        self.device.launch_for_each("gather_normalise", batch.size, arguments)
        return batch

    @checked(check_gather_batch)
    def gather_batch(self, images: Array, labels: Array, order: Array, step: Array) -> tuple[Array, Array]:
        """Images (images[i] - 127) / 127 as floats (N, 1, H, W), and labels[i] as int32, with i = order[step % R].

        Args:
            images: uint8 (M, H, W).
            labels: uint8 (M,) or (M, H, W).
            order: int32 (R, N), 0 .. M - 1: the batches of R steps.
            step: int32 (1,): steps done, 0 or more.

        Raises:
            ValueError: an array with a wrong number of dimensions, or mismatched shapes.
        """
        _, height, width = images.shape
        rows, size = order.shape
        batch = self.device.empty((size, 1, height, width))
        chosen = self.device.empty((size, *labels.shape[1:]), np.int32)
        sizes = (rows, size, height * width, prod(labels.shape[1:]))
        arguments = (images, labels, order, step, batch, chosen, *sizes)
        self.device.launch_for_each("gather_batch", batch.size, arguments)
        return batch, chosen
