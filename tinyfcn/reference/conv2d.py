"""Two-dimensional convolution (cross-correlation, as in every deep-learning library) in NumPy.

y[n, o, i, j] = bias[o] + sum over c, u, v of x[n, c, i * stride + u - padding, j * stride + v - padding]
                                              * weight[o, c, u, v]
"""

import numpy as np

from tinyfcn.packed_weight import PackedWeight
from tinyfcn.reference import im2col
from tinyfcn.reference.relu import rectified, relu_backward


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: int = 1,
    padding: int = 0,
    relu: bool = False,
    packed: PackedWeight | None = None,
) -> np.ndarray:
    """y (N, O, OH, OW) from x (N, C, H, W), weight (O, C, KH, KW), bias (O,); OH = (H + 2P - KH) // S + 1.

    relu: y passes through a ReLU, max(y, 0). packed: for the kernels alone.
    """
    y = im2col.forward(x, weight, stride, padding)
    y += bias[:, None, None]
    return rectified(y, out=y) if relu else y


def conv2d_backward(
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
    dweight, dbias = out or (np.empty_like(weight), np.empty_like(weight, shape=weight.shape[:1]))
    kernel_height, kernel_width = weight.shape[2:]
    dweight[...] = im2col.backward_weight(dout, x, kernel_height, kernel_width, stride, padding)
    dbias[...] = dout.sum(axis=(0, 2, 3))
    if not need_dx:
        return None, dweight, dbias
    # Each output reads a window of inputs. Scattering its gradient over that window is a transposed convolution.
    dx = im2col.backward_input(dout, weight, stride, padding, *x.shape[2:])
    return relu_backward(dx, x) if through_relu else dx, dweight, dbias
