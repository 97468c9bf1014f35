"""How the exercises' kernels are launched, what should come out, and what their launches may ask of memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tinyfcn.checks.own_file import Call, Empty
from tinyfcn.checks.profile import Profiled
from tinyfcn.devices.device import THREADS
from tinyfcn.devices.launch import ceil_div
from tinyfcn.ops.launcher import SUM_THREADS
from tinyfcn.reference.conv2d import conv2d, conv2d_backward
from tinyfcn.reference.conv_transpose2d import conv_transpose2d
from tinyfcn.reference.max_pool2d import max_pool2d, max_pool2d_backward
from tinyfcn.reference.relu import relu
from tinyfcn.reference.softmax_cross_entropy import softmax_cross_entropy

Calls = Iterator[Call]
Random = np.random.Generator

# n, c, h, w, o, kernel height and width, stride, padding: sizes that differ, so that no two can be exchanged. Each of
# n, c and o is the largest once, so that a remainder by another one is seen.
CONVOLUTIONS = [
    (1, 1, 4, 3, 1, 3, 3, 1, 1),
    (2, 3, 5, 7, 4, 3, 2, 1, 1),
    (5, 2, 8, 6, 3, 3, 3, 2, 0),
    (2, 4, 9, 16, 3, 4, 5, 3, 2),  # OH and OW have a common divisor
]


def for_each(kernel: str, count: int, arguments: Sequence[object], **expected: np.ndarray) -> Call:
    """A launch with a thread for each of `count` elements."""
    return Call(kernel, ceil_div(count, THREADS), THREADS, arguments, expected)


def guard(random: Random) -> Calls:
    for count in (512, 600, 1):
        x = random.standard_normal(count)
        yield for_each("relu", count, [x, Empty(count), count], y=relu(x))


def unravel(random: Random) -> Calls:
    for n, c, h, w, o, kernel_height, kernel_width, *_ in CONVOLUTIONS:
        x, weight = random.standard_normal((n, c, h, w)), random.standard_normal((o, c, kernel_height, kernel_width))
        y = conv2d(x, weight, np.zeros(o))
        sizes = n, c, h, w, o, kernel_height, kernel_width, *y.shape[2:]
        yield for_each("conv2d", y.size, [x, weight, Empty(y.shape), *sizes], y=y)


def convolutions(random: Random) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]]:
    """x, weight, bias, y, and the whole numbers that the kernels take: sizes, stride and padding."""
    for n, c, h, w, o, kernel_height, kernel_width, stride, padding in CONVOLUTIONS:
        x, weight = random.standard_normal((n, c, h, w)), random.standard_normal((o, c, kernel_height, kernel_width))
        bias = random.standard_normal(o)
        y = conv2d(x, weight, bias, stride, padding)
        yield x, weight, bias, y, (n, c, h, w, o, kernel_height, kernel_width, *y.shape[2:], stride, padding)


def padding(random: Random) -> Calls:
    for x, weight, bias, y, sizes in convolutions(random):
        yield for_each("conv2d_forward_naive", y.size, [x, weight, bias, Empty(y.shape), *sizes], y=y)


def pooling(random: Random) -> Calls:
    for planes, h, w, size, stride in ((2, 8, 5, 2, 3), (3, 7, 8, 3, 2), (1, 3, 3, 3, 1)):
        x = np.round(2 * random.standard_normal((1, planes, h, w)))  # with ties
        x[0, 0] = -np.abs(x[0, 0]) - 1
        if planes == 3:
            x[0, 2, 2:5, 4:7] = -np.inf  # a whole window
        if planes == 1:
            x[0, 0, 1, 1] = np.nan
        y, max_index = max_pool2d(x, size, stride)
        numbers = planes, h, w, *y.shape[2:], size, stride
        arguments = [x, Empty(y.shape), Empty(y.shape), *numbers]
        yield for_each("max_pool2d", y.size, arguments, y=y, max_index=max_index)


def backward(random: Random) -> Calls:
    for planes, h, w in ((3, 4, 6), (2, 5, 7), (1, 2, 3)):
        x = np.round(random.standard_normal((1, planes, h, w)))  # whole windows are 0 after the ReLU
        y, max_index = max_pool2d(relu(x))
        dout = random.standard_normal(y.shape)
        dx = max_pool2d_backward(dout * (y > 0), max_index, x.shape)
        arguments = [dout, y, max_index, Empty(x.shape), planes, h, w, *y.shape[2:]]
        yield for_each("relu_pool_backward", x.size, arguments, dx=dx)


def dx(random: Random) -> Calls:
    for x, weight, _, y, sizes in convolutions(random):
        dout = random.standard_normal(y.shape)
        right, _, _ = conv2d_backward(dout, x, weight, stride=sizes[-2], padding=sizes[-1])
        assert right is not None
        yield for_each("conv2d_backward_input_naive", x.size, [dout, weight, Empty(x.shape), *sizes], dx=right)


def barrier(random: Random) -> Calls:
    for blocks, rounds in ((1, 1), (2, 3)):
        x = random.standard_normal((blocks, 64))
        y = x
        for _ in range(rounds):
            left, right = y[:, [0, *range(63)]], y[:, [*range(1, 64), 63]]
            y = (left + y + right) / 3
        yield Call("smooth", blocks, 64, [x, Empty(x.shape), rounds], {"y": y})


def tree(random: Random) -> Calls:
    for threads, count in ((256, 600), (1, 3), (33, 100), (100, 300), (5, 14)):
        yield summing(random, threads, count)


def summing(random: Random, threads: int, count: int) -> Call:
    """A launch that adds up the numbers of each block."""
    blocks = ceil_div(count, threads)
    x = random.standard_normal(count)
    y = np.pad(x, (0, blocks * threads - count)).reshape(blocks, threads).sum(axis=1)
    return Call("block_sums", blocks, threads, [x, Empty(blocks), count], {"y": y})


def softmax(random: Random) -> Calls:
    for n, k, scale, shift in ((300, 10, 1, 0), (7, 3, 1e4, 0), (5, 4, 1, -1e4)):
        logits, labels = scale * random.standard_normal((n, k)) + shift, random.integers(0, k, n, dtype=np.int32)
        rows = [softmax_cross_entropy(logits[[row]], labels[[row]]) for row in range(n)]
        losses, dlogits = np.concatenate([loss for loss, _ in rows]), np.concatenate([slope for _, slope in rows])
        arguments = [logits, labels, Empty(n), Empty((n, k)), n, k]
        yield for_each("softmax_cross_entropy", n, arguments, losses=losses, dlogits=dlogits)


def order(random: Random) -> Calls:
    for count in (1000, 128, 7):
        x = random.standard_normal(count) * 10.0 ** random.integers(-3, 4, count)
        mean = np.array([math.fsum(x) / count])
        yield Call("mean_of", 1, 128, [x, Empty(1), count], {"mean": mean})


def phases(random: Random) -> Calls:
    sizes = ((1, 1, 3, 2, 1, 4, 4, 2, 1), (2, 3, 4, 5, 2, 3, 5, 2, 1), (1, 2, 3, 4, 3, 5, 4, 3, 0))
    for each in sizes:
        yield transposed(random, *each)


def transposed(
    random: Random, n: int, c: int, h: int, w: int, o: int, height: int, width: int, stride: int, padding: int
) -> Call:
    """A launch of a transposed convolution."""
    x, weight = random.standard_normal((n, c, h, w)), random.standard_normal((c, o, height, width))
    bias = random.standard_normal(o)
    y = conv_transpose2d(x, weight, bias, stride, padding)
    numbers = n, c, h, w, o, height, width, *y.shape[2:], stride, padding
    return for_each("conv_transpose2d", y.size, [x, weight, bias, Empty(y.shape), *numbers], y=y)


def tile(random: Random) -> Calls:
    for sizes in ((1, 1, 4, 3, 1), (2, 3, 18, 21, 2)):
        yield tiled(random, *sizes)


def tiled(random: Random, n: int, c: int, h: int, w: int, o: int) -> Call:
    """A launch of a 3x3 convolution with tiles of 16 x 16 outputs."""
    x, weight = random.standard_normal((n, c, h, w)), random.standard_normal((o, c, 3, 3))
    y = conv2d(x, weight, np.zeros(o), 1, 1)
    grid = ceil_div(h, 16) * ceil_div(w, 16), o, n
    return Call("conv3x3", grid, (16, 16), [x, weight, Empty(y.shape), c, h, w, o], {"y": y})


def banks(random: Random) -> Calls:
    for sizes in ((5, 1), (33, 70)):
        yield transposing(random, *sizes)


def transposing(random: Random, h: int, w: int) -> Call:
    """A launch that transposes a matrix."""
    x = random.standard_normal((h, w))
    grid = ceil_div(w, 32), ceil_div(h, 32)
    return Call("transpose", grid, (32, 32), [x, Empty((w, h)), h, w], {"y": np.ascontiguousarray(x.T)})


def trains(random: Random) -> Calls:
    for x, weight, _, y, sizes in convolutions(random):
        dout = random.standard_normal(y.shape)
        _, dweight, _ = conv2d_backward(dout, x, weight, stride=sizes[-2], padding=sizes[-1])
        arguments = [dout, x, Empty(weight.shape), *sizes]
        yield Call("conv2d_backward_weight_naive", weight.size, SUM_THREADS, arguments, {"dweight": dweight})


CASES: dict[str, Callable[[Random], Calls]] = {
    "guard": guard,
    "unravel": unravel,
    "padding": padding,
    "pooling": pooling,
    "backward": backward,
    "dx": dx,
    "barrier": barrier,
    "tree": tree,
    "softmax": softmax,
    "order": order,
    "phases": phases,
    "tile": tile,
    "banks": banks,
    "trains": trains,
}


def calls(name: str) -> list[Call]:
    """The launches of an exercise, each with its results. They share no array."""
    return [*CASES[name](np.random.default_rng(0))]


# --- Counters ---


@dataclass(frozen=True)
class Counter:
    """What a launch may ask of memory. value: from its profile. most: from the profile, and from `before`, the value of
    the form that the exercise improves on."""

    what: str
    value: Callable[[Profiled], float]
    most: Callable[[Profiled, float], float]


@dataclass(frozen=True)
class Counted:
    """The launch of an exercise whose counts are asked for, and the counts. The form to improve on is the exercise's
    first mistake."""

    call: Callable[[Random], Call]
    counters: tuple[Counter, ...]


def read_of_x(profiled: Profiled) -> float:
    """The bytes of x that lanes ask for."""
    reads = (each.by_lanes for each in profiled.profile.traffic if each.array == "x" and each.kind == "read")
    return profiled.scale * sum(reads)


COUNTED: dict[str, Counted] = {
    "tree": Counted(
        lambda random: summing(random, 256, 1024),
        (
            Counter(
                "requests to shared memory",
                lambda profiled: profiled.sum("requests", shared=True),
                lambda profiled, before: 5 * before,  # neighbours first give 3.3, one thread alone 11.6
            ),
        ),
    ),
    "phases": Counted(
        lambda random: transposed(random, 2, 4, 12, 12, 4, 6, 6, 2, 0),
        (
            Counter(
                "requests to global memory",
                lambda profiled: profiled.sum("requests", shared=False),
                lambda profiled, before: 0.35 * before,  # half of the loops gives 0.55
            ),
        ),
    ),
    "tile": Counted(
        lambda random: tiled(random, 1, 3, 32, 48, 2),
        (Counter("bytes of x asked for", read_of_x, lambda profiled, before: 0.2 * before),),
    ),
    "banks": Counted(
        lambda random: transposing(random, 64, 96),
        (
            Counter(
                "wavefronts of shared memory",
                lambda profiled: profiled.sum("parts", shared=True),
                lambda profiled, before: profiled.sum("fewest", shared=True),
            ),
            Counter(
                "sectors of global memory",
                lambda profiled: profiled.sum("parts", shared=False),
                lambda profiled, before: profiled.sum("fewest", shared=False),
            ),
        ),
    ),
}
