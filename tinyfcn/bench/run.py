"""What `tinyfcn bench` measures: that a step is right, how long it takes, where the time goes, how it grows.

Results are dictionaries, lists, numbers and texts, as --json writes them. Times are in seconds.
"""

import gc
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np

from tinyfcn.bench import agreement, pytorch
from tinyfcn.bench.parts import Form, time_parts
from tinyfcn.bench.peaks import measure_peaks
from tinyfcn.bench.timing import TimeBudget, Timing, fit_line, gpu_clock, in_turn, wall_clock
from tinyfcn.checks.model import predict_step
from tinyfcn.checks.parts import Part, kernel_resources
from tinyfcn.devices import cuda
from tinyfcn.devices.cards import CARDS, Card, Peaks
from tinyfcn.errors import DeviceError, KernelError, TinyfcnError
from tinyfcn.machine import gpu, processor
from tinyfcn.operations import on
from tinyfcn.ops import Operations
from tinyfcn.training.settings import available_threads
from tinyfcn.training.step import Step, Task, launches_of_step, parts_of


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long.

    `batches` are the design skip's. The growth goes over batches, and over images `scales` times as high and wide, by
    `scales_batch`; a program leaves it when its step takes longer than `max_seconds`.
    """

    for_steps: TimeBudget
    for_kernels: TimeBudget
    for_growth: TimeBudget
    batches: tuple[int, ...] = (16, 64, 256, 1024)
    classifier_batch: int = 128
    kernel_batch: int = 16
    growth_batches: tuple[int, ...] = tuple(1 << k for k in range(13))
    scales: tuple[int, ...] = (1, 2, 3, 4)
    scales_batch: int = 16
    max_seconds: float = 1.0


PLANS = {
    "cuda": Plan(TimeBudget(1, 100), TimeBudget(0.2), TimeBudget(0.5)),
    "cpu": Plan(TimeBudget(10, 60, 0.2), TimeBudget(0.5), TimeBudget(0.5), batches=(16, 64), scales_batch=4),
}
HASTE = TimeBudget(0.01, 2, 0)
QUICK = Plan(HASTE, HASTE, HASTE, (1,), 4, 1, (1, 2), (1, 2), 1)


class Bench:
    """Measures by a plan. `say` is told what comes next, before it begins."""

    def __init__(self, ops: Operations, say: Callable[[str], None], plan: Plan | None = None) -> None:
        self.ops, self.say = ops, say
        self.disagreeing: list[str] = []  # why programs did not do the same work as ours, and so were not timed
        self.device = ops.device_name
        self.on_gpu = self.device == "cuda"
        self.plan = plan or PLANS[self.device]
        self.threads = available_threads()
        self.clock = gpu_clock if self.on_gpu else wall_clock
        self.modes = pytorch.modes_on(self.device)

    def machine(self) -> dict[str, Any]:
        """What the measurements depend on."""
        return {
            "name": gpu()[0] if self.on_gpu else processor(),
            "device": self.device,
            "python": platform.python_version(),
            **({"cupy": cuda.import_cupy().__version__} if self.on_gpu else {"threads": self.threads}),
            "numpy": np.__version__,
            "torch": pytorch.torch.__version__ if self.modes else None,
            "quick": self.plan is QUICK,
        }

    def steps(self) -> Iterator[dict[str, Any]]:
        """Of the classifier and of skip at each batch: the step, ours and PyTorch's in every mode, and the ratios."""
        tasks = [Task("classifier", self.plan.classifier_batch), *(Task("skip", batch) for batch in self.plan.batches)]
        for number, task in enumerate(tasks):
            yield self.step(task, check_bits=number < 2)

    def step(self, task: Task, check_bits: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {"design": task.design, "batch": task.batch, "equal_bits": None}
        if check_bits:
            self.say(f"{task}: two runs with one seed")
            found["equal_bits"] = agreement.same_bits(lambda: Step(task, self.ops, threads=self.threads))
        found |= self.side_by_side(task, self.modes, self.plan.for_steps, trained=True)
        ratios = {name: timing["seconds"] / found["ours"]["seconds"] for name, timing in found["torch"].items()}
        best = min(ratios, key=lambda name: ratios[name], default="")
        found |= {"best": best or None, "eager_ratio": ratios.get("eager"), "best_ratio": ratios.get(best)}
        found["tf32"] = None
        if best and self.on_gpu:  # less exact: shown beside, not compared
            mode = replace(next(mode for mode in self.modes if mode.name == best), name="TF32", tf32=True)
            with_tf32 = self.side_by_side(task, [mode], self.plan.for_steps)
            found["tf32"] = with_tf32["torch"].get("TF32")
            found["failed"] |= with_tf32["failed"]
        return found

    def side_by_side(
        self, task: Task, modes: Sequence[pytorch.Mode], budget: TimeBudget, trained: bool = False
    ) -> dict[str, Any]:
        """Times "ours", "trained" if asked for (ours, with all that training does in a step), and PyTorch's modes.

        Also by mode: how far its results were from ours, and why it was not timed.
        """
        self.free_memory()
        self.say(f"{task}: our step")
        ours = Step(task, self.ops, threads=self.threads)
        programs: dict[str, Callable[[], None]] = {"ours": ours}
        if trained:
            programs["trained"] = Step(task, self.ops, task.composed, self.threads)
        differences, failed = {}, {}
        with ours.parallel.computing():
            expected = agreement.trace(ours)
            for mode in modes:
                self.say(f"{task}: PyTorch, {mode.name}")
                who = f"{task}: PyTorch ({mode.name})"
                tolerances = agreement.TF32_TOLERANCES if mode.tf32 else agreement.TOLERANCES
                try:
                    pytorch.switch(mode, self.threads)
                    program = pytorch.TorchStep(ours, mode)
                    differences[mode.name] = agreement.expect_agreement(who, program.trace(), expected, tolerances)
                    programs[mode.name] = program
                except Exception as error:  # a compiler or memory may be missing: the other modes are worth their time
                    failed[mode.name] = reason(error)
                    if isinstance(error, TinyfcnError) and not mode.tf32:
                        self.disagreeing.append(failed[mode.name])
            self.say(f"{task}: timing {len(programs)} programs in turn, {budget.seconds:g} s for each")
            pytorch.switch(replace(pytorch.EAGER, tf32=any(mode.tf32 for mode in modes)), self.threads)
            times = in_turn(programs, self.clock, budget)
        own: dict[str, Any] = {name: times.pop(name) for name in ("ours", "trained") if name in times}
        return own | {"torch": times, "differences": differences, "failed": failed}

    def kernels(self, card_name: str) -> dict[str, Any]:
        """The parts of a step: their rooflines, what their kernels use, and how long each takes in each form.

        Without a GPU, rooflines are those of a card in CARDS, and NumPy and PyTorch are timed, on one thread.

        Raises:
            TinyfcnError: two forms of a part differ, or a kernel does not compile.
        """
        task, budget = Task("skip", self.plan.kernel_batch), self.plan.for_kernels
        self.free_memory()
        self.say(f"{task}: its kernels")
        parts, forms = parts_of(task, on(self.device)), {"numpy": Form(self.ops)}
        card: Card | None = CARDS[card_name]
        peaks: Peaks = CARDS[card_name]
        if self.on_gpu:
            forms = {"fast": Form(self.ops), "naive": Form(on(self.device, naive=True))}
            self.say("the highest rates of memory and multiply-adds")
            peaks = Peaks(*gpu(), *measure_peaks(self.ops.device, self.clock, budget))
            card = next((card for key, card in CARDS.items() if key.upper() in peaks.name.upper()), None)
        if self.modes:
            forms["torch"] = pytorch.TorchForm(self.ops)
        self.say(f"the kernels compiled for {peaks.architecture}")
        launches = [(f"{part.layer} {part.what}".strip(), launch) for part in parts for launch in part.launches]
        used, not_known = [], None
        try:
            used = kernel_resources(launches, peaks.architecture)
        except KernelError:
            raise
        except DeviceError as error:  # without NVRTC the rest can still be measured
            not_known = str(error)
        predicted, of_step = self.predicted(task, card)
        self.say(f"{task}: timing its parts, {', '.join(forms)}")
        pytorch.switch(pytorch.OPERATIONS, threads=1)
        timings = time_parts(parts, forms, self.clock, budget, self.say)
        return {
            "task": str(task),
            "peaks": asdict(peaks),
            "threads": None if self.on_gpu else 1,
            "parts": [
                part_row(part, times, peaks) | {"predicted": seconds}
                for part, times, seconds in zip(parts, timings, predicted, strict=False)
            ],
            "predicted_step": of_step,
            "predicted_for": card.name if card and of_step else None,
            "used": used,
            "used_not_known": not_known,
        }

    def predicted(self, task: Task, card: Card | None) -> tuple[Iterable[float | None], float | None]:
        """What the model says of each part and of the step; None for a card that it does not know, or no compiler."""
        if card is not None:
            self.say(f"{task}: counting what its kernels ask of memory, for the model of a {card.name}")
            made_for = card.multiprocessors
            try:
                return predict_step(parts_of(task, on("cpu"), made_for), launches_of_step(task, made_for), card)
            except DeviceError as error:
                self.say(f"no prediction: {error}")
        return repeat(None), None

    def growth(self) -> list[dict[str, Any]]:
        """How a step's time grows with the batch, and with the size of the images."""
        batch = self.plan.scales_batch
        by_size = {scale**2 * 64 * 84: Task("skip", batch, scale) for scale in self.plan.scales}
        by_batch = {batch: Task("skip", batch) for batch in self.plan.growth_batches}
        return [
            {"by": "batch", **self.growth_of(by_batch)},
            {"by": "pixels", "batch": batch, **self.growth_of(by_size)},
        ]

    def growth_of(self, tasks: dict[int, Task]) -> dict[str, Any]:
        """The times of tasks by their sizes, from small to large, and a line through each program's."""
        modes = [mode for mode in self.modes if mode in (pytorch.EAGER, pytorch.GRAPH)]
        series: dict[str, dict[str, Any]] = {"ours": {"sizes": [], "seconds": []}}
        stopped: dict[str, str] = {}
        for size, task in tasks.items():
            times, failed = {}, {}
            try:
                found = self.side_by_side(task, modes, self.plan.for_growth)
                times, failed = {"ours": found["ours"], **found["torch"]}, found["failed"]
            except MemoryError as error:
                failed["ours"] = reason(error)
            for name, timing in times.items():
                points = series.setdefault(name, {"sizes": [], "seconds": []})
                points["sizes"].append(size)
                points["seconds"].append(timing["seconds"])
                if timing["seconds"] > self.plan.max_seconds:
                    failed[name] = "slow enough"
            stopped |= {name: f"{task}: {why}" for name, why in failed.items()}
            modes = [mode for mode in modes if mode.name not in failed]
            if "ours" in failed:
                break
        for points in series.values():
            if len(points["sizes"]) > 1:
                points["constant"], points["slope"] = fit_line(points["sizes"], points["seconds"])
        return {"series": series, "stopped": stopped}

    def free_memory(self) -> None:
        """Gives back the memory that nobody uses any more, so that the other side can have it."""
        if self.on_gpu and self.modes:
            pytorch.torch._dynamo.reset()  # what it compiled; it would compile one function only a few times
        gc.collect()
        if self.on_gpu:
            cuda.import_cupy().get_default_memory_pool().free_all_blocks()
            if self.modes:
                pytorch.torch.cuda.empty_cache()


def part_row(part: Part, times: dict[str, Timing], peaks: Peaks) -> dict[str, Any]:
    row = {name: getattr(part, name) for name in ("operation", "what", "layer", "sizes")}
    row |= {"bytes": part.byte_count, "flops": part.flops}
    row |= {"roofline": peaks.least_seconds(part.byte_count, part.flops)}
    row |= {"kernels": [launch.kernel.expression for launch in part.launches]}
    row |= {name: times.get(name) for name in ("fast", "naive", "numpy", "torch")}
    if "fast" in times:
        row["of_bandwidth"] = part.byte_count / times["fast"]["seconds"] / peaks.bandwidth
        row["of_flops"] = part.flops / times["fast"]["seconds"] / peaks.flops
    if {"numpy", "torch"} <= {*times}:
        row["ratio"] = times["torch"]["seconds"] / times["numpy"]["seconds"]
    return row


def reason(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
