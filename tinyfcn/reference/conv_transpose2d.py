"""Transposed convolution in NumPy: the gradient of a convolution with respect to its input, used as a layer.

    y[n, o, i * stride + u - padding, j * stride + v - padding] += x[n, c, i, j] * weight[c, o, u, v],   plus bias[o]

Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016), chapter 4.
"""

import numpy as np

from tinyfcn.packed_weight import PackedWeight
from tinyfcn.reference import im2col
from tinyfcn.reference.relu import rectified, relu_backward


def conv_transpose2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: int = 1,
    padding: int = 0,
    add: np.ndarray | None = None,
    relu: bool = False,
    packed: PackedWeight | None = None,
) -> np.ndarray:
    """y (N, O, OH, OW) from x (N, C, H, W), weight (C, O, KH, KW), bias (O,); OH = (H - 1) S + KH - 2P.

    add (N, O, OH, OW) is added to y, where a skip connection joins. relu: y then passes through a ReLU, max(y, 0).
    """
    height, width = x.shape[2:]
    out_height = (height - 1) * stride + weight.shape[2] - 2 * padding
    out_width = (width - 1) * stride + weight.shape[3] - 2 * padding
    y = im2col.backward_input(x, weight, stride, padding, out_height, out_width)
    y += bias[:, None, None]
    if add is not None:
        y += add
    return rectified(y, out=y) if relu else y


def conv_transpose2d_backward(
    dout: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: int = 1,
    padding: int = 0,
    need_dx: bool = True,
    out: tuple[np.ndarray, np.ndarray] | None = None,
    through_relu: bool = False,
    packed: PackedWeight | None = None,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(dx, dweight, dbias), of the shapes of x, weight and bias, from dout (N, O, OH, OW).

    dx is None without `need_dx`; dweight and dbias are written into `out` where it is given. through_relu: x is the
    output of a ReLU, and dx the gradient of that ReLU's input: 0 where x is 0.
    """
    dweight, dbias = out or (np.empty_like(weight), np.empty_like(weight, shape=weight.shape[1:2]))
    kernel_height, kernel_width = weight.shape[2:]
    dweight[...] = im2col.backward_weight(x, dout, kernel_height, kernel_width, stride, padding)
    dbias[...] = dout.sum(axis=(0, 2, 3))
    if not need_dx:
        return None, dweight, dbias
    # Each input adds to a window of outputs. Gathering the gradients of that window is a convolution.
    dx = im2col.forward(dout, weight, stride, padding)
    return relu_backward(dx, x) if through_relu else dx, dweight, dbias
