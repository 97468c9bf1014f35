"""The fast kernels on images of many sizes, which the tests of three files ask for."""

import numpy as np

from tinyfcn.checks.cases import correlation, weight_gradient
from tinyfcn.checks.gradcheck import check_kernel
from tinyfcn.operations import Operations

SHAPES = 40


def check_sizes(ops: Operations, transposed: bool, number: int, shapes: int = SHAPES, tolerance: float = 1e-6) -> None:
    """An instance of a fast kernel on pictures of many sizes, with and without bias, summand, gate, ReLU, pooling."""
    for seed in range(shapes):
        for verdict in check_kernel(correlation(np.random.default_rng(seed), number, transposed), ops):
            assert verdict.error <= tolerance, (seed, verdict)


def check_weight_gradients(ops: Operations, number: int, shapes: int = SHAPES, tolerance: float = 1e-6) -> None:
    """An instance of the weight gradient, in both its stages, on pictures of many sizes and channels."""
    for seed in range(shapes):
        for verdict in check_kernel(weight_gradient(np.random.default_rng(seed), number), ops):
            assert verdict.error <= tolerance, (seed, verdict)
