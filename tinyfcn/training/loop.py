"""The training loop: it trains, evaluates and saves. A run that was stopped is resumed to the same bits."""

import json
import shlex
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.adam_state import MAX_STEPS, AdamState
from tinyfcn.devices.device import Array, Recording
from tinyfcn.errors import CheckpointError, TinyfcnError
from tinyfcn.fields import expect_number, shown
from tinyfcn.model import saved_design
from tinyfcn.networks import Network
from tinyfcn.runs import CONFIG, RANGES, RESULT, STATE, Run, checked_parameters
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import Settings
from tinyfcn.training.sources import Composed, Stored

# Ctrl-C; the end of a Slurm job or a container; the end of a terminal, which Windows has not.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

# How many steps lie between two readings of the losses. Reading makes a GPU wait, which takes longer than a step.
REPORT_EVERY = {"cpu": 10, "emulator": 10, "cuda": 100}


class Reporter:
    """Is told how training proceeds. This one prints nothing; the command line has one that does."""

    def notice(self, text: str) -> None:
        """Takes a message for the user."""

    def started(self, run: Run, trainer: "Trainer", step: int) -> None:
        """Training begins after `step` steps: 0, or more if it was resumed."""

    def stepped(self, step: int, loss: float) -> None:
        """`step` steps are done; `loss` is the mean of the last few."""

    def evaluated(self, line: dict[str, Any]) -> None:
        """`line` was added to metrics.jsonl."""


class Interrupted(TinyfcnError):
    """Ctrl-C was pressed, or another signal of STOPPING came. The run is saved; the message says how to resume it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def training_step(
    parallel: ParallelNetwork,
    state: AdamState,
    batch: Callable[[Array], tuple[Array, Array]],
    first_trained: int = 0,
    ignore_index: int | None = None,
    unlabelled: str = "zero",
) -> None:
    """One step of training: batch, forward, loss, backward, update.

    The step's number and its loss are kept in `state`, on the device. The host sends and reads nothing, so the step can
    be recorded and replayed.

    Args:
        batch: gives the network's input and the labels of the step that a device array (1,) counts.
        first_trained: the index in `network.parameters` of the first one that is trained.
        ignore_index, unlabelled: see `softmax_cross_entropy`.
    """
    network, trained = parallel.network, slice(first_trained, None)
    network.ops.adam_schedule(state)
    with network.packed_weights():
        x, labels = batch(state.step)
        loss = parallel.gradients(x, labels, ignore_index, unlabelled)
    network.ops.adam_step(network.parameters[trained], network.gradients[trained], state, loss)


class Trainer(ABC):
    """A network with its optimiser, its batches and its evaluation, which the loop trains."""

    kind: str  # the run folder's name before its number: "cnn" or "fcn"
    settings: Settings
    network: Network
    parallel: ParallelNetwork
    state: AdamState
    batches: Stored | Composed
    steps: int
    evaluate_every: int
    data: str  # the digest of the images and labels
    first_trained: int = 0
    ignore_index: int | None = None
    unlabelled: str = "zero"
    recording: Recording | None = None

    def begin(self) -> None:
        """Prepares a new run by loading pretrained weights, where there are any. A resumed run does not need it."""
        return

    @abstractmethod
    def measure(self) -> None:
        """Launches once what `evaluate` and `draw` launch, so that no kernel is compiled after the first step."""

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """The figures measured on the test images."""

    @abstractmethod
    def metrics(self, result: dict[str, Any]) -> dict[str, Any]:
        """The figures as they stand in a line of metrics.jsonl."""

    @abstractmethod
    def draw(self, run: Run) -> None:
        """Draws the run's figures."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything that `trainer_of` needs to make this trainer again."""

    def adam_state(self, l2: np.ndarray) -> AdamState:
        """Adam before its first step, with the settings' schedule; l2 (P,): see AdamState."""
        chosen = self.settings
        if self.steps > MAX_STEPS:
            raise TinyfcnError(f"{self.steps:,} steps are too many to count: at most {MAX_STEPS:,}; train fewer epochs")
        steps = self.steps if chosen.schedule == "cosine" else 0
        return AdamState.create(
            self.network.ops, l2, chosen.learning_rate, steps, warmup=chosen.warmup, beta2=chosen.beta2
        )

    def work(self) -> None:
        """One step of training, see training_step."""
        rest = (self.first_trained, self.ignore_index, self.unlabelled)
        training_step(self.parallel, self.state, self.batches.batch, *rest)

    def step(self, step: int) -> None:
        """The step of this number, 0 .. steps - 1. Where kernels run, the first is recorded, and all are replayed."""
        self.batches.prepare(step)
        device = self.network.ops.device
        if not device.runs_kernels:
            self.work()
            return
        if self.recording is None:
            device.prepare(self.measure)
            self.recording = device.record(self.work)
        self.recording.replay()

    def save(self, run: Run, losses: list[float], seconds: float | None = None) -> None:
        """Writes the weights, Adam's state and the losses since the last evaluation.

        `seconds` is given only between evaluations. At an evaluation metrics.jsonl holds it, so that equal runs end in
        equal files.
        """
        to_numpy = self.network.ops.to_numpy
        adam = {f"adam.{name}": to_numpy(getattr(self.state, name)) for name in ("m", "v", "step")}
        recent = {"loop.losses": np.array(losses, np.float64)}
        design = json.dumps(self.config().get("design", {"name": "classifier"}))
        metadata = {"design": design} if seconds is None else {"design": design, "seconds": str(seconds)}
        run.save({**self.network.numpy_parameters(), **adam, **recent}, metadata)

    def restore(self, run: Run) -> tuple[list[float], float | None]:
        """Reads what `save` wrote. Returns the losses since the last evaluation, and the seconds if they were saved."""
        tensors, metadata = run.load()
        source = run.folder / STATE
        if saved_design(metadata, source) != self.network.design:
            raise CheckpointError(f"{source} holds another design than {run.folder / CONFIG}: the two are of two runs")
        self.network.load(checked_parameters(tensors, self.network.parameter_shapes(), source))
        ops = self.network.ops
        size = self.state.m.shape
        if not {"adam.step", "loop.losses"} <= tensors.keys():
            raise CheckpointError(f"{source} holds weights but no training state to resume")
        moments = checked_parameters(tensors, {"adam.m": size, "adam.v": size}, source)
        if (moments["adam.v"] < 0).any():
            raise CheckpointError(f"{source}: adam.v has values below 0, expected means of squares")
        step, losses = tensors["adam.step"], tensors["loop.losses"]
        if step.shape != (1,) or step.dtype != np.int32 or not 0 <= step[0] <= self.steps:
            raise CheckpointError(
                f"{source}: adam.step is {step.dtype} {shown(step.tolist())}, expected one int32, 0 to {self.steps}"
            )
        since = 0 if step[0] == self.steps else int(step[0]) % self.evaluate_every
        if losses.shape != (since,) or losses.dtype != np.float64 or not np.isfinite(losses).all():
            raise CheckpointError(
                f"{source}: loop.losses is {losses.dtype} {losses.shape} {shown(losses.tolist())}, expected the finite "
                f"float64 losses of the {since} steps since the last evaluation"
            )
        for name in ("m", "v"):
            ops.write(getattr(self.state, name), moments[f"adam.{name}"])
        ops.write(self.state.step, step)
        return losses.tolist(), _saved_seconds(metadata, source)


