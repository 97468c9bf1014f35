"""The training loop: step, evaluate, save, and stop and go on without losing a bit."""

import json
import shlex
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyfcn.devices.device import Recording
from tinyfcn.errors import CheckpointError, TinyfcnError
from tinyfcn.networks import Network
from tinyfcn.reference.adam import AdamState
from tinyfcn.runs import RESULT, STATE, Run, checked_parameters
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import Settings
from tinyfcn.training.sources import Composed, Stored

# Steps after which the losses are read and reported. Reading makes a GPU wait, which takes longer than a step.
REPORT_EVERY = {"cpu": 10, "emulator": 10, "cuda": 100}


class Reporter:
    """Told how training goes. This one keeps silent; the command line has one that prints."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""

    def started(self, run: Run, trainer: "Trainer", step: int) -> None:
        """Training begins, or goes on, after `step` steps."""

    def stepped(self, step: int, loss: float) -> None:
        """So many steps are done; `loss` is the mean of the last few."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """A line was added to metrics.jsonl."""


class Interrupted(TinyfcnError):
    """Ctrl-C: the run is saved, and the message says how to go on."""


class Trainer(ABC):
    """What the loop trains: a network with its optimiser, its pictures and its evaluation."""

    kind: str  # the run folder's name before its number: "cnn" or "fcn"
    settings: Settings
    network: Network
    parallel: ParallelNetwork
    state: AdamState
    pictures: Stored | Composed
    steps: int
    evaluate_every: int
    first_trained: int = 0
    ignore_index: int | None = None
    unlabelled: str = "zero"
    recording: Recording | None = None

    def begin(self) -> None:
        """Prepares a new run, not one that is resumed, by loading pretrained weights where there are any."""
        return

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """The figures on the test pictures."""

    @abstractmethod
    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """The figures as a line of metrics.jsonl has them."""

    @abstractmethod
    def draw(self, run: Run) -> None:
        """Draws the run's figures."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything that is needed to make this trainer again."""

    def adam_state(self, l2: np.ndarray) -> AdamState:
        """Adam before its first step, as the settings want it; l2 (P,) as AdamState has it."""
        chosen = self.settings
        steps = self.steps if chosen.schedule == "cosine" else 0
        return AdamState.create(
            self.network.ops, l2, chosen.learning_rate, steps, warmup=chosen.warmup, beta2=chosen.beta2
        )

    def work(self) -> None:
        """One step of training, see training_step."""
        rest = (self.first_trained, self.ignore_index, self.unlabelled)
        training_step(self.parallel, self.state, self.pictures.batch, *rest)

    def step(self, step: int) -> None:
        """Step 0 .. steps - 1, which is the next one. Where kernels run, it is recorded once, and then replayed."""
        self.pictures.prepare(step)
        device = self.network.ops.device
        if device is None:
            self.work()
            return
        if self.recording is None:
            self.recording = device.record(self.work)
        self.recording.replay()

    def save(self, run: Run, losses: list[float], seconds: float | None = None) -> None:
        """Writes the weights and all that is needed to go on.

        `seconds` only between evaluations, which record them: equal runs then end in equal files.
        """
        to_numpy = self.network.ops.to_numpy
        adam = {f"adam.{name}": to_numpy(getattr(self.state, name)) for name in ("m", "v", "step")}
        recent = {"loop.losses": np.array(losses, np.float64)}
        design = json.dumps(self.config().get("design", {"name": "classifier"}))
        metadata = {"design": design} if seconds is None else {"design": design, "seconds": str(seconds)}
        run.save({**self.network.numpy_parameters(), **adam, **recent}, metadata)

    def restore(self, run: Run) -> tuple[list[float], float | None]:
        """Reads what `save` wrote; gives back the losses since the last evaluation and the seconds, if it has any."""
        tensors, metadata = run.load()
        source = run.folder / STATE
        self.network.load(checked_parameters(tensors, self.network.parameter_shapes(), source))
        ops = self.network.ops
        size = self.state.m.shape
        ops.write(self.state.m, checked_parameters(tensors, {"adam.m": size}, source)["adam.m"])
        ops.write(self.state.v, checked_parameters(tensors, {"adam.v": size}, source)["adam.v"])
        if not {"adam.step", "loop.losses"} <= tensors.keys():
            raise CheckpointError(f"{source} holds weights but no training to go on with")
        step = tensors["adam.step"]
        if step.shape != (1,) or step.dtype != np.int32 or not 0 <= step[0] <= self.steps:
            raise CheckpointError(f"{source}: adam.step is {step.tolist()}, expected one integer, 0 to {self.steps}")
        ops.write(self.state.step, step)
        return list(tensors["loop.losses"]), float(metadata["seconds"]) if "seconds" in metadata else None


