"""A convolution, a ReLU and a 2x2 max-pooling in NumPy, one after another."""

import numpy as np

from tinyfcn.packed_weight import PackedWeight
from tinyfcn.reference.conv2d import conv2d, conv2d_backward
from tinyfcn.reference.max_pool2d import max_pool2d, max_pool2d_backward
from tinyfcn.reference.relu import relu_backward


def conv2d_pool(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, packed: PackedWeight | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """max_pool2d(conv2d(x, weight, bias, relu=True)), 2x2 / 2: y and max_index (N, O, OH // 2, OW // 2)."""
    return max_pool2d(conv2d(x, weight, bias, relu=True))


def conv2d_pool_backward(
    dout: np.ndarray,
    max_index: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    need_dx: bool = True,
    out: tuple[np.ndarray, np.ndarray] | None = None,
    through_relu: bool = False,
    add: np.ndarray | None = None,
    packed: PackedWeight | None = None,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(dx, dweight, dbias), of the shapes of x, weight and bias.

    dout (N, O, PH, PW): the gradient of the pre-activation at each max index, which is the gradient of y where y is
    above 0, else 0. add (as x): the gradient of x from a second use, added to dx before `through_relu`. The other
    arguments are as in conv2d_backward.
    """
    n, _, height, width = x.shape
    o, _, kernel_height, kernel_width = weight.shape
    dconv = max_pool2d_backward(dout, max_index, (n, o, height - kernel_height + 1, width - kernel_width + 1))
    dx, dweight, dbias = conv2d_backward(dconv, x, weight, 1, 0, need_dx, out)
    if dx is None:
        return None, dweight, dbias
    dx = dx if add is None else dx + add
    return relu_backward(dx, x) if through_relu else dx, dweight, dbias
