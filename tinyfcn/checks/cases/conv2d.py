"""Cases of conv2d."""

from typing import Any

import numpy as np

from tinyfcn.checks.case import COUNTS, EXTENTS, Case, Results, both_forms, naive
from tinyfcn.ops import Operations


def convolution(
    name: str,
    random: np.random.Generator,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: int,
    padding: int,
    add: tuple[int, ...] | None = None,
    relu: bool = False,
) -> Case:
    """conv2d or conv_transpose2d of x and weight of these shapes; `add`, of y's shape, is added to y.

    relu: both the input and the output pass through a ReLU.
    """
    inputs: dict[str, Any] = {"x": random.standard_normal(x), "weight": random.standard_normal(weight)}
    inputs["bias"] = random.standard_normal(weight[0 if name == "conv2d" else 1])
    inputs |= {"add": random.standard_normal(add)} if add else {}
    detail = f"{weight[2]}x{weight[3]} stride {stride} padding {padding}{', add' * bool(add)}{', relu' * relu}"
    settings = {"stride": stride, "padding": padding}

    def forward(ops: Operations, x: Any, **rest: Any) -> Results:
        return {"y": getattr(ops, name)(ops.relu(x) if relu else x, **rest, **{"relu": True} if relu else {})}

    def backward(ops: Operations, dout: Any, outputs: Results, x: Any, weight: Any, **_: Any) -> tuple[Any, ...]:
        dout = ops.relu_backward(dout, outputs["y"]) if relu else dout
        x = ops.relu(x) if relu else x
        gradients = getattr(ops, f"{name}_backward")(dout, x, weight, **settings, through_relu=relu)
        return (*gradients, dout) if add else gradients

    return Case(name, detail, inputs | settings, forward, ("x", "weight", "bias", *["add"] * bool(add)), backward)


def small_convolution(name: str, random: np.random.Generator) -> Case:
    """conv2d on small random shapes; or conv_transpose2d, which exchanges input and output."""
    n, c, o, *kernel = map(int, random.integers(1, 5, 5))
    stride = int(random.integers(1, 4))
    small = random.choice(EXTENTS, 2)
    if not random.integers(6):  # as many elements as blocks have threads, or one more ...
        n, c, o, small = 1, 1, 1, np.array([1, random.choice(COUNTS)])
    large = (small - 1) * stride + kernel
    padding = int(random.integers(0, 1 + min(2, *(large - 1) // 2)))
    large -= 2 * padding
    if name == "conv_transpose2d":
        return convolution(name, random, (n, c, *small), (c, o, *kernel), stride, padding)
    left_over = random.integers(0, stride, 2)  # rows and columns that no window covers
    return convolution(name, random, (n, c, *large + left_over), (o, c, *kernel), stride, padding)


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """Sizes that are not multiples of blocks or strides; and more channels than one group of threads computes."""
    cases = (
        convolution("conv2d", random, (2, 4, 9, 11), (6, 4, 3, 5), 1, 1),
        convolution("conv2d", random, (2, 3, 9, 11), (4, 3, 2, 3), 2, 0, relu=True),
        convolution("conv2d", random, (1, 33, 4, 5), (34, 33, 1, 1), 1, 0),
    )
    return [form for case in cases for form in both_forms(case)]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Small random shapes on the naive kernels; fast_conv.py has cases of the fast ones."""
    return [naive(small_convolution("conv2d", random))]
