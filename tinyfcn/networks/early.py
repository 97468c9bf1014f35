"""The source article's FCN ("early"), and the same with a channel for the background ("corrected").

    layer       kernel                      reduce first         reduce last
    encoder     see encoder.py              8,14,19              8,14,19       pretrained
    hidden      1x1, 32 + ReLU              32,14,19             32,14,19
    reduce      1x1, classes + ReLU         classes,14,19
    up1         transposed 4x4 / 2          classes,30,40        32,30,40
     + skip1    1x1 of pool1; their mean    classes,30,40        32,30,40      only with article_skip
    up2         transposed 6x6 / 2          classes,64,84        32,64,84
    reduce      1x1, classes                                     classes,64,84

Upsampling "once" replaces up1 and up2 by a single transposed 12x12 / 4 convolution: a kernel that upsamples `in`
positions to `out` is out - (in - 1) * stride = 64 - 13 * 4 = 84 - 18 * 4 = 12 wide. Reducing last computes with 32
channels where the map is largest, and needs the memory for it.

"early" has 10 classes, without background; "corrected" has 11, or 2 (ink, background).
"""

from typing import Any

import numpy as np

from tinyfcn.devices.device import Array
from tinyfcn.networks.design import Design
from tinyfcn.networks.encoder import ENCODER, encode, encode_backward
from tinyfcn.networks.network import Network, Recipe, Shapes
from tinyfcn.networks.options import ARTICLE_SKIP, DECODER_RELU, FREEZE, L2, LABELS, REDUCE, UNLABELLED, UPSAMPLE
from tinyfcn.ops import Operations


class Early(Network):
    """forward: x (N, 1, H, W), H and W multiples of 4 -> logits (N, classes, H, W).

    Its recipe is the article's: a constant learning rate, which causes the white backgrounds.
    """

    name = "early"
    summary = "the source article's, without a class for background"
    options = (REDUCE, UPSAMPLE, ARTICLE_SKIP, DECODER_RELU, FREEZE, UNLABELLED, L2)
    recipe = Recipe(learning_rate=1e-3, schedule="constant", freeze=True)
    has_background = False
    receptive_field = 20
    pretrained = tuple(ENCODER)

    @classmethod
    def validate(cls, design: Design) -> None:
        if design.article_skip and design.upsample == "once":
            raise ValueError("--article-skip joins a map of pool1's size, and --upsample once makes none")
        if design.article_skip and design.decoder_relu:
            raise ValueError("--article-skip and --decoder-relu are two versions of the article's decoder: choose one")

    def __init__(self, ops: Operations, design: Design, seed: int = 0, dtype: Any = np.float32) -> None:
        classes = design.classes
        self.reduce_first, self.article_skip = design.reduce == "first", design.article_skip
        self.decoder_relu = design.decoder_relu
        channels = classes if self.reduce_first else 32
        reduction: Shapes = {"reduce": ((classes, 32, 1, 1), classes)}
        skip1: Shapes = {"skip1": ((channels, 8, 1, 1), channels)}
        self.strides = {"up1": 4} if design.upsample == "once" else {"up1": 2, "up2": 2}
        sizes = {"up1": 12} if design.upsample == "once" else {"up1": 4, "up2": 6}
        self.shapes = {
            **ENCODER,
            "hidden": ((32, 8, 1, 1), 32),
            **(reduction if self.reduce_first else {}),
            **(skip1 if self.article_skip else {}),
            **{up: ((channels, channels, size, size), channels) for up, size in sizes.items()},
            **({} if self.reduce_first else reduction),
        }
        super().__init__(ops, design, seed, dtype)

    def forward(self, x: Array) -> Array:
        ops, out, relu = self.ops, self.outputs, self.decoder_relu
        pool2 = encode(self, x)
        out["hidden"] = y = ops.conv2d(pool2, **self.weights("hidden"), relu=True)
        if self.reduce_first:
            out["reduce"] = y = ops.conv2d(y, **self.weights("reduce"), relu=True)
        out["up1"] = y = ops.conv_transpose2d(y, **self.weights("up1"), stride=self.strides["up1"], relu=relu)
        if self.article_skip:
            skip1 = ops.conv2d(out["pool1"], **self.weights("skip1"))
            out["skip1"] = y = ops.add(y, skip1, scale=0.5)
        if "up2" in self.strides:
            out["up2"] = y = ops.conv_transpose2d(y, **self.weights("up2"), stride=2, relu=relu)
        if not self.reduce_first:
            out["reduce"] = y = ops.conv2d(y, **self.weights("reduce"))
        return y

    def backward(self, dlogits: Array) -> None:
        ops, out, d = self.ops, self.outputs, self.output_gradients
        last_up = "up2" if "up2" in self.strides else "up1"
        before_up2 = "skip1" if self.article_skip else "up1"
        before_up1 = "reduce" if self.reduce_first else "hidden"
        train_encoder = not self.freeze

        dy = dlogits
        if not self.reduce_first:
            d["reduce"] = dy
            dy, _, _ = ops.conv2d_backward(
                dy, out[last_up], **self.backward_weights("reduce"), through_relu=self.decoder_relu
            )
        elif self.decoder_relu:
            dy = ops.relu_backward(dy, out[last_up])
        if last_up == "up2":
            d["up2"] = dy
            dy, _, _ = ops.conv_transpose2d_backward(
                dy,
                out[before_up2],
                **self.backward_weights("up2"),
                stride=2,
                through_relu=self.decoder_relu,
            )
        dpool1 = None
        if self.article_skip:
            d["skip1"] = dy
            dy = ops.add_backward(dy, scale=0.5)  # the gradient of both summands
            dpool1, _, _ = ops.conv2d_backward(
                dy, out["pool1"], **self.backward_weights("skip1"), need_dx=train_encoder
            )
        d["up1"] = dy
        dy, _, _ = ops.conv_transpose2d_backward(
            dy,
            out[before_up1],
            **self.backward_weights("up1"),
            stride=self.strides["up1"],
            through_relu=True,
        )
        if self.reduce_first:
            d["reduce"] = dy
            dy, _, _ = ops.conv2d_backward(dy, out["hidden"], **self.backward_weights("reduce"), through_relu=True)
        d["hidden"] = dy
        dpool2, _, _ = ops.conv2d_backward(
            dy,
            out["pool2"],
            **self.backward_weights("hidden"),
            need_dx=train_encoder,
            through_relu=True,
        )
        if train_encoder:
            encode_backward(self, dpool2, dpool1)


class Corrected(Early):
    """Early with a class for the background."""

    name = "corrected"
    summary = "early with a class for background"
    options = (LABELS, REDUCE, UPSAMPLE, ARTICLE_SKIP, DECODER_RELU, FREEZE, L2)
    recipe = Recipe(learning_rate=1e-2, warmup=100, beta2=0.99, freeze=True)
    has_background = True
