"""Cases of the fast convolutions, with tiles that divide no size."""

from typing import Any

import numpy as np

from tinyfcn.checks.case import Case, Results
from tinyfcn.ops import Operations, fast_conv
from tinyfcn.reference import im2col
from tinyfcn.reference.max_pool2d import max_pool2d, max_pool2d_backward

# A few instances of each kernel, because each is compiled: the weight's shape (O, C, KH, KW), the stride, and tiles as
# in tinyfcn/ops/tiles.py. Sizes of images and numbers of channels are not multiples of the tiles.
FORWARD = (
    ((5, 4, 3, 2), 1, (1, 4, 3, 4, 2, 1, 2, 2)),  # rows, columns, tx, ty, groups, images, splits, channel_tile
    ((9, 3, 2, 5), 3, (1, 1, 5, 3, 1, 2, 1, 1)),
    ((3, 8, 4, 3), 2, (1, 2, 2, 5, 1, 1, 4, 8)),
    ((6, 2, 3, 3), 1, (2, 4, 2, 3, 2, 2, 1, 1)),  # with pooling, and so is the next
    ((4, 4, 1, 2), 1, (2, 2, 3, 2, 1, 1, 2, 2)),
    ((10, 4, 1, 2), 1, (1, 4, 2, 2, 2, 1, 2, 2)),  # the groups have more channels than the packed weight
)
BACKWARD_INPUT = (
    ((4, 5, 4, 3), 2, (4, 3, 6, 2, 1, 2, 2)),  # columns, tx, ty, groups, images, splits, channel_tile
    ((3, 9, 2, 5), 3, (1, 4, 3, 1, 2, 1, 3)),
    ((8, 4, 3, 3), 1, (4, 2, 5, 1, 2, 4, 4)),  # with pooling
    ((2, 4, 1, 6), 2, (2, 3, 4, 1, 2, 1, 1)),
    ((6, 10, 1, 1), 1, (4, 2, 3, 2, 1, 3, 3)),  # likewise, and a dense layer's kernel
)
BACKWARD_WEIGHT = (  # the size (KH, KW) instead of the weight's shape: any number of channels
    # o_each, c_each, o_threads, c_threads, splits_x, splits_y, images, rows, columns
    ((3, 2), 1, (2, 2, 3, 2, 2, 2, 1, 3, 8)),
    ((2, 5), 3, (3, 1, 2, 3, 1, 3, 2, 5, 4)),
    ((4, 3), 2, (1, 2, 5, 1, 1, 1, 3, 2, 12)),
    ((1, 1), 1, (4, 4, 1, 1, 8, 1, 1, 1, 32)),
)


def forward(random: np.random.Generator, number: int, limit: int = 19) -> Case:
    """An instance of fast_conv_forward on random images with outputs up to `limit` pixels wide.

    With and without bias, skip connection, mask, ReLU and pooling.
    """
    weight, stride, tiles = FORWARD[number]
    pools = tiles[0] == 2 and bool(random.integers(4))
    n, out, size, padding = _sizes(random, weight[2:], stride, pools, limit)
    size = size + random.integers(0, stride, 2)  # rows and columns that no window covers
    shape = n, weight[0], *map(int, out)
    inputs = {"x": np.round(random.standard_normal((n, weight[1], *size)), 2)}
    inputs |= _weight_and_epilogue(random, weight, shape, ("bias",) if pools else ("bias", "add", "relu_mask"))
    relu = bool(random.integers(2)) or pools

    def run(ops: Operations, x: Any, weight: Any, **epilogue: Any) -> Results:
        if not ops.device.runs_kernels:
            y = _epilogue(im2col.forward(x, weight, stride, padding), relu, **epilogue)
            return _named(max_pool2d(y) if pools else y)
        given = ops.device, x, weight, shape, stride, padding
        if pools:
            return _named(fast_conv.forward_pool(*given, tiles=tiles, **epilogue))
        return _named(fast_conv.forward(*given, relu=relu, tiles=tiles, **epilogue))

    return Case("fast_conv", f"forward, tiles {tiles}", inputs, run)


def backward_input(random: np.random.Generator, number: int, limit: int = 19) -> Case:
    """An instance of fast_conv_backward_input, like `forward`, with dout up to `limit` positions wide."""
    weight, stride, tiles = BACKWARD_INPUT[number]
    pools = stride == 1 and bool(random.integers(4))
    n, out, size, padding = _sizes(random, weight[2:], stride, pools, limit)
    shape, positions = (n, weight[1], *map(int, size)), (n, weight[0], *map(int, out))
    inputs = {"dout": np.round(random.standard_normal(positions), 2)}
    if pools:
        inputs["dout"], inputs["max_index"] = max_pool2d(inputs["dout"])
    inputs |= _weight_and_epilogue(random, weight, shape, ("bias", "add", "relu_mask"))
    relu = bool(random.integers(2))

    def run(ops: Operations, dout: Any, weight: Any, max_index: Any = None, **epilogue: Any) -> Results:
        if not ops.device.runs_kernels:
            dout = dout if max_index is None else max_pool2d_backward(dout, max_index, positions)
            return _named(_epilogue(im2col.backward_input(dout, weight, stride, padding, *shape[2:]), relu, **epilogue))
        options = {"max_index": max_index, "size": positions[2:], "tiles": tiles, "relu": relu}
        return _named(fast_conv.backward_input(ops.device, dout, weight, shape, stride, padding, **options, **epilogue))

    return Case("fast_conv", f"data gradient, tiles {tiles}", inputs, run)


