"""What `tinyfcn bench` measures: that a step is right, how long it takes, where the time goes, how it grows.

Every result is of dictionaries, lists, numbers and texts: what --json writes. Times are in seconds.
"""

import gc
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tinyfcn.bench import ceilings, kernels, torch_kernels
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
from tinyfcn.bench.timing import Patience, Timing, gpu_clock, in_turn, line_through, wall_clock
from tinyfcn.bench.torch_steps import EAGER, GRAPH, ON_CPU, ON_GPU, Mode, TorchStep, import_torch, settings
from tinyfcn.devices import cuda
from tinyfcn.errors import TinyfcnError
from tinyfcn.operations import on
from tinyfcn.training.settings import available_threads

FOR_STEPS, FOR_KERNELS, FOR_SWEEP, HASTE = Patience(1, 100), Patience(0.2), Patience(0.5), Patience(0.01, 2, 0)


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long. `batches` are the design skip's.

    The sweep goes over batches, and over pictures `scales` times as high and wide, by `scales_batch`; each program
    leaves it when its step takes longer than `longest` seconds.
    """

    batches: tuple[int, ...] = (16, 64, 256, 1024)
    classifier_batch: int = 128
    kernel_batch: int = 16
    sweep_batches: tuple[int, ...] = tuple(1 << k for k in range(13))
    scales: tuple[int, ...] = (1, 2, 3, 4)
    scales_batch: int = 16
    longest: float = 1.0
    for_steps: Patience = FOR_STEPS
    for_kernels: Patience = FOR_KERNELS
    for_sweep: Patience = FOR_SWEEP


ON_A_GPU = Plan()
ON_THE_CPU = Plan(batches=(16, 64), scales_batch=4, for_steps=Patience(10, 60, 0), for_kernels=Patience(0.5))
QUICK = Plan((1,), 4, 1, (1, 2), (1, 2), 1, for_steps=HASTE, for_kernels=HASTE, for_sweep=HASTE)


class Bench:
    """Measures by a plan. `say` is told what comes next, before it begins."""

    def __init__(self, device: str, say: Callable[[str], None], plan: Plan | None = None) -> None:
        self.say = say
        self.disagreeing: list[str] = []  # what was not the same work as ours, and so was not timed
        self.ops = on(device)
        self.device = self.ops.device_name
        self.on_gpu = self.device == "cuda"
        self.plan = plan or (ON_A_GPU if self.on_gpu else ON_THE_CPU)
        self.threads = available_threads()
        self.clock = gpu_clock if self.on_gpu else wall_clock
        say(f"{machine_name(self.device)}: looking for PyTorch")
        self.torch = import_torch(self.device)

    def machine(self) -> dict[str, Any]:
        """What the measurements depend on."""
        found = {"name": machine_name(self.device), "device": self.device, "python": platform.python_version()}
        found |= {"cupy": cuda.import_cupy().__version__} if self.on_gpu else {"threads": self.threads}
        found |= {"numpy": np.__version__, "torch": self.torch.__version__ if self.torch else None}
        return found | {"quick": self.plan is QUICK}

    def steps(self) -> Iterator[dict[str, Any]]:
        """Of the classifier and of skip at each batch: the step, ours and PyTorch's in every mode, and the ratios."""
        plan = self.plan
        tasks = [Task("classifier", plan.classifier_batch), *(Task("skip", batch) for batch in plan.batches)]
        for task in tasks:
            yield self.step(task, check_bits=task in tasks[:2])

    def step(self, task: Task, check_bits: bool = False) -> dict[str, Any]:
        equal_bits = None
        if check_bits:
            self.say(f"{task}: two runs with one seed")
            batches = batches_of(task)
            equal_bits = same_bits(lambda: self.ours(task, batches, "gathered"))
        modes = ON_GPU if self.on_gpu else ON_CPU
        times, differences, failed = self.side_by_side(task, modes, self.plan.for_steps, trained=True)
        ours, trained = times.pop("ours"), times.pop("trained")
        best = min(times, key=lambda name: times[name].seconds, default=None)
        tf32 = None
        if best and self.on_gpu:  # less exact: to be seen beside, not to be compared with
            mode = replace(next(mode for mode in modes if mode.name == best), name="TF32", tf32=True)
            with_tf32, _, why = self.side_by_side(task, [mode], self.plan.for_steps)
            tf32, failed = with_tf32.get("TF32"), failed | why
        return {
            "design": task.design,
            "batch": task.batch,
            "equal_bits": equal_bits,
            "ours": asdict(ours),
            "trained": asdict(trained),
            "torch": {name: asdict(timing) for name, timing in times.items()},
            "best": best,
            "tf32": asdict(tf32) if tf32 else None,
            "eager_ratio": times["eager"].seconds / ours.seconds if "eager" in times else None,
            "best_ratio": times[best].seconds / ours.seconds if best else None,
            "differences": differences,
            "failed": failed,
        }

    def side_by_side(
        self, task: Task, modes: Sequence[Mode], patience: Patience, trained: bool = False
    ) -> tuple[dict[str, Timing], dict[str, dict[str, float]], dict[str, str]]:
        """Times "ours", "trained" if asked for (ours, with all that training does in a step), and PyTorch's modes.

        Also by mode: how far its results were from ours, and why it was not timed.
        """
        self.free()
        self.say(f"{task}: our step")
        batches = batches_of(task)
        mine = self.ours(task, batches, "gathered" if self.on_gpu else "given")
        runs: dict[str, Any] = {"ours": mine}
        if trained:
            runs["trained"] = self.ours(task, batches, "composed" if task.design == "skip" else "gathered")
        differences, failed = {}, {}
        with mine.parallel.computing():
            expected = mine.trace()
            for mode in modes if self.torch else ():
                self.say(f"{task}: PyTorch, {mode.name}")
                tolerances = TF32_TOLERANCES if mode.tf32 else TOLERANCES
                with settings(self.torch, mode, self.threads):
                    try:
                        step = TorchStep(self.torch, task, batches, mine.initial, mode, self.device)
                        who = f"{task}: PyTorch ({mode.name})"
                        differences[mode.name] = expect_agreement(who, expected, step.trace(), mine.initial, tolerances)
                        runs[mode.name] = step
                    except TinyfcnError as error:  # the others are still worth their time; the command then ends with 1
                        failed[mode.name] = reason(error)
                        if not mode.tf32:
                            self.disagreeing.append(failed[mode.name])
                    except Exception as error:  # a compiler that is missing, too little memory: there are other modes
                        failed[mode.name] = reason(error)
            self.say(f"{task}: timing {len(runs)} programs in turn, {patience.seconds:g} s for each")
            with settings(self.torch, replace(EAGER, tf32=any(mode.tf32 for mode in modes)), self.threads):
                times = in_turn(runs, self.clock, patience)
        return times, differences, failed

    def ours(self, task: Task, batches: Batches, source: str) -> Step:
        return Step(task, batches, self.ops, source, self.threads)

    def kernels(self, card_name: str) -> dict[str, Any]:
        """The kernels of a step: what they must do, what they use, and on a GPU how long they take.

        Without a GPU, how long NumPy and PyTorch take for the same operations, on one thread.

        card_name: in CARDS; without a GPU, the floors are by its datasheet.

        Raises:
            TinyfcnError: two ways to do the same differ.
        """
        task, card = Task("skip", self.plan.kernel_batch), CARDS[card_name]
        self.free()
        self.say(f"{task}: its kernels")
        device = self.ops.device if self.on_gpu else kernels.Recorder()
        batches, equivalent = batches_of(task), partial(torch_kernels.equivalent, self.torch, self.ops)
        parts = kernels.parts_of(task, batches, device, runs=self.on_gpu)
        measured = None
        if self.on_gpu:
            self.say("how fast memory and multiply-adds are at most")
            measured = ceilings.measure(device, self.clock, self.plan.for_kernels)
            self.say(f"{task}: timing {len(parts)} parts, fast and naive{', and PyTorch' if self.torch else ''}")
            times = kernels.time_parts(parts, device, self.clock, self.plan.for_kernels, equivalent)
        else:
            self.say(f"{task}: timing its operations in NumPy{' and PyTorch' if self.torch else ''}, on one thread")
            step = Step(task, batches, kernels.Traced(None, runs=True), "composed")
            with settings(self.torch, EAGER, threads=1):
                times = kernels.time_operations(parts, step, self.clock, self.plan.for_kernels, equivalent, self.say)
        most, rows = measured or card, []
        for part, timed in zip(parts, times, strict=True):
            size, operations = kernels.least_bytes(part), kernels.operations_of(part)
            row = {"operation": part.fast.operation, "what": part.what, "layer": part.layer, "sizes": part.sizes()}
            row |= {"bytes": size, "operations": operations}
            row["floor"] = floor_seconds(size, operations, most.bandwidth, most.operations)
            row["kernels"] = [launch.kernel.expression for launch in part.fast.launches]
            row |= {
                form: asdict(timed[form]) if form in timed else None for form in ("fast", "naive", "numpy", "torch")
            }
            if "fast" in timed:
                row["of_bandwidth"] = size / timed["fast"].seconds / most.bandwidth
                row["of_operations"] = operations / timed["fast"].seconds / most.operations
            if {"numpy", "torch"} <= {*timed}:
                row["ratio"] = timed["torch"].seconds / timed["numpy"].seconds
            rows.append(row)
        architecture = gpu_architecture() if self.on_gpu else card.architecture
        self.say(f"the kernels compiled for {architecture}")
        found = kernels.used(parts, architecture)
        return {
            "task": str(task),
            "architecture": architecture,
            "ceilings": asdict(measured) if measured else None,
            "datasheet": None if measured else asdict(card),
            "threads": None if self.on_gpu else 1,
            "parts": rows,
            "used": found,
        }

    def sweep(self) -> list[dict[str, Any]]:
        """How a step's time grows with the batch, and with the pictures' size."""
        batch = self.plan.scales_batch
        by_size = [(scale**2 * 64 * 84, Task("skip", batch, scale)) for scale in self.plan.scales]
        return [
            {"by": "batch", **self.growth([(batch, Task("skip", batch)) for batch in self.plan.sweep_batches])},
            {"by": "pixels", "batch": batch, **self.growth(by_size)},
        ]

    def growth(self, tasks: Sequence[tuple[int, Task]]) -> dict[str, Any]:
        """The times of some tasks, from small to large, and a line through each: seconds = constant + slope * size."""
        modes = [EAGER, GRAPH] if self.on_gpu else [EAGER]
        series: dict[str, dict[str, Any]] = {"ours": {"sizes": [], "seconds": []}}
        stopped: dict[str, str] = {}
        for size, task in tasks:
            try:
                times, _, failed = self.side_by_side(task, modes, self.plan.for_sweep)
            except MemoryError as error:
                stopped["ours"] = f"{task}: {reason(error)}"
                break
            for name, timing in times.items():
                of = series.setdefault(name, {"sizes": [], "seconds": []})
                of["sizes"].append(size)
                of["seconds"].append(timing.seconds)
            failed |= {name: "slow enough" for name, timing in times.items() if timing.seconds > self.plan.longest}
            stopped |= {name: f"{task}: {why}" for name, why in failed.items()}
            modes = [mode for mode in modes if mode.name not in failed]
            if "ours" in failed:
                break
        for of in series.values():
            if len(of["sizes"]) > 1:
                of["constant"], of["slope"] = line_through(of["sizes"], of["seconds"])
        return {"series": series, "stopped": stopped}

    def free(self) -> None:
        """Gives back the memory that nobody uses any more, so that the other side can have it."""
        if self.on_gpu and self.torch:
            self.torch._dynamo.reset()  # what it compiled; of one function it would do so only a few times
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
