"""Weights in the order in which kernels/fast_conv.cu reads them: as float4s, each one weight of four channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

FLOAT4 = 4


@dataclass(frozen=True)
class PackedWeight:
    """A weight in the orders of the two kernels that read it, each a flat array, and the stride that these are for."""

    forward: Any
    backward_input: Any
    stride: int = 1


@cache
def forward_order(shape: tuple[int, ...]) -> np.ndarray:
    """For a weight (O, C, KH, KW): which element stands where in (C, KH, KW, O rounded up to 4); -1 for a zero."""
    o, c, *kernel = shape
    order = np.full((c, *kernel, _round_up(o, FLOAT4)), -1, np.int32)
    order[..., :o] = _numbers(shape).transpose(1, 2, 3, 0)
    return _frozen(order)


@cache
def backward_input_order(shape: tuple[int, ...], stride: int) -> np.ndarray:
    """The same in (O, KH rounded up to a multiple of the stride, KW, C rounded up to 4)."""
    o, c, kernel_height, kernel_width = shape
    order = np.full((o, _round_up(kernel_height, stride), kernel_width, _round_up(c, FLOAT4)), -1, np.int32)
    order[:, :kernel_height, :, :c] = _numbers(shape).transpose(0, 2, 3, 1)
    return _frozen(order)


def orders(shape: tuple[int, ...], stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Both, as in PackedWeight."""
    return forward_order(shape), backward_input_order(shape, stride)


@dataclass(frozen=True)
class FlatWeight:
    """Where a weight (O, C, KH, KW) stands in a flat array of parameters, and the stride of its convolution."""

    start: int
    shape: tuple[int, ...]
    stride: int

    @property
    def orders(self) -> tuple[np.ndarray, np.ndarray]:
        return orders(self.shape, self.stride)


@cache
def packed_index(weights: tuple[FlatWeight, ...]) -> np.ndarray:
    """What `gather` takes to pack weights of a flat array, one after another: where each element comes from."""
    placed = (np.where(order < 0, -1, order + each.start) for each in weights for order in each.orders)
    return _frozen(np.concatenate([order.ravel() for order in placed]).astype(np.int32))


def unpacked(flat: Any, weights: Sequence[FlatWeight]) -> list[PackedWeight]:
    """The parts of what `gather` gives for packed_index."""
    sizes = [order.size for each in weights for order in each.orders]
    parts = iter([flat[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)])
    return [PackedWeight(next(parts), next(parts), each.stride) for each in weights]


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(prod(shape), dtype=np.int32).reshape(shape)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
