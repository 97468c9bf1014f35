"""The three sums behind convolution and transposed convolution, as matrix products in NumPy.

With x (N, C, H, W), weight (O, C, KH, KW) and dout (N, O, OH, OW), all three run over the same products
dout[n, o, i, j] * weight[o, c, u, v] * x[n, c, i * stride + u - padding, j * stride + v - padding] and differ in the
indices that they sum over:

    forward           y from x and weight           forward of conv2d,        data gradient of conv_transpose2d
    backward_input    dx from dout and weight       data gradient of conv2d,  forward of conv_transpose2d
    backward_weight   dweight from dout and x       weight gradient of both

im2col copies each window into a column of a matrix: weight (O, C*KH*KW) times columns (C*KH*KW, positions).
Chellapilla, Puri & Simard, "High performance convolutional neural networks for document processing" (2006).

A convolution of stride s becomes one of stride 1 if each block of s x s pixels is made one pixel with s * s times as
many channels (space_to_depth). With so many channels, copying all windows would take longer than the product. So the
columns of one row of the kernel are copied at a time (forward_by_rows), or none (backward_weight_by_position).
"""

import numpy as np

# Elements of columns copied at a time: so few are still in a core's cache when the product reads them.
COLUMN_ELEMENTS = 1 << 16
FEW_ROWS = 100  # of the matrix of columns. With more, copying them takes longer than a product for each position


