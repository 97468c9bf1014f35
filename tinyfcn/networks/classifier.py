"""The classifier: names the digit in a 28x28 image, and in 10x15 windows of a 64x84 image.

    layer      kernel           28x28     64x84
    encoder    see encoder.py   8,5,5     8,14,19
    dense32    5x5, 32 + ReLU   32,1,1    32,10,15
    dense10    1x1, 10          10,1,1    10,10,15

A dense layer is a convolution whose kernel covers the whole map. Written in this way, the classifier is fully
convolutional from the start: "casting fully connected layers into convolutions", Long, Shelhamer & Darrell (2015),
section 3.1.
"""

from typing import Any

import numpy as np

from tinyfcn.devices.device import Array
from tinyfcn.networks.design import Design
from tinyfcn.networks.encoder import ENCODER, encode, encode_backward
from tinyfcn.networks.network import LinearHead, Recipe, Shapes
from tinyfcn.ops import Operations

DENSE32: Shapes = {"dense32": ((32, 8, 5, 5), 32)}


class Classifier(LinearHead):
    """forward: x (N, 1, H, W) -> logits (N, 10, h, w); h = w = 1 for 28x28, 10x15 for 64x84."""

    name = "classifier"
    summary = "two convolutions with pooling, then two dense layers written as convolutions"
    options = ()
    recipe = Recipe(learning_rate=1e-2)
    has_background = False
    receptive_field = 28
    per_pixel = False
    head, features = "dense10", "dense32"

    def __init__(self, ops: Operations, design: Design, seed: int = 0, dtype: Any = np.float32) -> None:
        self.shapes = {**ENCODER, **DENSE32, "dense10": ((10, 32, 1, 1), 10)}
        super().__init__(ops, design, seed, dtype)

    def forward_features(self, x: Array) -> Array:
        ops, out = self.ops, self.outputs
        pool2 = encode(self, x)
        out["dense32"] = ops.conv2d(pool2, **self.weights("dense32"), relu=True)
        return out["dense32"]

    def backward_features(self, dfeatures: Array) -> None:
        ops, out, d = self.ops, self.outputs, self.output_gradients
        d["dense32"] = dfeatures
        dpool2, _, _ = ops.conv2d_backward(
            d["dense32"], out["pool2"], **self.backward_weights("dense32"), through_relu=True
        )
        encode_backward(self, dpool2)
