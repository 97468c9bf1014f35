"""Launches the fast forms of kernels/conv2d.cu and kernels/conv_transpose2d.cu, for whoever needs their sums.

Forward and backward of both operations are the sums of tinyfcn/reference/im2col.py, so three kernels do for all:

    correlate              conv2d_forward             forward of conv2d,  dx of conv_transpose2d
    correlate_transposed   conv_transpose2d_forward   dx of conv2d,       forward of conv_transpose2d
    correlate_weight       conv2d_backward_weight     dweight and dbias of both

The kernels are templates: channels, kernel and stride are fixed when they are compiled, and so is the share of the work
that a block and a thread take. The `..._tiles` functions choose that share. Where no choice fits a multiprocessor, or
the device is to run the naive kernels, nothing is launched here, and the callers launch those.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tinyfcn.devices.device import Device
from tinyfcn.devices.launch import MAX_GRID, MAX_THREADS_IN_BLOCK, ceil_div

TARGET_THREADS = 1 << 15  # 8 warps on each of 128 multiprocessors: with fewer, a thread should do less
TARGET_BLOCKS = 128  # one on each
BLOCK = 192  # threads of a block, about
FEW_THREADS = 64  # of a block that should take several pictures, or most of its work is to load the weights
MAX_SUMS = 64  # of a thread, in registers
MAX_PRODUCTS = 5000  # of a thread for one channel: they are written out, and the compiler has to read them
SHARED_FLOATS = 6 * 1024  # of a block where there are many, so that several fit on a multiprocessor
MAX_SHARED_FLOATS = 12 * 1024  # all that a block may have without asking: fewer and longer loads
MAX_SPLITS = 8
FLOAT4 = 4

# Of conv2d_backward_weight:
BLOCKS = 264  # of a weight gradient: two for each of 132 multiprocessors. The same on every GPU, for the same bits.
BLOCKS_A_PICTURE = 16  # about, so that a batch of 16 has that many
WEIGHT_THREADS = 256  # of a block at most, if all their sums fit into shared memory
MAX_WEIGHT_SUMS = 48  # of a thread, in registers
MAX_ROWS_OF_WEIGHTS = 64  # threads for all rows of the block's weights; there are more threads in several groups
MAX_COLUMNS = 40  # of a tile
OF_COARSE, OF_FINE = 1, 2  # as in kernels/conv2d.cu
SUM_ELEMENTS, SUM_GROUPS = 32, 16


class ForwardTiles(NamedTuple):
    """How conv2d_forward's work is shared out: the last of its template's parameters, under the same names."""

    rows: int  # of a thread's pixels
    columns: int
    tx: int  # threads of a block side by side, and below each other
    ty: int
    groups: int  # of threads, each with its share of the output channels
    pictures: int  # of a block
    splits: int  # of threads, each with its share of the input channels
    chunk: int  # input channels in shared memory at a time


class TransposedTiles(NamedTuple):
    """Likewise of conv_transpose2d_forward; a thread's pixels are `columns` stamps, with all column phases of them."""

    columns: int
    tx: int
    ty: int
    groups: int
    pictures: int
    splits: int
    chunk: int


class WeightTiles(NamedTuple):
    """Likewise of conv2d_backward_weight; a and b are the channels of `coarse` and `fine`."""

    a_each: int  # channels of a thread
    b_each: int
    a_lanes: int  # threads of a block over the channels
    b_lanes: int
    groups_x: int  # of threads, each with its share of the tile's places
    groups_y: int
    pictures: int  # of a tile
    rows: int
    columns: int


