"""Check mode over small random shapes: what every kernel does in memory, and whether the order of threads matters.

An exercise draws inputs for an operation, small and awkward, and all of its kernels run on them in the emulator's
check mode, with the threads in several orders. A finding is what check mode refuses (a race, an access out of bounds,
a value read or returned that nothing wrote, inf - inf ...), or a result whose bits differ from order to order.
Whether results are right is gradcheck's question.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.checks import cases
from tinyfcn.checks.cases import Case
from tinyfcn.checks.conflicts import conflicts
from tinyfcn.checks.watched import Found, Watched, place
from tinyfcn.devices.emulator.emulator import ORDERS, Emulator, Statistics
from tinyfcn.devices.kernel_source import KERNELS, Kernel
from tinyfcn.networks import DESIGNS, Classifier, Design, Network
from tinyfcn.operations import Operations
from tinyfcn.ops.compose_m2nist import MANY, place_m2nist_naive
from tinyfcn.ops.peak import copy, multiply_add
from tinyfcn.reference.adam import AdamState

EXTENTS = (1, 2, 3, 5, 8, 8, 13)  # of pictures; 8 often, so that some sums have 64 terms and some arrays 256 elements
COUNTS = (1, 63, 64, 65, 255, 256, 257, 512, 700)  # around the blocks of 256 and of SUM_THREADS
NO_FINDING = "no finding"
NEVER_LAUNCHED = "never launched"


def conv(name: str) -> Callable[[np.random.Generator], list[Case]]:
    """conv2d, or conv_transpose2d, which looks at the same two pictures from the other side.

    The naive kernels on whatever is drawn, and of the fast ones those that are compiled for this.
    """

    def draw(random: np.random.Generator) -> list[Case]:
        n, c, o, *kernel = map(int, random.integers(1, 5, 5))
        stride = int(random.integers(1, 4))
        coarse = random.choice(EXTENTS, 2)
        fine = (coarse - 1) * stride + kernel
        padding = int(random.integers(0, 1 + min(2, *(fine - 1) // 2)))
        fine -= 2 * padding
        if name == "conv2d":
            left_over = random.integers(0, stride, 2)  # rows and columns that no output sees
            case = cases.convolution(name, random, (n, c, *fine + left_over), (o, c, *kernel), stride, padding)
        else:
            case = cases.convolution(name, random, (n, c, *coarse), (c, o, *kernel), stride, padding)
        transposed = name == "conv_transpose2d"
        number = int(random.integers(len(cases.TRANSPOSED if transposed else cases.CORRELATIONS)))
        drawn = [replace(case, naive=True), cases.correlation(random, number, transposed, most=13)]
        if not transposed:
            drawn.append(cases.weight_gradient(random, int(random.integers(len(cases.WEIGHT_GRADIENTS)))))
        return drawn

    return draw


def max_pool2d(random: np.random.Generator) -> list[Case]:
    """Few levels make many ties."""
    size, stride, n, c = map(int, random.integers(1, 5, 4))
    shape = n, c, *(size - 1 + random.choice(EXTENTS, 2))
    levels = random.choice((1, 2, 3, 1000))
    x = random.permutation(np.arange(np.prod(shape)) % levels).reshape(shape)
    return [cases.pooling(x / 2.0, size, stride)]


def relu(random: np.random.Generator) -> list[Case]:
    """Some inputs are 0."""
    return [cases.rectified(np.round(2 * random.standard_normal(random.choice(COUNTS))))]


def add(random: np.random.Generator) -> list[Case]:
    """Scales with a backward kernel, and 1, without."""
    a, b = random.standard_normal((2, random.choice(COUNTS)))
    return [cases.scaled_sum(a, b, float(random.choice((1, 0.5, -3))))]


def softmax_cross_entropy(random: np.random.Generator) -> list[Case]:
    """Places of a picture, or one each; of a few or several blocks; logits up to 1e4; the last class ignored or not."""
    n, k = random.choice(COUNTS), int(random.choice((1, 7)))  # few, as a fast kernel is compiled for each
    shape = (n, k) if random.integers(2) else (int(random.integers(1, 5)), k, *random.choice(EXTENTS, 2))
    unlabelled = random.choice((None, "zero", "softmax"))

    def loss(*shape: int) -> Case:
        logits = random.standard_normal(shape) * random.choice((1, 1e4))
        return cases.cross_entropy(logits, random.integers(0, k, (shape[0], *shape[2:])).astype(np.int32), unlabelled)

    few, many = loss(*shape), loss(int(random.integers(257, 800)), k)
    return [cases.softmax(few.inputs["logits"]), *cases.both_forms(few), many]


def segmentation_counts(random: np.random.Generator) -> list[Case]:
    """Ties, labels without a channel, and up to as many classes as there can be."""
    n, k = int(random.integers(1, 4)), int(random.choice((1, 2, 10, 11, 32)))
    picture = random.choice((1, 3, 8, 13, 19), 2)
    inputs = {
        "logits": np.round(random.standard_normal((n, k, *picture)), int(random.integers(3))),
        "labels": random.integers(0, k + int(random.integers(2)), (n, *picture)).astype(np.int32),
        "foreground": int(random.integers(0, k + 1)),
        "threshold": 0.1,
    }

    def forward(ops: Operations, **given: Any) -> dict[str, Any]:
        return dict(zip(("confusion", "overlap"), ops.segmentation_counts(**given), strict=True))

    return [Case("segmentation_counts", "", inputs, forward)]


def adam(random: np.random.Generator) -> list[Case]:
    """With and without warm-up and cosine, and past its end."""
    gradients, steps, warmup = int(random.integers(1, 4)), *map(int, random.integers(0, 4, 2))
    return [cases.adam(random, int(random.choice(COUNTS)), gradients, steps, warmup)]


def gather_normalise(random: np.random.Generator) -> list[Case]:
    """Some pictures are taken twice, and most of them not at all; one label a picture, or one a pixel."""
    m, n, rows = map(int, random.integers(1, 10, 3))
    images = random.integers(0, 256, (m, *random.choice(EXTENTS, 2))).astype(np.uint8)
    order = random.integers(0, m, (rows, n)).astype(np.int32)
    shape = images.shape if random.integers(2) else (m,)
    stored = {
        "images": images,
        "labels": random.integers(0, 11, shape).astype(np.uint8),
        "order": order,
        "step": random.integers(0, 3 * rows, 1).astype(np.int32),
    }

    def batch(ops: Operations, **given: Any) -> dict[str, Any]:
        return dict(zip(("batch", "labels"), ops.gather_batch(**given), strict=True))

    alone = {"images": images, "indices": order[0]}
    return [
        Case("gather_normalise", "", alone, lambda ops, **given: {"batch": ops.gather_normalise(**given)}),
        Case("gather_normalise", "batch", stored, batch),
    ]


def compose_m2nist(random: np.random.Generator) -> list[Case]:
    """Few whole pictures, and now and then so many that each has one block; the naive kernel's boxes of many."""
    m = int(random.integers(1, 6))
    inputs = {
        "digits": random.integers(0, 256, (m, 28, 28)).astype(np.uint8),
        "digit_labels": random.integers(0, 10, m).astype(np.uint8),
        "seed": int(random.integers(1 << 32)),
        "step": random.integers(-(1 << 31), 1 << 31, 1).astype(np.int32),
        "count": int(random.integers(1, 3)) if random.integers(100) else MANY + 1,
    }

    def boxes(ops: Operations, **given: Any) -> dict[str, Any]:
        return {"boxes": place_m2nist_naive(ops.device, **given)}

    def pictures(ops: Operations, **given: Any) -> dict[str, Any]:
        return dict(zip(("batch", "labels"), ops.compose_m2nist(**given), strict=True))

    alone = {"digit_count": m, "seed": inputs["seed"], "step": inputs["step"], "count": int(random.choice(COUNTS))}
    return [
        Case("compose_m2nist", "boxes", alone, boxes),
        *cases.both_forms(Case("compose_m2nist", "pictures", inputs, pictures)),
    ]


