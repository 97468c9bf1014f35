"""Launches kernels/gather_normalise.cu."""

from math import prod
from typing import Any

import numpy as np

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_at_least_one, expect_shape


def gather_normalise(device: Device, images: Any, indices: Any) -> Any:
    """(images[indices] - 127) / 127 as floats (N, 1, H, W); images uint8 (M, H, W), indices int32 (N,), 0 .. M - 1.

    Raises:
        ValueError: arrays of other dimensions.
    """
    expect_shape("gather_normalise: images", images, (None,) * 3)
    expect_shape("gather_normalise: indices", indices, (None,))
    _, height, width = images.shape
    batch = device.empty((indices.size, 1, height, width))
    arguments = (images, indices, batch, indices.size, height * width)
    device.launch_for_each("gather_normalise", batch.size, arguments)
    return batch


def gather_batch(device: Device, images: Any, labels: Any, order: Any, step: Any) -> tuple[Any, Any]:
    """Pictures (images[i] - 127) / 127 as floats (N, 1, H, W), and labels[i] as int32, with i = order[step % R].

    Args:
        images: uint8 (M, H, W).
        labels: uint8 (M,) or (M, H, W).
        order: int32 (R, N), 0 .. M - 1: the batches of R steps.
        step: int32 (1,): how many steps were done, 0 or more.

    Raises:
        ValueError: arrays of other dimensions, or that do not fit each other.
    """
    expect_shape("gather_batch: images", images, (None,) * 3)
    count, height, width = images.shape
    expect_shape("gather_batch: labels", labels, (count, height, width)[: len(labels.shape)])
    expect_shape("gather_batch: order", order, (None,) * 2)
    expect_shape("gather_batch: step", step, (1,))
    rows, size = order.shape
    expect_at_least_one("gather_batch: the rows of order", rows)
    batch = device.empty((size, 1, height, width))
    chosen = device.empty((size, *labels.shape[1:]), np.int32)
    sizes = (rows, size, height * width, prod(labels.shape[1:]))
    device.launch_for_each("gather_batch", batch.size, (images, labels, order, step, batch, chosen, *sizes))
    return batch, chosen
