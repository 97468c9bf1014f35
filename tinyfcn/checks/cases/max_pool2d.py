"""Cases of max_pool2d."""

from dataclasses import replace
from typing import Any

import numpy as np

from tinyfcn.checks.case import COUNTS, EXTENTS, Case, Results
from tinyfcn.ops import Operations


def max_pool2d(x: np.ndarray, size: int, stride: int) -> Case:
    """max_pool2d of x, with its max indices."""

    def forward(ops: Operations, **inputs: Any) -> Results:
        return dict(zip(("y", "max_index"), ops.max_pool2d(**inputs), strict=True))

    def backward(ops: Operations, dout: Any, outputs: Results, x: Any, **window: Any) -> tuple[Any, ...]:
        return (ops.max_pool2d_backward(dout, outputs["max_index"], x.shape, **window),)

    inputs = {"x": x, "size": size, "stride": stride}
    return Case("max_pool2d", f"{size}x{size} stride {stride}", inputs, forward, ("x",), backward)


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """Shuffled, evenly spaced inputs, with gaps wider than the steps of finite differences; and one case with ties."""
    spaced = random.permutation(2 * 3 * 9 * 11).reshape(2, 3, 9, 11) / 100.0
    ties = max_pool2d(np.maximum(spaced - 3, 0), 3, 2)
    return [max_pool2d(spaced, 2, 2), max_pool2d(spaced, 3, 2), replace(ties, detail="ties", smooth=False)]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Inputs with few levels have many ties."""
    size, stride, n, c = map(int, random.integers(1, 5, 4))
    shape = n, c, *(size - 1 + random.choice(EXTENTS, 2))
    if not random.integers(4):  # y has as many elements as blocks have threads, or one more ...
        shape = 1, 1, size, size + stride * (int(random.choice(COUNTS)) - 1)
    levels = random.choice((1, 2, 3, 1000))
    x = random.permutation(np.arange(np.prod(shape)) % levels).reshape(shape)
    return [max_pool2d(x / 2.0, size, stride)]
