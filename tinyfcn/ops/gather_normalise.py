"""Launches kernels/gather_normalise.cu."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_shape


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
