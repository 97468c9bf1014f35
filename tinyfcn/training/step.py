"""A training step as an object: run, recorded, timed, and taken apart into the calls of operations and their launches.

It trains with a constant rate on digits drawn by code, so that nothing has to be loaded. Few images are enough: a step
touches a hundred times the memory of its batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from tinyfcn.adam_state import AdamState
from tinyfcn.checks.parts import Part, Recorder, note_calls, split
from tinyfcn.data import Digits
from tinyfcn.data.builtin_digits import draw_digits
from tinyfcn.devices.device import MULTIPROCESSORS, Launch
from tinyfcn.networks import Design
from tinyfcn.ops import Operations
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.training.loop import training_step
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.sources import Composed, Stored, as_bytes

SEED = 0
RATE, BETA1, BETA2, EPSILON = 1e-4, 0.9, 0.999, 1e-8  # Adam's: their values make no step faster or slower
DRAWN, DIGITS = 500, 60_000  # digits that are drawn, and repeated to be as many as MNIST's
MIN_IMAGES = 256  # M2NIST images that batches are gathered from


@dataclass(frozen=True)
class Task:
    """Which step: its design, images a batch, and how often an image is repeated each way."""

    design: str = "skip"
    batch: int = 16
    scale: int = 1

    @property
    def composed(self) -> bool:
        """Whether training composes fresh images in each step."""
        return self.design != "classifier"

    def __str__(self) -> str:
        larger = f", images of {64 * self.scale}x{84 * self.scale}" if self.scale > 1 else ""
        return f"{self.design}, batch {self.batch}{larger}"


@cache
def drawn_digits() -> Digits:
    """Digits drawn by code: what an image shows makes no step faster."""
    images, labels = (np.concatenate([array] * (DIGITS // DRAWN)) for array in draw_digits(DRAWN, SEED))
    return Digits(images, labels, "builtin")


@lru_cache(maxsize=1)
def images_of(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The images that a task's batches are gathered from, uint8 (M, H, W), and their labels."""
    digits, tiles = drawn_digits(), (1, task.scale, task.scale)
    if task.design == "classifier":
        return digits.images, digits.labels
    x, labels = compose_m2nist(digits.images, digits.labels, SEED, 0, max(MIN_IMAGES, task.batch))
    return np.tile(as_bytes(x), tiles), np.tile(labels, tiles)


class Step:
    """A training step of ours on a device, as tinyfcn/training does it; call it to run it.

    composed: with fresh M2NIST images composed in each step, as in training. Where kernels run, the step is recorded
    once and then replayed.
    """

    def __init__(self, task: Task, ops: Operations, composed: bool = False, threads: int = 1) -> None:
        self.ops, self.design = ops, Design(task.design)
        self.network = self.design.build(ops, SEED)
        self.initial = self.network.numpy_parameters()
        self.parallel = ParallelNetwork(self.network, threads)
        no_l2 = np.zeros(self.network.parameters.shape, np.float32)
        self.state = AdamState.create(ops, no_l2, RATE, steps=0, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
        self.source: Composed | Stored
        if composed:
            self.source = Composed(ops, drawn_digits(), self.design, task.batch, SEED)
        else:
            self.source = Stored(ops, *images_of(task), task.batch, SEED)
        self.source.prepare(0)
        self.run: Callable[[], None] = self.work
        if ops.device.runs_kernels:
            self.run = ops.device.record(self.work).replay
            self.run()  # compiles the kernels, several at once, and captures them
            self.start_again()

    def work(self) -> None:
        """The step without a recording: the very function of training."""
        training_step(self.parallel, self.state, self.source.batch)

    def __call__(self) -> None:
        self.run()

    def batches(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batches of the first `count` steps on the host: float32 (N, 1, H, W), and int32 labels."""
        steps = np.arange(count, dtype=np.int32)[:, None]
        pairs = [self.source.batch(self.ops.asarray(step)) for step in steps]
        return [(self.ops.to_numpy(x), self.ops.to_numpy(labels)) for x, labels in pairs]

    def start_again(self) -> None:
        """Back to before the first step."""
        self.network.load(self.initial)
        for array in (self.state.m, self.state.v, self.state.step):
            self.ops.write(array, np.zeros(array.shape, array.dtype))


def _counted(task: Task, ops: Operations) -> Step:
    """A step whose operations or launches are noted. It packs its weights, as where kernels run."""
    step = Step(task, ops, composed=task.composed)
    step.network.packs = True
    return step


def parts_of(task: Task, ops: Operations, multiprocessors: int = MULTIPROCESSORS) -> list[Part]:
    """All parts of a training step, in order; on the CPU with the launches that a GPU of so many multiprocessors gets.

    Arrays hold what they do in training, and parameters what they held before the step. `ops` must have no other user.
    """
    step = _counted(task, ops)
    calls = note_calls(ops)
    with step.parallel.computing():
        step.work()
    step.start_again()
    layers = {id(value): name.split(".")[0] for name, value in step.network.parameter.items()}
    named = [replace(call, layer=layers.get(id(call.arguments.get("weight")), "")) for call in calls]
    device = ops.device if ops.device.runs_kernels else Recorder()
    if device is not ops.device:
        device.multiprocessors = multiprocessors
    return [part for call in named for part in split(call, device) if part.launches]


def launches_of_step(task: Task, multiprocessors: int = MULTIPROCESSORS) -> list[Launch]:
    """The launches of a training step as a GPU of so many multiprocessors gets them, with their streams."""
    device = Recorder()
    device.multiprocessors = multiprocessors
    step = _counted(task, Operations(device))
    return step.ops.device.record(step.work).launches
