"""How training is shown: a progress bar on a terminal, one line for each evaluation elsewhere."""

import sys
import time
from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tinyfcn.runs import Run
from tinyfcn.training import Reporter, Trainer

RATE_STEPS = 10  # reports over which the speed is averaged


class ProgressReporter(Reporter):
    """Loss, accuracy or IoU, pictures a second, time left."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.figure = ""
        self.recent: deque[tuple[float, int]] = deque(maxlen=RATE_STEPS + 1)

    def __enter__(self) -> "ProgressReporter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress:
            self.progress.stop()

    def notice(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def started(self, run: Run, trainer: Trainer, step: int) -> None:
        network, settings = trainer.network, trainer.settings
        device = network.ops.device_name
        if device == "cpu":
            device += f" (NumPy, {settings.threads} threads)"
        going = f"going on after step {step:,}" if step else f"{trainer.steps:,} steps"
        self.console.print(
            f"{run.folder}: {network.parameters.size:,} parameters on {device}, {going} of {settings.batch} pictures"
        )
        self.batch, self.steps = settings.batch, trainer.steps
        self.network = network
        self.replicas = len(trainer.parallel.networks)
        self.recent.append((time.perf_counter(), step))
        if self.console.is_terminal:
            self.progress = Progress(
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.progress.add_task("starting", total=trainer.steps, completed=step)
            self.progress.start()

    def stepped(self, step: int, loss: float) -> None:
        first = len(self.recent) == 1
        self.recent.append((time.perf_counter(), step))
        if first:
            whole = self.network.activation_bytes() * self.replicas
            self.console.print(f"activations of a step: {whole / 1e6:.1f} MB")
        if self.progress:
            description = f"loss {loss:.4f}  {self.figure}{self._rate():,.0f} pictures/s"
            self.progress.update(self.task, completed=step, description=description)

    def evaluated(self, record: dict[str, Any]) -> None:
        names = {"test_accuracy": "accuracy", "digit_miou": "digit mIoU", "ink_iou": "ink IoU"}
        shown = {names[name]: record[name] for name in names if record.get(name) is not None}
        if "digit mIoU" in shown:
            shown.pop("ink IoU", None)
        figures = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self.figure = f"{figures}  "
        width = len(f"{self.steps:,}")
        self.console.print(
            f"step {record['step']:>{width},}  loss {record['train_loss']:.4f}  test loss "
            f"{record['test_loss']:.4f}  {figures}  {self._rate():,.0f} pictures/s  {record['seconds']:.0f} s"
        )
        self.recent.clear()  # the time that an evaluation takes is not the steps'
        self.recent.append((time.perf_counter(), record["step"]))

    def _rate(self) -> float:
        (start, first), (end, last) = self.recent[0], self.recent[-1]
        return (last - first) * self.batch / max(end - start, 1e-9)
