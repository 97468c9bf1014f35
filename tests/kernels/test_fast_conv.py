"""The fast kernels behind conv2d and conv_transpose2d, with tiles that fit nothing; and how tiles are chosen."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers.closeness import assert_close, assert_equal, float64, on_device, positive
from helpers.fast_conv import check_sizes, check_weight_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyfcn import reference
from tinyfcn.checks.cases import CORRELATIONS, TRANSPOSED, WEIGHT_GRADIENTS
from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import COMMON, KERNELS
from tinyfcn.devices.launch import MAX_GRID, ceil_div
from tinyfcn.operations import Operations
from tinyfcn.ops.fast_conv import (
    ForwardTiles,
    TransposedTiles,
    WeightTiles,
    _pitch,
    correlate,
    correlate_tiles,
    correlate_transposed_tiles,
)

each_instance = pytest.mark.parametrize(
    ("transposed", "number"), [(t, n) for t in (False, True) for n in range(len(TRANSPOSED if t else CORRELATIONS))]
)


@pytest.mark.parametrize("number", range(len(WEIGHT_GRADIENTS)))
def test_weight_gradients_in_double(number: int) -> None:
    check_weight_gradients(Operations(Emulator(precision="double")), number, tolerance=1e-14)


# In single precision in test_conv2d.py and test_conv_transpose2d.py.
@each_instance
def test_pictures_of_many_sizes_in_double(transposed: bool, number: int) -> None:
    check_sizes(Operations(Emulator(precision="double")), transposed, number, tolerance=1e-14)


def test_the_instances_have_what_people_get_wrong() -> None:
    for kernel, instances in (("conv2d_forward", CORRELATIONS), ("conv_transpose2d_forward", TRANSPOSED)):
        names = kernel_source.kernels()[kernel].template[5:]
        tiles = [dict(zip(names, tiles, strict=True)) for _, _, tiles in instances]
        for name, values in {"COLUMNS": {1, 2, 4}, "GROUPS": {1, 2}, "PICTURES": {1, 2}, "SPLITS": {1, 2, 4}}.items():
            assert {each[name] for each in tiles} == values, name
        assert {stride for _, stride, _ in instances} == {1, 2, 3}
        assert any(height > width for (*_, height, width), _, _ in instances)
        assert any(height < width for (*_, height, width), _, _ in instances)
        channels = [(weight[transposed(kernel)], each) for (weight, _, _), each in zip(instances, tiles, strict=True)]
        assert any(o % (4 * each["GROUPS"]) for o, each in channels), "surplus channels"
        inputs = [
            (weight[1 - transposed(kernel)], each["CHUNK"])
            for (weight, _, _), each in zip(instances, tiles, strict=True)
        ]
        assert {c > chunk for c, chunk in inputs} == {True, False}, "one chunk, and several"


def transposed(kernel: str) -> int:
    return int(kernel.startswith("conv_transpose2d"))


@pytest.mark.parametrize("places", [[(2, 3)], [(2, 3), (3, 2), (3, 3)]], ids=["one", "several in a window"])
def test_a_nan_is_passed_on_as_the_naive_kernels_do(ops: Operations, naive_ops: Operations, places: list) -> None:
    weight, _, tiles = CORRELATIONS[3]
    x = np.round(np.random.default_rng(0).standard_normal((2, 2, 9, 11)), 2).astype(np.float32)
    for place in places:
        x[(1, 1, *place)] = np.nan
    arrays = x, positive(np.random.default_rng(1), *weight), np.full(weight[0], -0.5, np.float32)
    shape = (2, 6, 7, 9)
    given = on_device(ops, *arrays)
    found = correlate(ops.device, *given[:2], shape, 1, 0, given[2], pool=True, tiles=tiles)
    expected = naive_ops.conv2d_pool(*on_device(naive_ops, *arrays))
    y, max_index = (ops.to_numpy(array) for array in found)
    assert_same_nans(y, naive_ops.to_numpy(expected[0]))
    assert_equal(max_index, naive_ops.to_numpy(expected[1]))
    rectified = correlate(ops.device, *given[:2], shape, 1, 0, given[2], relu=True, tiles=tiles)
    plain = naive_ops.conv2d(*on_device(naive_ops, *arrays), relu=True)
    assert_same_nans(ops.to_numpy(rectified), naive_ops.to_numpy(plain))
    x[...] = 1
    ones = ops.asarray(x)
    relu_mask = np.broadcast_to(np.where(np.arange(9) % 2, np.nan, 1).astype(np.float32), shape)
    passed = ops.to_numpy(
        correlate(ops.device, ones, given[1], shape, 1, 0, relu_mask=ops.asarray(relu_mask), tiles=tiles)
    )
    assert (passed[..., 1::2] == 0).all(), "what is not above 0 lets nothing pass, as relu_backward has it"


def assert_same_nans(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isnan(found).any() and not np.isnan(found).all()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert_close(np.nan_to_num(found), np.nan_to_num(expected), "one kernel")


def kernels_of(ops: Operations, work: object) -> set[str]:
    return {launch.kernel.name for launch in ops.device.record(work).launches}


def test_where_no_tiles_fit_the_naive_kernels_are_taken(ops: Operations) -> None:
    random = np.random.default_rng(0)
    x, weight, bias, coarse = (
        positive(random, *shape) for shape in ((2, 3, 41, 40), (2, 3, 40, 37), (2,), (2, 2, 2, 4))
    )
    fine_bias = positive(random, 3)
    assert correlate_tiles(coarse.shape, weight.shape, 1) is None
    assert correlate_transposed_tiles(x.shape, weight.shape, 1, 0) is None
    given = on_device(ops, x, weight, bias, coarse, fine_bias)

    def forward() -> list:
        return [ops.conv2d(*given[:3], relu=True), ops.conv_transpose2d(given[3], given[1], given[4], relu=True)]

    assert not kernels_of(ops, forward) & {"conv2d_forward", "conv_transpose2d_forward"}
    found = [ops.to_numpy(array) for array in forward()]
    assert_close(found[0], reference.conv2d(*float64(x, weight, bias)), "one kernel")
    assert_close(found[1], reference.conv_transpose2d(*float64(coarse, weight, fine_bias)), "one kernel")


def test_the_fast_kernels_are_taken_unless_the_device_is_naive(ops: Operations, naive_ops: Operations) -> None:
    for each, names in ((ops, {"conv2d_forward"}), (naive_ops, {"conv2d_forward_naive", "relu_forward"})):
        given = on_device(each, *(np.ones(shape, np.float32) for shape in ((1, 2, 5, 5), (3, 2, 3, 3), (3,))))
        assert kernels_of(each, lambda each=each, given=given: each.conv2d(*given, relu=True)) == names


sizes = st.integers(1, 90) | st.integers(1, 9)
channels = st.sampled_from([1, 2, 3, 4, 6, 8, 10, 11, 16, 32, 33, 64])
kernel_sizes = st.tuples(*[st.integers(1, 7) | st.just(12)] * 2)


def check_tiles(kernel: str, c: int, o: int, kernel_size: tuple[int, int], stride: int, tiles: tuple[int, ...]) -> dict:
    """What a GPU asks of any block, and what the kernel asks of its tiles; worked out as the kernel does."""
    names = kernel_source.kernels()[kernel].template
    assert names[:5] == ("C", "O", "KH", "KW", "STRIDE")
    t = dict(zip(names[5:], tiles, strict=True))
    assert min(tiles) >= 1
    threads = t["TX"] * t["TY"] * t["GROUPS"] * t["PICTURES"] * t["SPLITS"]
    assert threads <= 1024
    assert c % t["CHUNK"] == 0 and t["CHUNK"] % t["SPLITS"] == 0
    outputs = 4 * ceil_div(ceil_div(o, t["GROUPS"]), 4)
    assert outputs * (t["GROUPS"] - 1) < o <= outputs * t["GROUPS"], "a group without channels"
    height, width = kernel_size
    if kernel == "conv2d_forward":
        seen = 4 * ceil_div((t["COLUMNS"] - 1) * stride + width, 4)
        tile = ((t["TY"] * t["ROWS"] - 1) * stride + height) * ((t["TX"] - 1) * t["COLUMNS"] * stride + seen)
        taps, sums = height * width, outputs * t["ROWS"] * t["COLUMNS"]
    else:
        assert t["TY"] % stride == 0
        seen = 4 * ceil_div(t["COLUMNS"] + ceil_div(width, stride) - 1, 4)
        tile = (t["TY"] // stride + ceil_div(height, stride) - 1) * ((t["TX"] - 1) * t["COLUMNS"] + seen)
        taps, sums = ceil_div(height, stride) * stride * width, outputs * t["COLUMNS"] * stride
    parts = (t["SPLITS"] - 1) * sums * threads // t["SPLITS"]
    floats = t["CHUNK"] * (t["PICTURES"] * tile + taps * _pitch(outputs * t["GROUPS"])) + parts
    assert 4 * floats <= 48 * 1024
    assert sums <= 64
    return t


@settings(max_examples=200)
@given(st.integers(1, 2000), channels, channels, sizes, sizes, kernel_sizes, st.integers(1, 4), st.booleans())
def test_tiles_of_a_correlation(n, c, o, height, width, kernel, stride, pool) -> None:
    if pool:
        height, width, stride = height + 1, width + 1, 1
    tiles = correlate_tiles((n, o, height, width), (o, c, *kernel), stride, pool)
    if tiles is None:
        assert max(kernel) > 6 or stride > 2, "these sizes are small enough for some tiles"
        return
    t = check_tiles("conv2d_forward", c, o, kernel, stride, tiles)
    assert (t["ROWS"] == 2 and t["COLUMNS"] % 2 == 0) or not pool
    blocks = ceil_div(height, t["TY"] * t["ROWS"]), ceil_div(width, t["TX"] * t["COLUMNS"])
    assert max(blocks) <= MAX_GRID[1]
    assert t["TX"] * t["COLUMNS"] * (blocks[1] - 1) < width, "a block without work"


@settings(max_examples=200)
@given(st.integers(1, 2000), channels, channels, sizes, sizes, kernel_sizes, st.integers(1, 4), st.integers(0, 4))
def test_tiles_of_a_transposed_correlation(n, c, o, height, width, kernel, stride, padding) -> None:
    tiles = correlate_transposed_tiles((n, o, height, width), (c, o, *kernel), stride, padding)
    if tiles is None:
        assert max(kernel) > 6 or stride > 2, "these sizes are small enough for some tiles"
        return
    check_tiles("conv_transpose2d_forward", c, o, kernel, stride, tiles)


def test_every_convolution_of_the_networks_has_tiles() -> None:
    layers = [((8, 1, 5, 5), 28, 1), ((8, 8, 3, 3), 12, 1), ((32, 8, 5, 5), 5, 1), ((10, 32, 1, 1), 1, 1)]
    layers += [((32, 32, 3, 3), 19, 1), ((32, 16, 4, 4), 40, 2), ((16, 16, 6, 6), 84, 2), ((10, 10, 12, 12), 84, 4)]
    for (weight, size, stride), n in itertools.product(layers, (1, 2, 16, 128, 1024)):
        a, b, kernel, _ = weight
        coarse = (size - kernel) // stride + 1
        assert correlate_tiles((n, a, coarse, coarse), weight, stride), (weight, n)
        assert correlate_transposed_tiles((n, b, size, size), weight, stride, 0), (weight, n)


def test_no_pictures_have_no_tiles() -> None:
    assert correlate_tiles((0, 8, 9, 9), (8, 8, 3, 3), 1) is None
    assert correlate_transposed_tiles((0, 8, 9, 9), (8, 8, 3, 3), 1, 0) is None


def test_launcher_and_kernels_agree_on_the_pitch(tmp_path: Path) -> None:
    (tmp_path / COMMON).write_text((KERNELS / COMMON).read_text())
    text = 'extern "C" __global__ void pitches(int* p) { p[threadIdx.x] = pitch_of(threadIdx.x); }'
    (tmp_path / "pitches.cu").write_text(text)
    ops = Operations(Emulator(tmp_path))
    found = ops.device.empty((200,), np.int32)
    ops.device.launch("pitches", 1, 200, (found,))
    assert ops.to_numpy(found).tolist()[1:] == [_pitch(floats) for floats in range(1, 200)]
    assert all(pitch % 4 == 0 and pitch // 4 % 2 and pitch >= floats for floats, pitch in enumerate(found))


@pytest.mark.parametrize(
    ("kernel", "tiles"),
    [
        ("conv2d_forward", ForwardTiles),
        ("conv_transpose2d_forward", TransposedTiles),
        ("conv2d_backward_weight", WeightTiles),
    ],
)
def test_tiles_are_named_as_the_templates_parameters(kernel, tiles):
    names = tuple(name.upper() for name in tiles._fields)
    assert kernel_source.kernels()[kernel].template[-len(names) :] == names