def pad(x: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """x (N, C, H, W) padded with that many rows and columns of zeros; a negative number crops instead."""
    height, width = x.shape[2:]
    x = x[:, :, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    around = [(max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))]
    return x if not np.any(around) else np.pad(x, [(0, 0), (0, 0), *around])


def space_to_depth(x: np.ndarray, s: int) -> np.ndarray:
    """(N, s * s * C, ceil(H / s), ceil(W / s)) from x (N, C, H, W), zeros where a block is cut off."""
    if s == 1:
        return x
    n, c, height, width = x.shape
    blocks = np.zeros((n, s, s, c, -(-height // s), -(-width // s)), x.dtype)
    for row, column in np.ndindex(s, s):
        part = x[:, :, row::s, column::s]
        blocks[:, row, column, :, : part.shape[2], : part.shape[3]] = part
    return blocks.reshape(n, s * s * c, *blocks.shape[4:])


def depth_to_space(x: np.ndarray, s: int) -> np.ndarray:
    """(N, C, H * s, W * s) from x (N, s * s * C, H, W): the inverse of space_to_depth where no block is cut off."""
    if s == 1:
        return x
    n, channels, height, width = x.shape
    blocks = x.reshape(n, s, s, -1, height, width)
    x = np.empty((n, channels // s**2, height * s, width * s), x.dtype)
    for row, column in np.ndindex(s, s):
        x[:, :, row::s, column::s] = blocks[:, row, column]
    return x


def padded(x: np.ndarray, kernel: tuple[int, int], stride: int, padding: int, out: tuple[int, int]) -> np.ndarray:
    """x with the zeros around it, and without the last rows and columns that no window of the `out` ones reads."""
    bottom, right = (
        (outputs - 1) * stride + size - length - padding
        for outputs, size, length in zip(out, kernel, x.shape[2:], strict=True)
    )
    return pad(x, padding, bottom, padding, right)


def windows_of(x: np.ndarray, kernel_height: int, kernel_width: int) -> np.ndarray:
    """All windows of x (N, C, H, W), as a view: (C, KH, KW, N, OH, OW)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel_height, kernel_width), axis=(2, 3))
    return windows.transpose(1, 4, 5, 0, 2, 3)


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
    kernel = weight.shape[2:]
    out = tuple((length + 2 * padding - size) // stride + 1 for length, size in zip(x.shape[2:], kernel, strict=True))
    x = padded(x, kernel, stride, padding, out)
    return dense_forward(space_to_depth(x, stride), space_to_depth(weight, stride))


def dense_forward(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """y (N, O, OH, OW), with stride 1 and without padding; OH = H - KH + 1."""
    o, c, kernel_height, kernel_width = weight.shape
    outputs = (x.shape[2] - kernel_height + 1) * (x.shape[3] - kernel_width + 1)
    by = forward_by_rows if o < min(c * kernel_width, outputs) else forward_by_columns
    return by(x, weight)


def forward_by_columns(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same sums, as one product with the matrix of columns."""
    o, _, kernel_height, kernel_width = weight.shape
    windows = windows_of(x, kernel_height, kernel_width)
    n, out_height, out_width = windows.shape[3:]
    matrix = weight.reshape(o, -1)
    y = np.empty((n, o, out_height, out_width), x.dtype)
    for images in parts_of(n, matrix.shape[1] * out_height * out_width):
        columns = columns_of(windows, images)
        part = matrix * columns if len(columns) == 1 else matrix @ columns  # a product with one row is slow
        y[images] = part.reshape(o, -1, out_height, out_width).transpose(1, 0, 2, 3)
    return y


def forward_by_rows(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same sums, row by row of the kernel: its columns are those of the row above it, WIDTH elements further on.

    Rows of y are computed as long as those of x; what lies beyond OW is dropped.
    """
    n, c, height, width = x.shape
    o, _, kernel_height, kernel_width = weight.shape
    out_height, out_width = height - kernel_height + 1, width - kernel_width + 1
    length = (out_height - 1) * width + out_width
    matrices = np.ascontiguousarray(weight.transpose(2, 0, 3, 1)).reshape(kernel_height, o, -1)
    y = np.empty((n, o, out_height * width), x.dtype)
    for images in parts_of(n, kernel_width * c * height * width):
        columns = shifted(x[images], kernel_width)
        part = matrices[0] @ columns[:, :, :length]
        for u in range(1, kernel_height):
            part += matrices[u] @ columns[:, :, u * width : u * width + length]
        y[images, :, :length] = part
    return np.ascontiguousarray(y.reshape(n, o, out_height, width)[..., :out_width])


def shifted(x: np.ndarray, count: int) -> np.ndarray:
    """(N, count * C, H * W - count + 1) from x (N, C, H, W): its elements from the first on, from the second on, ..."""
    n, c, height, width = x.shape
    x = x.reshape(n, c, height * width)
    length = height * width - count + 1
    shifts = np.empty((n, count, c, length), x.dtype)
    for first in range(count):
        shifts[:, first] = x[:, :, first : first + length]
    return shifts.reshape(n, count * c, length)


def backward_input(
    dout: np.ndarray, weight: np.ndarray, stride: int, padding: int, height: int, width: int
) -> np.ndarray:
    """dx (N, C, height, width).

    Rows s * q + r of dx, for all q, form a phase. They use only the kernel's rows r, r + s, r + 2s, ..., so a phase is
    a dense convolution of dout with those rows reversed. One convolution computes all s * s phases, as s * s * C
    channels, which are then interleaved ("sub-pixel convolution", Shi et al. 2016).
    """
    n, o, out_height, out_width = dout.shape
    c, kernel_height, kernel_width = weight.shape[1:]
    if (kernel_height, kernel_width) == (height, width) and (out_height, out_width, padding) == (1, 1, 0):
        # A dense layer: its one position sees the whole image. The phases would be nearly all zeros.
        return (dout.reshape(n, o) @ weight.reshape(o, -1)).reshape(n, c, height, width)
    s = stride
    phases = space_to_depth(weight, s)[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    phase_height, phase_width = phases.shape[2:]

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
    dx = depth_to_space(dense_forward(dout, phases), s)
    top, left = padding - first_row * s, padding - first_column * s
    return np.ascontiguousarray(dx[:, :, top : top + height, left : left + width])


def backward_weight(
    dout: np.ndarray, x: np.ndarray, kernel_height: int, kernel_width: int, stride: int, padding: int
) -> np.ndarray:
    """dweight (O, C, KH, KW)."""
    x = space_to_depth(padded(x, (kernel_height, kernel_width), stride, padding, dout.shape[2:]), stride)
    o, out_height, out_width = dout.shape[1:]
    rows = x.shape[1] * (x.shape[2] - out_height + 1) * (x.shape[3] - out_width + 1)
    by = backward_weight_by_position if rows > FEW_ROWS and o < out_height * out_width else backward_weight_by_columns
    return depth_to_space(by(dout, x), stride)[:, :, :kernel_height, :kernel_width]


def backward_weight_by_columns(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dweight (O, C, KH, KW), with stride 1 and without padding; KH = H - OH + 1."""
    n, o, out_height, out_width = dout.shape
    windows = windows_of(x, x.shape[2] - out_height + 1, x.shape[3] - out_width + 1)
    total = np.zeros((o, int(np.prod(windows.shape[:3]))), x.dtype)
    for images in parts_of(n, total.shape[1] * out_height * out_width):
        matrix = dout[images].transpose(1, 0, 2, 3).reshape(o, -1)
        total += matrix @ columns_of(windows, images).T
    return total.reshape(o, *windows.shape[:3])


def backward_weight_by_position(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The same sums, a product for each position of the kernel. Zeros make the rows of dout as long as those of x."""
    n, o, out_height, out_width = dout.shape
    c, height, width = x.shape[1:]
    length = (out_height - 1) * width + out_width
    dout = pad(dout, 0, 0, 0, width - out_width).reshape(n, o, -1)[:, :, :length]
    dout = np.ascontiguousarray(dout.transpose(0, 2, 1))  # every product reads it in this order
    x = x.reshape(n, c, -1)
    total = np.empty((height - out_height + 1, width - out_width + 1, c, o), x.dtype)
    for u, v in np.ndindex(total.shape[:2]):
        start = u * width + v
        total[u, v] = (x[:, :, start : start + length] @ dout).sum(axis=0)
    return total.transpose(3, 2, 0, 1)
