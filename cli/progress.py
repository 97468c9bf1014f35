"""Shows training: a progress bar on a terminal, elsewhere one line for each evaluation."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tinyfcn.environment import is_terminal, print_notice
from tinyfcn.runs import Run
from tinyfcn.training import ParallelNetwork, Reporter, Trainer

RATE_STEPS = 10  # the speed is averaged over so many reports


def main_figure(result: Mapping[str, Any]) -> tuple[str, float]:
    """The most important figure of a result, and its name."""
    for name, label in (
        ("accuracy", "test accuracy"),
        ("digit_miou", "digit mIoU"),
        ("ink_iou", "ink IoU"),
        ("pixel_accuracy", "pixel accuracy"),
    ):
        if result.get(name) is not None:
            return label, result[name]
    raise ValueError(f"no figure in {result}")


class Printer:
    """Prints lines and perhaps a bar, whatever becomes of standard output."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True, markup=False)
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress:
            self.lasting(self.progress.stop)

    def lasting(self, show: Callable[[], None], stream: TextIO | None = None) -> None:
        """Calls `show`, which prints to standard output or `stream`. Where that fails, training goes on in silence.

        It fails when the reader of a pipe has ended (`| head`), the terminal is closed or the disk is full.
        """
        try:
            show()
        except (OSError, SystemExit):  # Rich ends the program when the reader of a pipe has ended
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())

    def say(self, text: str) -> None:
        """Prints a line to standard output."""
        self.lasting(lambda: self.console.print(text))

    def notice(self, text: str) -> None:
        """Prints a line to standard error."""
        self.lasting(lambda: print_notice(text), sys.stderr)

    def start_bar(self, total: int, completed: int, *columns: str) -> None:
        """Starts a bar, on a terminal."""
        if is_terminal(sys.stdout):
            self.progress = Progress(
                BarColumn(), *map(TextColumn, columns), TimeRemainingColumn(), console=self.console
            )
            self.task = self.progress.add_task("starting", total=total, completed=completed)
            self.lasting(self.progress.start)


class ProgressReporter(Printer, Reporter):
    """Prints the loss, accuracy or IoU, images a second and the time left."""

    def __init__(self) -> None:
        super().__init__()
        self.figure = ""
        self.parallel: ParallelNetwork | None = None  # until its outputs' size is told
        self.recent: deque[tuple[float, int]] = deque(maxlen=RATE_STEPS + 1)

    def started(self, run: Run, trainer: Trainer, step: int) -> None:
        network, settings = trainer.network, trainer.settings
        device = network.ops.device_name
        if device == "cpu":
            device += f" (NumPy, {settings.threads} threads)"
        going = f"resumed after step {step:,}" if step else f"{trainer.steps:,} steps"
        self.say(
            f"{run.folder}: {network.parameters.size:,} parameters on {device}, {going} of {settings.batch} images"
        )
        self.batch, self.steps = settings.batch, trainer.steps
        self.parallel = trainer.parallel
        self.recent.append((time.perf_counter(), step))
        self.start_bar(trainer.steps, step, "{task.completed:,.0f}/{task.total:,.0f}", "{task.description}")

    def stepped(self, step: int, loss: float) -> None:
        self.recent.append((time.perf_counter(), step))
        if self.parallel:
            self.say(f"the layers' outputs take {self.parallel.activation_bytes() / 1e6:.1f} MB")
            self.parallel = None
        if self.progress and self.task is not None:
            description = f"loss {loss:.4f}  {self.figure}{self._rate():,.0f} images/s"
            self.progress.update(self.task, completed=step, description=description)

    def evaluated(self, line: dict[str, Any]) -> None:
        name, value = main_figure({"accuracy": line.get("test_accuracy"), **line})
        self.figure = f"{name} {value:.4f}  "
        width = len(f"{self.steps:,}")
        self.say(
            f"step {line['step']:>{width},}  loss {line['train_loss']:.4f}  test loss "
            f"{line['test_loss']:.4f}  {self.figure}{self._rate():,.0f} images/s  {line['seconds']:.0f} s"
        )
        self.recent.clear()  # the speed does not include the time of the evaluation
        self.recent.append((time.perf_counter(), line["step"]))

    def _rate(self) -> float:
        (start, first), (end, last) = self.recent[0], self.recent[-1]
        return (last - first) * self.batch / max(end - start, 1e-9)
