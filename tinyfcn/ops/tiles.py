"""Chooses the tiles of kernels/fast_conv.cu: the last parameters of its templates, under the same names.

A choice must fit a multiprocessor: registers, shared memory, threads of a block. Among those that fit, the rules below
prefer many multiply-adds for each number that a thread loads, and enough blocks and threads to keep a GPU busy. All
functions are pure: the same sizes give the same tiles, and so the same order of additions, on GPUs with as many
multiprocessors. Where no number is given, it is that of an H100 or H200, on which the constants were tuned.
"""

from collections.abc import Callable
from typing import NamedTuple

from tinyfcn.devices.device import MULTIPROCESSORS
from tinyfcn.devices.launch import MAX_GRID, MAX_THREADS_IN_BLOCK, ceil_div
from tinyfcn.packed_weight import FLOAT4

WARP = 32
MAX_SHARED_FLOATS = 12 * 1024  # of a block that does not opt in to more

# Of fast_conv_forward and fast_conv_backward_input:
# On MULTIPROCESSORS; with fewer, fewer.
TARGET_THREADS = 1 << 15  # about 8 warps on each: below this, a thread should do less
TARGET_BLOCKS = 100  # one on most
BLOCK_THREADS = 384  # in each block, where channel groups and splits do not make more
SMALL_BLOCK_THREADS = 64  # a block this small should take several images, or it mostly loads weights
MAX_SUMS = 64  # of a thread, in registers
MAX_PRODUCTS = 5000  # of a thread for one channel: they are unrolled, which takes time to compile
SHARED_FLOATS = 6 * 1024  # of a block if there are many blocks, so that several fit on a multiprocessor
MAX_SPLITS = 8

# Of fast_conv_backward_weight:
TARGET_BLOCKS_AN_IMAGE = 12  # so that a batch of 16 has more than one for each multiprocessor
MAX_WEIGHT_THREADS = 256  # of a block, if the sums of all fit into shared memory
MAX_WEIGHT_SUMS = 48  # of a thread, in registers
MAX_WEIGHT_ROWS = 64  # threads for all rows of the block's weights; more threads form several splits
MIN_SPLIT_THREADS = 8  # of a block, for one set of the weights of a 1x1 kernel
MAX_COLUMNS = 40  # of a tile


class ForwardTiles(NamedTuple):
    """The tiles of fast_conv_forward."""

    rows: int  # rows and columns of a thread's pixels
    columns: int
    tx: int  # threads along a row and along a column
    ty: int
    groups: int  # channel groups: each has its share of the output channels
    images: int  # of a block
    splits: int  # split-K: each has its share of the input channels
    channel_tile: int  # input channels in shared memory at a time


class BackwardInputTiles(NamedTuple):
    """The tiles of fast_conv_backward_input. A thread owns all column phases of `columns` positions of dout."""

    columns: int
    tx: int
    ty: int
    groups: int
    images: int
    splits: int
    channel_tile: int


class BackwardWeightTiles(NamedTuple):
    """The tiles of fast_conv_backward_weight; o and c are the channels of dout and of x."""

    o_each: int  # channels of a thread
    c_each: int
    o_threads: int  # threads of a block along the channels
    c_threads: int
    splits_x: int  # of threads, each with its share of the tile's positions
    splits_y: int
    images: int  # of a tile
    rows: int
    columns: int


