"""What each element of each output should be: the formulas of the kernels' headers, in float64, with their numbers.

`explained` gives them for an element of a launch. They are written for one element at a time and call no kernel.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tinyfcn.devices.emulator.trace import LaunchTrace
from tinyfcn.devices.launch import ceil_div
from tinyfcn.ops.fast_conv import BIAS_OF_DOUT
from tinyfcn.packed_weight import orders
from tinyfcn.reference.compose_m2nist import place_m2nist
from tinyfcn.reference.max_pool2d import max_pool2d_backward

Index = tuple[int, ...]


class Given:
    """What a launch was given: its arrays as they were before it, its numbers, the parameters of its template."""

    def __init__(self, trace: LaunchTrace) -> None:
        launch = trace.launch
        self.arrays = {each.name: each.before for each in trace.arrays if each.before is not None}
        names = [*(parameter.name for parameter in launch.kernel.parameters), *launch.kernel.template]
        values = [*launch.arguments, *launch.kernel.instance]
        self.numbers: dict[str, Any] = {name.lower(): value for name, value in zip(names, values, strict=True)}
        self.grid, self.threads = launch.grid, prod(launch.block)
        self.packed: np.ndarray | None = None  # for each element of a weight, where it stands in "packed"
        if "packed" in self.arrays:  # formulas speak of the weight
            o, c, kernel_height, kernel_width, stride = (self.number(name) for name in ("o", "c", "kh", "kw", "stride"))
            forward, backward_input = orders((o, c, kernel_height, kernel_width), stride)
            order = (forward if self.has("x") else backward_input).ravel()
            self.packed = np.argsort(order)[np.count_nonzero(order < 0) :]
            self.arrays["weight"] = self["packed"][self.packed].reshape(o, c, kernel_height, kernel_width)

    def place(self, array: str, number: int) -> tuple[str, int]:
        """The array of the launch, and the element's number there, that hold this element of `array`."""
        if array == "weight" and self.packed is not None:
            return "packed", int(self.packed[number])
        return array, number

    def __getitem__(self, array: str) -> np.ndarray:
        return self.arrays[array]

    def has(self, array: str) -> bool:
        """Whether an optional array was given."""
        return array in self.arrays

    def number(self, name: str) -> int:
        return int(self.numbers[name])

    def real(self, name: str) -> float:
        return float(self.numbers[name])


@dataclass(frozen=True)
class Factor:
    """An element of an array. Where a loop asks for one that is not there, the index lies outside or is a fraction."""

    array: str
    index: tuple[float, ...]

    def missing(self, shape: Sequence[int]) -> str:
        """Why there is no such element; "" if there is."""
        if any(at != int(at) for at in self.index):
            return "between positions"
        is_there = all(0 <= at < size for at, size in zip(self.index, shape, strict=True))
        return "" if is_there else f"outside {self.array}"

    def value(self, given: Given) -> float:
        return float(given[self.array][tuple(int(at) for at in self.index)])


@dataclass(frozen=True)
class Term:
    """A product, or a single element, of a sum, where a loop comes to it.

    skipped: why the loop leaves it out, or "". turn: the number of its thread, among those that share the sum.
    """

    factors: tuple[Factor, ...]
    skipped: str = ""
    turn: int = 0

    def value(self, given: Given) -> float:
        return 0.0 if self.skipped else prod(factor.value(given) for factor in self.factors)


@dataclass(frozen=True)
class Explained:
    """An element by its formula.

    value: in float64. terms: those of the sum, if it is one. steps: the formula with numbers where it is none, or what
    follows the sum. scale: the largest of the numbers that are added up, where they may cancel: the error of a float32
    is relative to it.
    """

    formula: str
    value: float
    terms: Sequence[Term] = ()
    steps: Sequence[str] = ()
    scale: float = 0.0


def number(value: float) -> str:
    """A number to read: "0.5", "-0.125", "0.0919"."""
    return f"{value + 0.0:.6g}"


def at(array: str, index: Sequence[float]) -> str:
    """ "x[1,0,2,3]"; "x[1,0,1.5,3]" where a loop asks for what is not there."""
    return f"{array}[{','.join(f'{each:g}' for each in index)}]"


# --- Sums: the factors of each term, in the order of the kernel's loops ---

Loop = Callable[[Given, Index], Iterator[tuple[tuple[str, tuple[float, ...]], ...]]]