def backward_weight(random: np.random.Generator, number: int, limit: int = 13) -> Case:
    """An instance of fast_conv_backward_weight and its reduction. dbias is the sum of dout, the sum of x, or None."""
    kernel, stride, tiles = BACKWARD_WEIGHT[number]
    o_each, c_each, o_threads, c_threads = tiles[:4]
    channels = o_each * o_threads, 2 * c_each * c_threads + 1
    o, c = (int(random.integers(1, 1 + count)) for count in channels)
    bias_of = (fast_conv.BIAS_OF_DOUT, fast_conv.BIAS_OF_X, None)[int(random.integers(3))]
    pools = stride == 1 and bool(random.integers(2))
    n, out, size, padding = _sizes(random, kernel, stride, pools, limit, max_padding=2)
    if bias_of != fast_conv.BIAS_OF_X:
        size = size + random.integers(0, stride, 2)  # rows and columns that no window covers
    shape = n, o, *map(int, out)
    max_blocks = {0: 1, 1: 3}.get(int(random.integers(8)))  # with few, a block takes several tiles
    # Positive numbers do not cancel, so that even a single sum keeps the accuracy of float32.
    inputs = {"dout": random.uniform(0.5, 1.5, shape), "x": random.uniform(0.5, 1.5, (n, c, *size))}
    if pools:
        inputs["dout"], inputs["max_index"] = max_pool2d(inputs["dout"])

    def run(ops: Operations, dout: Any, x: Any, max_index: Any = None) -> Results:
        if not ops.device.runs_kernels:
            dout = dout if max_index is None else max_pool2d_backward(dout, max_index, shape)
            gradients = {"dweight": im2col.backward_weight(dout, x, *kernel, stride, padding)}
            summed = dout if bias_of == fast_conv.BIAS_OF_DOUT else x
            return gradients if bias_of is None else gradients | {"dbias": summed.sum(axis=(0, 2, 3))}
        dweight = ops.device.empty((o, c, *kernel))
        dbias = None if bias_of is None else ops.device.empty((o if bias_of == fast_conv.BIAS_OF_DOUT else c,))
        options = {"max_index": max_index, "bias_of": bias_of, "tiles": tiles, "max_blocks": max_blocks}
        fast_conv.backward_weight(ops.device, dout, x, dweight, dbias, stride, padding, **options)
        return {"dweight": dweight} if dbias is None else {"dweight": dweight, "dbias": dbias}

    bias = {fast_conv.BIAS_OF_DOUT: "bias of dout", fast_conv.BIAS_OF_X: "bias of x", None: "no bias"}[bias_of]
    detail = f"weight gradient, {kernel[0]}x{kernel[1]} stride {stride} padding {padding}, {bias}, tiles {tiles}"
    return Case("fast_conv", detail, inputs, run)


def _sizes(
    random: np.random.Generator,
    kernel: tuple[int, ...],
    stride: int,
    pools: bool,
    limit: int,
    max_padding: int = 4,
) -> tuple[int, np.ndarray, np.ndarray, int]:
    """The number of images, the size of dout, the smallest size of x for it, and the padding."""
    n = int(random.integers(1, 4))
    out = random.integers(1 + pools, limit + 1, 2)
    size = (out - 1) * stride + np.array(kernel)
    padding = int(random.integers(0, 1 + min(*((size - 1) // 2), max_padding)))
    return n, out, size - 2 * padding, padding


def _weight_and_epilogue(
    random: np.random.Generator, weight: tuple[int, ...], shape: tuple[int, ...], names: tuple[str, ...]
) -> dict[str, Any]:
    """A weight, and some of the epilogue's arrays for a result of `shape`; many of them hold zeros."""
    shapes = {"bias": shape[1:2], "add": shape, "relu_mask": shape}
    chosen = [name for name in names if random.integers(2)]
    epilogue = {name: np.round(random.standard_normal(shapes[name]), int(random.integers(3))) for name in chosen}
    return {"weight": np.round(random.standard_normal(weight), 2), **epilogue}


def _epilogue(sums: np.ndarray, relu: bool, bias: Any = 0.0, add: Any = 0.0, relu_mask: Any = 1.0) -> np.ndarray:
    """The epilogue of the kernels, in NumPy."""
    y = sums + np.reshape(bias, (-1, 1, 1)) + add
    return np.where(relu_mask > np.zeros(1), np.maximum(y, 0) if relu else y, 0)


def _named(results: Any) -> Results:
    return dict(zip(("y", "max_index"), results if isinstance(results, tuple) else (results,), strict=False))


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """Every instance. The cases of conv2d and conv_transpose2d check the gradients by finite differences."""
    instances = (forward, FORWARD), (backward_input, BACKWARD_INPUT), (backward_weight, BACKWARD_WEIGHT)
    return [instance(random, number) for instance, tiles in instances for number in range(len(tiles))]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """One instance of each kernel."""
    return [
        forward(random, int(random.integers(len(FORWARD))), limit=13),
        backward_input(random, int(random.integers(len(BACKWARD_INPUT))), limit=13),
        backward_weight(random, int(random.integers(len(BACKWARD_WEIGHT)))),
    ]
