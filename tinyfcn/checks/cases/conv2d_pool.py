"""Cases of conv2d_pool."""

from typing import Any

import numpy as np

from tinyfcn.checks.case import Case, Results, both_forms
from tinyfcn.ops import Operations


def conv2d_pool(
    random: np.random.Generator, x: tuple[int, ...], weight: tuple[int, ...], used_twice: bool = False
) -> Case:
    """conv2d_pool of x and weight of these shapes.

    used_twice: x is the output of a ReLU, and a convolution of stride 2 takes it too; the two outputs are added.
    """
    names = "x", "weight", "bias"
    shapes = x, weight, weight[:1]
    inputs = {name: random.standard_normal(shape) for name, shape in zip(names, shapes, strict=True)}

    def forward(ops: Operations, x: Any, weight: Any, bias: Any) -> Results:
        x = ops.relu(x) if used_twice else x
        pooled, max_index = ops.conv2d_pool(x, weight, bias)
        y = {"y": ops.add(pooled, ops.conv2d(x, weight, bias, 2))} if used_twice else {}
        return y | {"pooled": pooled, "max_index": max_index}

    def backward(ops: Operations, dout: Any, outputs: Results, x: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        dpooled = ops.relu_backward(dout, outputs["pooled"])
        if not used_twice:
            return ops.conv2d_pool_backward(dpooled, outputs["max_index"], x, weight)
        x = ops.relu(x)
        second, *others = ops.conv2d_backward(dout, x, weight, 2)
        ops.join()
        max_index = outputs["max_index"]
        dx, *gradients = ops.conv2d_pool_backward(dpooled, max_index, x, weight, through_relu=True, add=second)
        ops.join()
        return dx, *map(ops.add, gradients, others)

    detail = f"{weight[2]}x{weight[3]}{', used twice, relu' * used_twice}"
    return Case("conv2d_pool", detail, inputs, forward, names, backward)


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """x used once, and x used twice, as with a skip connection."""
    return [
        *both_forms(conv2d_pool(random, (2, 3, 9, 12), (4, 3, 3, 2))),
        *both_forms(conv2d_pool(random, (2, 4, 8, 12), (6, 4, 3, 5), used_twice=True)),
    ]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """None: it has no kernels of its own, and the cases of fast_conv and max_pool2d run those that it launches."""
    return []
