"""Cases of conv_transpose2d on the naive kernels; fast_conv.py has cases of the fast ones."""

import numpy as np

from tinyfcn.checks.case import Case, naive
from tinyfcn.checks.cases.conv2d import convolution, small_convolution


def examples(random: np.random.Generator) -> list[Case]:
    """Sizes that are not multiples of blocks or strides."""
    return [
        convolution("conv_transpose2d", random, (2, 4, 9, 11), (4, 6, 4, 6), 2, 1),
        convolution("conv_transpose2d", random, (2, 3, 6, 7), (3, 4, 3, 2), 3, 0, (2, 4, 18, 20), True),
    ]


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """The examples."""
    return [naive(case) for case in examples(random)]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Small random shapes."""
    return [naive(small_convolution("conv_transpose2d", random))]
