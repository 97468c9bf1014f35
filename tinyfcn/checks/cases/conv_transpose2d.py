"""Cases of conv_transpose2d."""

import numpy as np

from tinyfcn.checks.case import Case, both_forms, naive
from tinyfcn.checks.cases.conv2d import convolution, small_convolution


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """Sizes that are not multiples of blocks or strides; and more channels than one group of threads computes."""
    cases = (
        convolution("conv_transpose2d", random, (2, 4, 9, 11), (4, 6, 4, 6), 2, 1),
        convolution("conv_transpose2d", random, (2, 3, 6, 7), (3, 4, 3, 2), 3, 0, (2, 4, 18, 20), True),
        convolution("conv_transpose2d", random, (1, 34, 3, 4), (34, 33, 2, 2), 2, 0),
    )
    return [form for case in cases for form in both_forms(case)]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Small random shapes on the naive kernels; fast_conv.py has cases of the fast ones."""
    return [naive(small_convolution("conv_transpose2d", random))]
