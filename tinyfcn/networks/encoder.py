"""The layers that the classifier and every FCN begin with: two convolutions, each with ReLU and max-pooling.

layer    kernel     28x28      64x84
conv1    5x5, 8     8,24,24    8,60,80
pool1    2x2 / 2    8,12,12    8,30,40
conv2    3x3, 8     8,10,10    8,28,38
pool2    2x2 / 2    8,5,5      8,14,19
"""

from typing import Any

from tinyfcn.networks.network import Network, Shapes

ENCODER: Shapes = {"conv1": ((8, 1, 5, 5), 8), "conv2": ((8, 8, 3, 3), 8)}


def encode(network: Network, x: Any) -> Any:
    """pool2 (N, 8, h, w) from x (N, 1, H, W); h = ((H - 4) // 2 - 2) // 2. Keeps what `encode_backward` needs."""
    ops, out = network.ops, network.outputs
    out["x"] = x
    out["conv1"] = ops.relu(ops.conv2d(x, *network.weights("conv1")))
    out["pool1"], out["winner1"] = ops.max_pool2d(out["conv1"])
    out["conv2"] = ops.relu(ops.conv2d(out["pool1"], *network.weights("conv2")))
    out["pool2"], out["winner2"] = ops.max_pool2d(out["conv2"])
    return out["pool2"]


def encode_backward(network: Network, dpool2: Any, dpool1_from_skip: Any | None = None) -> None:
    """The gradients of conv1 and conv2, given those of pool2 and, where a skip connection leaves it, of pool1."""
    ops, out, d = network.ops, network.outputs, network.output_gradients
    d["pool2"] = dpool2
    d["conv2"] = ops.max_pool2d_backward(d["pool2"], out["winner2"], out["conv2"].shape)
    dsum = ops.relu_backward(d["conv2"], out["conv2"])
    d["pool1"], _, _ = ops.conv2d_backward(
        dsum, out["pool1"], network.parameter["conv2.weight"], out=network.gradient_out("conv2")
    )
    if dpool1_from_skip is not None:  # pool1 was used twice: its gradients add up
        d["pool1"] = ops.add(d["pool1"], dpool1_from_skip)
    d["conv1"] = ops.max_pool2d_backward(d["pool1"], out["winner1"], out["conv1"].shape)
    dsum = ops.relu_backward(d["conv1"], out["conv1"])
    ops.conv2d_backward(
        dsum,
        out["x"],
        network.parameter["conv1.weight"],
        need_dx=False,
        out=network.gradient_out("conv1"),
    )
