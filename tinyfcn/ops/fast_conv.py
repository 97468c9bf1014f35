"""Launches kernels/fast_conv.cu for conv2d, conv_transpose2d and conv2d_pool.

Forward and backward of conv2d and conv_transpose2d compute the same three sums, so three kernels serve both:

    forward           fast_conv_forward            forward of conv2d,  data gradient of conv_transpose2d
    backward_input    fast_conv_backward_input     data gradient of conv2d,  forward of conv_transpose2d
    backward_weight   fast_conv_backward_weight    weight and bias gradients of both

The kernels are templates: channels, kernel and stride are fixed when they are compiled, and so are the tiles, which
tinyfcn/ops/tiles.py chooses. Where no tiles fit, or the device is naive, these functions launch nothing, and their
callers launch the naive kernels.

The first two read the weight in another order (tinyfcn/packed_weight.py). A network packs all its weights in one
launch. Where a packed weight is not given, these functions launch gather.cu first.
"""

import numpy as np

from tinyfcn.devices.device import Array, Device, address
from tinyfcn.devices.launch import ceil_div
from tinyfcn.ops.gather import Gather
from tinyfcn.ops.tiles import (
    BackwardInputTiles,
    BackwardWeightTiles,
    ForwardTiles,
    backward_input_tiles,
    backward_weight_tiles,
    forward_tiles,
)
from tinyfcn.packed_weight import FLOAT4, PackedWeight, backward_input_order, forward_order

BLOCKS_A_MULTIPROCESSOR = 2  # of a weight gradient
BIAS_OF_DOUT, BIAS_OF_X = 1, 2  # as in kernels/fast_conv.cu
REDUCED_ELEMENTS, MAX_REDUCERS = 32, 16  # as in kernels/fast_conv.cu
REDUCED_SPLITS = 8  # that a thread adds up, if there are enough threads


def forward(
    device: Device,
    x: Array,
    weight: Array,
    shape: tuple[int, ...],
    stride: int,
    padding: int,
    bias: Array | None = None,
    add: Array | None = None,
    relu_mask: Array | None = None,
    relu: bool = False,
    tiles: tuple[int, ...] | None = None,
    packed: PackedWeight | None = None,
) -> Array | None:
    """y of `shape` (N, O, OH, OW) from x (N, C, H, W) and weight (O, C, KH, KW); None if no tiles fit.

    bias (O,), add and relu_mask (as y): y = sum + bias + add, through a ReLU if `relu`, and 0 where relu_mask is not
    above 0. tiles: overrides the choice of forward_tiles. packed: the same weight, packed.
    """
    tiles = None if device.naive else tiles or forward_tiles(shape, weight.shape, stride, False, device.multiprocessors)
    if tiles is None:
        return None
    y = device.empty(shape, x.dtype)
    epilogue = int(relu), bias, add, relu_mask, None
    _launch_forward(device, x, weight, packed, y, shape, stride, padding, tiles, epilogue)
    return y


def forward_pool(
    device: Device,
    x: Array,
    weight: Array,
    shape: tuple[int, ...],
    stride: int,
    padding: int,
    bias: Array | None = None,
    tiles: tuple[int, ...] | None = None,
    packed: PackedWeight | None = None,
) -> tuple[Array, Array] | None:
    """(y, max_index) of a 2x2 / 2 max-pooling of the ReLU of `forward`; None if no tiles fit.

    `shape` (N, O, OH, OW) is the convolution's; the results are (N, O, OH // 2, OW // 2).
    """
    n, o, out_height, out_width = shape
    tiles = None if device.naive else tiles or forward_tiles(shape, weight.shape, stride, True, device.multiprocessors)
    if tiles is None:
        return None
    pooled = n, o, out_height // 2, out_width // 2
    max_index = device.empty(pooled, device.dtypes["int"])
    y = device.empty(pooled, x.dtype)
    epilogue = 0, bias, None, None, max_index
    _launch_forward(device, x, weight, packed, y, shape, stride, padding, tiles, epilogue)
    return y, max_index


def _launch_forward(
    device: Device,
    x: Array,
    weight: Array,
    packed: PackedWeight | None,
    y: Array,
    shape: tuple[int, ...],
    stride: int,
    padding: int,
    tiles: tuple[int, ...],
    epilogue: tuple[int | Array | None, ...],
) -> None:
    n, _, out_height, out_width = shape
    t = ForwardTiles(*tiles)
    in_order = _in_order(device, weight, forward_order(weight.shape), packed and packed.forward)
    device.launch(
        "fast_conv_forward",
        (ceil_div(n, t.images), ceil_div(out_height, t.ty * t.rows), ceil_div(out_width, t.tx * t.columns)),
        t.tx * t.ty * t.groups * t.images * t.splits,
        (x, in_order, y, n, *x.shape[2:], out_height, out_width, padding, *epilogue),
        template=(*weight.shape, stride, *tiles),
    )