def correlate(
    device: Device,
    x: Any,
    weight: Any,
    shape: tuple[int, ...],
    stride: int,
    padding: int,
    bias: Any = None,
    add: Any = None,
    relu_mask: Any = None,
    relu: bool = False,
    pool: bool = False,
    tiles: tuple[int, ...] | None = None,
) -> Any | None:
    """y of `shape` (N, O, OH, OW), x (N, C, H, W) correlated with weight (O, C, KH, KW); None where nothing fits.

    bias (O,), add and relu_mask (as y): y = sum + bias + add, through a ReLU where `relu`, 0 where
    relu_mask is not above 0.
    pool: instead (y, max_index) of a max-pooling 2x2 / 2 of the ReLU of y. tiles: others than correlate_tiles chooses.
    """
    n, o, out_height, out_width = shape
    tiles = None if device.naive else tiles or correlate_tiles(shape, weight.shape, stride, pool)
    if tiles is None:
        return None
    t = ForwardTiles(*tiles)
    max_index = None
    if pool:
        shape = (n, o, out_height // 2, out_width // 2)
        max_index = device.empty(shape, device.dtypes["int"])
    y = device.empty(shape, x.dtype)
    device.launch(
        "conv2d_forward",
        (ceil_div(n, t.pictures), ceil_div(out_height, t.ty * t.rows), ceil_div(out_width, t.tx * t.columns)),
        t.tx * t.ty * t.groups * t.pictures * t.splits,
        (x, weight, y, n, *x.shape[2:], out_height, out_width, padding, int(relu), bias, add, relu_mask, max_index),
        template=(*weight.shape[1::-1], *weight.shape[2:], stride, *tiles),
    )
    return (y, max_index) if pool else y


def correlate_transposed(
    device: Device,
    x: Any,
    weight: Any,
    shape: tuple[int, ...],
    stride: int,
    padding: int,
    bias: Any = None,
    add: Any = None,
    relu_mask: Any = None,
    relu: bool = False,
    max_index: Any = None,
    size: tuple[int, int] | None = None,
    tiles: tuple[int, ...] | None = None,
) -> Any | None:
    """y of `shape` (N, O, OH, OW), x (N, C, H, W) stamped with weight (C, O, KH, KW); None where nothing fits.

    bias, add, relu_mask and relu as in `correlate`. max_index: x is pooled, (N, C, H // 2, W // 2), and stands for
    what has the pooled values where they won and 0 elsewhere; its `size` (H, W) is then given. tiles: others than
    correlate_transposed_tiles chooses.
    """
    height, width = size or x.shape[2:]
    n, _, out_height, out_width = shape
    tiles = None if device.naive else tiles or correlate_transposed_tiles(shape, weight.shape, stride, padding)
    if tiles is None:
        return None
    t = TransposedTiles(*tiles)
    y = device.empty(shape, x.dtype)
    device.launch(
        "conv_transpose2d_forward",
        (
            ceil_div(n, t.pictures),
            ceil_div(out_height + padding, t.ty),
            ceil_div(out_width + padding, t.tx * t.columns * stride),
        ),
        t.tx * t.ty * t.groups * t.pictures * t.splits,
        (x, weight, y, n, height, width, out_height, out_width, padding, int(relu), bias, add, relu_mask, max_index),
        template=(*weight.shape, stride, *tiles),
    )
    return y


def correlate_weight(
    device: Device,
    coarse: Any,
    fine: Any,
    dweight: Any,
    dbias: Any,
    stride: int,
    padding: int,
    max_index: Any = None,
    bias_of: str = "coarse",
    tiles: tuple[int, ...] | None = None,
    most_blocks: int = BLOCKS,
) -> bool:
    """Writes the gradient of a weight (A, B, KH, KW), and of the bias unless dbias is None; False where nothing fits.

    coarse (N, A, OH, OW) and fine (N, B, H, W) as in tinyfcn/reference/im2col.py. dbias: sums of coarse (A,), or
    of fine (B,), as `bias_of` says. max_index: coarse is pooled, (N, A, OH // 2, OW // 2), as x in
    correlate_transposed. tiles: others than correlate_weight_tiles chooses.
    most_blocks: where there are more tiles, a block takes several.
    """
    n, b, height, width = fine.shape
    a, _, kernel_height, kernel_width = dweight.shape
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    out_width = (width + 2 * padding - kernel_width) // stride + 1
    if kernel_height == kernel_width == stride == 1 and padding == 0 and max_index is None:
        out_height, out_width = height, width = 1, height * width  # a picture is one long row
    shape = a, b, kernel_height, kernel_width, out_height, out_width
    tiles = None if device.naive else tiles or correlate_weight_tiles(*shape, stride)
    if tiles is None:
        return False
    t = WeightTiles(*tiles)
    pieces = ceil_div(n, t.pictures) * ceil_div(out_height, t.rows) * ceil_div(out_width, t.columns)
    blocks = ceil_div(b, t.b_lanes * t.b_each)
    most = min(pieces, max(1, most_blocks // blocks))
    splits = ceil_div(pieces, ceil_div(pieces, most))  # all with about as many pieces
    biases = 0 if dbias is None else dbias.size
    partials = device.empty((splits, dweight.size + biases), fine.dtype)
    sums = 0 if dbias is None else OF_COARSE if bias_of == "coarse" else OF_FINE
    sizes = n, a, out_height, out_width, b, height, width, padding
    device.launch(
        "conv2d_backward_weight",
        (blocks, splits),
        t.a_lanes * t.b_lanes * kernel_height * t.groups_x * t.groups_y,
        (coarse, fine, partials, *sizes, sums, max_index),
        template=(kernel_height, kernel_width, stride, *tiles),
    )
    device.launch(
        "conv2d_sum_partials",
        ceil_div(dweight.size + biases, SUM_ELEMENTS),
        SUM_ELEMENTS * SUM_GROUPS,
        (partials, dweight, dweight.size, biases, splits, dbias),
    )
    return True


def correlate_tiles(
    shape: tuple[int, ...], weight: tuple[int, ...], stride: int, pool: bool = False
) -> ForwardTiles | None:
    """Those of conv2d_forward for y of `shape` (N, O, OH, OW) and a weight (O, C, KH, KW); None where nothing fits."""
    n, o, out_height, out_width = shape
    _, c, kernel_height, kernel_width = weight
    rows = 2 if pool else 1
    columns = next(size for size in (4, 2, 1) if out_width >= size or size == 1 + pool)
    seen = _round_up((columns - 1) * stride + kernel_width)

    def floats(tx: int, ty: int, channels: int) -> tuple[int, int]:
        tile = ((ty * rows - 1) * stride + kernel_height) * ((tx - 1) * columns * stride + seen)
        return tile, kernel_height * kernel_width * _pitch(channels)

    products = kernel_height * kernel_width * rows * columns
    lanes = ceil_div(out_width, columns), ceil_div(out_height, rows)
    tiles = _tiles(n, c, o, lanes, 1, rows * columns, products, floats)
    return tiles and ForwardTiles(rows, columns, *tiles)


def correlate_transposed_tiles(
    shape: tuple[int, ...], weight: tuple[int, ...], stride: int, padding: int
) -> TransposedTiles | None:
    """Those of conv_transpose2d_forward for y of `shape` (N, O, OH, OW) and a weight (C, O, KH, KW), or None."""
    n, o, out_height, out_width = shape
    c, _, kernel_height, kernel_width = weight
    stamps = ceil_div(out_width + padding, stride)
    columns = next(size for size in (4, 2, 1) if (stamps >= size and size * stride <= 16) or size == 1)
    taps_height, taps_width = ceil_div(kernel_height, stride), ceil_div(kernel_width, stride)
    seen = _round_up(columns + taps_width - 1)

    def floats(tx: int, ty: int, channels: int) -> tuple[int, int]:
        tile = (ty // stride + taps_height - 1) * ((tx - 1) * columns + seen)
        return tile, taps_height * stride * kernel_width * _pitch(channels)

    products = taps_height * kernel_width * columns
    lanes = ceil_div(stamps, columns), out_height + padding
    tiles = _tiles(n, c, o, lanes, stride, columns * stride, products, floats)
    return tiles and TransposedTiles(columns, *tiles)


def _tiles(
    n: int,
    c: int,
    o: int,
    lanes: tuple[int, int],
    rows_step: int,
    pixels: int,
    products: int,
    floats: Callable[[int, int, int], tuple[int, int]],
    most_splits: int = MAX_SPLITS,
) -> tuple[int, ...] | None:
    """TX, TY, GROUPS, PICTURES, SPLITS, CHUNK.

    lanes: threads that the width and the height of the output need, of which a block takes a multiple of rows_step in
    height. pixels: of a thread. products: of one of its output channels, for one input channel. floats(tx, ty, output
    channels): of shared memory for one input channel, those of a picture and those of the weights.

    A thread should have many output channels, as each input that it reads serves all of them. But there should be
    enough threads: so its channels are divided among `groups`, and then the input channels among `splits`.
    """
    everywhere = n * lanes[0] * lanes[1]
    groups = 1
    while True:
        outputs = _round_up(ceil_div(o, groups))
        fits = outputs * pixels <= MAX_SUMS and outputs * products <= MAX_PRODUCTS
        if outputs == FLOAT4 or (fits and everywhere * groups >= TARGET_THREADS):
            break
        groups += 1
    groups = ceil_div(o, outputs)
    splits = 1
    while everywhere * groups * splits < TARGET_THREADS and c % (2 * splits) == 0 and splits < most_splits:
        splits *= 2
    if outputs * pixels > MAX_SUMS or outputs * products > MAX_PRODUCTS or groups * splits * rows_step > 512:
        return None
    tx = _even(lanes[0], 16)
    rows = ceil_div(lanes[1], rows_step)
    rows_of_enough = rows * n * ceil_div(lanes[0], tx) // TARGET_BLOCKS
    ty = rows_step * _even(rows, max(1, min(BLOCK // (tx * groups * splits * rows_step), rows_of_enough)))
    members = tx * ty * groups
    pictures = min(n, BLOCK // (members * splits)) if members * splits <= FEW_THREADS else 1
    blocks = max(ceil_div(lanes[0], tx), ceil_div(lanes[1], ty))
    if n < 1 or blocks > MAX_GRID[1] or members * splits > MAX_THREADS_IN_BLOCK:
        return None
    tile, taps = floats(tx, ty, groups * outputs)
    parts = (splits - 1) * outputs * pixels * members * pictures
    crowded = n * ceil_div(lanes[0], tx) * ceil_div(lanes[1], ty) > 2 * TARGET_BLOCKS
    for most in (SHARED_FLOATS, MAX_SHARED_FLOATS) if crowded else (MAX_SHARED_FLOATS,):
        for chunk in range(c, 0, -1):
            fits = chunk * (pictures * tile + taps) + parts <= most
            if c % chunk == 0 and chunk % splits == 0 and fits:
                return tx, ty, groups, pictures, splits, chunk
    # Each split has channels of its own in shared memory: with fewer splits, fewer may do.
    return _tiles(n, c, o, lanes, rows_step, pixels, products, floats, splits // 2) if splits > 1 else None


def correlate_weight_tiles(
    a: int, b: int, kernel_height: int, kernel_width: int, out_height: int, out_width: int, stride: int
) -> WeightTiles | None:
    """Those of conv2d_backward_weight for a weight (A, B, KH, KW) and a coarse picture of OH x OW; None where none fit.

    The tile does not depend on the batch: one compiled kernel does for all of them.
    """
    # A thread reads A_EACH + B_EACH * SEEN / 4 fours for A_EACH * B_EACH * KW sums.
    a_lanes = ceil_div(a, max(1, min(8, MAX_WEIGHT_SUMS // kernel_width)))
    a_each = ceil_div(a, a_lanes)
    b_each = min(b, {1: 4, 2: 2, 3: 2}.get(kernel_width, 1))
    most = MAX_ROWS_OF_WEIGHTS // (a_lanes * kernel_height)
    b_lanes = _even_lanes(ceil_div(b, b_each), max(1, most))
    members = a_lanes * b_lanes * kernel_height
    if a_each * b_each * kernel_width > MAX_WEIGHT_SUMS:
        return None
    part = a_lanes * a_each * (b_lanes * b_each * kernel_height * kernel_width | 1) | 1
    groups = min(WEIGHT_THREADS // members, MAX_SHARED_FLOATS // (part + members))
    if not groups:
        return None

    def floats(pictures: int, rows: int, columns: int) -> int:
        """Of the tiles, as the kernel declares them."""
        seen = _round_up(3 * stride + max(kernel_width, stride))
        tile_height = (rows - 1) * stride + max(kernel_height, stride)
        lines, pitch = pictures * tile_height, _pitch((columns - FLOAT4) * stride + seen)
        fine = lines * pitch + ((kernel_height - lines) * (pitch // FLOAT4) & 7) * FLOAT4
        return a_lanes * a_each * _pitch(pictures * rows * columns) + b_lanes * b_each * fine

    # Small enough that the blocks of 16 pictures fill a GPU, large enough that each group of threads has four places.
    pieces = max(1, BLOCKS_A_PICTURE // ceil_div(b, b_lanes * b_each))
    across = pieces if out_height == 1 else ceil_div(out_width, MAX_COLUMNS)
    columns = _round_up(ceil_div(out_width, across))
    if out_height == 1:
        columns = min(_round_up(out_width), max(columns, FLOAT4 * groups))
    rows = max(ceil_div(out_height * across, pieces), ceil_div(FLOAT4 * groups, columns))
    rows = ceil_div(out_height, ceil_div(out_height, rows))
    pictures = 1 if columns < out_width or rows < out_height else ceil_div(FLOAT4 * groups, rows * columns)
    while floats(pictures, rows, columns) > MAX_SHARED_FLOATS:
        if pictures > 1:
            pictures = ceil_div(pictures, 2)
        elif rows > 1:
            rows = ceil_div(out_height, ceil_div(out_height, rows - 1))
        elif columns > FLOAT4:
            columns = _round_up(columns // 2)
        else:
            return None
    groups_x, groups_y = _groups(columns // FLOAT4, pictures * rows, groups)
    if members * groups_x * groups_y < max(a_lanes * a_each, b_lanes * b_each):
        return None  # the bias needs a thread for each channel
    return WeightTiles(a_each, b_each, a_lanes, b_lanes, groups_x, groups_y, pictures, rows, columns)


def _even_lanes(count: int, most: int) -> int:
    """Lanes of a block, at most `most` and about that many, so that the last block has the fewest idle."""
    most = min(count, most)
    return min(range(most, (most - 1) // 2, -1), key=lambda lanes: ceil_div(count, lanes) * lanes)


def _groups(across: int, down: int, most: int) -> tuple[int, int]:
    """How many groups of threads side by side, and below each other, go over a tile in the fewest rounds."""
    best = None
    for x in range(1, min(across, most) + 1):
        rounds = ceil_div(across, x), ceil_div(down, min(down, most // x))
        x, y = ceil_div(across, rounds[0]), ceil_div(down, rounds[1])  # as many are enough
        best = min(best or (rounds[0] * rounds[1], x * y, x, y), (rounds[0] * rounds[1], x * y, x, y))
    return best[2:]


def _even(lanes: int, most: int) -> int:
    """Lanes of a block, at most `most`, such that all blocks have about as many."""
    return ceil_div(lanes, ceil_div(lanes, most))


def _round_up(floats: int) -> int:
    return ceil_div(floats, FLOAT4) * FLOAT4


def _pitch(floats: int) -> int:
    """As pitch_of in kernels/common.cuh."""
    return FLOAT4 * (ceil_div(floats, FLOAT4) | 1)
