"""The last layer with its loss: inputs of linear_cross_entropy, and its comparison with the operations it fuses."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from helpers.closeness import assert_close, float64, on_device

from tinyfcn.operations import on
from tinyfcn.ops import Operations
from tinyfcn.ops.softmax_cross_entropy import LOSS_THREADS, MAX_PARTS

reference = on("cpu")


@dataclass(frozen=True)
class Head:
    """x (N, C, H, W), the classes, and the options."""

    x: tuple[int, ...]
    classes: int
    ignore_index: int | None = None
    unlabelled: str = "zero"
    through_relu: bool = False
    seed: int = 0

    def inputs(self) -> tuple[np.ndarray, ...]:
        random = np.random.default_rng(self.seed)
        shapes = self.x, (self.classes, self.x[1], 1, 1), (self.classes,)
        x, weight, bias = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
        x = np.maximum(x, 0) if self.through_relu else x
        possible = {*range(self.classes), *([] if self.ignore_index is None else [self.ignore_index])}
        return x, weight, bias, random.choice(sorted(possible), (self.x[0], *self.x[2:])).astype(np.int32)

    @property
    def options(self) -> tuple[int | None, str, bool]:
        return self.ignore_index, self.unlabelled, self.through_relu


def check_head(ops: Operations, head: Head) -> None:
    """Compares with conv2d, softmax_cross_entropy and conv2d_backward of the references."""
    inputs = head.inputs()
    found = ops.linear_cross_entropy(*on_device(ops, *inputs), *head.options)
    x, weight, bias = float64(*inputs[:3])
    logits = reference.conv2d(x, weight, bias)
    loss, dlogits = reference.softmax_cross_entropy(logits, inputs[3], *head.options[:2])
    dx, _, _ = reference.conv2d_backward(dlogits, x, weight, through_relu=head.through_relu)
    for name, a, b in zip(("loss", "dlogits", "dx"), found, (loss, dlogits, dx), strict=True):
        assert_close(ops.to_numpy(a), b, "one kernel", f"{name} of {head}")


@cache
def more_positions_than_threads() -> Head:
    return Head((1, 4, 1, MAX_PARTS * LOSS_THREADS + 5), 3, seed=1)


def check_many_positions(ops: Operations) -> None:
    check_head(ops, more_positions_than_threads())
    check_head(ops, Head((3, 5, 13, 17), 7, 2, "softmax", through_relu=True))
