"""Checks the fast convolutions on images of many sizes."""

from collections.abc import Callable

import numpy as np

from tinyfcn.checks.case import Case
from tinyfcn.checks.gradcheck import check_kernel
from tinyfcn.ops import Operations

SHAPES = 40


def check_sizes(
    ops: Operations,
    instance: Callable[[np.random.Generator, int], Case],
    number: int,
    shapes: int = SHAPES,
    tolerance: float = 1e-6,
) -> None:
    """Checks an instance of a kernel on images of many sizes, with and without each part of its epilogue."""
    for seed in range(shapes):
        for verdict in check_kernel(instance(np.random.default_rng(seed), number), ops):
            assert verdict.error <= tolerance, (seed, verdict)
