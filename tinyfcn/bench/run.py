"""What `tinyfcn bench` measures, in order: that a step is right, how long it takes, where the time goes, how it grows.

Everything ends up in one dictionary, of numbers, texts and lists, which is what --json writes. Times are in seconds.
"""

import gc
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from tinyfcn.bench import ceilings, kernels
from tinyfcn.bench.resources import CARDS, floor_seconds
from tinyfcn.bench.steps import (
    TF32_TOLERANCES,
    TOLERANCES,
    Batches,
    Step,
    Task,
    batches_of,
    expect_agreement,
    same_bits,
)
from tinyfcn.bench.timing import Clock, Patience, Timing, gpu_clock, in_turn, line_through, wall_clock
from tinyfcn.bench.torch_kernels import Equivalents
from tinyfcn.bench.torch_steps import EAGER, GRAPH, ON_CPU, ON_GPU, Mode, TorchStep, import_torch, settings
from tinyfcn.devices import cuda
from tinyfcn.errors import TinyfcnError
from tinyfcn.operations import on
from tinyfcn.training.settings import available_threads

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long. `batches` are the design skip's; None: as many as the device can do in time.

    card: whose datasheet gives the kernels' floors where there is no GPU. sizes: of the sweep, batches and multiples of
    a picture's sides; none that takes longer than `longest` seconds a step is tried on the way up.
    """

    device: str = "auto"
    batches: tuple[int, ...] | None = None
    classifier_batch: int = 128
    kernel_batch: int = 16
    parts: frozenset[str] = frozenset({"steps", "kernels"})
    card: str = "h200"
    threads: int = field(default_factory=available_threads)
    step_patience: Patience | None = None
    kernel_patience: Patience = field(default_factory=lambda: Patience(0.2))
    sweep_patience: Patience = field(default_factory=lambda: Patience(0.5))
    sweep_batches: tuple[int, ...] = tuple(1 << k for k in range(13))
    sweep_scales: tuple[int, ...] = (1, 2, 3, 4)
    scales_batch: int | None = None
    longest: float = 1.0


QUICK = Plan(
    batches=(1,),
    classifier_batch=4,
    kernel_batch=1,
    step_patience=Patience(0.01, 2, 0),
    kernel_patience=Patience(0.01, 2, 0),
    sweep_patience=Patience(0.01, 2, 0),
    sweep_batches=(1, 2),
    sweep_scales=(1, 2),
    scales_batch=1,
)


class Bench:
    """Measures by a plan. `say` is told what comes next, before it begins."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan, self.say = plan, say
        self.ops = on(plan.device)
        self.device = self.ops.device_name
        self.on_gpu = self.device == "cuda"
        self.clock: Clock = gpu_clock if self.on_gpu else wall_clock
        say(f"{machine_name(self.device)}: looking for PyTorch")
        self.torch = import_torch(self.device)
        self.fair = "gathered" if self.on_gpu else "given"  # where batches come from, see steps.py

    def run(self) -> dict[str, Any]:
        """All that the plan asks for.

        Raises:
            TinyfcnError: two programs that should do the same do not; no such device.
        """
        plan = self.plan
        result: dict[str, Any] = {"machine": self.machine()}
        batches = plan.batches or ((16, 64, 256, 1024) if self.on_gpu else (16, 64))
        tasks = [Task("classifier", plan.classifier_batch), *(Task("skip", batch) for batch in batches)]
        if "steps" in plan.parts:
            result["same_bits"] = {str(task): self.repeats(task) for task in tasks[:2]}
            result["steps"] = [self.step(task) for task in tasks]
        if "kernels" in plan.parts:
            result["kernels"] = self.kernels(Task("skip", plan.kernel_batch))
        if "sweep" in plan.parts:
            result["sweep"] = self.sweep()
        return result

    def machine(self) -> dict[str, Any]:
        """What the measurements depend on."""
        found = {"name": machine_name(self.device), "device": self.device, "python": platform.python_version()}
        found["numpy"] = np.__version__
        if self.on_gpu:
            found["cupy"] = cuda.import_cupy().__version__
        else:
            found["threads"] = self.plan.threads
        return found | {"torch": self.torch.__version__ if self.torch else None}

    def ours(self, task: Task, batches: Batches, source: str) -> Step:
        return Step(task, batches, self.ops, source, self.plan.threads)

    def theirs(
        self, task: Task, batches: Batches, mine: Step, mode: Mode, expected: Any
    ) -> tuple[TorchStep, dict[str, float]]:
        """PyTorch's step, and how far it was from ours, `expected`, after some steps: not far."""
        step = TorchStep(self.torch, task, batches, mine.initial, mode, self.device)
        tolerances = TF32_TOLERANCES if mode.tf32 else TOLERANCES
        who = f"{task}: PyTorch ({mode.name})"
        return step, expect_agreement(who, expected, step.trace(), mine.initial, tolerances)

    def repeats(self, task: Task) -> bool:
        """Whether two runs with one seed give the same bits."""
        self.say(f"{task}: two runs with one seed")
        batches = batches_of(task)
        return same_bits(lambda: self.ours(task, batches, "gathered"))

    def step(self, task: Task) -> dict[str, Any]:
        """A task's step, ours and PyTorch's in every mode, and the ratios."""
        self.say(f"{task}: our step")
        patience = self.plan.step_patience or (Patience(1, 100) if self.on_gpu else Patience(10, 60, 0))
        batches = batches_of(task)
        mine = self.ours(task, batches, self.fair)
        trained = self.ours(task, batches, "composed" if task.design == "skip" else "gathered")
        runs: dict[str, Any] = {"ours": mine, "trained": trained}
        apart, failed = {}, {}
        with mine.parallel.computing():
            expected = mine.trace()
            if self.torch and self.on_gpu:
                self.torch._dynamo.reset()  # it compiles one function only so often, and this is a new task
            for mode in (ON_GPU if self.on_gpu else ON_CPU) if self.torch else ():
                self.say(f"{task}: PyTorch, {mode.name}")
                with settings(self.torch, mode, self.plan.threads):
                    try:
                        runs[mode.name], apart[mode.name] = self.theirs(task, batches, mine, mode, expected)
                    except TinyfcnError:
                        raise
                    except Exception as error:  # a compiler that is missing, too little memory: there are other modes
                        failed[mode.name] = reason(error)
            self.say(f"{task}: timing {', '.join(runs)}")
            with settings(self.torch, EAGER, self.plan.threads) if self.torch else nullcontext():
                times = in_turn(runs, self.clock, patience)
            torch_times = {mode: times[mode] for mode in apart}
            best = min(torch_times, key=lambda mode: torch_times[mode].seconds, default=None)
            tf32 = None
            if best and self.on_gpu:
                runs = {"ours": mine}
                self.free()
                tf32 = self.in_tf32(task, batches, mine, best, expected, patience, failed)
        mine = trained = runs = None
        self.free()
        seconds = times["ours"].seconds
        return {
            "design": task.design,
            "batch": task.batch,
            "ours": asdict(times["ours"]),
            "trained": asdict(times["trained"]),
            "torch": {mode: asdict(timing) for mode, timing in torch_times.items()},
            "best": best,
            "tf32": asdict(tf32) if tf32 else None,
            "eager_ratio": torch_times["eager"].seconds / seconds if "eager" in torch_times else None,
            "best_ratio": torch_times[best].seconds / seconds if best else None,
            "differences": apart,
            "failed": failed,
        }

    def in_tf32(
        self,
        task: Task,
        batches: Batches,
        mine: Step,
        best: str,
        expected: Any,
        patience: Patience,
        failed: dict[str, str],
    ) -> Timing | None:
        """PyTorch's fastest mode with TF32, which is less exact: to be seen beside, not to be compared with."""
        mode = replace(next(mode for mode in ON_GPU if mode.name == best), tf32=True)
        self.say(f"{task}: PyTorch, {best} with TF32")
        with settings(self.torch, mode, self.plan.threads):
            try:
                step, _ = self.theirs(task, batches, mine, mode, expected)
                return in_turn({"ours": mine, "tf32": step}, self.clock, patience)["tf32"]
            except Exception as error:  # as above; and if it differs too much, that is what is to be said of it
                failed["TF32"] = reason(error)
                return None

    def kernels(self, task: Task) -> dict[str, Any]:
        """The kernels of a task's step: what they must do, what they use, and on a GPU how long they take."""
        self.say(f"{task}: its kernels")
        plan, card = self.plan, CARDS[self.plan.card]
        device = self.ops.device if self.on_gpu else kernels.Recorder()
        measured = None
        if self.on_gpu:
            self.say("the ceilings of memory and of multiply-adds")
            measured = ceilings.measure(device, self.clock, plan.kernel_patience)
        bandwidth, operations = (
            (measured.bandwidth, measured.operations) if measured else (card.bandwidth, card.operations)
        )
        parts = kernels.parts_of(task, batches_of(task), device, runs=self.on_gpu)
        times: Sequence[kernels.Timed | None] = [None] * len(parts)
        if self.on_gpu:
            self.say(f"{task}: timing {len(parts)} parts, fast and naive{', and PyTorch' if self.torch else ''}")
            layers = [value.shape for value in self.ours(task, batches_of(task), "gathered").network.parameter.values()]
            equivalents = Equivalents(self.torch, self.ops, layers) if self.torch else None
            times = kernels.time_parts(parts, device, self.clock, plan.kernel_patience, equivalents)
        rows = []
        for part, timed in zip(parts, times, strict=True):
            row = {"operation": part.operation, "what": part.what, "layer": part.layer, "sizes": part.sizes}
            row |= {"bytes": part.bytes, "operations": part.operations}
            row["floor"] = floor_seconds(part.bytes, part.operations, bandwidth, operations)
            row["kernels"] = [launch.kernel.expression for launch in part.fast]
            for form in ("fast", "naive", "torch"):
                timing = getattr(timed, form) if timed else None
                row[form] = asdict(timing) if timing else None
            if timed:
                row["of_bandwidth"] = part.bytes / timed.fast.seconds / bandwidth
                row["of_operations"] = part.operations / timed.fast.seconds / operations
            rows.append(row)
        architecture = gpu_architecture() if self.on_gpu else card.architecture
        self.say(f"the kernels compiled for {architecture}")
        found = kernels.used([launch for part in parts for launch in part.fast], architecture)
        self.free()
        return {
            "task": str(task),
            "architecture": architecture,
            "ceilings": asdict(measured) if measured else None,
            "datasheet": None if measured else asdict(card),
            "parts": rows,
            "used": [asdict(each) for each in found],
        }

    def sweep(self) -> list[dict[str, Any]]:
        """How a step's time grows with the batch, and with the pictures' size."""
        plan = self.plan
        scales_batch = plan.scales_batch or (16 if self.on_gpu else 4)
        by_batch = [(batch, Task("skip", batch)) for batch in plan.sweep_batches]
        by_size = [(scale**2 * 64 * 84, Task("skip", scales_batch, scale)) for scale in plan.sweep_scales]
        return [
            {"by": "batch", **self.growth(by_batch)},
            {"by": "pixels", "batch": scales_batch, **self.growth(by_size)},
        ]

    def growth(self, tasks: Sequence[tuple[int, Task]]) -> dict[str, Any]:
        """The times of some tasks, from small to large, and a line through each: seconds = constant + slope * size."""
        modes = [] if not self.torch else [EAGER, GRAPH] if self.on_gpu else [EAGER]
        names = ["ours", *(mode.name for mode in modes)]
        sizes: dict[str, list[int]] = {name: [] for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        stopped: dict[str, str] = {}
        for size, task in tasks:
            self.say(f"{task}: how long a step takes")
            for name, timing in self.one_size(
                task, [mode for mode in modes if mode.name not in stopped], stopped
            ).items():
                sizes[name].append(size)
                seconds[name].append(timing.seconds)
            self.free()
            if "ours" in stopped or max(taken[-1] for taken in seconds.values() if taken) > self.plan.longest:
                break
        lines = {name: line_through(sizes[name], seconds[name]) for name in names if len(sizes[name]) > 1}
        return {
            "series": {name: {"sizes": sizes[name], "seconds": seconds[name]} for name in names},
            "lines": {name: {"constant": a, "slope": b} for name, (a, b) in lines.items()},
            "stopped": stopped,
        }

    def one_size(self, task: Task, modes: Sequence[Mode], stopped: dict[str, str]) -> dict[str, Timing]:
        """The times of one task; what does not fit into memory is noted in `stopped` and left out."""
        batches = batches_of(task)
        try:
            mine = self.ours(task, batches, self.fair)
            with mine.parallel.computing():
                runs: dict[str, Any] = {"ours": mine}
                expected = mine.trace()
                for mode in modes:
                    with settings(self.torch, mode, self.plan.threads):
                        try:
                            runs[mode.name], _ = self.theirs(task, batches, mine, mode, expected)
                        except TinyfcnError:
                            raise
                        except Exception as error:  # see `step`
                            stopped[mode.name] = f"{task}: {reason(error)}"
                with settings(self.torch, EAGER, self.plan.threads) if self.torch else nullcontext():
                    return in_turn(runs, self.clock, self.plan.sweep_patience)
        except MemoryError as error:
            stopped["ours"] = f"{task}: {reason(error)}"
            return {}

    def free(self) -> None:
        """Gives back the memory that nobody uses any more, so that the other side can have it."""
        gc.collect()
        if self.on_gpu:
            cuda.import_cupy().get_default_memory_pool().free_all_blocks()
            if self.torch:
                self.torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def gpu_architecture() -> str:
    """The current GPU's, "sm_90"."""
    runtime = cuda.import_cupy().cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    return f"sm_{properties['major']}{properties['minor']}"


def machine_name(device: str) -> str:
    """The graphics card's name, or the processor's."""
    if device == "cuda":
        runtime = cuda.import_cupy().cuda.runtime
        return runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
