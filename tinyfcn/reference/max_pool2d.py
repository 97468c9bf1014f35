"""Max-pooling in NumPy. It keeps the max index of each window, because the gradient flows to that pixel alone."""

import numpy as np


def max_pool2d(x: np.ndarray, size: int = 2, stride: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """y (N, C, OH, OW) and max_index, int32 of the same shape: h * W + w of the maximum, among equals the first.

    x is (N, C, H, W); OH = (H - size) // stride + 1. No window covers the rows and columns left over at the end.
    """
    width = x.shape[3]
    out_height, out_width = (x.shape[2] - size) // stride + 1, (width - size) // stride + 1
    y = np.full((*x.shape[:2], out_height, out_width), -np.inf, x.dtype)
    offset = np.zeros(y.shape, np.int32)  # u * W + v within the window
    for u in range(size):
        for v in range(size):
            candidate = np.ascontiguousarray(x[:, :, u::stride, v::stride][:, :, :out_height, :out_width])
            # Greater, not equal: among equals the first stays. A NaN is propagated.
            wins = (candidate > y) | (candidate != candidate)
            offset += wins * (np.int32(u * width + v) - offset)  # np.where takes several times as long
            y = np.maximum(y, candidate)
    return y, offset + corners(out_height, out_width, width, stride)


def corners(out_height: int, out_width: int, width: int, stride: int) -> np.ndarray:
    """h * W + w of each window's first pixel: int32 (OH, OW)."""
    return (np.arange(out_height)[:, None] * stride * width + np.arange(out_width) * stride).astype(np.int32)


def max_pool2d_backward(
    dout: np.ndarray, max_index: np.ndarray, input_shape: tuple[int, ...], size: int = 2, stride: int = 2
) -> np.ndarray:
    """dx of `input_shape` from dout and max_index (N, C, OH, OW).

    dx of a pixel is the sum of dout over the windows whose maximum it is.
    """
    out_height, out_width = dout.shape[2:]
    width = input_shape[3]
    offset = max_index - corners(out_height, out_width, width, stride)  # u * W + v within the window
    dx = np.zeros(input_shape, dout.dtype)
    for u in range(size):
        for v in range(size):
            into = dx[:, :, u::stride, v::stride][:, :, :out_height, :out_width]
            into += dout * (offset == u * width + v)
    return dx