def backward_input(
    device: Device,
    dout: Array,
    weight: Array,
    shape: tuple[int, ...],
    stride: int,
    padding: int,
    bias: Array | None = None,
    add: Array | None = None,
    relu_mask: Array | None = None,
    relu: bool = False,
    max_index: Array | None = None,
    size: tuple[int, int] | None = None,
    tiles: tuple[int, ...] | None = None,
    packed: PackedWeight | None = None,
) -> Array | None:
    """dx of `shape` (N, C, H, W) from dout (N, O, OH, OW) and weight (O, C, KH, KW); None if no tiles fit.

    bias (C,), add, relu_mask (as dx) and relu as in `forward`. max_index: dout is the gradient of a 2x2 / 2
    max-pooling's outputs, (N, O, OH // 2, OW // 2), and `size` is (OH, OW). tiles: overrides the choice of
    backward_input_tiles. packed: the same weight, packed.
    """
    out_height, out_width = size or dout.shape[2:]
    n, _, height, width = shape
    if weight.shape[2:] == (height, width) != (1, 1) == (out_height, out_width) and padding == 0 and bias is None:
        # A dense layer: its one position sees the whole image. As a 1x1 kernel it has no products with zeros.
        add, relu_mask = (None if each is None else each.reshape(n, -1, 1, 1) for each in (add, relu_mask))
        flat, channels = weight.reshape(len(weight), -1, 1, 1), weight[0].size
        dx = backward_input(
            device, dout, flat, (n, channels, 1, 1), 1, 0, None, add, relu_mask, relu, max_index, size, tiles
        )
        return None if dx is None else dx.reshape(shape)
    chosen = backward_input_tiles(shape, weight.shape, stride, padding, device.multiprocessors)
    tiles = None if device.naive else tiles or chosen
    if tiles is None:
        return None
    t = BackwardInputTiles(*tiles)
    given = packed.backward_input if packed and packed.stride == stride else None
    in_order = _in_order(device, weight, backward_input_order(weight.shape, stride), given)
    dx = device.empty(shape, dout.dtype)
    epilogue = int(relu), bias, add, relu_mask
    device.launch(
        "fast_conv_backward_input",
        (
            ceil_div(n, t.images),
            ceil_div(height + padding, t.ty),
            ceil_div(width + padding, t.tx * t.columns * stride),
        ),
        t.tx * t.ty * t.groups * t.images * t.splits,
        (dout, in_order, dx, n, height, width, out_height, out_width, padding, *epilogue, max_index),
        template=(*weight.shape, stride, *tiles, int(max_index is not None)),
    )
    return dx


def _in_order(device: Device, weight: Array, order: np.ndarray, packed: Array | None) -> Array:
    """The weight in this order, flat, where a float4 may begin: as `packed`, or as it lies, or gathered."""
    if packed is None and order.size == weight.size and (np.diff(order.ravel()) == 1).all():
        packed = weight.reshape(-1)  # as a dense layer's: it is in order already
    if packed is not None and address(packed) % (FLOAT4 * weight.dtype.itemsize) == 0:
        return packed
    return Gather(device).gather(weight.reshape(-1), device.constant(order).reshape(-1))


def backward_weight(
    device: Device,
    dout: Array,
    x: Array,
    dweight: Array,
    dbias: Array | None,
    stride: int,
    padding: int,
    max_index: Array | None = None,
    bias_of: int = BIAS_OF_DOUT,
    tiles: tuple[int, ...] | None = None,
    max_blocks: int | None = None,
) -> bool:
    """Writes the gradient of a weight (O, C, KH, KW), and of the bias unless dbias is None; False if no tiles fit.

    Args:
        dout, x: (N, O, OH, OW) and (N, C, H, W).
        dbias: the sums of dout (O,) or of x (C,), depending on `bias_of`.
        max_index: dout is the gradient of a 2x2 / 2 max-pooling's outputs, (N, O, OH // 2, OW // 2).
        tiles: overrides the choice of backward_weight_tiles.
        max_blocks: with more tiles than blocks, a block takes several. None: by the device's multiprocessors.
    """
    n, c, height, width = x.shape
    o, _, kernel_height, kernel_width = dweight.shape
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    out_width = (width + 2 * padding - kernel_width) // stride + 1
    if kernel_height == kernel_width == stride == 1 and padding == 0 and max_index is None:
        out_height, out_width = height, width = 1, height * width  # treats an image as one long row
    shape = o, c, kernel_height, kernel_width, out_height, out_width
    tiles = None if device.naive else tiles or backward_weight_tiles(*shape, stride)
    if tiles is None:
        return False
    t = BackwardWeightTiles(*tiles)
    tile_count = ceil_div(n, t.images) * ceil_div(out_height, t.rows) * ceil_div(out_width, t.columns)
    blocks = ceil_div(c, t.c_threads * t.c_each)
    limit = max_blocks or BLOCKS_A_MULTIPROCESSOR * device.multiprocessors
    splits = min(tile_count, max(1, limit // blocks))
    splits = ceil_div(tile_count, ceil_div(tile_count, splits))  # so that all splits have about as many tile_count
    biases = 0 if dbias is None else dbias.size
    split_threads, sums = t.o_threads * t.c_threads * kernel_height, t.o_each * t.c_each * kernel_width
    length = blocks * split_threads * sums + biases
    workspace = device.empty((splits, length), x.dtype)
    sizes = n, o, out_height, out_width, c, height, width, padding
    device.launch(
        "fast_conv_backward_weight",
        (blocks, splits),
        split_threads * t.splits_x * t.splits_y,
        (dout, x, workspace, *sizes, 0 if dbias is None else bias_of, max_index),
        template=(kernel_height, kernel_width, stride, *tiles, int(max_index is not None)),
    )
    device.launch(
        "fast_conv_reduce_split_k",
        ceil_div(length, REDUCED_ELEMENTS),
        REDUCED_ELEMENTS * min(MAX_REDUCERS, ceil_div(splits, REDUCED_SPLITS)),
        (workspace, dweight, splits, blocks, o, c, kernel_height, kernel_width, *t[:4], biases, dbias),
    )
    return True