def peak(random: np.random.Generator) -> list[Case]:
    """Around the blocks of 256 threads, and of the copy's 4,096 floats."""
    count, rounds = int(random.choice(COUNTS)), int(random.integers(0, 20))
    return [
        Case(
            "peak",
            "copy",
            {"x": random.standard_normal(4 * (count + 1024 * int(random.integers(2))))},
            lambda ops, x: {"y": copy(ops.device, x)},
        ),
        Case(
            "peak",
            "multiply-add",
            {"x": random.uniform(0, 1, count), "scale": 0.5, "shift": 1.0, "rounds": rounds},
            lambda ops, **given: {"y": multiply_add(ops.device, **given)},
        ),
    ]


# Operation -> what draws inputs for its kernels, all those of its file.
EXERCISES: dict[str, Callable[[np.random.Generator], list[Case]]] = {
    "adam": adam,
    "add": add,
    "compose_m2nist": compose_m2nist,
    "conv2d": conv("conv2d"),
    "conv_transpose2d": conv("conv_transpose2d"),
    "gather_normalise": gather_normalise,
    "max_pool2d": max_pool2d,
    "peak": peak,
    "relu": relu,
    "segmentation_counts": segmentation_counts,
    "softmax_cross_entropy": softmax_cross_entropy,
}


