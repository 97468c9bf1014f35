"""Tests kernels/fast_conv.cu with tiles that divide no size, and the choice of tiles."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.bugs import OUTSIDE, RACE, UNWRITTEN, WRONG, Bug, Planted
from helpers.closeness import assert_close, assert_equal, float64, on_device, positive
from helpers.fast_conv import check_sizes
from helpers.instances import Dry, compile_all
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinyfcn.checks.case import Case
from tinyfcn.checks.cases.fast_conv import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    backward_input,
    backward_weight,
    forward,
)
from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import COMMON, KERNELS
from tinyfcn.devices.launch import MAX_GRID, ceil_div
from tinyfcn.networks.options import UP1_KERNEL, UP2_KERNEL, WIDTH
from tinyfcn.operations import on
from tinyfcn.ops import Operations, fast_conv
from tinyfcn.ops.tiles import (
    BackwardInputTiles,
    BackwardWeightTiles,
    ForwardTiles,
    backward_input_tiles,
    backward_weight_tiles,
    forward_tiles,
    line_pitch,
    part_pitch,
    phase_pitch,
    pitch_of,
)

reference = on("cpu")
INSTANCES = {forward: FORWARD, backward_input: BACKWARD_INPUT, backward_weight: BACKWARD_WEIGHT}
each_instance = pytest.mark.parametrize(
    ("instance", "number"),
    [
        pytest.param(instance, number, id=f"{instance.__name__}-{number}")
        for instance, instances in INSTANCES.items()
        for number in range(len(instances))
    ],
)
Instance = Callable[[np.random.Generator, int], Case]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compiles all instances in parallel, so that the tests of an edited kernel end sooner."""
    dry = Dry(KERNELS)
    for instance, instances in INSTANCES.items():
        for number in range(len(instances)):
            instance(np.random.default_rng(0), number).run(Operations(dry))
    compile_all(Emulator(), dry.launched)


@each_instance
def test_images_of_many_sizes(ops: Operations, instance: Instance, number: int) -> None:
    check_sizes(ops, instance, number)


@each_instance
def test_images_of_many_sizes_in_double(instance: Instance, number: int) -> None:
    device = Emulator(precision="double")
    assert device.double
    check_sizes(Operations(device), instance, number, tolerance=1e-14)


def test_the_instances_cover_the_corner_cases() -> None:
    for kernel, instances in (("fast_conv_forward", FORWARD), ("fast_conv_backward_input", BACKWARD_INPUT)):
        names = kernel_source.kernels()[kernel].template[5:]
        tiles = [dict(zip(names, tiles, strict=False)) for _, _, tiles in instances]  # POOLED is none of them
        for name, values in {"COLUMNS": {1, 2, 4}, "GROUPS": {1, 2}, "IMAGES": {1, 2}, "SPLITS": {1, 2, 4}}.items():
            assert {each[name] for each in tiles} >= values, name
        assert {stride for _, stride, _ in instances} == {1, 2, 3}
        assert any(height > width for (*_, height, width), _, _ in instances)
        assert any(height < width for (*_, height, width), _, _ in instances)
        results, terms = (0, 1) if kernel == "fast_conv_forward" else (1, 0)
        channels = [(weight[results], each) for (weight, _, _), each in zip(instances, tiles, strict=True)]
        assert any(o % (4 * each["GROUPS"]) for o, each in channels), "some group must have surplus channels"
        inputs = [(weight[terms], each["CHANNEL_TILE"]) for (weight, _, _), each in zip(instances, tiles, strict=True)]
        assert {c > tile for c, tile in inputs} == {True, False}, (
            "there must be instances with one channel tile, and with several"
        )


def check_max_indices(ops: Operations) -> None:
    """Sums of products of small integers are exact, and many are equal. The first of equal maxima must be chosen."""
    weight_shape, _, tiles = FORWARD[3]
    for seed in range(10):
        random = np.random.default_rng(seed)
        shapes = (2, 2, 9, 12), weight_shape, weight_shape[:1]
        x, weight, bias = (random.integers(-1, 2, shape).astype(np.float32) for shape in shapes)
        given = on_device(ops, x, weight, bias)
        found = fast_conv.forward_pool(ops.device, *given[:2], (2, 6, 7, 10), 1, 0, given[2], tiles=tiles)
        expected = reference.max_pool2d(reference.conv2d(x, weight, bias, relu=True))
        for name, a, b in zip(("y", "max_index"), found, expected, strict=True):
            assert_equal(ops.to_numpy(a), b, name)


