"""Operations with inputs to run them on, the same on every device: what gradcheck and sanitize check."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyfcn import reference
from tinyfcn.operations import Operations
from tinyfcn.ops.fast_conv import correlate, correlate_transposed, correlate_weight
from tinyfcn.reference import im2col as sums
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

    @contextmanager
    def kernels(self, ops: Operations) -> Iterator[None]:
        """Meanwhile the device takes the kernels that the case is for, naive or fast."""
        if ops.device is None:
            yield
            return
        before, ops.device.naive = ops.device.naive, self.naive
        try:
            yield
        finally:
            ops.device.naive = before

    def run(self, ops: Operations, outputs: dict[str, np.ndarray] | None = None, seed: int = 0) -> dict[str, Any]:
        """Every result by its name: outputs, then gradients. `outputs`: what backward takes for those of forward."""
        given = self.given(ops)
        with self.kernels(ops):
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
    name: str,
    random: np.random.Generator,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: int,
    padding: int,
    add: tuple[int, ...] | None = None,
    relu: bool = False,
) -> Case:
    """conv2d or conv_transpose2d, of x and weight of these shapes, and of y's shape what is added to it.

    relu: both what goes in and what comes out is put through a ReLU.
    """
    inputs = {"x": random.standard_normal(x), "weight": random.standard_normal(weight)}
    inputs["bias"] = random.standard_normal(weight[0 if name == "conv2d" else 1])
    inputs |= {"add": random.standard_normal(add)} if add else {}
    detail = f"{weight[2]}x{weight[3]} stride {stride} padding {padding}{', add' * bool(add)}{', relu' * relu}"
    settings = {"stride": stride, "padding": padding}

    def forward(ops: Operations, x: Any, **given: Any) -> dict[str, Any]:
        return {"y": getattr(ops, name)(ops.relu(x) if relu else x, **given, **{"relu": True} if relu else {})}

    def backward(ops: Operations, dout: Any, outputs: dict[str, Any], x: Any, weight: Any, **_: Any) -> tuple[Any, ...]:
        dsum = ops.relu_backward(dout, outputs["y"]) if relu else dout
        x = ops.relu(x) if relu else x
        gradients = getattr(ops, f"{name}_backward")(dsum, x, weight, **settings, through_relu=relu)
        return (*gradients, dsum) if add else gradients

    return Case(name, detail, inputs | settings, forward, ("x", "weight", "bias", *["add"] * bool(add)), backward)


def pooled_convolution(
    random: np.random.Generator, x: tuple[int, ...], weight: tuple[int, ...], used_twice: bool = False
) -> Case:
    """conv2d_pool of x and weight of these shapes.

    used_twice: x is what a ReLU put out, and a convolution of stride 2 takes it too, whose output is added.
    """
    names = "x", "weight", "bias"
    inputs = dict(zip(names, map(random.standard_normal, (x, weight, weight[0])), strict=True))

    def forward(ops: Operations, x: Any, weight: Any, bias: Any) -> dict[str, Any]:
        x = ops.relu(x) if used_twice else x
        pooled, max_index = ops.conv2d_pool(x, weight, bias)
        y = {"y": ops.add(pooled, ops.conv2d(x, weight, bias, 2))} if used_twice else {}
        return y | {"pooled": pooled, "max_index": max_index}

    def backward(
        ops: Operations, dout: Any, outputs: dict[str, Any], x: Any, weight: Any, bias: Any
    ) -> tuple[Any, ...]:
        dsum = ops.relu_backward(dout, outputs["pooled"])
        if not used_twice:
            return ops.conv2d_pool_backward(dsum, outputs["max_index"], x, weight)
        x = ops.relu(x)
        second, *others = ops.conv2d_backward(dout, x, weight, 2)
        ops.join()
        dx, *gradients = ops.conv2d_pool_backward(dsum, outputs["max_index"], x, weight, through_relu=True, add=second)
        ops.join()
        return dx, *map(ops.add, gradients, others)

    detail = f"{weight[2]}x{weight[3]}{', used twice, relu' * used_twice}"
    return Case("conv2d_pool", detail, inputs, forward, names, backward)


# Of the fast convolutions a few instances, as each has to be compiled: the weight's shape, the stride, and the tiles as
# tinyfcn/ops/fast_conv.py has them, such that no size of a picture or of its channels fits them.
CORRELATIONS = (
    ((5, 4, 3, 2), 1, (1, 4, 3, 4, 2, 1, 2, 2)),  # rows, columns, tx, ty, groups, pictures, splits, chunk
    ((9, 3, 2, 5), 3, (1, 1, 5, 3, 1, 2, 1, 1)),
    ((3, 8, 4, 3), 2, (1, 2, 2, 5, 1, 1, 4, 8)),
    ((6, 2, 3, 3), 1, (2, 4, 2, 3, 2, 2, 1, 1)),  # these two with a pooling
    ((4, 4, 1, 2), 1, (2, 2, 3, 2, 1, 1, 2, 2)),
)
TRANSPOSED = (
    ((4, 5, 4, 3), 2, (4, 3, 6, 2, 1, 2, 2)),  # columns, tx, ty, groups, pictures, splits, chunk
    ((3, 9, 2, 5), 3, (1, 4, 3, 1, 2, 1, 3)),
    ((8, 3, 3, 3), 1, (4, 2, 5, 1, 2, 4, 4)),  # this one with a pooling
    ((2, 4, 1, 6), 2, (2, 3, 4, 1, 2, 1, 1)),
)


def correlation(random: np.random.Generator, number: int, transposed: bool, most: int = 19) -> Case:
    """The kernel behind a fast convolution, or a transposed one, on a random picture with coarse sides up to `most`.

    With and without all that the kernel can do on the way.
    """
    weight, stride, tiles = (TRANSPOSED if transposed else CORRELATIONS)[number]
    pools = (stride == 1) if transposed else tiles[0] == 2
    pools = pools and bool(random.integers(4))
    n = int(random.integers(1, 4))
    coarse = random.integers(1 + pools, most + 1, 2)
    padding = int(random.integers(0, 1 + min(*(((coarse - 1) * stride + weight[2:] - 1) // 2), 4)))
    fine = (coarse - 1) * stride + weight[2:] - 2 * padding
    if transposed:
        shapes = (n, weight[0], *coarse), (n, weight[1], *map(int, fine))
    else:
        fine += random.integers(0, stride, 2)  # rows and columns that no output sees
        shapes = (n, weight[1], *fine), (n, weight[0], *map(int, coarse))
    x = np.round(random.standard_normal(shapes[0]), 2)
    inputs = {"x": x, "weight": np.round(random.standard_normal(weight), 2)}
    if pools and transposed:
        inputs["x"], inputs["max_index"] = reference.max_pool2d(x)
    extras = {"bias": shapes[1][1:2], "add": shapes[1], "relu_mask": shapes[1]}
    for name, shape in extras.items():
        if random.integers(2) and (name == "bias" or transposed or not pools):
            inputs[name] = np.round(random.standard_normal(shape), int(random.integers(3)))
    settings = {"stride": stride, "padding": padding, "relu": bool(random.integers(2))}
    if not transposed:
        settings["pool"] = pools
    elif pools:
        settings["size"] = tuple(map(int, coarse))

    def forward(ops: Operations, **given: Any) -> dict[str, Any]:
        if ops.device is None:
            return _correlated(transposed, shapes[1], **given)
        function = correlate_transposed if transposed else correlate
        y = function(ops.device, given.pop("x"), given.pop("weight"), shapes[1], tiles=tiles, **given)
        return dict(zip(("y", "max_index"), y if isinstance(y, tuple) else (y,), strict=False))

    return Case("conv_transpose2d" if transposed else "conv2d", f"tiles {tiles}", inputs | settings, forward)


def _correlated(
    transposed: bool,
    shape: tuple[int, ...],
    x: np.ndarray,
    weight: np.ndarray,
    stride: int,
    padding: int,
    bias: Any = 0.0,
    add: Any = 0.0,
    relu_mask: Any = 1.0,
    relu: bool = False,
    pool: bool = False,
    max_index: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """The same by the references."""
    if max_index is not None:
        x = reference.max_pool2d_backward(x, max_index, (*x.shape[:2], *size))
    operation = reference.conv_transpose2d if transposed else reference.conv2d
    y = operation(x, weight, np.zeros(shape[1]), stride, padding) + np.reshape(bias, (-1, 1, 1)) + add
    if pool:
        return dict(zip(("y", "max_index"), reference.max_pool2d(np.maximum(y, 0)), strict=True))
    return {"y": np.where(relu_mask > np.zeros(1), np.maximum(y, 0) if relu else y, 0)}


# Of the fast weight gradient likewise: the kernel, the stride, the tiles. It takes any number of channels.
WEIGHT_GRADIENTS = (
    (
        (3, 2),
        1,
        (2, 2, 3, 2, 2, 2, 1, 3, 8),
    ),  # a_each, b_each, a_lanes, b_lanes, groups (x, y), pictures, rows, columns
    ((2, 5), 3, (3, 1, 2, 3, 1, 3, 2, 5, 4)),
    ((4, 3), 2, (1, 2, 5, 1, 1, 1, 3, 2, 12)),
    ((1, 1), 1, (4, 4, 1, 1, 8, 1, 1, 1, 32)),
)


def weight_gradient(random: np.random.Generator, number: int, most: int = 13) -> Case:
    """The kernels behind the fast gradient of a weight and of a bias, which is of either picture's channels or none."""
    kernel, stride, tiles = WEIGHT_GRADIENTS[number]
    a_each, b_each, a_lanes, b_lanes = tiles[:4]
    n, a, b = (int(random.integers(1, 1 + count)) for count in (4, a_each * a_lanes, 2 * b_each * b_lanes + 1))
    bias_of = random.choice(("coarse", "fine", None))
    pools = stride == 1 and bool(random.integers(2))
    coarse = random.integers(1 + pools, most + 1, 2)
    padding = int(random.integers(0, 1 + min(*(((coarse - 1) * stride + kernel - 1) // 2), 2)))
    fine = (coarse - 1) * stride + kernel - 2 * padding
    if bias_of != "fine":
        fine += random.integers(0, stride, 2)  # rows and columns that no output sees
    inputs = {"coarse": random.standard_normal((n, a, *coarse)), "fine": random.standard_normal((n, b, *fine))}
    if pools:
        inputs["coarse"], inputs["max_index"] = reference.max_pool2d(inputs["coarse"])

    def forward(ops: Operations, **given: Any) -> dict[str, Any]:
        if ops.device is None:
            pooled, max_index = given["coarse"], given.get("max_index")
            whole = (
                pooled
                if max_index is None
                else reference.max_pool2d_backward(pooled, max_index, (n, a, *map(int, coarse)))
            )
            gradients = {"dweight": sums.correlate_weight(whole, given["fine"], *kernel, stride, padding)}
            picture = whole if bias_of == "coarse" else given["fine"]
            return gradients if bias_of is None else gradients | {"dbias": picture.sum(axis=(0, 2, 3))}
        dweight = ops.device.empty((a, b, *kernel))
        dbias = None if bias_of is None else ops.device.empty((a if bias_of == "coarse" else b,))
        options = {"max_index": given.get("max_index"), "bias_of": bias_of, "tiles": tiles}
        correlate_weight(ops.device, given["coarse"], given["fine"], dweight, dbias, stride, padding, **options)
        return {"dweight": dweight} if dbias is None else {"dweight": dweight, "dbias": dbias}

    settings = f"{kernel[0]}x{kernel[1]} stride {stride} padding {padding}, bias of {bias_of}"
    return Case("conv2d", f"weight gradient {settings}, tiles {tiles}", inputs, forward)


def pooling(x: np.ndarray, size: int, stride: int) -> Case:
    """max_pool2d, with its max indices."""

    def backward(ops: Operations, dout: Any, outputs: dict[str, Any], x: Any, **given: Any) -> tuple[Any, ...]:
        return (ops.max_pool2d_backward(dout, outputs["max_index"], x.shape, **given),)

    return Case(
        "max_pool2d",
        f"{size}x{size} stride {stride}",
        {"x": x, "size": size, "stride": stride},
        lambda ops, **given: dict(zip(("y", "max_index"), ops.max_pool2d(**given), strict=True)),
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


def both_forms(case: Case) -> list[Case]:
    """The case for the fast kernels, and for the naive ones."""
    return [case, replace(case, detail=", ".join([*[case.detail] * bool(case.detail), "naive"]), naive=True)]


def adam(random: np.random.Generator, count: int, gradients: int = 3, steps: int = 5, warmup: int = 2) -> Case:
    """As many steps as there are gradients. Its rate is 1, so that parameters move as far as they are from 0."""
    inputs = {
        "parameters": random.standard_normal(count),
        "gradients": random.standard_normal((gradients, count)),
        "losses": random.standard_normal((gradients, 1)),
        "l2": random.uniform(0, 1, count),
    }
    # Numbers that float32 holds exactly: a rounded beta is no fault of the kernel. An epsilon that matters.
    settings = {"base_rate": 1.0, "steps": steps, "warmup": warmup, "beta1": 7 / 8, "beta2": 31 / 32, "epsilon": 1 / 4}

    def forward(
        ops: Operations, parameters: Any, gradients: Any, losses: Any, l2: Any, **settings: Any
    ) -> dict[str, Any]:
        state = AdamState.create(ops, ops.to_numpy(l2), **settings)
        for gradient, loss in zip(gradients, losses, strict=True):
            ops.adam_schedule(state)
            ops.adam_step(parameters, gradient, state, loss)
        kept = {name: getattr(state, name) for name in ("step", "rates", "losses", "m", "v")}
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
    # More places than several blocks sum at once, and numbers that float32 holds exactly.
    large, many = np.round(1e4 * normal((2, 7, 19, 21))), random.integers(0, 7, (2, 19, 21)).astype(np.int32)
    return [
        *both_forms(convolution("conv2d", random, (2, 4, 9, 11), (6, 4, 3, 5), 1, 1)),
        *both_forms(convolution("conv2d", random, (2, 3, 9, 11), (4, 3, 2, 3), 2, 0, relu=True)),
        *both_forms(convolution("conv_transpose2d", random, (2, 4, 9, 11), (4, 6, 4, 6), 2, 1)),
        *both_forms(convolution("conv_transpose2d", random, (2, 3, 6, 7), (3, 4, 3, 2), 3, 0, (2, 4, 18, 20), True)),
        *both_forms(pooled_convolution(random, (2, 3, 9, 12), (4, 3, 3, 2))),
        *both_forms(pooled_convolution(random, (2, 4, 8, 12), (6, 4, 3, 5), used_twice=True)),
        pooling(spaced, 2, 2),
        pooling(spaced, 3, 2),
        replace(pooling(np.maximum(spaced - 3, 0), 3, 2), detail="ties", smooth=False),
        rectified(away_from_kink),
        scaled_sum(normal((3, 5, 7)), normal((3, 5, 7)), 0.5),
        softmax(logits),
        replace(softmax(large), detail="softmax of 1e4"),
        *both_forms(cross_entropy(logits, labels)),
        *both_forms(cross_entropy(logits, labels, "zero")),
        *both_forms(cross_entropy(logits, labels, "softmax")),
        *both_forms(replace(cross_entropy(large, many), detail="logits of 1e4", smooth=False)),
        adam(random, 301),
    ]
