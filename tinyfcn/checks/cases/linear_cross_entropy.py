"""Cases of linear_cross_entropy."""

from typing import Any

import numpy as np

from tinyfcn.checks.case import Case, Results, both_forms
from tinyfcn.ops import Operations


def linear_cross_entropy(
    random: np.random.Generator, x: tuple[int, ...], classes: int, unlabelled: str | None = None, relu: bool = False
) -> Case:
    """linear_cross_entropy of x of this shape; with `unlabelled`, positions of the last class are ignored.

    relu: x passes through a ReLU first, and the gradient too. With unlabelled "softmax" it is the gradient of no loss.
    """
    shapes = {"x": x, "weight": (classes, x[1], 1, 1), "bias": (classes,)}
    inputs: dict[str, Any] = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    inputs["labels"] = random.integers(0, classes, (x[0], *x[2:])).astype(np.int32)
    ignore = {} if unlabelled is None else {"ignore_index": classes - 1, "unlabelled": unlabelled}

    def forward(ops: Operations, x: Any, **rest: Any) -> Results:
        return {"loss": ops.linear_cross_entropy(ops.relu(x) if relu else x, **rest)[0]}

    def backward(ops: Operations, dout: Any, outputs: Results, x: Any, weight: Any, **rest: Any) -> tuple[Any, ...]:
        x = ops.relu(x) if relu else x
        _, dlogits, dx = ops.linear_cross_entropy(x, weight, through_relu=relu, **rest)
        _, dweight, dbias = ops.conv2d_backward(dlogits, x, weight, need_dx=False)
        return dx, dweight, dbias

    detail = f"{x[1]} channels, {classes} classes{', relu' * relu}{f', unlabelled {unlabelled}' if unlabelled else ''}"
    smooth = unlabelled != "softmax"
    return Case("linear_cross_entropy", detail, inputs | ignore, forward, tuple(shapes), backward, smooth=smooth)


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """Numbers of channels that float4s hold whole and not; every treatment of ignored positions."""
    return [
        *both_forms(linear_cross_entropy(random, (2, 8, 5, 3), 3)),
        *both_forms(linear_cross_entropy(random, (3, 5, 4, 7), 7, "zero", relu=True)),
        *both_forms(linear_cross_entropy(random, (2, 5, 4, 7), 7, "softmax")),
    ]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Single positions or images, of one block or several."""
    channels, classes = ((4, 3), (5, 7))[int(random.integers(2))]  # few: a fast kernel is compiled for each
    size = [int(each) for each in random.integers(1, 13, 2)] if random.integers(2) else [1, 1]
    shape = (int(random.integers(1, 4)), channels, *size)
    unlabelled = (None, "zero", "softmax")[int(random.integers(3))]
    return both_forms(linear_cross_entropy(random, shape, classes, unlabelled, relu=bool(random.integers(2))))
