"""The classifier: names the digit in a 28x28 picture, and at 10x15 places of a 64x84 one.

    layer      kernel           28x28     64x84
    encoder    see encoder.py   8,5,5     8,14,19
    dense32    5x5, 32 + ReLU   32,1,1    32,10,15
    dense10    1x1, 10          10,1,1    10,10,15

A dense layer is a convolution whose kernel covers the whole map. So written, the classifier is fully convolutional
from the start: "casting fully connected layers into convolutions", Long, Shelhamer & Darrell (2015), section 3.1.
"""

from typing import Any, ClassVar

from tinyfcn.networks.encoder import ENCODER, encode, encode_backward
from tinyfcn.networks.network import Network, Shapes

DENSE32 = {"dense32": ((32, 8, 5, 5), 32)}


class Classifier(Network):
    """forward: x (N, 1, H, W) -> logits (N, 10, h, w); h = w = 1 for 28x28, 10x15 for 64x84."""

    shapes: ClassVar[Shapes] = {**ENCODER, **DENSE32, "dense10": ((10, 32, 1, 1), 10)}
    classes = 10

    def forward(self, x: Any) -> Any:
        ops, out = self.ops, self.outputs
        pool2 = encode(self, x)
        out["dense32"] = ops.conv2d(pool2, *self.weights("dense32"), relu=True)
        out["dense10"] = ops.conv2d(out["dense32"], *self.weights("dense10"))
        return out["dense10"]

    def backward(self, dlogits: Any) -> None:
        ops, out, d = self.ops, self.outputs, self.output_gradients
        parameter, into = self.parameter, self.gradient_out
        d["dense10"] = dlogits
        d["dense32"], _, _ = ops.conv2d_backward(
            dlogits, out["dense32"], parameter["dense10.weight"], out=into("dense10"), through_relu=True
        )
        dpool2, _, _ = ops.conv2d_backward(
            d["dense32"], out["pool2"], parameter["dense32.weight"], out=into("dense32"), through_relu=True
        )
        encode_backward(self, dpool2)
