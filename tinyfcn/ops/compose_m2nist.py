"""Launches kernels/compose_m2nist.cu."""

import numpy as np

from tinyfcn.devices.device import Array, Device
from tinyfcn.ops.checks import INT32, UINT8, checked, expect_array, expect_integer
from tinyfcn.ops.launcher import Launcher

HEIGHT, WIDTH, SIDE = 64, 84, 28  # as in kernels/compose_m2nist.cu
COMPOSE_THREADS = 224
BLOCKS_AN_IMAGE = 6  # each thread then draws four pixels
MAX_SHARED_IMAGES = 128  # in a larger batch, each image has one block


def check_compose_m2nist(
    digits: Array, digit_labels: Array, seed: int, step: int | Array, count: int, background: int
) -> None:
    expect_array("compose_m2nist: digits", digits, (None, SIDE, SIDE), UINT8)
    expect_array("compose_m2nist: digit_labels", digit_labels, (len(digits),), UINT8)
    expect_integer("compose_m2nist: seed", seed, 0, 2**32 - 1)
    if hasattr(step, "shape"):
        expect_array("compose_m2nist: step", step, (1,), INT32)
    else:
        expect_integer("compose_m2nist: step", step, 0, 2**32 - 1)
    expect_integer("compose_m2nist: count", count, 1)
    expect_integer("compose_m2nist: background", background, -(2**31))


class ComposeM2nist(Launcher):
    """M2NIST images composed of MNIST digits on the device."""

    @checked(check_compose_m2nist)
    def compose_m2nist(
        self, digits: Array, digit_labels: Array, seed: int, step: int | Array, count: int, background: int = 10
    ) -> tuple[Array, Array]:
        """`count` images, floats (count, 1, 64, 84) = (pixel - 127) / 127, and their labels, int32 (count, 64, 84).

        Args:
            digits: uint8 (M, 28, 28) with labels uint8 (M,), 0 .. 9.
            seed, step: 0 .. 2^32 - 1; the images are a function of them and of the digits. step: a Python int, or an
                int32 array (1,) on the device whose bits are read as unsigned.

        A label is the digit's where there is ink (pixel > 0) and `background` elsewhere. One to three digits an image;
        their boxes do not overlap.

        Raises:
            ValueError: mismatched digits and labels, or a step that does not fit 32 bits.
        """
        device = self.device
        step = step_on_device(device, step)
        batch = device.empty((count, 1, HEIGHT, WIDTH))
        labels = device.empty((count, HEIGHT, WIDTH), np.int32)
        if device.naive:
            boxes = place_m2nist_naive(device, len(digits), seed, step, count)
            given = (boxes, digits, digit_labels, batch, labels, count, background)
            device.launch_for_each("compose_m2nist_draw_naive", labels.size, given)
        else:
            grid = (count, BLOCKS_AN_IMAGE if count <= MAX_SHARED_IMAGES else 1)
            inputs = (step, digits, digit_labels, batch, labels, len(digits), seed, background)
            device.launch("compose_m2nist", grid, COMPOSE_THREADS, inputs)
        return batch, labels


def place_m2nist_naive(device: Device, digit_count: int, seed: int, step: int | Array, count: int) -> Array:
    """The boxes that compose_m2nist draws: int32 (count, 3, 3) of digit, top, left."""
    boxes = device.empty((count, 3, 3), np.int32)
    arguments = (step_on_device(device, step), boxes, digit_count, count, seed)
    device.launch_for_each("compose_m2nist_place_naive", count, arguments)
    return boxes


def step_on_device(device: Device, step: int | Array) -> Array:
    """The step as an int32 array (1,) for the kernels: the given array, or a new one with the 32 bits of the number."""
    if not isinstance(step, int):
        return step
    return device.asarray(np.array([step], np.uint32).view(np.int32))
