"""The three sums behind convolution and transposed convolution, each as a matrix product over patches.

With weight (A, B, KH, KW), a "fine" picture f (N, B, H, W) and a "coarse" one c (N, A, OH, OW), all three run over
the same products  c[n, a, i, j] * weight[a, b, u, v] * f[n, b, i * stride + u - padding, j * stride + v - padding]
and differ in what they sum for:

    correlate              c from f and weight        forward of conv2d,   dx of conv_transpose2d
    correlate_transposed   f from c and weight        dx of conv2d,        forward of conv_transpose2d
    correlate_weight       weight from c and f        dweight of both

`im2col` lays the patches that a kernel visits side by side: weight (A, B*KH*KW) times patches (B*KH*KW, places).
Chellapilla, Puri & Simard, "High performance convolutional neural networks for document processing" (2006).
"""

import numpy as np

# A patch matrix of about this many elements still lies in a core's cache when the product reads it.
PATCH_ELEMENTS = 1 << 16


def pad(x: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """x (N, C, H, W) with so many rows and columns of zeros around it; a negative number cuts off instead."""
    height, width = x.shape[2:]
    x = x[:, :, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    around = [(max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))]
    return x if not np.any(around) else np.pad(x, [(0, 0), (0, 0), *around])


def patches(x: np.ndarray, kernel_height: int, kernel_width: int, stride: int) -> np.ndarray:
    """All patches of x (N, C, H, W), as a view: (C, KH, KW, N, OH, OW)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel_height, kernel_width), axis=(2, 3))
    return windows[:, :, ::stride, ::stride].transpose(1, 4, 5, 0, 2, 3)


def im2col(patches: np.ndarray, some: slice) -> np.ndarray:
    """The patches of some pictures as a matrix (C * KH * KW, n * OH * OW)."""
    c, kernel_height, kernel_width = patches.shape[:3]
    return patches[:, :, :, some].reshape(c * kernel_height * kernel_width, -1)


def groups(count: int, elements_each: int) -> list[slice]:
    """Slices over `count` pictures, each with about PATCH_ELEMENTS elements of patches."""
    step = max(1, PATCH_ELEMENTS // elements_each)
    return [slice(start, start + step) for start in range(0, count, step)]


def correlate(fine: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """The coarse picture (N, A, OH, OW); OH = (H + 2 * padding - KH) // stride + 1."""
    a, _, kernel_height, kernel_width = weight.shape
    fine = pad(fine, padding, padding, padding, padding)
    seen = patches(fine, kernel_height, kernel_width, stride)
    n, out_height, out_width = seen.shape[3:]
    matrix = weight.reshape(a, -1)
    coarse = np.empty((n, a, out_height, out_width), fine.dtype)
    for some in groups(n, matrix.shape[1] * out_height * out_width):
        product = matrix @ im2col(seen, some)
        coarse[some] = product.reshape(a, -1, out_height, out_width).transpose(1, 0, 2, 3)
    return coarse


def correlate_transposed(
    coarse: np.ndarray, weight: np.ndarray, stride: int, padding: int, height: int, width: int
) -> np.ndarray:
    """The fine picture (N, B, height, width).

    Fine rows of one phase, s * q + r for all q, meet only the kernel's rows r, r + s, r + 2s, ...: together a dense
    correlation of the coarse picture with those rows in reverse. So the s * s phases are correlated at once, as
    s * s * B channels, and then interleaved ("sub-pixel convolution", Shi et al. 2016).
    """
    n, a, coarse_height, coarse_width = coarse.shape
    _, b, kernel_height, kernel_width = weight.shape
    s = stride
    taps_h, taps_w = -(-kernel_height // s), -(-kernel_width // s)
    taps = np.zeros((a, b, taps_h * s, taps_w * s), weight.dtype)
    taps[:, :, :kernel_height, :kernel_width] = weight
    phases = taps.reshape(a, b, taps_h, s, taps_w, s)[:, :, ::-1, :, ::-1, :]
    phases = phases.transpose(3, 5, 1, 0, 2, 4).reshape(s * s * b, a, taps_h, taps_w)

    # The fine rows wanted are padding .. padding + height - 1 of the unpadded ones: phases' rows first .. last - 1.
    first_row, last_row = padding // s, -(-(padding + height) // s)
    first_column, last_column = padding // s, -(-(padding + width) // s)
    coarse = pad(
        coarse,
        taps_h - 1 - first_row,
        last_row - coarse_height,
        taps_w - 1 - first_column,
        last_column - coarse_width,
    )
    fine = correlate(coarse, phases, 1, 0).reshape(n, s, s, b, last_row - first_row, last_column - first_column)
    fine = fine.transpose(0, 3, 4, 1, 5, 2).reshape(n, b, (last_row - first_row) * s, -1)
    top, left = padding - first_row * s, padding - first_column * s
    return np.ascontiguousarray(fine[:, :, top : top + height, left : left + width])


def correlate_weight(
    coarse: np.ndarray, fine: np.ndarray, kernel_height: int, kernel_width: int, stride: int, padding: int
) -> np.ndarray:
    """The gradient of the weight (A, B, KH, KW)."""
    n, a, coarse_height, coarse_width = coarse.shape
    b = fine.shape[1]
    fine = pad(fine, padding, padding, padding, padding)
    fine = fine[:, :, : (coarse_height - 1) * stride + kernel_height, : (coarse_width - 1) * stride + kernel_width]
    seen = patches(fine, kernel_height, kernel_width, stride)
    total = np.zeros((a, b * kernel_height * kernel_width), fine.dtype)
    for some in groups(n, total.shape[1] * coarse_height * coarse_width):
        matrix = coarse[some].transpose(1, 0, 2, 3).reshape(a, -1)
        total += matrix @ im2col(seen, some).T
    return total.reshape(a, b, kernel_height, kernel_width)
