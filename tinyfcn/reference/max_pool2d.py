"""Max-pooling in NumPy. The winner of each window is kept, so that its gradient can be sent back to it alone."""

import numpy as np


def max_pool2d(x: np.ndarray, size: int = 2, stride: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """y (N, C, OH, OW) and winner, int32 of the same shape: h * W + w of the maximum, of equals the first.

    x is (N, C, H, W); OH = (H - size) // stride + 1. Rows and columns left over at the end are seen by no window.
    """
    width = x.shape[3]
    out_height, out_width = (x.shape[2] - size) // stride + 1, (width - size) // stride + 1
    corner = np.arange(out_height)[:, None] * stride * width + np.arange(out_width) * stride
    y = winner = None
    for u in range(size):
        for v in range(size):
            candidate = x[:, :, u::stride, v::stride][:, :, :out_height, :out_width]
            if y is None:
                y = candidate.copy()
                winner = np.broadcast_to(corner, y.shape).astype(np.int32)
                continue
            better = candidate > y  # not >=, so the first of equals stays
            np.copyto(y, candidate, where=better)
            np.copyto(winner, corner + u * width + v, where=better, casting="unsafe")
    return y, winner


def max_pool2d_backward(
    dout: np.ndarray, winner: np.ndarray, input_shape: tuple[int, ...], size: int = 2, stride: int = 2
) -> np.ndarray:
    """dx of `input_shape` from dout and winner (N, C, OH, OW): the sum over the windows that a pixel has won."""
    out_height, out_width = dout.shape[2:]
    width = input_shape[3]
    corner = (np.arange(out_height)[:, None] * stride * width + np.arange(out_width) * stride).astype(np.int32)
    place = winner - corner  # u * W + v within the window
    dx = np.zeros(input_shape, dout.dtype)
    for u in range(size):
        for v in range(size):
            into = dx[:, :, u::stride, v::stride][:, :, :out_height, :out_width]
            into += dout * (place == u * width + v)
    return dx