def forward_tiles(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    stride: int,
    pool: bool = False,
    multiprocessors: int = MULTIPROCESSORS,
) -> ForwardTiles | None:
    """For y of `shape` (N, O, OH, OW) and a weight (O, C, KH, KW); None where no tiles fit."""
    n, o, out_height, out_width = shape
    _, c, kernel_height, kernel_width = weight
    rows = 2 if pool else 1
    columns = next(size for size in (4, 2, 1) if out_width >= size or size == 1 + pool)
    window = _round_up(columns + ceil_div(kernel_width, stride) - 1)

    def floats(tx: int, ty: int, channels: int) -> tuple[int, int]:
        phase = phase_pitch((tx - 1) * columns + window, stride)
        line = line_pitch(stride * phase, ty, rows * stride, tx * columns)
        tile = ((ty * rows - 1) * stride + kernel_height) * line
        return tile, kernel_height * kernel_width * channels

    products = kernel_height * kernel_width * rows * columns
    threads = ceil_div(out_width, columns), ceil_div(out_height, rows)
    tiles = _tiles(multiprocessors, n, c, o, threads, 1, rows * columns, products, floats)
    return None if tiles is None else ForwardTiles(rows, columns, *tiles)


def backward_input_tiles(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    stride: int,
    padding: int,
    multiprocessors: int = MULTIPROCESSORS,
) -> BackwardInputTiles | None:
    """For dx of `shape` (N, C, H, W) and a weight (O, C, KH, KW); None where no tiles fit."""
    n, c, height, width = shape
    o, _, kernel_height, kernel_width = weight
    positions = ceil_div(width + padding, stride)
    columns = next(size for size in (4, 2, 1) if (positions >= size and size * stride <= 16) or size == 1)
    phase_height, phase_width = ceil_div(kernel_height, stride), ceil_div(kernel_width, stride)
    window = _round_up(columns + phase_width - 1)

    def floats(tx: int, ty: int, channels: int) -> tuple[int, int]:
        line = line_pitch((tx - 1) * columns + window, ty // stride, 1, tx * columns)
        tile = (ty // stride + phase_height - 1) * line
        weights = phase_height * stride * kernel_width * line_pitch(channels, stride, kernel_width, channels)
        return tile, weights

    products = phase_height * kernel_width * columns
    threads = ceil_div(positions, columns), height + padding
    tiles = _tiles(multiprocessors, n, o, c, threads, stride, columns * stride, products, floats)
    return None if tiles is None else BackwardInputTiles(columns, *tiles)


def _tiles(
    multiprocessors: int,
    n: int,
    inputs: int,
    outputs: int,
    needed: tuple[int, int],
    rows_step: int,
    pixels: int,
    products: int,
    floats: Callable[[int, int, int], tuple[int, int]],
    max_splits: int = MAX_SPLITS,
    max_images: int = BLOCK_THREADS,
) -> tuple[int, int, int, int, int, int] | None:
    """TX, TY, GROUPS, IMAGES, SPLITS, CHANNEL_TILE.

    Args:
        multiprocessors: of the GPU, which should have enough threads and blocks.
        n: images.
        inputs, outputs: channels that a sum runs over, and channels of the result.
        needed: threads along the width and the height of the result. A block takes a multiple of rows_step in height.
        pixels: of a thread.
        products: of a thread, for one output channel and one input channel.
        floats: floats(tx, ty, output channels) gives the shared memory for one input channel: of an image's tile, and
            of the weights.

    A thread should have many output channels, because each input that it loads serves all of them. But there should be
    enough threads. So its channels are divided among `groups`, and then the input channels among `splits`.
    """
    target_threads = TARGET_THREADS * multiprocessors // MULTIPROCESSORS
    target_blocks = max(1, TARGET_BLOCKS * multiprocessors // MULTIPROCESSORS)
    positions = n * needed[0] * needed[1]
    groups = 1
    while True:
        channels = _round_up(ceil_div(outputs, groups))
        fits = channels * pixels <= MAX_SUMS and channels * products <= MAX_PRODUCTS
        if channels == FLOAT4 or (fits and positions * groups >= target_threads):
            break
        groups += 1
    groups = ceil_div(outputs, channels)
    tx = _even(needed[0], 16)
    max_splits = min(max_splits, MAX_THREADS_IN_BLOCK // (tx * groups * rows_step))
    splits = 1
    while positions * groups * splits < target_threads and inputs % (2 * splits) == 0 and 2 * splits <= max_splits:
        splits *= 2
    if channels * pixels > MAX_SUMS or channels * products > MAX_PRODUCTS or groups * splits * rows_step > 512:
        return None
    rows = ceil_div(needed[1], rows_step)
    rows_for_target = rows * n * ceil_div(needed[0], tx) // target_blocks
    max_rows = BLOCK_THREADS // (tx * groups * splits * rows_step)
    ty = rows_step * _even(rows, max(1, min(max_rows, rows_for_target)))
    split_threads = tx * ty * groups
    small = split_threads * splits <= SMALL_BLOCK_THREADS
    images = min(n, max_images, BLOCK_THREADS // (split_threads * splits)) if small else 1
    blocks = max(ceil_div(needed[0], tx), ceil_div(needed[1], ty))
    if n < 1 or blocks > MAX_GRID[1] or split_threads * splits > MAX_THREADS_IN_BLOCK:
        return None
    tile, weights = floats(tx, ty, groups * channels)
    parts = (splits - 1) * channels * pixels * split_threads * images
    many_blocks = n * ceil_div(needed[0], tx) * ceil_div(needed[1], ty) > 2 * target_blocks
    for limit in (SHARED_FLOATS, MAX_SHARED_FLOATS) if many_blocks else (MAX_SHARED_FLOATS,):
        for channel_tile in range(inputs, 0, -1):
            fits = max(channel_tile * (images * tile + weights), parts) <= limit
            if inputs % channel_tile == 0 and channel_tile % splits == 0 and fits:
                return tx, ty, groups, images, splits, channel_tile
    # Each split has its own channels in shared memory, so fewer splits may need fewer channels.
    fewer = (splits // 2, max_images) if splits > 1 else (MAX_SPLITS, images // 2)
    if fewer[1] == 0:
        return None
    return _tiles(multiprocessors, n, inputs, outputs, needed, rows_step, pixels, products, floats, *fewer)


def backward_weight_tiles(
    o: int, c: int, kernel_height: int, kernel_width: int, out_height: int, out_width: int, stride: int
) -> BackwardWeightTiles | None:
    """For a weight (O, C, KH, KW) and dout of OH x OW; None where no tiles fit.

    The tiles do not depend on the batch, so that one compiled kernel serves all batch sizes.
    """
    # A thread loads O_EACH + C_EACH * WINDOW / 4 float4s for O_EACH * C_EACH * KW sums.
    o_each = min(o, max(1, min(8, MAX_WEIGHT_SUMS // kernel_width)))
    c_each = min(c, {1: 4, 2: 2, 3: 2}.get(kernel_width, 1))
    while kernel_width == 1 and ceil_div(o, o_each) * ceil_div(c, c_each) < MIN_SPLIT_THREADS and o_each * c_each > 1:
        # With few weights there would be many splits of few threads, whose sums take long to add up.
        o_each, c_each = (ceil_div(o_each, 2), c_each) if o_each >= c_each else (o_each, ceil_div(c_each, 2))
    o_threads = ceil_div(o, o_each)
    o_each = ceil_div(o, o_threads)
    c_threads = _evenest(ceil_div(c, c_each), max(1, MAX_WEIGHT_ROWS // (o_threads * kernel_height)))
    split_threads = o_threads * c_threads * kernel_height
    if o_each * c_each * kernel_width > MAX_WEIGHT_SUMS:
        return None
    parts = o_each * c_each * kernel_width + 1  # sums of a thread, and its share of a bias
    splits = MAX_WEIGHT_THREADS // split_threads
    while splits and parts * part_pitch(splits * split_threads, split_threads) > MAX_SHARED_FLOATS:
        splits -= 1
    if not splits:
        return None
    # A warp takes as long if some of its lanes idle.
    whole_warps = [each for each in range(splits, splits // 2, -1) if each * split_threads % WARP == 0]
    splits = whole_warps[0] if whole_warps else splits

    def floats(images: int, rows: int, columns: int) -> int:
        """Floats in shared memory for the tiles, as the kernel declares them."""
        window = _round_up(3 * stride + max(kernel_width, stride))
        tile_height = (rows - 1) * stride + max(kernel_height, stride)
        lines, pitch = images * tile_height, pitch_of((columns - FLOAT4) * stride + window)
        x_plane = lines * pitch + ((kernel_height - lines) * (pitch // FLOAT4) & 7) * FLOAT4
        return o_threads * o_each * pitch_of(images * rows * columns) + c_threads * c_each * x_plane

    # Small enough that the blocks of 16 images fill a GPU, large enough that each split has four positions.
    parts = max(1, TARGET_BLOCKS_AN_IMAGE // ceil_div(c, c_threads * c_each))
    across = parts if out_height == 1 else ceil_div(out_width, MAX_COLUMNS)
    columns = _round_up(ceil_div(out_width, across))
    if out_height == 1:
        columns = min(_round_up(out_width), max(columns, FLOAT4 * splits))
    rows = max(ceil_div(out_height * across, parts), ceil_div(FLOAT4 * splits, columns))
    rows = ceil_div(out_height, ceil_div(out_height, rows))
    images = 1 if columns < out_width or rows < out_height else ceil_div(FLOAT4 * splits, rows * columns)
    while floats(images, rows, columns) > MAX_SHARED_FLOATS:
        if images > 1:
            images = ceil_div(images, 2)
        elif rows > 1:
            rows = ceil_div(out_height, ceil_div(out_height, rows - 1))
        elif columns > FLOAT4:
            columns = _round_up(columns // 2)
        else:
            return None
    splits_x, splits_y = _splits(columns // FLOAT4, images * rows, splits)
    if split_threads * splits_x * splits_y < max(o_threads * o_each, c_threads * c_each):
        return None  # the bias needs a thread for each channel
    return BackwardWeightTiles(o_each, c_each, o_threads, c_threads, splits_x, splits_y, images, rows, columns)


def _evenest(count: int, limit: int) -> int:
    """Threads along an axis, more than about half of `limit`, so that the last block has the fewest idle ones."""
    limit = min(count, limit)
    return min(range(limit, (limit - 1) // 2, -1), key=lambda threads: ceil_div(count, threads) * threads)


def _splits(across: int, down: int, limit: int) -> tuple[int, int]:
    """The splits (x, y) that cover a tile of `across` x `down` in the fewest rounds; at most `limit` splits."""
    choices = []
    for x in range(1, min(across, limit) + 1):
        rounds = ceil_div(across, x), ceil_div(down, min(down, limit // x))
        x, y = ceil_div(across, rounds[0]), ceil_div(down, rounds[1])  # as few splits as these rounds need
        choices.append((rounds[0] * rounds[1], x * y, x, y))
    return min(choices)[2:]


def _even(threads: int, limit: int) -> int:
    """Threads of a block, at most `limit`, such that all blocks have about the same number."""
    return ceil_div(threads, ceil_div(threads, limit))


def _round_up(floats: int) -> int:
    return ceil_div(floats, FLOAT4) * FLOAT4


def pitch_of(floats: int) -> int:
    """As pitch_of in kernels/fast_conv.cu."""
    return FLOAT4 * (ceil_div(floats, FLOAT4) | 1)


def part_pitch(threads: int, split_threads: int) -> int:
    """As part_pitch in kernels/fast_conv.cu."""
    return threads + (split_threads - threads) % 32


def phase_pitch(width: int, stride: int) -> int:
    """As phase_pitch in kernels/fast_conv.cu."""
    return width // 32 * 32 + 16 if stride == 2 and 8 < width % 32 <= 16 else width


def line_pitch(width: int, rows: int, lines: int, row: int) -> int:
    """As line_pitch in kernels/fast_conv.cu."""
    pitches = range(width, width + 32, FLOAT4) if rows > 1 else ()
    return next((pitch for pitch in pitches if (lines * pitch - row) % 32 == 0), width)