def training_step(
    parallel: ParallelNetwork,
    state: AdamState,
    batch: Callable[[Any], tuple[Any, Any]],
    first_trained: int = 0,
    ignore_index: int | None = None,
    unlabelled: str = "zero",
) -> None:
    """Batch, forward, loss, backward, update.

    The state counts the steps, and keeps the loss: nothing here comes from the host or goes to it.
    """
    network, trained = parallel.network, slice(first_trained, None)
    network.ops.adam_schedule(state)
    images, labels = batch(state.step)
    loss = parallel.gradients(images, labels, ignore_index, unlabelled)
    network.ops.adam_step(network.parameters[trained], network.gradients[trained], state, loss)


def train(run: Run, trainer: Trainer, reporter: Reporter, resumed: bool = False) -> dict[str, Any]:
    """Trains to the end, and gives back what result.json then holds.

    Raises:
        Interrupted: on Ctrl-C, after the step at hand is done and saved.
        TinyfcnError: the loss is no number any more, or the disk takes nothing.
    """
    losses, seconds_before = trainer.restore(run) if resumed else ([], 0.0)
    step = int(trainer.network.ops.to_numpy(trainer.state.step)[0])
    records = [record for record in run.metrics() if record["step"] <= step]
    if seconds_before is None:
        seconds_before = records[-1]["seconds"] if records else 0.0
    reporter.started(run, trainer, step)
    report_every = REPORT_EVERY[trainer.network.ops.device_name]
    waiting = 0  # losses still on the device
    result: dict[str, Any] | None = None
    start = time.perf_counter()
    with _ctrl_c() as stop, trainer.parallel.computing():
        while step < trainer.steps:
            trainer.step(step)
            step += 1
            waiting += 1
            evaluate_now = step % trainer.evaluate_every == 0 or step == trainer.steps
            if waiting == report_every or evaluate_now or stop.is_set():
                read = trainer.state.last_losses(trainer.network.ops, waiting)
                losses += [_finite(trainer, float(loss), step, records) for loss in read]
                reporter.stepped(step, float(np.mean(losses[-waiting:])))
                waiting = 0
            if evaluate_now:
                result = trainer.evaluate()
                _finite(trainer, result["loss"], step, records)
                seconds = seconds_before + time.perf_counter() - start
                record = {"step": step, "seconds": round(seconds, 2), "train_loss": float(np.mean(losses))}
                records.append({**record, **trainer.record(result)})
                run.write_metrics(records)
                losses = []
                trainer.save(run, losses)
                reporter.evaluated(records[-1])
            if stop.is_set() and step < trainer.steps:
                trainer.save(run, losses, seconds_before + time.perf_counter() - start)
                raise Interrupted(
                    f"stopped after step {step:,} of {trainer.steps:,}, saved in {run.folder}; "
                    f"to go on: tinyfcn train-{trainer.kind} --resume {shlex.quote(str(run.folder))}"
                )
        if not records:
            raise CheckpointError(f"{run.folder} is trained to its end but has no metrics.jsonl: start a new run")
        if result is None:  # stopped between its last step and its result: it has its weights, and is measured again
            result = trainer.evaluate()
        trainer.draw(run)
    result = {**result, "steps": step, "seconds": records[-1]["seconds"]}
    run.write_json(RESULT, result)
    return result


def _finite(trainer: Trainer, loss: float, step: int, records: list[dict[str, Any]]) -> float:
    if not np.isfinite(loss):
        kept = f"the weights of step {records[-1]['step']:,} are kept" if records else "no weights were saved"
        raise TinyfcnError(
            f"the loss became {loss} near step {step:,}: try a lower --learning-rate than "
            f"{trainer.settings.learning_rate:g}; {kept}"
        )
    return loss


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one stops at once. In a thread of a notebook there is none."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
