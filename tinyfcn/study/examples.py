"""A small example of each operation: inputs to look at, and the launches that it takes.

Inputs are multiples of 1/4 and 1/2. Sums of their products are exact in float32, so that they can be checked by hand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyfcn.adam_state import AdamState
from tinyfcn.checks.case import Results, to_device
from tinyfcn.checks.parts import Recorder
from tinyfcn.checks.pieces import cases_of, operations, unknown
from tinyfcn.devices.device import Launch
from tinyfcn.devices.kernel_source import Kernel
from tinyfcn.errors import KernelError
from tinyfcn.ops import Operations, peak

SEED = 7


class Inputs:
    """Draws inputs, the same ones each time, onto a device."""

    def __init__(self, ops: Operations) -> None:
        self.ops, self.random = ops, np.random.default_rng(SEED)

    def multiples(self, of: float, *shape: int, most: float = 2.0, rectified: bool = False) -> Any:
        """Multiples of a number from -most to most, those below 0 replaced by 0 if `rectified`."""
        steps = round(most / of)
        values = self.random.integers(-steps, steps + 1, shape) * of
        return to_device(self.ops, np.maximum(values, 0) if rectified else values)

    def labels(self, classes: int, *shape: int) -> Any:
        return self.ops.asarray(self.random.integers(0, classes, shape).astype(np.int32))

    def bytes(self, *shape: int, most: int = 255) -> Any:
        return self.ops.asarray(self.random.integers(0, most + 1, shape).astype(np.uint8))


@dataclass(frozen=True)
class Example:
    """An operation on small inputs.

    run: computes its results, by name. stride: the default one, where the operation has a stride.
    """

    run: Callable[..., Results]
    stride: int | None = None

    def results(self, ops: Operations, stride: int | None = None) -> Results:
        """Runs the example. `stride` replaces the default."""
        strides = {} if self.stride is None else {"stride": stride or self.stride}
        return self.run(ops, Inputs(ops), **strides)


def _relu(ops: Operations, inputs: Inputs) -> Results:
    y = ops.relu(inputs.multiples(0.5, 2, 3, 5, 9))
    return {"y": y, "dx": ops.relu_backward(inputs.multiples(0.25, 2, 3, 5, 9), y)}


def _add(ops: Operations, inputs: Inputs) -> Results:
    a, b, dz = (inputs.multiples(0.5, 2, 3, 5, 9) for _ in range(3))
    return {"z": ops.add(a, b, 0.5), "da": ops.add_backward(dz, 0.5)}


def _max_pool2d(ops: Operations, inputs: Inputs, stride: int) -> Results:
    x = inputs.multiples(0.25, 2, 3, 13, 17)
    y, max_index = ops.max_pool2d(x, 2, stride)
    dx = ops.max_pool2d_backward(inputs.multiples(0.25, *y.shape), max_index, x.shape, 2, stride)
    return {"y": y, "max_index": max_index, "dx": dx}


def _convolution(name: str, x: tuple[int, ...], weight: tuple[int, ...]) -> Callable[..., Results]:
    def run(ops: Operations, inputs: Inputs, stride: int) -> Results:
        given = inputs.multiples(0.5, *x), inputs.multiples(0.25, *weight, most=1)
        bias = inputs.multiples(0.5, weight[0 if name == "conv2d" else 1])
        y = getattr(ops, name)(*given, bias, stride, 1)
        gradients = getattr(ops, f"{name}_backward")(inputs.multiples(0.25, *y.shape), *given, stride, 1)
        return {"y": y} | dict(zip(("dx", "dweight", "dbias"), gradients, strict=True))

    return run


def _conv2d_pool(ops: Operations, inputs: Inputs) -> Results:
    x, weight = inputs.multiples(0.5, 2, 3, 9, 11), inputs.multiples(0.25, 4, 3, 3, 3, most=1)
    y, max_index = ops.conv2d_pool(x, weight, inputs.multiples(0.5, 4))
    gradients = ops.conv2d_pool_backward(inputs.multiples(0.25, *y.shape), max_index, x, weight)
    return {"y": y, "max_index": max_index} | dict(zip(("dx", "dweight", "dbias"), gradients, strict=True))


def _softmax_cross_entropy(ops: Operations, inputs: Inputs) -> Results:
    logits, labels = inputs.multiples(0.5, 2, 3, 10, 14), inputs.labels(3, 2, 10, 14)
    loss, dlogits = ops.softmax_cross_entropy(logits, labels, ignore_index=2)
    return {"p": ops.softmax(logits), "loss": loss, "dlogits": dlogits}


def _linear_cross_entropy(ops: Operations, inputs: Inputs) -> Results:
    x, weight = inputs.multiples(0.5, 2, 5, 6, 7, rectified=True), inputs.multiples(0.25, 3, 5, 1, 1, most=1)
    bias, labels = inputs.multiples(0.5, 3), inputs.labels(3, 2, 6, 7)
    loss, dlogits, dx = ops.linear_cross_entropy(x, weight, bias, labels, through_relu=True)
    return {"loss": loss, "dlogits": dlogits, "dx": dx}


def _adam(ops: Operations, inputs: Inputs) -> Results:
    """Two steps: in the first all moments are 0."""
    parameters, penalty = inputs.multiples(0.5, 300), np.full(300, 0.5, ops.device.dtypes["float"])
    state = AdamState.create(ops, penalty, base_rate=0.5, steps=4, warmup=2, beta1=0.75, beta2=0.875, epsilon=0.25)
    for _ in range(2):
        ops.adam_schedule(state)
        ops.adam_step(parameters, inputs.multiples(0.25, 300), state, inputs.multiples(0.25, 1))
    return {"parameters": parameters} | {name: getattr(state, name) for name in ("m", "v", "rates", "step", "losses")}


def _gather_normalise(ops: Operations, inputs: Inputs) -> Results:
    images, labels = inputs.bytes(5, 9, 11), inputs.bytes(5, 9, 11, most=9)
    order = inputs.labels(5, 4, 3)
    step = ops.asarray(np.array([6], np.int32))
    alone = ops.gather_normalise(images, inputs.labels(5, 3))
    batch, chosen = ops.gather_batch(images, labels, order, step)
    return {"batch": batch, "labels": chosen, "alone": alone}


def _compose_m2nist(ops: Operations, inputs: Inputs) -> Results:
    digits, names = inputs.bytes(5, 28, 28), inputs.bytes(5, most=9)
    batch, labels = ops.compose_m2nist(digits, names, seed=3, step=2, count=2)
    return {"batch": batch, "labels": labels}


def _segmentation_counts(ops: Operations, inputs: Inputs) -> Results:
    logits, labels = inputs.multiples(0.5, 2, 3, 4, 7), inputs.labels(4, 2, 4, 7)
    confusion, overlap = ops.segmentation_counts(logits, labels, foreground=2, threshold=0.4)
    return {"confusion": confusion, "overlap": overlap}


def _peak(ops: Operations, inputs: Inputs) -> Results:
    y = peak.copy(ops.device, inputs.multiples(0.5, 300))
    return {"y": y, "sums": peak.multiply_add(ops.device, inputs.multiples(0.5, 300), 0.5, 0.25, 3)}


_CONV2D = Example(_convolution("conv2d", (2, 3, 8, 9), (4, 3, 3, 3)), 1)
EXAMPLES: dict[str, Example] = {
    "relu": Example(_relu),
    "add": Example(_add),
    "max_pool2d": Example(_max_pool2d, 2),
    "conv2d": _CONV2D,
    "conv_transpose2d": Example(_convolution("conv_transpose2d", (2, 3, 4, 5), (3, 4, 4, 4)), 2),
    "fast_conv": _CONV2D,
    "conv2d_pool": Example(_conv2d_pool),
    "softmax_cross_entropy": Example(_softmax_cross_entropy),
    "linear_cross_entropy": Example(_linear_cross_entropy),
    "adam": Example(_adam),
    "gather_normalise": Example(_gather_normalise),
    "compose_m2nist": Example(_compose_m2nist),
    "peak": Example(_peak),
    "segmentation_counts": Example(_segmentation_counts),
}


def example_of(operation: str) -> Example:
    """The example of an operation; of one that has none here, the first inputs that `sanitize` draws for it.

    Raises:
        KernelError: there is no such operation, or it has no cases.
    """
    if operation in EXAMPLES:
        return EXAMPLES[operation]
    case = cases_of(operation).sanitize_cases(np.random.default_rng(SEED))[0]
    return Example(lambda ops, inputs: case.run(ops))


def operation_of(name: str, kernels: Mapping[str, Kernel]) -> str:
    """The operation that has this name, or whose file has a kernel of this name.

    Raises:
        KernelError: neither an operation nor a kernel has this name. The message names similar ones.
    """
    if name in operations():
        return name
    if name not in kernels:
        raise KernelError(unknown(name, [*kernels]).partition("\n")[0])
    return kernels[name].operation


def launches_of(operation: str, naive: bool) -> list[Launch]:
    """The launches of an operation's example, which are not run."""
    device = Recorder()
    device.naive = naive
    return device.record(lambda: example_of(operation).results(Operations(device))).launches
