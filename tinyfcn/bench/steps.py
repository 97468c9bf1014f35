"""Whole training steps of ours, and the check that another program's steps do the same before any of them is timed.

Both sides begin with the same weights, see the same images in the same order, and have the same loss and optimiser, at
a constant rate. Their batches differ, in PyTorch's favour: its batches lie on the device as it wants them, as floats
and 64-bit labels. Ours on a GPU is "gathered" from bytes within the step; on the CPU it is "given" as floats too.
"composed" is ours with all that training does in a step: it composes fresh M2NIST images. A few batches take turns,
which is enough: a step touches a hundred times the memory of its batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from tinyfcn.adam_state import AdamState
from tinyfcn.checks.gradcheck import relative_error
from tinyfcn.data import Digits
from tinyfcn.data.builtin_digits import draw_digits
from tinyfcn.errors import TinyfcnError
from tinyfcn.networks import Design
from tinyfcn.networks.network import views
from tinyfcn.ops import Operations
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.training.loop import training_step
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.sources import as_bytes

SEED = 0
RATE, BETA1, BETA2, EPSILON = 1e-4, 0.9, 0.999, 1e-8  # Adam's: their values make no step faster or slower
SETS = 4  # batches, which take turns
DRAWN, DIGITS = 500, 60_000  # digits that are drawn, and repeated to be as many as MNIST's
MIN_IMAGES = 256  # M2NIST images that batches are gathered from

# The largest relative differences of two float32 programs that do the same, after SETS steps: of the losses, of Adam's
# means of the gradients, and of the parameters' way from where they began. Found were at most a tenth of these. A wrong
# sign, factor or missing term is 0.1 and more. TF32 keeps ten bits of each factor instead of 23.
TOLERANCES = {"losses": 1e-5, "mean gradients": 1e-3, "parameters": 3e-2}
TF32_TOLERANCES = {"losses": 1e-2, "mean gradients": 0.3, "parameters": 0.5}


@dataclass(frozen=True)
class Task:
    """Which step: the design "classifier" or "skip", images a batch, and how often an image is repeated each way."""

    design: str = "skip"
    batch: int = 16
    scale: int = 1

    def __str__(self) -> str:
        larger = f", images of {64 * self.scale}x{84 * self.scale}" if self.scale > 1 else ""
        return f"{self.design}, batch {self.batch}{larger}"


@dataclass(frozen=True)
class Batches:
    """What steps train on.

    images: uint8 (M, H, W). labels: uint8 (M,) or (M, H, W). order: int32 (SETS, N), the images of each batch.
    digits: those that training would compose its images of.
    """

    images: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    digits: Digits

    def floats(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each batch as a network takes it: float32 (N, 1, H, W), and int32 labels."""
        chosen = [(self.images[which], self.labels[which]) for which in self.order]
        return [((x[:, None] - np.float32(127)) / np.float32(127), labels.astype(np.int32)) for x, labels in chosen]

    def source(self, ops: Operations, kind: str) -> Callable[[Any], tuple[Any, Any]]:
        """A function from a device array (1,) that counts steps to the batch: "gathered", "composed" or "given"."""
        if kind == "composed":
            digits = ops.asarray(self.digits.images), ops.asarray(self.digits.labels)
            return lambda step: ops.compose_m2nist(*digits, SEED, step, self.order.shape[1])
        if kind == "gathered":
            images, labels, order = map(ops.asarray, (self.images, self.labels, self.order))
            return lambda step: ops.gather_batch(images, labels, order, step)
        given = [(ops.asarray(x), ops.asarray(labels)) for x, labels in self.floats()]
        return lambda step: given[step[0] % SETS]


