"""Whole training steps of ours, and the check that somebody else's do the same before any of them is timed.

A step takes a batch, goes forward and backward, and lets Adam update the parameters. Both sides begin with the same
weights, see the same pictures in the same order, and have the same loss and optimiser, at a constant rate.

What a batch costs them differs, always in PyTorch's favour. Its batches lie on the device just as it wants them, as
floats and 64-bit labels, several of them, with a CUDA graph captured for each, so that it neither gathers nor copies
any. Ours, on a GPU, gathers each batch from bytes and brings them into the network's range, within the step
("gathered"). On the CPU ours too is given floats ("given"). Besides, ours is timed with what training does in the
step on top: it composes fresh M2NIST pictures ("composed").

The batches are few, and take turns. More would change nothing: a step touches a hundred times the memory that its
batch has, most of it its own layers' outputs, which stay where they are in training too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tinyfcn.checks.gradcheck import relative_error
from tinyfcn.data import Digits
from tinyfcn.data.builtin_digits import draw_digits
from tinyfcn.errors import TinyfcnError
from tinyfcn.networks import Design, Network
from tinyfcn.networks.network import views
from tinyfcn.ops import Operations
from tinyfcn.reference.adam import AdamState
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.training.loop import training_step
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.sources import as_bytes

SEED = 0
RATE, BETA1, BETA2, EPSILON = 1e-4, 0.9, 0.999, 1e-8  # Adam's: their values make no step faster or slower
SETS = 4  # batches, which take turns
DRAWN, DIGITS = 500, 60_000  # digits that are drawn, and how many they are repeated to be: as many as MNIST has
MIN_PICTURES = 256  # M2NIST pictures that batches are gathered from

# How far apart two float32 programs that do the same may be after SETS steps, in norm, relative to the norm of the
# loss, of Adam's mean of the gradients and of the way that the parameters have gone. Found were at most a tenth of
# this. A wrong sign, factor or missing term is 0.1 and more. TF32 keeps ten bits of each factor instead of 23.
TOLERANCES = {"losses": 1e-5, "mean gradients": 1e-3, "parameters": 3e-2}
TF32_TOLERANCES = {"losses": 1e-2, "mean gradients": 0.3, "parameters": 0.5}


@dataclass(frozen=True)
class Task:
    """Which step: the design "classifier" or "skip", pictures a batch, and how often a picture is laid side by side
    with itself in each direction, to make larger ones."""

    design: str = "skip"
    batch: int = 16
    scale: int = 1

    def __str__(self) -> str:
        larger = f", pictures of {64 * self.scale}x{84 * self.scale}" if self.scale > 1 else ""
        return f"{self.design}, batch {self.batch}{larger}"


@dataclass(frozen=True)
class Batches:
    """What steps train on: pictures uint8 (M, H, W), labels uint8 (M,) or (M, H, W), and which of them make each batch,
    order int32 (SETS, N). `digits` are what training would compose its pictures of."""

    pictures: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    digits: Digits

    def floats(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each batch as a network takes it: float32 (N, 1, H, W), and int32 labels."""
        chosen = [(self.pictures[which], self.labels[which]) for which in self.order]
        return [((x[:, None] - np.float32(127)) / np.float32(127), labels.astype(np.int32)) for x, labels in chosen]