def test_the_first_of_equal_maxima_is_chosen(ops: Operations) -> None:
    check_max_indices(ops)


@pytest.mark.parametrize("pixels", [[(2, 3)], [(2, 3), (3, 2), (3, 3)]], ids=["one", "several in a window"])
def test_a_nan_propagates_as_in_the_naive_kernels(ops: Operations, naive_ops: Operations, pixels: list) -> None:
    weight, _, tiles = FORWARD[3]
    x = np.round(np.random.default_rng(0).standard_normal((2, 2, 9, 11)), 2).astype(np.float32)
    for pixel in pixels:
        x[(1, 1, *pixel)] = np.nan
    arrays = x, positive(np.random.default_rng(1), *weight), np.full(weight[0], -0.5, np.float32)
    shape = (2, 6, 7, 9)
    given = on_device(ops, *arrays)
    found = fast_conv.forward_pool(ops.device, *given[:2], shape, 1, 0, given[2], tiles=tiles)
    expected = naive_ops.conv2d_pool(*on_device(naive_ops, *arrays))
    y, max_index = (ops.to_numpy(array) for array in found)
    assert_same_nans(y, naive_ops.to_numpy(expected[0]))
    assert_equal(max_index, naive_ops.to_numpy(expected[1]))
    rectified = fast_conv.forward(ops.device, *given[:2], shape, 1, 0, given[2], relu=True, tiles=tiles)
    plain = naive_ops.conv2d(*on_device(naive_ops, *arrays), relu=True)
    assert_same_nans(ops.to_numpy(rectified), naive_ops.to_numpy(plain))
    x[...] = 1
    ones = ops.asarray(x)
    relu_mask = np.broadcast_to(np.where(np.arange(9) % 2, np.nan, 1).astype(np.float32), shape)
    passed = ops.to_numpy(
        fast_conv.forward(ops.device, ones, given[1], shape, 1, 0, relu_mask=ops.asarray(relu_mask), tiles=tiles)
    )
    assert (passed[..., 1::2] == 0).all(), "the result is 0 where relu_mask is not above 0, as in relu_backward"


