"""Operations with inputs to run them on, the same on every device: what gradcheck and sanitize check."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyfcn.operations import Operations
from tinyfcn.reference.adam import AdamState


@dataclass(frozen=True)
class Case:
    """An operation with inputs to check it on.

    forward(ops, **inputs) gives the outputs by name; the first is the one that gradients are of. backward(ops, dout,
    outputs, **inputs) gives the gradients of the inputs named in `gradients`. Inputs are float64 or integer arrays
    and plain numbers. `detail` tells cases of one operation apart. Where the output is not `smooth`, finite
    differences have nothing to say. `naive`: it is for the plain kernels, where there are fast ones.
    """

    operation: str
    detail: str
    inputs: dict[str, Any]
    forward: Callable[..., dict[str, Any]]
    gradients: tuple[str, ...] = ()
    backward: Callable[..., tuple[Any, ...]] | None = None
    smooth: bool = True
    naive: bool = False

    def given(self, ops: Operations) -> dict[str, Any]:
        """Copies of the inputs on the device."""
        return {name: to_device(ops, value) for name, value in self.inputs.items()}

    def run(self, ops: Operations, outputs: dict[str, np.ndarray] | None = None, seed: int = 0) -> dict[str, Any]:
        """Every result by its name: outputs, then gradients. `outputs`: what backward takes for those of forward."""
        if ops.device:
            ops.device.naive = self.naive
        given = self.given(ops)
        results = self.forward(ops, **given)
        if not self.gradients:
            return results
        dout = to_device(ops, upstream(next(iter(results.values())).shape, seed))
        saved = {name: to_device(ops, value) for name, value in outputs.items()} if outputs else results
        gradients = self.backward(ops, dout, saved, **given)
        return results | {f"d{name}": gradient for name, gradient in zip(self.gradients, gradients, strict=True)}


def upstream(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """dout. It must be random: with ones, errors can cancel in the sums. The loss has only its own, 1."""
    return np.ones(1) if shape == (1,) else np.random.default_rng(seed).standard_normal(shape)


def to_device(ops: Operations, value: Any) -> Any:
    """A copy of an array on the device, floats as its kernels have them; a plain number as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind == "f":
        value = value.astype(ops.device.dtypes["float"] if ops.device else np.float64)
    return ops.asarray(value)


def convolution(
    name: str, random: np.random.Generator, x: tuple[int, ...], weight: tuple[int, ...], stride: int, padding: int
) -> Case:
    """conv2d or conv_transpose2d, of x and weight of these shapes."""
    inputs = {"x": random.standard_normal(x), "weight": random.standard_normal(weight)}
    inputs["bias"] = random.standard_normal(weight[0 if name == "conv2d" else 1])

    def forward(ops: Operations, **given: Any) -> dict[str, Any]:
        return {"y": getattr(ops, name)(**given)}

    def backward(ops: Operations, dout: Any, outputs: dict[str, Any], bias: Any, **given: Any) -> tuple[Any, ...]:
        return getattr(ops, f"{name}_backward")(dout, **given)

    detail = f"{weight[2]}x{weight[3]} stride {stride} padding {padding}"
    settings = {"stride": stride, "padding": padding}
    return Case(name, detail, inputs | settings, forward, ("x", "weight", "bias"), backward)


def pooling(x: np.ndarray, size: int, stride: int) -> Case:
    """max_pool2d, with its winners."""

    def backward(ops: Operations, dout: Any, outputs: dict[str, Any], x: Any, **given: Any) -> tuple[Any, ...]:
        return (ops.max_pool2d_backward(dout, outputs["winner"], x.shape, **given),)

    return Case(
        "max_pool2d",
        f"{size}x{size} stride {stride}",
        {"x": x, "size": size, "stride": stride},
        lambda ops, **given: dict(zip(("y", "winner"), ops.max_pool2d(**given), strict=True)),
        ("x",),
        backward,
    )


def rectified(x: np.ndarray) -> Case:
    """relu."""
    return Case(
        "relu",
        "",
        {"x": x},
        lambda ops, x: {"y": ops.relu(x)},
        ("x",),
        lambda ops, dout, outputs, x: (ops.relu_backward(dout, outputs["y"]),),
    )


