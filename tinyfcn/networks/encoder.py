"""The layers that the classifier and every FCN begin with: two convolutions, each with ReLU and max-pooling.

layer    kernel     28x28      64x84
conv1    5x5, 8     8,24,24    8,60,80    not kept: pool1 and its max indices hold all that backward needs
pool1    2x2 / 2    8,12,12    8,30,40
conv2    3x3, 8     8,10,10    8,28,38    not kept
pool2    2x2 / 2    8,5,5      8,14,19
"""

from tinyfcn.devices.device import Array
from tinyfcn.networks.network import Network, Shapes

ENCODER: Shapes = {"conv1": ((8, 1, 5, 5), 8), "conv2": ((8, 8, 3, 3), 8)}


def encode(network: Network, x: Array) -> Array:
    """pool2 (N, 8, h, w) from x (N, 1, H, W); h = ((H - 4) // 2 - 2) // 2. Keeps the outputs for `encode_backward`."""
    ops, out = network.ops, network.outputs
    out["x"] = x
    out["pool1"], out["max_index1"] = ops.conv2d_pool(x, **network.weights("conv1"))
    out["pool2"], out["max_index2"] = ops.conv2d_pool(out["pool1"], **network.weights("conv2"))
    return out["pool2"]


def encode_backward(network: Network, dpool2: Array, dpool1_from_skip: Array | None = None) -> None:
    """The gradients of conv1 and conv2, given dpool2, the gradient of conv2's pre-activation at each max index.

    dpool1_from_skip: the gradient of pool1 through a skip connection, where the design has one. It is added to the
    gradient through conv2.
    """
    ops, out, d = network.ops, network.outputs, network.output_gradients
    d["pool2"] = dpool2
    d["pool1"], _, _ = ops.conv2d_pool_backward(
        d["pool2"],
        out["max_index2"],
        out["pool1"],
        **network.backward_weights("conv2"),
        through_relu=True,
        add=dpool1_from_skip,
    )
    ops.conv2d_pool_backward(
        d["pool1"], out["max_index1"], out["x"], **network.backward_weights("conv1"), need_dx=False
    )