def _window(given: Given, position: float, offset: int) -> float:
    """The input that a window at `position` covers at `offset`."""
    return position * _stride(given) + offset - given.number("padding")


def _position(given: Given, pixel: float, offset: int) -> float:
    """The position whose window covers `pixel` at `offset`: a fraction if there is none."""
    return (pixel + given.number("padding") - offset) / _stride(given)


def _stride(given: Given) -> int:
    return given.number("stride")


def conv_forward(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    n, o, i, j = index
    for c, u, v in np.ndindex(given["weight"].shape[1:]):
        h, w = _window(given, i, u), _window(given, j, v)
        yield ("x", (n, c, h, w)), ("weight", (o, c, u, v))


def conv_input(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    n, c, h, w = index
    outputs, _, *kernel = given["weight"].shape
    for o, u, v in np.ndindex(outputs, *kernel):
        yield ("dout", (n, o, _position(given, h, u), _position(given, w, v))), ("weight", (o, c, u, v))


def conv_weight(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    o, c, u, v = index
    images, _, *positions = given["dout"].shape
    for n, i, j in np.ndindex(images, *positions):
        yield ("dout", (n, o, i, j)), ("x", (n, c, _window(given, i, u), _window(given, j, v)))


def conv_bias(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    images, _, *positions = given["dout"].shape
    for n, i, j in np.ndindex(images, *positions):
        yield (("dout", (n, *index, i, j)),)


def transpose_forward(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    n, o, h, w = index
    channels, _, *kernel = given["weight"].shape
    for c, u, v in np.ndindex(channels, *kernel):
        yield ("x", (n, c, _position(given, h, u), _position(given, w, v))), ("weight", (c, o, u, v))


def transpose_input(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    n, c, i, j = index
    for o, u, v in np.ndindex(given["weight"].shape[1:]):
        yield ("dout", (n, o, _window(given, i, u), _window(given, j, v))), ("weight", (c, o, u, v))


def transpose_weight(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    c, o, u, v = index
    images, _, *positions = given["x"].shape
    for n, i, j in np.ndindex(images, *positions):
        yield ("x", (n, c, i, j)), ("dout", (n, o, _window(given, i, u), _window(given, j, v)))


def losses_of_mean(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    name = "losses" if given.has("losses") else "parts"
    for position in np.ndindex(given[name].shape):
        yield ((name, position),)


def pool_input(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    n, c, h, w = index
    for u, v in np.ndindex(given.number("size"), given.number("size")):
        yield (("dout", (n, c, (h - u) / _stride(given), (w - v) / _stride(given))),)


def pooled_elsewhere(given: Given, index: Index, factors: Sequence[Factor]) -> str:
    """Why the gradient of a window does not go to this pixel; "" if it does."""
    _, _, h, w = index
    at_max = int(given["max_index"][tuple(int(each) for each in factors[0].index)])
    return "" if at_max == h * given["dx"].shape[3] + w else f"max_index is {at_max}, another pixel"


def _weight_of(given: Given, element: int, blocks: int) -> Index | None:
    """The weight (o, c, u, v) whose sum stands at an element of the workspace's rows; None from the biases on."""
    o_each, c_each, o_threads, c_threads, kernel_height, kernel_width = (
        given.number(name) for name in ("o_each", "c_each", "o_threads", "c_threads", "kh", "kw")
    )
    threads, sums = o_threads * c_threads * kernel_height, o_each * c_each * kernel_width
    if element >= blocks * sums * threads:
        return None
    block, k, thread = (int(each) for each in np.unravel_index(element, (blocks, sums, threads)))
    o_of_thread, c_of_thread, u = np.unravel_index(thread, (o_threads, c_threads, kernel_height))
    which_o, which_c, v = np.unravel_index(k, (o_each, c_each, kernel_width))
    c = (block * c_each + which_c) * c_threads + c_of_thread
    return int(which_o * o_threads + o_of_thread), int(c), int(u), int(v)


def split_weights(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    splits, length = given["workspace"].shape
    blocks = given.number("blocks")
    element = next(each for each in range(length) if _weight_of(given, each, blocks) == index)
    for split in range(splits):
        yield (("workspace", (split, element)),)


def split_biases(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    splits, length = given["workspace"].shape
    for split in range(splits):
        yield (("workspace", (split, length - given.number("biases") + index[0])),)


def tiles_of_split(given: Given, index: Index) -> Iterator[tuple[Any, ...]]:
    """The terms of a row of fast_conv_backward_weight's workspace: those of the split's tiles."""
    split, element = index
    splits, stride, padding = given["workspace"].shape[0], _stride(given), given.number("padding")
    images, rows, columns = (given.number(name) for name in ("images", "rows", "columns"))
    (n_count, outputs, height, width), (_, channels, *size) = given["dout"].shape, given["x"].shape
    down, across = ceil_div(height, rows), ceil_div(width, columns)

    def is_mine(n: int, i: int, j: int) -> bool:
        tile = (n // images * down + min(i // rows, down - 1)) * across + min(j // columns, across - 1)
        return tile % splits == split

    weight = _weight_of(given, element, given.grid[0])
    if weight is not None:
        o, c, *_ = weight
        if o < outputs and c < channels:
            yield from (each for each in conv_weight(given, weight) if is_mine(each[0][1][0], *each[0][1][2:]))
        return
    if given.number("bias_of") == BIAS_OF_DOUT:
        channel = element - given["workspace"].shape[1] + outputs
        yield from (
            (("dout", (n, channel, i, j)),) for n, i, j in np.ndindex(n_count, height, width) if is_mine(n, i, j)
        )
        return
    channel = element - given["workspace"].shape[1] + channels
    for n, h, w in np.ndindex(n_count, *size):
        if is_mine(n, (h + padding) // stride, (w + padding) // stride):
            yield (("x", (n, channel, h, w)),)


@dataclass(frozen=True)
class Sum:
    """How an element is a sum.

    start: an array whose element is added, by its channel. sharing: if above 0, each so many-th thread of a block has
    some of the terms: 1 for all threads, 32 for those that are the same lane of their warps. mean: the sum is divided
    by the number of terms. leaves_out: see pooled_elsewhere.
    """

    formula: str
    loop: Loop
    start: str = ""
    sharing: int = 0
    mean: bool = False
    leaves_out: Callable[[Given, Index, Sequence[Factor]], str] = lambda given, index, factors: ""

    def __call__(self, given: Given, index: Index) -> Explained:
        terms = []
        for count, each in enumerate(self.loop(given, index)):
            factors = tuple(Factor(array, where) for array, where in each)
            reasons = (factor.missing(given[factor.array].shape) for factor in factors)
            skipped = next(filter(None, reasons), "") or self.leaves_out(given, index, factors)
            terms.append(Term(factors, skipped, count % (given.threads // self.sharing) if self.sharing else 0))
        terms.sort(key=lambda term: term.turn)
        value, steps = sum(term.value(given) for term in terms), []
        if self.start and given.has(self.start):
            start = Factor(self.start, (index[1],))
            value += start.value(given)
            steps.append(f"+ {at(self.start, start.index)} {number(start.value(given))}")
        if self.mean:
            steps.append(f"/ {len(terms)}")
        return Explained(self.formula, value / self.divisor(terms), terms, steps)

    def divisor(self, terms: Sequence[Term]) -> int:
        return len(terms) if self.mean else 1


CONV = "bias[o] + sum over c, u, v of x * weight"
SUMS = {
    ("conv2d_forward_naive", "y"): Sum(CONV, conv_forward, "bias"),
    ("conv2d_backward_input_naive", "dx"): Sum("sum over o, u, v of dout * weight", conv_input),
    ("conv2d_backward_weight_naive", "dweight"): Sum("sum over n, i, j of dout * x", conv_weight, sharing=1),
    ("conv2d_backward_bias_naive", "dbias"): Sum("sum over n, i, j of dout", conv_bias, sharing=1),
    ("conv_transpose2d_forward_naive", "y"): Sum(CONV, transpose_forward, "bias"),
    ("conv_transpose2d_backward_input_naive", "dx"): Sum("sum over o, u, v of dout * weight", transpose_input),
    ("conv_transpose2d_backward_weight_naive", "dweight"): Sum(
        "sum over n, h, w of x * dout", transpose_weight, sharing=1
    ),
    ("max_pool2d_backward", "dx"): Sum(
        "sum of dout over the windows whose maximum it is", pool_input, leaves_out=pooled_elsewhere
    ),
    ("softmax_cross_entropy_mean_naive", "loss"): Sum("mean of losses", losses_of_mean, sharing=1, mean=True),
    ("softmax_cross_entropy_mean", "loss"): Sum("sum of parts", losses_of_mean, sharing=1),
    ("fast_conv_reduce_split_k", "dweight"): Sum("sum over splits of workspace", split_weights, sharing=32),
    ("fast_conv_reduce_split_k", "dbias"): Sum("sum over splits of workspace", split_biases, sharing=32),
}

# --- Elements that are no sums of the thread's reads ---


def relu_forward(given: Given, index: Index) -> Explained:
    x = float(given["x"][index])
    return Explained("max(x, 0)", max(x, 0.0), steps=[f"max({number(x)}, 0)"])


def relu_backward(given: Given, index: Index) -> Explained:
    y, dout = float(given["y"][index]), float(given["dout"][index])
    open_or_not = f"y is {number(y)}, {'above 0: dout' if y > 0 else 'not above 0: 0'}"
    return Explained("dout where y > 0, else 0", dout if y > 0 else 0.0, steps=[open_or_not])


def add_forward(given: Given, index: Index) -> Explained:
    a, b, scale = float(given["a"][index]), float(given["b"][index]), given.real("scale")
    steps = [f"{number(scale)} * ({number(a)} + {number(b)})"]
    return Explained("scale * (a + b)", scale * (a + b), steps=steps)


def add_backward(given: Given, index: Index) -> Explained:
    dz, scale = float(given["dz"][index]), given.real("scale")
    return Explained("scale * dz", scale * dz, steps=[f"{number(scale)} * {number(dz)}"])


def gather(given: Given, index: Index) -> Explained:
    at_value = int(given["index"][index])
    is_inside = 0 <= at_value < given["values"].size
    value = float(given["values"][at_value]) if is_inside else 0.0
    found = f"{at('values', (at_value,))} {number(value)}" if is_inside else "outside values: 0"
    return Explained("values[index[i]]", value, steps=[f"{at('index', index)} {at_value}", found])


def _pooled(values: dict[int, float]) -> tuple[int, float]:
    """The first of the largest values, and its key."""
    largest = max(values.values())
    return next(key for key, value in values.items() if value == largest), largest


def _max_pool(given: Given, index: Index) -> tuple[int, float, list[str]]:
    n, c, i, j = index
    plane, stride, size = given["x"][n, c], given.number("stride"), given.number("size")
    pixels = [(i * stride + u, j * stride + v) for u, v in np.ndindex(size, size)]
    best, largest = _pooled({h * plane.shape[1] + w: float(plane[h, w]) for h, w in pixels})
    listed = ", ".join(number(plane[pixel]) for pixel in pixels)
    h, w = divmod(best, plane.shape[1])
    steps = [f"max({listed}) = {number(largest)}", f"first found at ({h}, {w}): {h} * {plane.shape[1]} + {w} = {best}"]
    return best, largest, steps


def max_pool_y(given: Given, index: Index) -> Explained:
    _, largest, steps = _max_pool(given, index)
    return Explained("maximum of the window", largest, steps=steps[:1])


def max_pool_index(given: Given, index: Index) -> Explained:
    best, _, steps = _max_pool(given, index)
    return Explained("h * W + w of the maximum; among equals, the first", best, steps=steps)


def _channels(array: np.ndarray, n: int, pixel: Sequence[int]) -> np.ndarray:
    """The numbers of all channels at a pixel; `pixel` is empty where an image has one position."""
    return np.moveaxis(array[n], 0, -1)[tuple(pixel)]


def _softmax(logits: np.ndarray, k: int) -> tuple[float, float, list[str]]:
    """p of channel k, the loss with k as label, and the steps to both."""
    values = logits.astype(np.float64)
    largest = values.max()
    powers = np.exp(values - largest)
    total = powers.sum()
    terms = " + ".join(f"exp({number(value)} - {number(largest)})" for value in values)
    steps = [f"largest logit {number(largest)}", f"{terms} = {number(total)}"]
    return powers[k] / total, np.log(total) - (values[k] - largest), steps


def softmax_p(given: Given, index: Index) -> Explained:
    n, k, *pixel = index
    logits = _channels(given["logits"], n, pixel)
    p, _, steps = _softmax(logits, k)
    last = f"p = exp({number(logits[k])} - {number(logits.max())}) / that sum = {number(p)}"
    return Explained("exp(logits[k] - largest) / sum over all classes", p, steps=[*steps, last])


def _loss(given: Given, logits: np.ndarray, label: int) -> tuple[float, list[str]]:
    if label == given.number("ignore_index"):
        return 0.0, [f"label {label} is ignore_index: loss 0"]
    _, loss, steps = _softmax(logits, label)
    return loss, [*steps, f"label {label}: log of that sum - ({number(logits[label])} - largest) = {number(loss)}"]


def losses(given: Given, index: Index) -> Explained:
    n, *pixel = index
    loss, steps = _loss(given, _channels(given["logits"], n, pixel), int(given["labels"][index]))
    return Explained("-log p of the label", loss, steps=steps)


def _dlogit(given: Given, logits: np.ndarray, label: int, k: int) -> tuple[float, list[str]]:
    p, _, steps = _softmax(logits, k)
    count, ignored = given["labels"].size, label == given.number("ignore_index")
    steps = [*steps, f"p of class {k} = {number(p)}"]
    if ignored:
        value = given.real("unlabelled") * p / count
        return value, [*steps, f"label {label} is ignore_index: unlabelled * p / {count} = {number(value)}"]
    value = (p - (k == label)) / count
    without = "(p - 1)" if k == label else "p"
    return value, [*steps, f"label {label}: {without} / {count} = {number(value)}"]


def dlogits(given: Given, index: Index) -> Explained:
    n, k, *pixel = index
    logits, label = _channels(given["logits"], n, pixel), int(given["labels"][(n, *pixel)])
    value, steps = _dlogit(given, logits, label, k)
    return Explained("(p - onehot(label)) / (N * S)", value, steps=steps)


def _mean_of_block(given: Given, index: Index, logits: Callable[[int, Index], np.ndarray]) -> Explained:
    """What a block adds to the mean loss."""
    labels = given["labels"]
    threads = given.threads * given.grid[0]
    mine = [p for p in range(labels.size) if p % threads // given.threads == index[0]]
    total = 0.0
    for position in mine:
        n, *pixel = (int(each) for each in np.unravel_index(position, labels.shape))
        total += _loss(given, logits(n, tuple(pixel)), int(labels[(n, *pixel)]))[0]
    count = f"{len(mine)} of {labels.size} positions are the block's"
    steps = [count, f"their losses add up to {number(total)}: / {labels.size}"]
    return Explained("the block's losses / (N * S)", total / labels.size, steps=steps)


def parts(given: Given, index: Index) -> Explained:
    return _mean_of_block(given, index, lambda n, pixel: _channels(given["logits"], n, pixel))


def _linear(given: Given, n: int, pixel: Index) -> np.ndarray:
    x = _channels(given["x"], n, pixel).astype(np.float64)
    return given["bias"] + given["weight"].reshape(len(given["weight"]), -1).astype(np.float64) @ x


def linear_parts(given: Given, index: Index) -> Explained:
    return _mean_of_block(given, index, lambda n, pixel: _linear(given, n, pixel))


def linear_dlogits(given: Given, index: Index) -> Explained:
    n, k, *pixel = index
    logits = _linear(given, n, tuple(pixel))
    value, steps = _dlogit(given, logits, int(given["labels"][(n, *pixel)]), k)
    listed = ", ".join(map(number, logits))
    return Explained("(p - onehot(label)) / (N * S)", value, steps=[f"logits = bias + weight * x: {listed}", *steps])


def linear_dx(given: Given, index: Index) -> Explained:
    n, c, *pixel = index
    logits, label = _linear(given, n, tuple(pixel)), int(given["labels"][(n, *pixel)])
    gradients = [_dlogit(given, logits, label, k)[0] for k in range(len(logits))]
    weights = given["weight"].reshape(len(logits), -1)[:, c]
    products = " + ".join(f"{number(w)} * {number(d)}" for w, d in zip(weights, gradients, strict=True))
    value = float(np.dot(weights.astype(np.float64), gradients))
    scale = float(max(abs(weights * gradients)))
    steps = [f"dlogits {', '.join(map(number, gradients))}", f"{products} = {number(value)}"]
    if given.number("through_relu") and given["x"][index] <= 0:
        value = 0.0
        steps.append("x is not above 0, and through_relu: 0")
    return Explained("sum over k of weight[k,c] * dlogits[k]", value, steps=steps, scale=scale)


def adam_rates(given: Given, index: Index) -> Explained:
    t, steps, warmup = int(given["step"][0]) + 1, given.number("steps"), given.number("warmup")
    beta = given.real(f"beta{index[0]}") if index[0] else 0.0
    if index[0]:
        formula, value = f"1 - beta{index[0]}^t", 1 - beta**t
        return Explained(formula, value, steps=[f"t = {t}: 1 - {number(beta)}^{t}"])
    rise, way = min(t / warmup, 1) if warmup else 1, min((t - 1) / steps, 1) if steps else 0
    value = given.real("base_rate") * rise * (1 + np.cos(np.pi * way)) / 2
    step = f"t = {t}: {number(given.real('base_rate'))} * {number(rise)} * (1 + cos(pi * {number(way)})) / 2"
    return Explained("base_rate * min(t / warmup, 1) * (1 + cos(pi * (t - 1) / steps)) / 2", value, steps=[step])


def _adam(given: Given, index: Index) -> tuple[dict[str, float], list[str]]:
    """The new m, v and parameter."""
    g0, l2, p, m, v = (float(given[name][index]) for name in ("gradients", "l2", "parameters", "m", "v"))
    beta1, beta2, epsilon = (given.real(name) for name in ("beta1", "beta2", "epsilon"))
    rate, correction1, correction2 = (float(each) for each in given["rates"])
    g = g0 + l2 * p
    new_m, new_v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    new_p = p - rate * (new_m / correction1) / (np.sqrt(new_v / correction2) + epsilon)
    steps = [
        f"g = {number(g0)} + {number(l2)} * {number(p)} = {number(g)}",
        f"m = {number(beta1)} * {number(m)} + {number(1 - beta1)} * g = {number(new_m)}",
        f"v = {number(beta2)} * {number(v)} + {number(1 - beta2)} * g^2 = {number(new_v)}",
        f"p = {number(p)} - {number(rate)} * (m / {number(correction1)}) / "
        f"(sqrt(v / {number(correction2)}) + {number(epsilon)}) = {number(new_p)}",
    ]
    return {"m": new_m, "v": new_v, "parameters": new_p}, steps


def adam_parameter(given: Given, index: Index) -> Explained:
    values, steps = _adam(given, index)
    formula = "p - rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)"
    return Explained(formula, values["parameters"], steps=steps, scale=abs(float(given["parameters"][index])))


def adam_m(given: Given, index: Index) -> Explained:
    values, steps = _adam(given, index)
    moment = abs(float(given["m"][index]))
    return Explained("beta1 * m + (1 - beta1) * g", values["m"], steps=steps[:2], scale=moment)


def adam_v(given: Given, index: Index) -> Explained:
    values, steps = _adam(given, index)
    return Explained("beta2 * v + (1 - beta2) * g^2", values["v"], steps=[steps[0], steps[2]])


def adam_count(given: Given, index: Index) -> Explained:
    step = int(given["step"][0])
    return Explained("step + 1", step + 1, steps=[f"{step} + 1"])


def adam_losses(given: Given, index: Index) -> Explained:
    loss = float(given["loss"][0])
    return Explained("the step's loss, at step % R", loss, steps=[f"step {int(given['step'][0])}: {number(loss)}"])


def _normalised(pixel: int) -> tuple[float, str]:
    return (pixel - 127) / 127, f"({pixel} - 127) / 127"


def _image_of(given: Given, n: int) -> tuple[int, str]:
    if given.has("indices"):
        image = int(given["indices"][n])
        return image, f"image indices[{n}] = {image}"
    row = int(given["step"][0]) % len(given["order"])
    image = int(given["order"][row, n])
    return image, f"step {int(given['step'][0])} % {len(given['order'])} = {row}: image order[{row},{n}] = {image}"


def gathered(given: Given, index: Index) -> Explained:
    n, _, h, w = index
    image, step = _image_of(given, n)
    value, text = _normalised(int(given["images"][image, h, w]))
    return Explained("(images[i] - 127) / 127", value, steps=[step, f"images[{image},{h},{w}]: {text}"])


def gathered_label(given: Given, index: Index) -> Explained:
    image, step = _image_of(given, index[0])
    label = int(given["all_labels"][(image, *index[1:])])
    return Explained("all_labels[i]", label, steps=[step, f"{at('all_labels', (image, *index[1:]))} = {label}"])


def _boxes(given: Given, images: int, digits: int) -> np.ndarray:
    return place_m2nist(digits, given.number("seed"), given["step"], images)


def boxes(given: Given, index: Index) -> Explained:
    n, k, which = index
    found = _boxes(given, given.number("n"), given.number("m"))[n]
    rows = [f"digit {digit} at ({top}, {left})" for digit, top, left in found[found[:, 0] >= 0]]
    what = ("digit, or -1", "top", "left")[which]
    steps = [f"image {n}, by Philox: {'; '.join(rows)}", f"box {k}, {what}: {found[k, which]}"]
    return Explained("a function of (seed, step, image): see the file's header", int(found[k, which]), steps=steps)


def _drawn(given: Given, n: int, row: int, column: int) -> tuple[int, int, list[str]]:
    """A pixel, its label, and the steps to them."""
    images = given["batch"].shape[0]
    found = given["boxes"] if given.has("boxes") else _boxes(given, images, len(given["digits"]))
    pixel, label, steps = 0, given.number("background"), [f"no box covers ({row}, {column}): pixel 0"]
    for digit, top, left in found[n]:
        h, w = row - top, column - left
        if digit >= 0 and 0 <= h < 28 and 0 <= w < 28:
            pixel = int(given["digits"][digit, h, w])
            label = int(given["digit_labels"][digit]) if pixel else label
            steps = [f"the box at ({top}, {left}) covers ({row}, {column}): digits[{digit},{h},{w}] = {pixel}"]
    return pixel, label, steps


def drawn(given: Given, index: Index) -> Explained:
    n, _, row, column = index
    pixel, _, steps = _drawn(given, n, row, column)
    value, text = _normalised(pixel)
    return Explained("(pixel - 127) / 127", value, steps=[*steps, text])


def drawn_label(given: Given, index: Index) -> Explained:
    pixel, label, steps = _drawn(given, *index)
    ink = "ink: the digit's label" if pixel else "no ink: background"
    return Explained("the digit's label where pixel > 0, else background", label, steps=[*steps, f"{ink}, {label}"])


def copied(given: Given, index: Index) -> Explained:
    x = float(given["x"][index])
    return Explained("x", x, steps=[number(x)])


def chains(given: Given, index: Index) -> Explained:
    x, scale, shift = float(given["x"][index]), given.real("scale"), given.real("shift")
    values = [x + k for k in range(8)]
    for _ in range(given.number("rounds")):
        values = [value * scale + shift for value in values]
    steps = [
        f"c_k = {number(x)} + k, then {given.number('rounds')} times c_k * {number(scale)} + {number(shift)}",
        f"{' + '.join(map(number, values))} = {number(sum(values))}",
    ]
    return Explained("sum over k = 0 .. 7 of c_k", sum(values), steps=steps)


def confusion(given: Given, index: Index) -> Explained:
    n, true, predicted = index
    pixels = [
        pixel
        for pixel in np.ndindex(given["labels"].shape[1:])
        if given["labels"][(n, *pixel)] == true and _channels(given["logits"], n, pixel).argmax() == predicted
    ]
    listed = ", ".join(f"({h}, {w})" for h, w in pixels) or "none"
    return Explained(
        f"pixels with label {true} whose largest logit is in channel {predicted}", len(pixels), steps=[listed]
    )


def overlap(given: Given, index: Index) -> Explained:
    n, which = index
    both = either = 0
    threshold = given.real("threshold")
    for h, w in np.ndindex(given["labels"].shape[1:]):
        for k in range(given.number("f")):
            claimed = _softmax(given["logits"][n, :, h, w], k)[0] > threshold
            true = given["labels"][n, h, w] == k
            both, either = both + (claimed and true), either + (claimed or true)
    pairs = "pairs of a pixel and one of the first F channels"
    what = f"{pairs} that are claimed {('and', 'or')[which]} true"
    steps = [f"claimed: softmax > {number(threshold)}; both {both}, either {either}"]
    return Explained(what, (both, either)[which], steps=steps)


# --- The fast convolutions, whose products pass through shared memory ---


def _epilogue(given: Given, index: Index, total: float) -> tuple[float, list[str]]:
    """Bias, skip connection, ReLU and mask, as fast_conv.cu adds them to a sum."""
    value, steps = total, []
    if given.has("bias"):
        bias = float(given["bias"][index[1]])
        value += bias
        steps.append(f"+ {at('bias', index[1:2])} {number(bias)}")
    if given.has("add"):
        value += float(given["add"][index])
        steps.append(f"+ {at('add', index)} {number(given['add'][index])}")
    if given.number("relu"):
        value = max(value, 0.0)
        steps.append("ReLU")
    if given.has("relu_mask") and not given["relu_mask"][index] > 0:
        value = 0.0
        steps.append(f"{at('relu_mask', index)} is not above 0: 0")
    return value, steps


def _as_given(given: Given) -> Given:
    """With dout at the size of the convolution's output: a pooled one puts each gradient at its max index."""
    if not given.has("max_index") or "dout" not in given.arrays:
        return given
    n, o, *_ = given["dout"].shape
    size = given.number("oh"), given.number("ow")
    given.arrays["dout"] = max_pool2d_backward(given["dout"], given["max_index"], (n, o, *size))
    return given


def fast_y(given: Given, index: Index) -> Explained:
    if given.has("max_index"):
        return _fast_pooled(given, index)[1]
    found = Sum("sum over c, u, v of x * weight", conv_forward)(given, index)
    value, steps = _epilogue(given, index, found.value)
    return Explained(CONV if given.has("bias") else found.formula, value, found.terms, steps)


def _fast_pooled(given: Given, index: Index) -> tuple[int, Explained]:
    n, o, i, j = index
    width, values, sums = given.number("ow"), {}, []
    for u, v in np.ndindex(2, 2):
        where = n, o, 2 * i + u, 2 * j + v
        total = Sum("", conv_forward, "bias")(given, where)
        sums.append(f"y at ({where[2]}, {where[3]}) = bias + sum over c, u, v of x * weight = {number(total.value)}")
        values[where[2] * width + where[3]] = max(total.value, 0.0)
    best, largest = _pooled(values)
    h, w = divmod(best, width)
    steps = [*sums, f"ReLU, then the largest: {number(largest)}, first found at ({h}, {w})"]
    return best, Explained("2x2 max-pooling of the ReLU of bias[o] + sum of x * weight", largest, steps=steps)


def fast_max_index(given: Given, index: Index) -> Explained:
    best, found = _fast_pooled(given, index)
    return Explained("h * OW + w of the maximum; among equals, the first", best, steps=found.steps)


def fast_dx(given: Given, index: Index) -> Explained:
    found = Sum("sum over o, u, v of dout * weight", conv_input)(_as_given(given), index)
    value, steps = _epilogue(given, index, found.value)
    return Explained(found.formula, value, found.terms, steps)


def workspace(given: Given, index: Index) -> Explained:
    return Sum("the split's share of the sum over n, i, j of dout * x", tiles_of_split)(_as_given(given), index)


FORMULAS: dict[tuple[str, str], Callable[[Given, Index], Explained]] = {
    **SUMS,
    ("relu_forward", "y"): relu_forward,
    ("relu_backward", "dx"): relu_backward,
    ("add_forward", "z"): add_forward,
    ("add_backward", "da"): add_backward,
    ("gather", "gathered"): gather,
    ("max_pool2d_forward", "y"): max_pool_y,
    ("max_pool2d_forward", "max_index"): max_pool_index,
    ("softmax", "p"): softmax_p,
    ("softmax_cross_entropy_naive", "losses"): losses,
    ("softmax_cross_entropy_naive", "dlogits"): dlogits,
    ("softmax_cross_entropy", "parts"): parts,
    ("softmax_cross_entropy", "dlogits"): dlogits,
    ("linear_cross_entropy", "parts"): linear_parts,
    ("linear_cross_entropy", "dlogits"): linear_dlogits,
    ("linear_cross_entropy", "dx"): linear_dx,
    ("adam_schedule", "rates"): adam_rates,
    ("adam_step", "parameters"): adam_parameter,
    ("adam_step", "m"): adam_m,
    ("adam_step", "v"): adam_v,
    ("adam_step", "step"): adam_count,
    ("adam_step", "losses"): adam_losses,
    ("gather_normalise", "batch"): gathered,
    ("gather_batch", "batch"): gathered,
    ("gather_batch", "labels"): gathered_label,
    ("compose_m2nist_place_naive", "boxes"): boxes,
    ("compose_m2nist_draw_naive", "batch"): drawn,
    ("compose_m2nist_draw_naive", "labels"): drawn_label,
    ("compose_m2nist", "batch"): drawn,
    ("compose_m2nist", "labels"): drawn_label,
    ("peak_copy", "y"): copied,
    ("peak_multiply_add", "y"): chains,
    ("segmentation_counts", "confusion"): confusion,
    ("segmentation_counts", "overlap"): overlap,
    ("fast_conv_forward", "y"): fast_y,
    ("fast_conv_forward", "max_index"): fast_max_index,
    ("fast_conv_backward_input", "dx"): fast_dx,
    ("fast_conv_backward_weight", "workspace"): workspace,
}