def scaled_sum(a: np.ndarray, b: np.ndarray, scale: float) -> Case:
    """add."""
    return Case(
        "add",
        f"scale {scale}",
        {"a": a, "b": b, "scale": scale},
        lambda ops, **given: {"z": ops.add(**given)},
        ("a", "b"),
        lambda ops, dout, outputs, scale, **given: (ops.add_backward(dout, scale),) * 2,
    )


def softmax(logits: np.ndarray) -> Case:
    """softmax alone: its gradient is only ever taken with the cross-entropy's."""
    return Case("softmax_cross_entropy", "softmax", {"logits": logits}, lambda ops, logits: {"p": ops.softmax(logits)})


def cross_entropy(logits: np.ndarray, labels: np.ndarray, unlabelled: str | None = None) -> Case:
    """softmax_cross_entropy; with `unlabelled`, places of the last class are ignored.

    Their gradient by "softmax" is not that of any loss.
    """
    ignore = {} if unlabelled is None else {"ignore_index": logits.shape[1] - 1, "unlabelled": unlabelled}
    return Case(
        "softmax_cross_entropy",
        f"unlabelled {unlabelled}" if unlabelled else "all labelled",
        {"logits": logits, "labels": labels} | ignore,
        lambda ops, **given: {"loss": ops.softmax_cross_entropy(**given)[0]},
        ("logits",),
        lambda ops, dout, outputs, **given: (ops.softmax_cross_entropy(**given)[1],),
        smooth=unlabelled != "softmax",
    )


def adam(random: np.random.Generator, count: int, gradients: int = 3, steps: int = 5, warmup: int = 2) -> Case:
    """As many steps as there are gradients. Its rate is 1, so that parameters move as far as they are from 0."""
    inputs = {
        "parameters": random.standard_normal(count),
        "gradients": random.standard_normal((gradients, count)),
        "l2": random.uniform(0, 1, count),
    }
    # Numbers that float32 holds exactly: a rounded beta is no fault of the kernel. An epsilon that matters.
    settings = {"base_rate": 1.0, "steps": steps, "warmup": warmup, "beta1": 7 / 8, "beta2": 31 / 32, "epsilon": 1 / 4}

    def forward(ops: Operations, parameters: Any, gradients: Any, l2: Any, **settings: Any) -> dict[str, Any]:
        state = AdamState.create(ops, ops.to_numpy(l2), **settings)
        for gradient in gradients:
            ops.adam_step(parameters, gradient, state)
        kept = {name: getattr(state, name) for name in ("step", "rates", "m", "v")}
        return kept | {"parameters": parameters}

    return Case("adam", f"{gradients} steps", inputs | settings, forward)


def cases(seed: int = 0) -> list[Case]:
    """At least one case for each operation, with sizes that divide neither blocks nor strides."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal
    # A shuffled, evenly spaced sequence has no ties, and gaps that finite differences do not close.
    spaced = random.permutation(2 * 3 * 9 * 11).reshape(2, 3, 9, 11) / 100.0
    away_from_kink = normal((3, 5, 7))
    away_from_kink += np.sign(away_from_kink) * 1e-3
    logits, labels = normal((2, 7, 5, 3)), random.integers(0, 7, (2, 5, 3)).astype(np.int32)
    # More places than one block sums at once, and numbers that float32 holds exactly.
    large, many = np.round(1e4 * normal((2, 7, 9, 11))), random.integers(0, 7, (2, 9, 11)).astype(np.int32)
    return [
        convolution("conv2d", random, (2, 3, 9, 11), (4, 3, 3, 5), 1, 1),
        convolution("conv2d", random, (2, 3, 9, 11), (4, 3, 2, 3), 2, 0),
        convolution("conv_transpose2d", random, (2, 3, 9, 11), (3, 4, 4, 6), 2, 1),
        convolution("conv_transpose2d", random, (2, 3, 9, 11), (3, 4, 3, 2), 3, 0),
        pooling(spaced, 2, 2),
        pooling(spaced, 3, 2),
        replace(pooling(np.maximum(spaced - 3, 0), 3, 2), detail="ties", smooth=False),
        rectified(away_from_kink),
        scaled_sum(normal((3, 5, 7)), normal((3, 5, 7)), 0.5),
        softmax(logits),
        replace(softmax(large), detail="softmax of 1e4"),
        cross_entropy(logits, labels),
        cross_entropy(logits, labels, "zero"),
        cross_entropy(logits, labels, "softmax"),
        replace(cross_entropy(large, many), detail="logits of 1e4", smooth=False),
        adam(random, 301),
    ]
