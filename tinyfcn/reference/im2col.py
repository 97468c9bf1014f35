"""The three sums behind convolution and transposed convolution, each as a matrix product over windows of the input.

With x (N, C, H, W), weight (O, C, KH, KW) and dout (N, O, OH, OW), all three run over the same products
dout[n, o, i, j] * weight[o, c, u, v] * x[n, c, i * stride + u - padding, j * stride + v - padding] and differ in the
indices that they sum over:

    forward           y from x and weight           forward of conv2d,        data gradient of conv_transpose2d
    backward_input    dx from dout and weight       data gradient of conv2d,  forward of conv_transpose2d
    backward_weight   dweight from dout and x       weight gradient of both

im2col copies each window into a column of a matrix: weight (O, C*KH*KW) times columns (C*KH*KW, positions).
Chellapilla, Puri & Simard, "High performance convolutional neural networks for document processing" (2006).
"""

import numpy as np

# Elements of columns copied at a time: so few are still in a core's cache when the product reads them.
COLUMN_ELEMENTS = 1 << 16


def pad(x: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """x (N, C, H, W) padded with that many rows and columns of zeros; a negative number crops instead."""
    height, width = x.shape[2:]
    x = x[:, :, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    around = [(max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))]
    return x if not np.any(around) else np.pad(x, [(0, 0), (0, 0), *around])


def windows_of(x: np.ndarray, kernel_height: int, kernel_width: int, stride: int) -> np.ndarray:
    """All windows of x (N, C, H, W), as a view: (C, KH, KW, N, OH, OW)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel_height, kernel_width), axis=(2, 3))
    return windows[:, :, ::stride, ::stride].transpose(1, 4, 5, 0, 2, 3)


def columns_of(windows: np.ndarray, images: slice) -> np.ndarray:
    """The windows of some images as a matrix (C * KH * KW, n * OH * OW)."""
    c, kernel_height, kernel_width = windows.shape[:3]
    return windows[:, :, :, images].reshape(c * kernel_height * kernel_width, -1)


def parts_of(count: int, elements_each: int) -> list[slice]:
    """Slices over `count` images, each with about COLUMN_ELEMENTS elements of columns."""
    step = max(1, COLUMN_ELEMENTS // elements_each)
    return [slice(start, start + step) for start in range(0, count, step)]


def forward(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """y (N, O, OH, OW); OH = (H + 2 * padding - KH) // stride + 1."""
    o, _, kernel_height, kernel_width = weight.shape
    windows = windows_of(pad(x, padding, padding, padding, padding), kernel_height, kernel_width, stride)
    n, out_height, out_width = windows.shape[3:]
    matrix = weight.reshape(o, -1)
    y = np.empty((n, o, out_height, out_width), x.dtype)
    for images in parts_of(n, matrix.shape[1] * out_height * out_width):
        product = matrix @ columns_of(windows, images)
        y[images] = product.reshape(o, -1, out_height, out_width).transpose(1, 0, 2, 3)
    return y


def backward_input(
    dout: np.ndarray, weight: np.ndarray, stride: int, padding: int, height: int, width: int
) -> np.ndarray:
    """dx (N, C, height, width).

    Rows s * q + r of dx, for all q, form a phase. They use only the kernel's rows r, r + s, r + 2s, ..., so a phase is
    a dense convolution of dout with those rows reversed. One convolution computes all s * s phases, as s * s * C
    channels, which are then interleaved ("sub-pixel convolution", Shi et al. 2016).
    """
    n, o, out_height, out_width = dout.shape
    _, c, kernel_height, kernel_width = weight.shape
    s = stride
    phase_height, phase_width = -(-kernel_height // s), -(-kernel_width // s)
    kernel = np.zeros((o, c, phase_height * s, phase_width * s), weight.dtype)
    kernel[:, :, :kernel_height, :kernel_width] = weight
    phases = kernel.reshape(o, c, phase_height, s, phase_width, s)[:, :, ::-1, :, ::-1, :]
    phases = phases.transpose(3, 5, 1, 0, 2, 4).reshape(s * s * c, o, phase_height, phase_width)

    # dx is rows padding .. padding + height - 1 of the unpadded result: the phases' rows first .. last - 1.
    first_row, last_row = padding // s, -(-(padding + height) // s)
    first_column, last_column = padding // s, -(-(padding + width) // s)
    dout = pad(
        dout,
        phase_height - 1 - first_row,
        last_row - out_height,
        phase_width - 1 - first_column,
        last_column - out_width,
    )
    dx = forward(dout, phases, 1, 0).reshape(n, s, s, c, last_row - first_row, last_column - first_column)
    dx = dx.transpose(0, 3, 4, 1, 5, 2).reshape(n, c, (last_row - first_row) * s, -1)
    top, left = padding - first_row * s, padding - first_column * s
    return np.ascontiguousarray(dx[:, :, top : top + height, left : left + width])


def backward_weight(
    dout: np.ndarray, x: np.ndarray, kernel_height: int, kernel_width: int, stride: int, padding: int
) -> np.ndarray:
    """dweight (O, C, KH, KW)."""
    n, o, out_height, out_width = dout.shape
    c = x.shape[1]
    x = pad(x, padding, padding, padding, padding)
    x = x[:, :, : (out_height - 1) * stride + kernel_height, : (out_width - 1) * stride + kernel_width]
    windows = windows_of(x, kernel_height, kernel_width, stride)
    total = np.zeros((o, c * kernel_height * kernel_width), x.dtype)
    for images in parts_of(n, total.shape[1] * out_height * out_width):
        matrix = dout[images].transpose(1, 0, 2, 3).reshape(o, -1)
        total += matrix @ columns_of(windows, images).T
    return total.reshape(o, c, kernel_height, kernel_width)
