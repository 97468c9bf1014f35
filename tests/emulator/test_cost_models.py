"""Profile mode against models of the naive kernels, which are written from their index arithmetic alone; and samples
against whole launches."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.profile import EVERY_BLOCK, KINDS, LaunchProfile
from tinyfcn.ops import Operations

WARP = 32
SECTOR = 8  # floats

Access = tuple[str, np.ndarray, np.ndarray]  # to an array: the element of each thread, and whether the thread is active


def windows(sizes: tuple[int, ...], kernel: tuple[int, int], count: int) -> Iterator[tuple[np.ndarray, ...]]:
    """For each round of the loops over a channel, u and v: the element's index in each dimension, then these three."""
    threads = np.arange(np.prod(sizes))
    for c, u, v in product(range(count), range(kernel[0]), range(kernel[1])):
        yield (*np.unravel_index(threads, sizes), c, u, v)


def conv2d(x: np.ndarray, weight: np.ndarray, stride: int, padding: int, y: np.ndarray) -> Iterator[Access]:
    for n, o, i, j, c, u, v in windows(y.shape, weight.shape[2:], x.shape[1]):
        h, w = i * stride + u - padding, j * stride + v - padding
        yield from products(x, (n, c, h, w), weight, (o, c, u, v))


def conv_transpose2d(x: np.ndarray, weight: np.ndarray, stride: int, padding: int, y: np.ndarray) -> Iterator[Access]:
    for n, o, h, w, c, u, v in windows(y.shape, weight.shape[2:], x.shape[1]):
        i, j = h + padding - u, w + padding - v
        is_there = (i % stride == 0) & (j % stride == 0)
        yield from products(x, (n, c, i // stride, j // stride), weight, (c, o, u, v), is_there)


def max_pool2d(x: np.ndarray, size: int, stride: int, y: np.ndarray) -> Iterator[Access]:
    for n, c, i, j, _, u, v in windows(y.shape, (size, size), 1):
        at = np.ravel_multi_index((n, c, i * stride + u, j * stride + v), x.shape)
        yield "x", at, np.ones(at.shape, bool)
        if u == v == 0:  # the first pixel, with which the others are compared
            yield "x", at, np.ones(at.shape, bool)


def products(
    x: np.ndarray, x_index: tuple[Any, ...], weight: np.ndarray, weight_index: tuple[Any, ...], active: Any = True
) -> Iterator[Access]:
    """The reads of one product of a sum; outside of the image there is none."""
    for index, size in zip(x_index[2:], x.shape[2:], strict=True):
        active = active & (index >= 0) & (index < size)
    for name, array, index in ("x", x, x_index), ("weight", weight, weight_index):
        yield name, np.ravel_multi_index(np.broadcast_arrays(*index), array.shape, mode="clip"), active


def totals(accesses: Iterator[Access]) -> dict[str, dict[str, int]]:
    """What the accesses cost, by array, if each warp's threads make each of them together."""
    found: dict[str, dict[str, int]] = {}
    for name, elements, active in accesses:
        counts = found.setdefault(name, {"requests": 0, "lanes": 0, "parts": 0})
        missing = -len(elements) % WARP
        sectors = np.where(np.pad(active, (0, missing)), np.pad(elements, (0, missing)) // SECTOR, -1).reshape(-1, WARP)
        sectors.sort(axis=1)
        is_new = np.diff(sectors, axis=1, prepend=-1) > 0
        counts["requests"] += int((sectors[:, -1] >= 0).sum())
        counts["lanes"] += int(active.sum())
        counts["parts"] += int(is_new.sum())
    return found


def counted(profile: LaunchProfile, arrays: Any) -> dict[str, dict[str, int]]:
    lines = [line for line in profile.requests if line.array in arrays and line.kind == "read"]
    return {
        name: {count: sum(getattr(line, count) for line in lines if line.array == name) for count in counts}
        for name, counts in arrays.items()
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("operation", ["conv2d", "conv_transpose2d", "max_pool2d"])
def test_a_naive_kernel_costs_what_its_indices_tell(operation: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    device = Emulator(mode="profile", naive=True, sample=EVERY_BLOCK)
    ops = Operations(device)
    n, c, o = (int(size) for size in draw.integers(1, 5, 3))
    height, width = (int(size) for size in draw.integers(4, 18, 2))
    kernel, stride = int(draw.integers(1, 5)), int(draw.integers(1, 4))
    padding = int(draw.integers(0, kernel))
    x = ops.asarray(draw.standard_normal((n, c, height, width), np.float32))
    if operation == "max_pool2d":
        y, _ = ops.max_pool2d(x, kernel, stride)
        model = max_pool2d(x, kernel, stride, y)
    else:
        shape = (o, c, kernel, kernel) if operation == "conv2d" else (c, o, kernel, kernel)
        weight, bias = (ops.asarray(draw.standard_normal(s, np.float32)) for s in (shape, (o,)))
        if operation == "conv_transpose2d":
            padding = min(padding, (min(height, width) - 1) * stride // 2)
        y = getattr(ops, operation)(x, weight, bias, stride, padding)
        model = (conv2d if operation == "conv2d" else conv_transpose2d)(x, weight, stride, padding, y)
    expected = totals(model)
    (profile,) = (each for each in device.profiles if each.launch.kernel.name.startswith(operation))
    assert counted(profile, expected) == expected
    assert {line.kind for line in profile.requests} <= {*KINDS}


LAYERS = {  # x, weight, stride, padding
    "conv1": ((16, 1, 64, 84), (8, 1, 5, 5), 1, 0),
    "context": ((16, 32, 14, 19), (32, 32, 3, 3), 1, 1),
    "up1": ((4, 32, 14, 19), (32, 16, 4, 4), 2, 0),
    "score": ((16, 16, 64, 84), (11, 16, 1, 1), 1, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("naive", [False, True], ids=["fast", "naive"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_sample_stands_for_the_whole_launch(layer: str, naive: bool) -> None:
    x_shape, weight_shape, stride, padding = LAYERS[layer]
    transposed = layer.startswith("up")
    draw = np.random.default_rng(0)
    pair = []
    for device in Emulator(mode="profile", naive=naive, sample=EVERY_BLOCK), Emulator(mode="profile", naive=naive):
        ops = Operations(device)
        bias = weight_shape[1] if transposed else weight_shape[0]
        x, weight, bias = (ops.asarray(draw.standard_normal(s, np.float32)) for s in (x_shape, weight_shape, (bias,)))
        (ops.conv_transpose2d if transposed else ops.conv2d)(x, weight, bias, stride, padding)
        *_, profile = device.profiles  # after that of the packed weight
        assert profile.launch.kernel.name.endswith("naive") == naive
        pair.append(profile)
    whole, sample = pair
    assert sample.blocks < sample.block_count == whole.blocks
    scale = sample.block_count / sample.blocks
    for is_shared in False, True:
        for count in "requests", "lanes", "parts", "fewest":
            all_, some = (sum(getattr(r, count) for r in each.requests if r.is_shared == is_shared) for each in pair)
            assert scale * some == pytest.approx(all_, rel=0.02), (count, is_shared)
            for line in whole.requests:
                if line.is_shared == is_shared and getattr(line, count) > 0.05 * all_:
                    (same,) = (r for r in sample.requests if _key(r) == _key(line))
                    assert scale * getattr(same, count) == pytest.approx(getattr(line, count), rel=0.05), (count, line)


def _key(line: Any) -> tuple[Any, ...]:
    return line.place, line.caller, line.array, line.kind, line.bytes
