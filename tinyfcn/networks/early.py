"""The source article's FCN ("early"), and the same with a channel for the background ("corrected").

    layer       kernel                      reduce first         reduce last
    encoder     see encoder.py              8,14,19              8,14,19       pretrained
    hidden      1x1, 32 + ReLU              32,14,19             32,14,19
    reduce      1x1, classes + ReLU         classes,14,19
    up1         transposed 4x4 / 2          classes,30,40        32,30,40
     + skip1    1x1 of pool1; their mean    classes,30,40        32,30,40      only with article_skip
    up2         transposed 6x6 / 2          classes,64,84        32,64,84
    reduce      1x1, classes                                     classes,64,84

Upsampling "once" puts a single transposed 12x12 / 4 convolution in the place of up1 and up2: a kernel that takes `in`
to `out` places is out - (in - 1) * stride = 64 - 13 * 4 = 84 - 18 * 4 = 12 wide. Reducing last computes with 32
channels where the map is largest, and needs the memory for it.

There are 10 classes without background, for "early"; 11 or 2 (ink, background) for "corrected".
"""

from typing import Any

import numpy as np

from tinyfcn.networks.encoder import ENCODER, encode, encode_backward
from tinyfcn.networks.network import Network
from tinyfcn.ops import Operations


class Early(Network):
    """forward: x (N, 1, H, W), H and W multiples of 4 -> logits (N, classes, H, W).

    An output pixel sees at most 20x20 input pixels. `freeze` leaves the pretrained layers as they are.

    Raises:
        ValueError: `article_skip` with `upsample` "once", which has no map of pool1's size.
    """

    receptive_field = 20
    pretrained = tuple(ENCODER)

    def __init__(
        self,
        ops: Operations,
        seed: int,
        classes: int = 10,
        freeze: bool = True,
        reduce: str = "first",
        upsample: str = "staged",
        article_skip: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        if article_skip and upsample == "once":
            raise ValueError("article_skip joins a map of pool1's size, and upsampling once makes none")
        self.classes, self.freeze, self.reduce_first = classes, freeze, reduce == "first"
        self.article_skip = article_skip
        channels = classes if self.reduce_first else 32
        reduction = {"reduce": ((classes, 32, 1, 1), classes)}
        self.strides = {"up1": 4} if upsample == "once" else {"up1": 2, "up2": 2}
        sizes = {"up1": 12} if upsample == "once" else {"up1": 4, "up2": 6}
        self.shapes = {
            **ENCODER,
            "hidden": ((32, 8, 1, 1), 32),
            **(reduction if self.reduce_first else {}),
            **({"skip1": ((channels, 8, 1, 1), channels)} if article_skip else {}),
            **{up: ((channels, channels, size, size), channels) for up, size in sizes.items()},
            **({} if self.reduce_first else reduction),
        }
        super().__init__(ops, seed, dtype)

    def forward(self, x: Any) -> Any:
        ops, out = self.ops, self.outputs
        pool2 = encode(self, x)
        out["hidden"] = y = ops.conv2d(pool2, *self.weights("hidden"), relu=True)
        if self.reduce_first:
            out["reduce"] = y = ops.conv2d(y, *self.weights("reduce"), relu=True)
        out["up1"] = y = ops.conv_transpose2d(y, *self.weights("up1"), stride=self.strides["up1"])
        if self.article_skip:
            seen = ops.conv2d(out["pool1"], *self.weights("skip1"))
            out["skip1"] = y = ops.add(y, seen, scale=0.5)
        if "up2" in self.strides:
            out["up2"] = y = ops.conv_transpose2d(y, *self.weights("up2"), stride=2)
        if not self.reduce_first:
            out["reduce"] = y = ops.conv2d(y, *self.weights("reduce"))
        return y

    def backward(self, dlogits: Any) -> None:
        ops, out, d = self.ops, self.outputs, self.output_gradients
        parameter, into = self.parameter, self.gradient_out
        last_up = "up2" if "up2" in self.strides else "up1"
        before_up2 = "skip1" if self.article_skip else "up1"
        before_up1 = "reduce" if self.reduce_first else "hidden"
        train_encoder = not self.freeze

        dy = dlogits
        if not self.reduce_first:
            d["reduce"] = dy
            dy, _, _ = ops.conv2d_backward(dy, out[last_up], parameter["reduce.weight"], out=into("reduce"))
        if last_up == "up2":
            d["up2"] = dy
            dy, _, _ = ops.conv_transpose2d_backward(
                dy, out[before_up2], parameter["up2.weight"], stride=2, out=into("up2")
            )
        dpool1 = None
        if self.article_skip:
            d["skip1"] = dy
            dy = ops.add_backward(dy, scale=0.5)  # the gradient of both summands
            dpool1, _, _ = ops.conv2d_backward(
                dy, out["pool1"], parameter["skip1.weight"], need_dx=train_encoder, out=into("skip1")
            )
        d["up1"] = dy
        dy, _, _ = ops.conv_transpose2d_backward(
            dy,
            out[before_up1],
            parameter["up1.weight"],
            stride=self.strides["up1"],
            out=into("up1"),
            through_relu=True,
        )
        if self.reduce_first:
            d["reduce"] = dy
            dy, _, _ = ops.conv2d_backward(
                dy, out["hidden"], parameter["reduce.weight"], out=into("reduce"), through_relu=True
            )
        d["hidden"] = dy
        dpool2, _, _ = ops.conv2d_backward(
            dy,
            out["pool2"],
            parameter["hidden.weight"],
            need_dx=train_encoder,
            out=into("hidden"),
            through_relu=True,
        )
        if train_encoder:
            encode_backward(self, dpool2, dpool1)
