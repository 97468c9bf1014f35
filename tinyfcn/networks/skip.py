"""The FCN with skip connections: names the digit at every pixel.

    layer       kernel                                      64x84
    encoder     see encoder.py                              8,14,19     pretrained
    dense32     5x5 padding 2, 32 + ReLU                    32,14,19    pretrained: each position sees 28x28 pixels
    context     3x3 padding 1, 32 + ReLU                    32,14,19    each position sees 36x36 pixels
    up1         transposed 4x4 / 2, 16
     + skip1    1x1, 16, of pool1;  ReLU of the sum         16,30,40
    up2         transposed 6x6 / 2, 16
     + skip0    1x1, 16, of the image;  ReLU of the sum     16,64,84
    score       1x1, 11 (digits, background) or 2           11,64,84

Options change the kernels of up1 and up2, with the padding that keeps the sizes, and the 16 channels.

The small maps hold which digits are in the image, the large ones hold where: the skip connections add the second to the
first. Long, Shelhamer & Darrell, "Fully convolutional networks for semantic segmentation" (2015), 4.2.
"""

from math import ceil
from typing import Any

import numpy as np

from tinyfcn.devices.device import Array
from tinyfcn.networks.classifier import DENSE32
from tinyfcn.networks.design import Design
from tinyfcn.networks.encoder import ENCODER, encode, encode_backward
from tinyfcn.networks.network import LinearHead, Recipe
from tinyfcn.networks.options import FREEZE, INK_START, L2, LABELS, UP1_KERNEL, UP2_KERNEL, WIDTH
from tinyfcn.ops import Operations


class Skip(LinearHead):
    """forward: x (N, 1, H, W), H and W multiples of 4 -> logits (N, classes, H, W)."""

    name = "skip"
    summary = "with skip connections"
    options = (LABELS, FREEZE, INK_START, UP1_KERNEL, UP2_KERNEL, WIDTH, L2)
    recipe = Recipe(learning_rate=1e-2, warmup=100, beta2=0.99)
    has_background = True
    receptive_field = 44
    pretrained = (*ENCODER, *DENSE32)
    head, features = "score", "up2"

    def __init__(self, ops: Operations, design: Design, seed: int = 0, dtype: Any = np.float32) -> None:
        width, up1, up2 = design.width, design.up1_kernel, design.up2_kernel
        self.strides = {"up1": 2, "up2": 2}
        # A larger kernel gives a larger map, whose rim the padding crops.
        self.paddings = {"up1": (up1 - UP1_KERNEL.default) // 2, "up2": (up2 - UP2_KERNEL.default) // 2}
        # An output sees up2 / 2 positions of up1's map, which see every second of this many, 4 pixels apart.
        self.receptive_field = 36 + 4 * (ceil((up2 // 2 + up1 - 1) / 2) - 1)
        self.shapes = {
            **ENCODER,
            **DENSE32,
            "context": ((32, 32, 3, 3), 32),
            "up1": ((32, width, up1, up1), width),
            "skip1": ((width, 8, 1, 1), width),
            "up2": ((width, width, up2, up2), width),
            "skip0": ((width, 1, 1, 1), width),
            "score": ((design.classes, width, 1, 1), design.classes),
        }
        super().__init__(ops, design, seed, dtype)
        if design.ink_start:
            self.load(ink_start_values(self.numpy_parameters()))

    def forward_features(self, x: Array) -> Array:
        ops, out = self.ops, self.outputs
        pool2 = encode(self, x)
        with ops.side_stream():  # the skip connections' summands are not needed before up1 and up2
            skip1 = ops.conv2d(out["pool1"], **self.weights("skip1"))
            skip0 = ops.conv2d(x, **self.weights("skip0"))
        out["dense32"] = ops.conv2d(pool2, **self.weights("dense32"), padding=2, relu=True)
        out["context"] = ops.conv2d(out["dense32"], **self.weights("context"), padding=1, relu=True)
        ops.join()
        for name, y, skip in (("up1", "context", skip1), ("up2", "up1", skip0)):
            out[name] = ops.conv_transpose2d(
                out[y], **self.weights(name), stride=2, padding=self.paddings[name], add=skip, relu=True
            )
        return out["up2"]

    def backward_features(self, dfeatures: Array) -> None:
        ops, out, d = self.ops, self.outputs, self.output_gradients
        train_encoder = not self.freeze
        d["up2"] = dfeatures
        d["up1"], _, _ = ops.conv_transpose2d_backward(
            d["up2"],
            out["up1"],
            **self.backward_weights("up2"),
            stride=2,
            padding=self.paddings["up2"],
            through_relu=True,
        )
        dpool1, _, _ = ops.conv2d_backward(
            d["up1"], out["pool1"], **self.backward_weights("skip1"), need_dx=train_encoder
        )
        # The gradient of a sum is the gradient of each summand.
        ops.conv2d_backward(d["up2"], out["x"], **self.backward_weights("skip0"), need_dx=False)
        d["context"], _, _ = ops.conv_transpose2d_backward(
            d["up1"],
            out["context"],
            **self.backward_weights("up1"),
            stride=2,
            padding=self.paddings["up1"],
            through_relu=True,
        )
        ddense32, _, _ = ops.conv2d_backward(
            d["context"],
            out["dense32"],
            **self.backward_weights("context"),
            padding=1,
            need_dx=train_encoder,
            through_relu=True,
        )
        if self.freeze:
            return
        d["dense32"] = ddense32
        dpool2, _, _ = ops.conv2d_backward(
            d["dense32"],
            out["pool2"],
            **self.backward_weights("dense32"),
            padding=2,
            through_relu=True,
        )
        encode_backward(self, dpool2, dpool1)


def ink_start_values(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Initial weights with which the network tells ink from background, and has only the digits to learn.

    A pixel belongs to a digit if its byte is above 0, however faint: the input then is (byte - 127) / 127 > -1. From
    random weights, that step at the very end of the input's range is learned late, and the rim of every stroke stays
    wrong until then. So the first two channels of up2 begin as relu(byte) and relu(byte - 1). Their difference is 1 on
    ink and 0 elsewhere, and `score` begins by adding it to the digits and subtracting it from the background. All these
    weights are trained further.
    """
    start = {name: value.copy() for name, value in values.items()}
    start["skip0.weight"][:2] = 127
    start["skip0.bias"][:2] = 127, 126
    start["up2.weight"][:, :2] *= 0.1
    sign = np.ones(len(values["score.bias"]))
    sign[-1] = -1  # the background is the last class
    start["score.weight"][:, 0, 0, 0] = 4 * sign
    start["score.weight"][:, 1, 0, 0] = -4 * sign
    start["score.bias"][-1] = 3  # most pixels are background
    return start
