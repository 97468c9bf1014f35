"""A 1x1 convolution with the softmax cross-entropy of its outputs, in NumPy."""

import numpy as np

from tinyfcn.reference import im2col
from tinyfcn.reference.conv2d import conv2d
from tinyfcn.reference.relu import relu_backward
from tinyfcn.reference.softmax_cross_entropy import softmax_cross_entropy


def linear_cross_entropy(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    labels: np.ndarray,
    ignore_index: int | None = None,
    unlabelled: str = "zero",
    through_relu: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loss (1,), dlogits (N, K, H, W) and dx, of softmax_cross_entropy(conv2d(x, weight, bias), labels).

    Args:
        x: (N, C, H, W).
        weight, bias: (K, C, 1, 1) and (K,). Their gradients are conv2d_backward's, from dlogits.
        labels: integers (N, H, W); `ignore_index` and `unlabelled` are as in softmax_cross_entropy.
        through_relu: x is the output of a ReLU, and dx the gradient of that ReLU's input: 0 where x is 0.
    """
    loss, dlogits = softmax_cross_entropy(conv2d(x, weight, bias), labels, ignore_index, unlabelled)
    dx = im2col.backward_input(dlogits, weight, 1, 0, *x.shape[2:])
    return loss, dlogits, relu_backward(dx, x) if through_relu else dx