@dataclass(frozen=True)
class Finding:
    """What is wrong with a kernel; and the exercise's operation, inputs and order of threads with which it showed."""

    operation: str
    kernel: str
    text: str
    inputs: str
    seed: int
    order: str

    @property
    def key(self) -> str:
        """The text without its numbers, but for those of lines: the same for other threads and other shapes."""
        return re.sub(r"(?<![:\d])-?\d[\d.e+-]*", "#", self.text)


@dataclass
class Report:
    """What was run of each kernel, and what was found, each as it first showed."""

    statistics: dict[str, Statistics] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Puts two reports together."""
        for name, part in other.statistics.items():
            whole = self.statistics.setdefault(name, Statistics())
            whole.launches += part.launches
            whole.threads += part.threads
            whole.accesses += part.accesses
        self.findings = other.findings | self.findings

    def verdict(self, kernel: Kernel) -> str:
        """How many findings there are, or why there are none."""
        found = sum(finding.kernel == kernel.name for finding in self.findings.values())
        if found:
            return counted(found, "finding")
        if self.statistics[kernel.name].launches:
            return NO_FINDING
        if any(finding.operation == kernel.operation for finding in self.findings.values()):
            return "not reached: a finding came first"
        return NEVER_LAUNCHED


def counted(count: int, what: str) -> str:
    """ "1 finding", "2 findings"."""
    return f"{count} {what}{'s' * (count != 1)}"


def check(operation: str, seeds: Iterable[int], kernels: Path = KERNELS, orders: Sequence[str] = ORDERS) -> Report:
    """Runs an operation's exercise for each seed, in each order of threads.

    Raises:
        DeviceError: no C++ compiler.
        KernelError: a kernel file that does not compile.
    """
    devices = [Watched(kernels, order=order) for order in orders]
    report = Report()
    for seed in seeds if operation in EXERCISES else ():
        finding = exercise(operation, seed, dict(zip(orders, devices, strict=True)))
        if finding:
            report.findings.setdefault(finding.key, finding)
    for device in devices:
        report.add(Report(device.statistics))
    return report


def exercise(operation: str, seed: int, devices: dict[str, Watched]) -> Finding | None:
    """Runs what one seed draws. Ends at the first finding: one wrong array makes others wrong."""
    for case in EXERCISES[operation](np.random.default_rng(seed)):
        first: dict[str, np.ndarray] = {}
        for order, device in devices.items():
            device.launches, device.seed = [], seed
            try:
                results = case.run(Operations(device), seed=seed)
                copies = device.copies(results)
                first = first or copies
                for name, result in results.items():
                    compare(name, device, result, first[name])
            except Found as found:
                inputs = (f"{name} {np.shape(value) or value}" for name, value in case.inputs.items())
                return Finding(operation, found.kernel, str(found), ", ".join(inputs), seed, order)
    return None


def compare(name: str, device: Watched, found: np.ndarray, expected: np.ndarray) -> None:
    """Raises Found unless the arrays are the same to the bit."""
    bits = [array.ravel().view(f"u{array.itemsize}") for array in (found, expected)]
    different = np.flatnonzero(bits[0] != bits[1])
    if len(different):
        element = int(different[0])
        raise Found(
            device.given_to(found),
            f"{name} depends on the order of threads: {found.flat[element]!s} or {expected.flat[element]!s} at "
            f"{place(element, found.shape)}, stored by {device.stored_by(found, element)}",
        )


def conflicts_in_steps() -> dict[str, list[str]]:
    """Of each network, what is wrong with the order of the launches in a step of its training: devices/conflicts.py.

    Nothing is compiled, and nothing runs.
    """
    found = {}
    for name in DESIGNS:
        ops = Operations(Emulator())
        network = Design(name).build(ops)
        state = AdamState.create(ops, np.zeros(network.parameters.shape, np.float32), base_rate=1e-3, steps=1)
        found[name] = conflicts(ops.device.record(partial(training_step, network, state)).launches)
    return found


def training_step(network: Network, state: AdamState) -> None:
    """Forward, loss, backward and update, of two pictures that nobody has filled in."""
    ops = network.ops
    is_classifier = isinstance(network, Classifier)
    x = ops.device.empty((2, 1, 28, 28))
    labels = ops.device.empty((2, 1, 1) if is_classifier else (2, 28, 28), np.int32)
    ops.adam_schedule(state)
    loss, dlogits = ops.softmax_cross_entropy(network.forward(x), labels)
    network.backward(dlogits)
    ops.adam_step(network.parameters, network.gradients, state, loss)