def assert_same_nans(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isnan(found).any() and not np.isnan(found).all()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert_close(np.nan_to_num(found), np.nan_to_num(expected), "one kernel")


def kernels_of(ops: Operations, work: object) -> set[str]:
    return {launch.kernel.name for launch in ops.device.record(work).launches}


@pytest.mark.falls_back
def test_where_no_tiles_fit_the_naive_kernels_run(ops: Operations) -> None:
    random = np.random.default_rng(0)
    x, weight, bias, dout = (positive(random, *shape) for shape in ((2, 3, 41, 40), (2, 3, 40, 37), (2,), (2, 2, 2, 4)))
    bias_of_x = positive(random, 3)
    assert forward_tiles(dout.shape, weight.shape, 1) is None
    assert backward_input_tiles(x.shape, weight.shape, 1, 0) is None
    given = on_device(ops, x, weight, bias, dout, bias_of_x)

    def forward() -> list:
        return [ops.conv2d(*given[:3], relu=True), ops.conv_transpose2d(given[3], given[1], given[4], relu=True)]

    assert not kernels_of(ops, forward) & {"fast_conv_forward", "fast_conv_backward_input"}
    found = [ops.to_numpy(array) for array in forward()]
    assert_close(found[0], reference.conv2d(*float64(x, weight, bias)), "one kernel")
    assert_close(found[1], reference.conv_transpose2d(*float64(dout, weight, bias_of_x)), "one kernel")


def test_the_fast_kernels_run_unless_the_device_is_naive(ops: Operations, naive_ops: Operations) -> None:
    for each, names in ((ops, {"gather", "fast_conv_forward"}), (naive_ops, {"conv2d_forward_naive", "relu_forward"})):
        given = on_device(each, *(np.ones(shape, np.float32) for shape in ((1, 2, 5, 5), (3, 2, 3, 3), (3,))))
        assert kernels_of(each, lambda each=each, given=given: each.conv2d(*given, relu=True)) == names


sizes = st.integers(1, 90) | st.integers(1, 9)
channels = st.sampled_from([1, 2, 3, 4, 6, 8, 10, 11, 16, 32, 33, 64])
kernel_sizes = st.tuples(*[st.integers(1, 7) | st.just(12)] * 2)


def check_tiles(kernel: str, c: int, o: int, kernel_size: tuple[int, int], stride: int, tiles: tuple[int, ...]) -> dict:
    """Checks the limits of a block on a GPU, and the requirements of the kernel, computed as in the kernel."""
    names = kernel_source.kernels()[kernel].template
    assert names[:5] == ("O", "C", "KH", "KW", "STRIDE")
    t = dict(zip(names[5:], tiles, strict=False))  # POOLED is none of them
    assert min(tiles) >= 1
    threads = t["TX"] * t["TY"] * t["GROUPS"] * t["IMAGES"] * t["SPLITS"]
    assert threads <= 1024
    assert c % t["CHANNEL_TILE"] == 0 and t["CHANNEL_TILE"] % t["SPLITS"] == 0
    outputs = 4 * ceil_div(ceil_div(o, t["GROUPS"]), 4)
    assert outputs * (t["GROUPS"] - 1) < o <= outputs * t["GROUPS"], "no group may be without channels"
    height, width = kernel_size
    if kernel == "fast_conv_forward":
        window = 4 * ceil_div(t["COLUMNS"] + ceil_div(width, stride) - 1, 4)
        line = stride * phase_pitch((t["TX"] - 1) * t["COLUMNS"] + window, stride)
        lines = (t["TY"] * t["ROWS"] - 1) * stride + height
        tile = lines * line_pitch(line, t["TY"], t["ROWS"] * stride, t["TX"] * t["COLUMNS"])
        weights, sums = height * width * outputs * t["GROUPS"], outputs * t["ROWS"] * t["COLUMNS"]
    else:
        assert t["TY"] % stride == 0
        window = 4 * ceil_div(t["COLUMNS"] + ceil_div(width, stride) - 1, 4)
        line, columns = (t["TX"] - 1) * t["COLUMNS"] + window, t["TX"] * t["COLUMNS"]
        tile = (t["TY"] // stride + ceil_div(height, stride) - 1) * line_pitch(line, t["TY"] // stride, 1, columns)
        pitch = line_pitch(outputs * t["GROUPS"], stride, width, outputs * t["GROUPS"])
        weights, sums = ceil_div(height, stride) * stride * width * pitch, outputs * t["COLUMNS"] * stride
    parts = (t["SPLITS"] - 1) * sums * threads // t["SPLITS"]
    assert 4 * max(t["CHANNEL_TILE"] * (t["IMAGES"] * tile + weights), parts) <= 48 * 1024
    assert sums <= 64
    return t


@settings(max_examples=200)
@example(1, 8, 33, 1, 64, (1, 1), 1, False)  # many threads for each input channel, so they have room for few splits
@example(2000, 64, 4, 1, 4, (6, 6), 1, False)  # small blocks of many images, whose windows must fit
@given(st.integers(1, 2000), channels, channels, sizes, sizes, kernel_sizes, st.integers(1, 4), st.booleans())
def test_tiles_of_the_forward_pass(n, c, o, height, width, kernel, stride, pool) -> None:
    if pool:
        height, width, stride = height + 1, width + 1, 1
    tiles = forward_tiles((n, o, height, width), (o, c, *kernel), stride, pool)
    if tiles is None:
        assert max(kernel) > 6 or stride > 2, "sizes as small as these must have tiles"
        return
    t = check_tiles("fast_conv_forward", c, o, kernel, stride, tiles)
    assert (t["ROWS"] == 2 and t["COLUMNS"] % 2 == 0) or not pool
    blocks = ceil_div(height, t["TY"] * t["ROWS"]), ceil_div(width, t["TX"] * t["COLUMNS"])
    assert max(blocks) <= MAX_GRID[1]
    assert t["TX"] * t["COLUMNS"] * (blocks[1] - 1) < width, "no block may be without work"


@settings(max_examples=200)
@example(1, 8, 64, 1, 33, (1, 1), 1, 0)
@example(2000, 64, 4, 1, 4, (6, 6), 1, 0)
@given(st.integers(1, 2000), channels, channels, sizes, sizes, kernel_sizes, st.integers(1, 4), st.integers(0, 4))
def test_tiles_of_the_data_gradient(n, c, o, height, width, kernel, stride, padding) -> None:
    tiles = backward_input_tiles((n, o, height, width), (c, o, *kernel), stride, padding)
    if tiles is None:
        assert max(kernel) > 6 or stride > 2, "sizes as small as these must have tiles"
        return
    check_tiles("fast_conv_backward_input", c, o, kernel, stride, tiles)


def test_every_convolution_of_the_networks_has_tiles() -> None:
    layers = [((8, 1, 5, 5), 28, 1), ((8, 8, 3, 3), 12, 1), ((32, 8, 5, 5), 5, 1), ((10, 32, 1, 1), 1, 1)]
    layers += [((32, 32, 3, 3), 19, 1), ((32, 16, 4, 4), 40, 2), ((16, 16, 6, 6), 84, 2), ((10, 10, 12, 12), 84, 4)]
    for (weight, size, stride), n in itertools.product(layers, (1, 2, 16, 128, 1024)):
        a, b, kernel, _ = weight
        out = (size - kernel) // stride + 1
        assert forward_tiles((n, a, out, out), weight, stride), (weight, n)
        assert backward_input_tiles((n, b, size, size), weight, stride, 0), (weight, n)


def test_every_choice_of_skip_has_tiles() -> None:
    """Its transposed convolutions from 32x14x19 to 30x40 and on to 64x84, forward and backward."""
    for up1, up2, width in itertools.product(UP1_KERNEL.choices, UP2_KERNEL.choices, WIDTH.choices):
        layers = (32, (14, 19), (30, 40), up1, 4), (width, (30, 40), (64, 84), up2, 6)
        for (channels, small, large, kernel, default), n in itertools.product(layers, (1, 16, 1024)):
            weight = (channels, width, kernel, kernel)
            assert backward_input_tiles((n, width, *large), weight, 2, (kernel - default) // 2), (weight, n)
            assert forward_tiles((n, channels, *small), weight, 2), (weight, n)
            assert backward_weight_tiles(channels, width, kernel, kernel, *small, 2), weight


def test_a_gpu_with_fewer_multiprocessors_gets_fewer_threads_of_more_work() -> None:
    """Threads of up2's launches for 16 images, and the sums of each."""
    shape, weight = (16, 16, 64, 84), (16, 16, 6, 6)
    threads = []
    for multiprocessors in (24, 40, 132):
        tiles = backward_input_tiles(shape, weight, 2, 0, multiprocessors)
        blocks = ceil_div(shape[2], tiles.ty) * ceil_div(shape[3], tiles.tx * tiles.columns * 2) * shape[0]
        threads.append(blocks * tiles.tx * tiles.ty * tiles.groups * tiles.splits)
    assert threads == sorted(threads) and threads[0] < threads[-1]
    assert backward_input_tiles(shape, weight, 2, 0) == tiles


def test_the_device_s_multiprocessors_choose_the_tiles() -> None:
    found = []
    for multiprocessors in (24, 132):
        device = Dry(KERNELS)
        device.multiprocessors = multiprocessors
        ops = Operations(device)
        x, weight, bias = (ops.device.empty(size) for size in ((16, 16, 32, 42), (16, 16, 6, 6), (16,)))
        gradient = ops.device.empty((16, 16, 68, 88))
        ops.conv_transpose2d(x, weight, bias, stride=2)
        ops.conv_transpose2d_backward(gradient, x, weight, stride=2)
        found.append([kernel.expression for kernel in device.launched])
    assert len(found[0]) == len(found[1]) and found[0] != found[1]


def test_an_empty_batch_has_no_tiles() -> None:
    assert forward_tiles((0, 8, 9, 9), (8, 8, 3, 3), 1) is None
    assert backward_input_tiles((0, 8, 9, 9), (8, 8, 3, 3), 1, 0) is None


def test_launcher_and_kernels_compute_the_same_pitches(tmp_path: Path) -> None:
    (tmp_path / COMMON).write_text((KERNELS / COMMON).read_text())
    text = """
extern "C" __global__ void pitches(int* pitch, int* line, int* phase, int* part) {
    pitch[threadIdx.x] = pitch_of(threadIdx.x);
    phase[threadIdx.x] = phase_pitch(threadIdx.x, threadIdx.x % 3 + 1);
    part[threadIdx.x] = part_pitch(threadIdx.x * 5, threadIdx.x);
    line[threadIdx.x] = line_pitch(threadIdx.x / 8 * 4, threadIdx.x % 3, threadIdx.x % 8 / 2 + 1, threadIdx.x % 13 * 4);
}"""
    (tmp_path / "pitches.cu").write_text((KERNELS / "fast_conv.cu").read_text() + text)
    ops = Operations(Emulator(tmp_path))
    found, lines, phases, parts = (ops.device.empty((200,), np.int32) for _ in range(4))
    ops.device.launch("pitches", 1, 200, (found, lines, phases, parts))
    assert ops.to_numpy(found).tolist()[1:] == [pitch_of(floats) for floats in range(1, 200)]
    assert all(pitch % 4 == 0 and pitch // 4 % 2 and pitch >= floats for floats, pitch in enumerate(found))
    assert lines.tolist() == [line_pitch(k // 8 * 4, k % 3, k % 8 // 2 + 1, k % 13 * 4) for k in range(200)]
    assert any(pitch > k // 8 * 4 for k, pitch in enumerate(lines.tolist()))
    assert phases.tolist() == [phase_pitch(k, k % 3 + 1) for k in range(200)]
    assert parts.tolist() == [part_pitch(5 * k, k) for k in range(200)]


@pytest.mark.parametrize(
    ("kernel", "tiles"),
    [
        ("fast_conv_forward", ForwardTiles),
        ("fast_conv_backward_input", BackwardInputTiles),
        ("fast_conv_backward_weight", BackwardWeightTiles),
    ],
)
def test_tiles_have_the_names_of_the_template_parameters(kernel, tiles):
    names = [name.upper() for name in tiles._fields]
    declared = [name for name in kernel_source.kernels()[kernel].template if name != "POOLED"]
    assert declared[-len(names) :] == names


def check_forward(ops: Operations) -> None:
    for number in (2, 3):  # stride and splits; groups, several images and pooling
        check_sizes(ops, forward, number, shapes=20)
    check_max_indices(ops)


def check_backward_input(ops: Operations) -> None:
    for number in (0, 1, 2):  # groups and splits; phases without rows; pooling
        check_sizes(ops, backward_input, number, shapes=20)


def check_backward_weight(ops: Operations) -> None:
    for number in (0, 1):  # pooling; stride and several images
        check_sizes(ops, backward_weight, number)


def check_reduction(ops: Operations) -> None:
    """Also of more partial sums than the threads of an element add up at once: ones are counted."""
    check_backward_weight(ops)
    ones = ops.asarray(np.ones((1, 1, 70, 70), np.float32))
    dweight = ops.device.empty((1, 1, 1, 1))
    _, _, tiles = BACKWARD_WEIGHT[3]
    recording = ops.device.record(
        lambda: fast_conv.backward_weight(ops.device, ones, ones, dweight, None, 1, 0, tiles=tiles)
    )
    recording.replay()
    splits = recording.launches[1].arguments[2]
    assert splits > fast_conv.REDUCED_SPLITS * fast_conv.MAX_REDUCERS
    assert ops.to_numpy(dweight).item() == 70 * 70


def test_many_partial_sums_are_added(ops: Operations) -> None:
    check_reduction(ops)


def check_splits(ops: Operations) -> None:
    for number in (0, 2):  # two splits and four
        check_sizes(ops, forward, number, shapes=20)


def check_rows(ops: Operations) -> None:
    for number in (3, 4):  # loaded as float4s, and as single floats
        check_sizes(ops, forward, number, shapes=20)


def check_staging(ops: Operations) -> None:
    check_forward(ops)
    check_backward_input(ops)
    check_sizes(ops, forward, 5, shapes=10)  # the groups have more channels than the packed weight
    check_sizes(ops, backward_input, 4, shapes=10)


def check_epilogue(ops: Operations) -> None:
    check_forward(ops)
    check_sizes(ops, forward, 0, shapes=60)  # stores four outputs at once where rows are aligned


PLANTED = {
    "fast_conv_forward": Planted(
        check_forward,
        [
            ("the padding has the wrong sign", "left * STRIDE - padding", "left * STRIDE + padding"),
            ("the stride is forgotten when the tile is read", "ty * ROWS * STRIDE + row", "ty * ROWS + row"),
            ("every channel group reads the weights of the first", "* PITCH + group * CHANNELS", "* PITCH"),
            ("every image of a block is the first", "(image * CHANNEL_TILE + c) * TILE_H", "c * TILE_H"),
            ("the last channel tiles are left out", "first < C;", "first < C && first == 0;"),
            ("the bias is forgotten", "bias ? bias[channel] : 0.0f", "0.0f"),
            (
                "row and column of max_index are swapped",
                "(i + best / 2) * OW + j + p + best % 2",
                "(i + best % 2) * OW + j + p + best / 2",
            ),
            ("the last of equal maxima is chosen", "value > largest ||", "value >= largest ||"),
        ],
    ),
    "fast_conv_backward_weight": Planted(
        check_backward_weight,
        [
            ("the row of the weight is forgotten", "row % ROWS * STRIDE + u", "row % ROWS * STRIDE"),
            ("pixels other than the max index count too", "max_index[from] == i * OW + j", "true"),
            ("the padding has the wrong sign", "top * STRIDE - padding", "top * STRIDE + padding"),
            ("the last split is left out", "part < SPLITS;", "part < SPLITS - 1;"),
            ("rows shared by two tiles are added twice", "top + ROWS < OH ? ROWS * STRIDE : TILE_H", "TILE_H"),
            ("only the first images are summed", "tiles; tile += gridDim.y", "1; tile += gridDim.y"),
        ],
    ),
    "fast_conv_reduce_split_k": Planted(
        check_reduction,
        [
            ("every reducer sums the same splits", "first = reducer;", "first = 0;"),
            ("all biases are written to the first", "dbias[element - weights]", "dbias[0]"),
            ("every second split is left out", "first + k * reducers", "first + 2 * k * reducers"),
            ("only the first eight splits of a reducer count", "first += 8 * reducers", "first += splits"),
        ],
    ),
    "fast_conv_backward_input": Planted(
        check_backward_input,
        [
            ("the rows of phases are confused", "phase + a * STRIDE", "phase * PHASE_KH + a"),
            ("the rows of the weight are not reversed", "ty + PHASE_KH - 1 - a", "ty + a"),
            ("the columns of the weight are not reversed", "p + PHASE_KW - 1 - v / STRIDE", "p + v / STRIDE"),
            ("the padding has the wrong sign", "* STRIDE + phase - padding", "* STRIDE + phase + padding"),
            ("pixels other than the max index get the gradient too", "max_index[element] == i * OW + j", "true"),
            ("the weights are those of the first channels", "packed + first * LINES * round_up(C, 4)", "packed"),
        ],
    ),
    "reduce_splits": Planted(
        check_splits,
        [
            ("each split is added twice", "sums[k] += parts", "sums[k] += 2 * parts"),
            ("only the first of the other splits is added", "other < SPLITS - 1;", "other < 1;"),
            (
                "the last sum is left out",
                "+ k) * SPLIT_THREADS + thread];",
                "+ k - k / (COUNT - 1)) * SPLIT_THREADS + thread];",
            ),
        ],
    ),
    "store_row": Planted(
        check_epilogue,
        [
            ("add is forgotten before a ReLU", "(add ? add[element + k]", "(add && !relu ? add[element + k]"),
            ("relu_mask lets 0 pass", "relu_mask[element + k] > 0.0f", "relu_mask[element + k] >= 0.0f"),
            ("relu_mask lets 0 pass for four outputs at once", "mask[i] > 0.0f", "mask[i] >= 0.0f"),
            ("add is forgotten for four outputs at once", "bias + added[i]", "bias"),
            ("every output gets the first element of add", "add[element + k] :", "add[element] :"),
            ("the bias is forgotten", "sums[k] + bias", "sums[k]"),
        ],
    ),
    "copy_to_shared": Planted(
        check_staging,
        [
            ("what is not there is 1", "is_there ? *from : 0.0f", "is_there ? *from : 1.0f"),
            ("nothing is copied", "is_there ? *from", "is_there ? 0.0f"),
        ],
    ),
    "copy_four_to_shared": Planted(
        check_staging,
        [
            ("what is there is not copied", "is_there ? *reinterpret", "!is_there ? *reinterpret"),
            (
                "the first four are copied each time",
                "reinterpret_cast<const float4*>(from)",
                "reinterpret_cast<const float4*>(from - threadIdx.x % 2 * 4)",
            ),
        ],
    ),
    "copy_weights_to_shared": Planted(
        check_staging,
        [
            ("each line is the first", "packed + line * COUNT", "packed"),
            (
                "four neighbours are those before them",
                "line * COUNT + column, column < COUNT",
                "line * COUNT, column < COUNT",
            ),
            ("the last line is left out", "n < LINES * (WIDTH / 4)", "n < (LINES - 1) * (WIDTH / 4)"),
        ],
    ),
    "load_row": Planted(
        check_rows,
        [
            ("the second of four is loaded twice", "row[k + 2] = four.z", "row[k + 2] = four.y"),
            ("every element is the first", "row[k] = from[k]", "row[k] = from[0]"),
        ],
    ),
}

ZOO = {
    "copy_to_shared": [
        Bug("pixels outside the image are read", {"is_there ? *from : 0.0f": "*from"},
            "check", OUTSIDE, ("*to = *from;",)),
    ],
    "copy_four_to_shared": [
        Bug("weights behind the end of a line are read", {"is_there ? *reinterpret": "true ? *reinterpret"},
            "check", OUTSIDE, ("true ? *reinterpret_cast<const float4*>(from)",)),
    ],
    "copy_weights_to_shared": [
        Bug("weights of surplus channels of the last group are not set to 0",
            {"n < LINES * (WIDTH / 4); n += THREADS": "n < LINES * (COUNT / 4); n += THREADS",
             "n / (WIDTH / 4), column = n % (WIDTH / 4) * 4": "n / (COUNT / 4), column = n % (COUNT / 4) * 4"},
            "check", UNWRITTEN, ("float4 four = *reinterpret_cast<const float4*>(from",)),
        Bug("weights of surplus channels are read past the end", {"column, column < COUNT": "column, true"},
            "check", OUTSIDE, ("? *reinterpret_cast<const float4*>(from)",)),
    ],
    "load_row": [
        Bug("float4 loads from rows that are not aligned",
            {"BY_FOUR ? 4 : 1": "4", "if constexpr (BY_FOUR)": "if (true)"},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<const float4*>(from + k)",), "memcheck"),
    ],
    "reduce_splits": [
        Bug("the first split reads sums that others are still writing",
            {"__syncthreads();  // until the other splits": "// until the other splits"},
            "check", RACE, ("parts[((split - 1) * COUNT + k)", "sums[k] += parts["), "racecheck"),
        Bug("the first split stores its sums at a negative index",
            {"if (split > 0)": ""},
            "check", OUTSIDE, ("parts[((split - 1) * COUNT + k)",), "memcheck"),
        Bug("the sums overwrite tiles that others still read",
            {"__syncthreads();  // until all threads have read": "// until all threads have read"},
            "check", RACE, ("parts[((split - 1) * COUNT + k)",), "racecheck"),
        Bug("only the other splits wait",
            {"__syncthreads();  // until the other": "if (split > 0) __syncthreads();  // until the other"},
            "trap", "have exited", ("__syncthreads();  // until the other splits",)),
    ],
    "store_row": [
        Bug("float4 stores to rows that are not aligned", {" && left % 4 == 0 && width % 4 == 0": ""},
            "trap", "which is not a multiple of its size", ("make_float4(values[0]",), "memcheck"),
        Bug("each row also writes the first output of the next row",
            {"if (within(left + k, width))": "if (within(left + k, width + 1))"},
            "check", RACE, ("y[element + k] = rectified(",)),
    ],
    "fast_conv_forward": [
        Bug("the next channel tile is loaded while others still read the last",
            {"__syncthreads();  // until all threads have read": "// until all threads have read"},
            "check", RACE, ("*to = is_there ? *from : 0.0f;",), "racecheck"),
        Bug("a barrier in a branch of the first split",
            {"__syncthreads();  // until all threads have loaded":
             "if (split == 0) __syncthreads();  // the first split's"},
            "trap", "wait at __syncthreads", ("// the first split's",), "synccheck"),
        Bug("the tile is a row short",
            {"+ IMAGES * CHANNEL_TILE * TILE_H * LINE;": "+ IMAGES * CHANNEL_TILE * (TILE_H - 1) * LINE;"},
            "check", OUTSIDE, ("*to = is_there ? *from : 0.0f;",)),
        Bug("surplus channels of the last group are written", {"if (channel >= O) continue;": ""},
            "check", OUTSIDE, ("float each = bias",), "memcheck"),
        Bug("every channel group reads the weights of the first", {"* PITCH + group * CHANNELS": "* PITCH"},
            "double", WRONG, ("y[element + k] = rectified(",)),
    ],
    "fast_conv_backward_weight": [
        Bug("the tiles are not declared to be aligned",
            {"__shared__ __align__(16) float shared": "__shared__ float shared"},
            "trap", "declare it __align__(16)", ("reinterpret_cast<const float4*>(from + k)",), None),
        Bug("sums overwrite the tile that others still read",
            {"__syncthreads();  // until all threads have read the tiles": "// until all threads have read the tiles"},
            "check", RACE, ("float4 four = *reinterpret_cast<const float4*>(from",), "racecheck"),
    ],
    "fast_conv_reduce_split_k": [
        Bug("the first reducer reads sums that others are still writing",
            {"__syncthreads();  // until every reducer": "// until every reducer"},
            "check", RACE, ("partial[reducer][lane] = sum;", "total += partial[part][lane];"), "racecheck"),
        Bug("surplus threads read past the end of the workspace", {"element < length && split": "split"},
            "check", OUTSIDE, ("workspace[split * length + element]",), "memcheck"),
        Bug("weights of surplus channels are written", {"if (o < O && c < C) dweight": "dweight"},
            "check", RACE, ("KW + v] = total;",)),
    ],
    "fast_conv_backward_input": [
        Bug("threads above the image return before the barrier",
            {"reduce_splits<SPLITS, SPLIT_THREADS>(sums, shared, split, threadIdx.x % SPLIT_THREADS);": "",
             "if (split > 0 || n >= N || h < 0 || h >= H) return;":
             """if (n >= N || h < 0 || h >= H) return;
    reduce_splits<SPLITS, SPLIT_THREADS>(sums, shared, split, threadIdx.x % SPLIT_THREADS);
    if (split > 0) return;"""},
            "trap", "have exited", ("// until all threads have read the tiles, where",)),
        Bug("no thread waits until all channels are loaded",
            {"__syncthreads();  // until all threads have loaded": "// until all threads have loaded"},
            "check", RACE, ("*to = is_there ? *from : 0.0f;",), "racecheck"),
        Bug("surplus images of the last block are written", {" || n >= N": ""},
            "check", OUTSIDE, ("y[element + k] = rectified(",), "memcheck"),
    ],
}  # fmt: skip