@cache
def drawn_digits() -> Digits:
    """Digits drawn by code: what an image shows makes no step faster."""
    drawn = draw_digits(DRAWN, SEED)
    images, labels = (np.concatenate([array] * (DIGITS // DRAWN)) for array in drawn)
    return Digits(images, labels, "builtin")


@lru_cache(maxsize=1)
def batches_of(task: Task) -> Batches:
    """The batches of a task, a function of it."""
    digits = drawn_digits()
    images, labels = digits.images, digits.labels
    if task.design != "classifier":
        composed, labels = compose_m2nist(images, labels, SEED, 0, max(MIN_IMAGES, task.batch))
        repeats = (1, task.scale, task.scale)
        images, labels = np.tile(as_bytes(composed), repeats), np.tile(labels.astype(np.uint8), repeats)
    order = np.random.default_rng(SEED).integers(0, len(images), (SETS, task.batch))
    return Batches(images, labels, order.astype(np.int32), digits)


@dataclass(frozen=True)
class Trace:
    """What a program did in SETS steps: the losses, and afterwards Adam's means of the gradients and the parameters."""

    losses: np.ndarray
    means: Mapping[str, np.ndarray]
    parameters: Mapping[str, np.ndarray]


class Step:
    """A training step of ours on a device, as tinyfcn/training does it; call it to run it.

    source: see Batches.source. Where kernels run, a step is recorded once and then replayed, unless it is "given" its
    batches.
    """

    def __init__(self, task: Task, batches: Batches, ops: Operations, source: str, threads: int = 1) -> None:
        self.ops = ops
        self.network = Design(task.design).build(ops, SEED)
        self.initial = self.network.numpy_parameters()
        self.parallel = ParallelNetwork(self.network, threads)
        no_l2 = np.zeros(self.network.parameters.shape, np.float32)
        self.state = AdamState.create(ops, no_l2, RATE, steps=0, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
        self.batch = batches.source(ops, source)
        self.run: Callable[[], None] = self.work
        if ops.device.runs_kernels and source != "given":
            self.run = ops.device.record(self.work).replay
            self.run()  # compiles the kernels, several at once, and captures them
            self.start_again()

    def work(self) -> None:
        """The step without a recording: the very function of training."""
        training_step(self.parallel, self.state, self.batch)

    def __call__(self) -> None:
        self.run()

    def start_again(self) -> None:
        """Back to before the first step."""
        self.network.load(self.initial)
        for array in (self.state.m, self.state.v, self.state.step):
            self.ops.write(array, np.zeros(array.shape, array.dtype))

    def trace(self, steps: int = SETS) -> Trace:
        """What the first steps do."""
        self.start_again()
        with self.parallel.computing():
            for _ in range(steps):
                self()
        means = views(self.ops.to_numpy(self.state.m), self.network.parameter_shapes())
        return Trace(self.state.last_losses(self.ops, steps), means, self.network.numpy_parameters())


def differences(found: Trace, expected: Trace, initial: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The relative differences of two traces, named as in TOLERANCES; infinite where a value is not finite."""

    def way(parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([(parameters[name] - initial[name].astype(np.float64)).ravel() for name in initial])

    return {
        "losses": relative_error(found.losses, expected.losses),
        "mean gradients": max(relative_error(found.means[name], expected.means[name]) for name in initial),
        "parameters": relative_error(way(found.parameters), way(expected.parameters)),
    }


def expect_agreement(who: str, differences: Mapping[str, float], tolerances: Mapping[str, float]) -> None:
    """Raises TinyfcnError where a difference is larger than its tolerance: two programs do not do the same work."""
    wrong = [
        f"{what} by {differences[what]:.1e}, more than {tolerance:.0e}"
        for what, tolerance in tolerances.items()
        if not differences[what] <= tolerance
    ]
    if wrong:
        problem = f"{who} and our step do not do the same, so neither is timed: after {SETS} steps they differ in "
        raise TinyfcnError(problem + "; in ".join(wrong))


def same_bits(make: Callable[[], Step], steps: int = SETS * 5) -> bool:
    """Whether two runs of the step that `make` gives end in the same parameters, bit by bit."""
    first, second = (make().trace(steps).parameters for _ in range(2))
    return all(first[name].tobytes() == second[name].tobytes() for name in first)
