"""Launches kernels/gather_normalise.cu."""

from math import prod

import numpy as np

from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import expect_at_least_one, expect_shape
from tinyfcn.ops.launcher import Launcher


class GatherNormalise(Launcher):
    """A batch gathered from images of bytes on the device."""

    def gather_normalise(self, images: Array, indices: Array) -> Array:
        """(images[indices] - 127) / 127 as floats (N, 1, H, W); images uint8 (M, H, W), indices int32 (N,), 0 .. M - 1.

        Raises:
            ValueError: an array with a wrong number of dimensions.
        """
        expect_shape("gather_normalise: images", images, (None,) * 3)
        expect_shape("gather_normalise: indices", indices, (None,))
        _, height, width = images.shape
        batch = self.device.empty((indices.size, 1, height, width))
        arguments = (images, indices, batch, indices.size, height * width)
        self.device.launch_for_each("gather_normalise", batch.size, arguments)
        return batch

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
        expect_shape("gather_batch: images", images, (None,) * 3)
        count, height, width = images.shape
        expect_shape("gather_batch: labels", labels, (count, height, width)[: len(labels.shape)])
        expect_shape("gather_batch: order", order, (None,) * 2)
        expect_shape("gather_batch: step", step, (1,))
        rows, size = order.shape
        expect_at_least_one("gather_batch: the rows of order", rows)
        batch = self.device.empty((size, 1, height, width))
        chosen = self.device.empty((size, *labels.shape[1:]), np.int32)
        sizes = (rows, size, height * width, prod(labels.shape[1:]))
        arguments = (images, labels, order, step, batch, chosen, *sizes)
        self.device.launch_for_each("gather_batch", batch.size, arguments)
        return batch, chosen