def _saved_seconds(metadata: Mapping[str, str], source: Path) -> float | None:
    if "seconds" not in metadata:
        return None
    try:
        seconds = float(metadata["seconds"])
        expect_number("seconds", seconds, *RANGES["seconds"])
    except ValueError:
        found = shown(metadata["seconds"])
        raise CheckpointError(f"{source}: seconds is {found}, expected a number of seconds from 0") from None
    return seconds


def train(run: Run, trainer: Trainer, reporter: Reporter, resumed: bool = False) -> dict[str, Any]:
    """Trains to the end, and returns the content of result.json.

    Raises:
        Interrupted: on a signal of STOPPING, after the current step is done and saved.
        TinyfcnError: the loss became NaN or infinite, or the disk is full.
    """
    losses, seconds_before = trainer.restore(run) if resumed else ([], 0.0)
    step = int(trainer.network.ops.to_numpy(trainer.state.step)[0])
    lines = [line for line in run.metrics() if line["step"] <= step]
    if seconds_before is None:
        seconds_before = lines[-1]["seconds"] if lines else 0.0
    reporter.started(run, trainer, step)
    report_every = REPORT_EVERY[trainer.network.ops.device_name]
    waiting = 0  # steps whose losses were not read from the device yet
    result: dict[str, Any] | None = None
    start = time.perf_counter()
    with stop_signals() as received, trainer.parallel.computing():
        while step < trainer.steps:
            trainer.step(step)
            step += 1
            waiting += 1
            evaluate_now = step % trainer.evaluate_every == 0 or step == trainer.steps
            stop = bool(received)  # once a step: what is saved below holds the losses that are read here
            if waiting == report_every or evaluate_now or stop:
                read = trainer.state.last_losses(trainer.network.ops, waiting)
                losses += [_finite(trainer, float(loss), step, lines) for loss in read]
                reporter.stepped(step, float(np.mean(losses[-waiting:])))
                waiting = 0
            if evaluate_now:
                result = trainer.evaluate()
                _finite(trainer, result["loss"], step, lines)
                seconds = seconds_before + time.perf_counter() - start
                line = {"step": step, "seconds": round(seconds, 2), "train_loss": float(np.mean(losses))}
                lines.append({**line, **trainer.metrics(result)})
                run.write_metrics(lines)
                losses = []
                trainer.save(run, losses)
                reporter.evaluated(lines[-1])
            if stop and step < trainer.steps:
                trainer.save(run, losses, seconds_before + time.perf_counter() - start)
                raise Interrupted(
                    f"stopped after step {step:,} of {trainer.steps:,}, saved in {run.folder}; "
                    f"to resume: tinyfcn train-{trainer.kind} --resume {shlex.quote(str(run.folder))}",
                    received[0],
                )
        if not lines:
            raise CheckpointError(f"{run.folder} is trained to its end but has no metrics.jsonl: start a new run")
        if result is None:  # the run was stopped after its last step, before its result was written
            result = trainer.evaluate()
        result = {**result, "steps": step, "seconds": lines[-1]["seconds"]}
        run.write_json(RESULT, result)
        try:
            trainer.draw(run)
        except Exception as error:  # whatever it is, it costs the figures only
            reason = str(error).partition("\n")[0] or type(error).__name__
            reporter.notice(f"{run.folder} is trained and saved, but not all of its figures are drawn: {reason}")
    return result


def _finite(trainer: Trainer, loss: float, step: int, lines: list[dict[str, Any]]) -> float:
    if not np.isfinite(loss):
        kept = f"the weights of step {lines[-1]['step']:,} are kept" if lines else "no weights were saved"
        raise TinyfcnError(
            f"the loss became {loss} near step {step:,}: try a lower --learning-rate than "
            f"{trainer.settings.learning_rate:g}; {kept}"
        )
    return loss


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The signals of STOPPING that came, none at first. A second one stops at once.

    A signal that is ignored, as nohup ignores SIGHUP, stays ignored. Only a program's main thread can be told.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None: not by Python, which could not restore it
                before[number] = handler
                signal.signal(number, handle)
    try:
        yield received
    finally:
        restore()