@cache
def drawn_digits() -> Digits:
    """Digits drawn by code: what is on a picture makes no step faster."""
    drawn = draw_digits(DRAWN, SEED)
    return Digits(*(np.concatenate([array] * (DIGITS // DRAWN)) for array in drawn), "builtin")


def batches_of(task: Task) -> Batches:
    """The batches of a task, a function of it."""
    digits = drawn_digits()
    pictures, labels = digits.images, digits.labels
    if task.design != "classifier":
        composed, labels = compose_m2nist(pictures, labels, SEED, 0, max(MIN_PICTURES, task.batch))
        repeats = (1, task.scale, task.scale)
        pictures, labels = np.tile(as_bytes(composed), repeats), np.tile(labels.astype(np.uint8), repeats)
    order = np.random.default_rng(SEED).integers(0, len(pictures), (SETS, task.batch))
    return Batches(pictures, labels, order.astype(np.int32), digits)


@dataclass(frozen=True)
class Trace:
    """What a program did in SETS steps: the losses, and afterwards Adam's means of the gradients and the parameters."""

    losses: np.ndarray
    means: Mapping[str, np.ndarray]
    parameters: Mapping[str, np.ndarray]


class Step:
    """A training step of ours on a device, as tinyfcn/training does it; call it to run it.

    Where kernels run, it is recorded once and then replayed. `source` says where its batches come from: "gathered",
    "composed" or "given", see above; a step that is given its batches is not recorded.
    """

    def __init__(
        self, task: Task, batches: Batches, ops: Operations, source: str, threads: int = 1, record: bool = True
    ) -> None:
        self.ops, self.source, self.size = ops, source, task.batch
        self.network: Network = Design(task.design).build(ops, SEED)
        self.initial = self.network.numpy_parameters()
        self.parallel = ParallelNetwork(self.network, threads)
        no_l2 = np.zeros(self.network.parameters.shape, np.float32)
        self.state = AdamState.create(ops, no_l2, RATE, steps=0, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
        self.done = 0
        if source == "composed":
            self.kept = [ops.asarray(batches.digits.images), ops.asarray(batches.digits.labels)]
        elif source == "gathered":
            self.kept = [ops.asarray(array) for array in (batches.pictures, batches.labels, batches.order)]
        else:
            self.kept = [tuple(map(ops.asarray, batch)) for batch in batches.floats()]
        self.replay = None
        if ops.device and record and source != "given":
            self.replay = ops.device.record(self.work).replay
            self.replay()  # compiles the kernels, several at once, and captures them
            self.start_again()

    def batch(self, step: Any) -> tuple[Any, Any]:
        """Pictures and labels of the step that an array on the device counts."""
        if self.source == "composed":
            return self.ops.compose_m2nist(*self.kept, SEED, step, self.size)
        if self.source == "gathered":
            return self.ops.gather_batch(*self.kept, step)
        return self.kept[self.done % SETS]

    def work(self) -> None:
        """The step itself: the very function that training calls."""
        training_step(self.parallel, self, self.state)

    def __call__(self) -> None:
        (self.replay or self.work)()
        self.done += 1

    def start_again(self) -> None:
        """Back to before the first step."""
        self.network.load(self.initial)
        for array in (self.state.m, self.state.v, self.state.step):
            self.ops.write(array, np.zeros(array.shape, array.dtype))
        self.done = 0

    def trace(self) -> Trace:
        """What the first SETS steps do."""
        self.start_again()
        for _ in range(SETS):
            self()
        losses = self.state.last_losses(self.ops, SETS)
        means = views(self.ops.to_numpy(self.state.m), self.network.parameter_shapes())
        return Trace(losses, means, self.network.numpy_parameters())


def differences(found: Trace, expected: Trace, initial: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How far apart two traces are, by what TOLERANCES has; infinite where a number is none."""

    def gone(parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([(parameters[name] - initial[name].astype(np.float64)).ravel() for name in initial])

    return {
        "losses": relative_error(found.losses.astype(np.float64), expected.losses.astype(np.float64)),
        "mean gradients": max(relative_error(found.means[name], expected.means[name]) for name in initial),
        "parameters": relative_error(gone(found.parameters), gone(expected.parameters)),
    }


def expect_agreement(
    who: str, found: Trace, expected: Trace, initial: Mapping[str, np.ndarray], tolerances: Mapping[str, float]
) -> dict[str, float]:
    """The differences.

    Raises:
        TinyfcnError: one is larger than `tolerances` has it: the two do not do the same work.
    """
    apart = differences(found, expected, initial)
    wrong = [
        f"{what} by {apart[what]:.1e}, more than {most:.0e}"
        for what, most in tolerances.items()
        if not apart[what] <= most
    ]
    if wrong:
        raise TinyfcnError(
            f"{who} and our step do not do the same, so neither is timed: after {SETS} steps they differ in "
            f"{'; in '.join(wrong)}"
        )
    return apart


def same_bits(make: Callable[[], Step], steps: int = SETS * 5) -> bool:
    """Whether two runs of the step that make() gives end in the same parameters, bit by bit."""
    ends = []
    for _ in range(2):
        step = make()
        with step.parallel.computing():
            for _ in range(steps):
                step()
        ends.append(step.ops.to_numpy(step.network.parameters).tobytes())
    return ends[0] == ends[1]
