"""Every kernel that a training step launches: what it must move and compute, what it uses, how long it takes.

Each operation that the network asks for is recorded by itself, once with the fast kernels and once with the naive ones.
A `Part` is what gives some results of an operation: a forward pass, dx, or dweight and dbias; of one kernel or of
several. Its two forms, and PyTorch's equivalent, do the same work, and are compared part by part.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from tinyfcn import ops as launchers
from tinyfcn import reference
from tinyfcn.bench.resources import MULTIPROCESSORS, blocks_at_once, occupancy
from tinyfcn.bench.steps import Batches, Step, Task
from tinyfcn.bench.timing import Clock, Patience, Timing, in_turn
from tinyfcn.checks.gradcheck import relative_error
from tinyfcn.devices import nvrtc
from tinyfcn.devices.device import Device, Launch, address
from tinyfcn.devices.launch import ceil_div
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import Operations

READ_IN_PART = {"digits", "digit_labels"}  # arrays of which a launch reads little: a byte for each result at the most
TOLERANCE = 1e-3  # between the fast and the naive form, each after all of its own step before
COPIED_BYTES = 1 << 28  # of a part's arrays, all copies together: more than a cache holds
MIN_COPIES, MAX_COPIES = 2, 64
MIN_LAUNCHES = 20  # in a graph that is timed


@dataclass
class Call:
    """An operation that a step asked for: its arguments by name, its results, the launches that gave them."""

    operation: str
    given: Mapping[str, Any]
    results: list[Any]
    launches: list[Launch]

    def parts(self) -> dict[str, "Call"]:
        """What is to be had apart from the rest: of a layer's backward pass "dx" and "dweight", else "", all of it.

        Launchers start what gives dweight and dbias beside what gives dx.
        """
        if not (self.operation.endswith("_backward") and len(self.results) == 3):
            return {"": self}
        dx, *others = self.results
        if dx is None:
            return {"dweight": replace(self, results=others)}
        first = [launch for launch in self.launches if not launch.branch]
        beside = [launch for launch in self.launches if launch.branch]
        return {
            "dx": replace(self, results=[dx], launches=first),
            "dweight": replace(self, results=others, launches=beside),
        }


class Recorder(Device):
    """Records what is launched and runs none of it: enough to count what kernels do, on any machine."""

    name = "recorder"
    array_type = np.ndarray

    def empty(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        return np.empty(shape, self.dtypes["float"] if dtype is None else dtype)

    def asarray(self, array: np.ndarray) -> np.ndarray:
        return np.array(array, order="C")

    def write(self, array: np.ndarray, values: np.ndarray) -> None:
        array[...] = values

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def _launch(self, launch: Launch) -> None:
        raise NotImplementedError(f"{launch.kernel.name}: a recorder runs nothing")


class Traced(Operations):
    """Operations that keep an account of what they are asked for, each recorded by itself. `runs`: and then run.

    Without a device they are NumPy's, which launch nothing.
    """

    def __init__(self, device: Device | None, runs: bool) -> None:
        super().__init__(device)
        self.calls: list[Call] = []
        self.runs = runs
        for name in launchers.__all__:
            setattr(self, name, partial(self._traced, name, getattr(self, name)))

    def _traced(self, name: str, operation: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        given = inspect.signature(operation).bind(*arguments, **named)
        given.apply_defaults()
        results: list[Any] = []
        launches: list[Launch] = []

        def work() -> None:
            results.append(operation(*arguments, **named))

        if self.device:
            recording = self.device.record(work)
            launches = recording.launches
            if self.runs:
                recording.replay()
        else:
            work()
        [result] = results
        results = list(result) if isinstance(result, tuple) else results
        self.calls.append(Call(name, given.arguments, results, launches))
        return result


@dataclass
class Part:
    """What gives some results of an operation, in both forms. `what`: "dx", "dweight" or "", see Call.parts; `layer`:
    "" where there is none."""

    what: str
    layer: str
    fast: Call
    naive: Call

    def __str__(self) -> str:
        return f"{self.fast.operation} {self.what}".strip()

    def sizes(self) -> str:
        """ "16x8x30x40, 8x8x3x3": of the operation's input and its weight; of its first result where it has neither."""
        given = self.fast.given
        shown = [given[name] for name in ("x", "weight", "logits", "parameters") if name in given]
        shown = shown or [result for result in self.fast.results if result is not None][:1]
        return ", ".join("x".join(map(str, array.shape)) for array in shown)


def parts_of(task: Task, batches: Batches, device: Device, runs: bool) -> list[Part]:
    """All parts of a training step, in order.

    runs: run the kernels, so that arrays hold what they do in training. Without that nothing is compiled.
    """
    source = "composed" if task.design == "skip" else "gathered"
    fast, naive = [], []
    try:
        for device.naive, calls in ((True, naive), (False, fast)):
            if runs:
                Step(task, batches, Operations(device), source)  # so that kernels are compiled
            traced = Traced(device, runs)
            step = Step(task, batches, traced, source, record=False)
            step.work()
            step.start_again()  # the parameters with which all but Adam was done
            calls += traced.calls
    finally:
        device.naive = False
    layers = {id(value): name.split(".")[0] for name, value in step.network.parameter.items()}
    return [
        Part(what, layers.get(id(call.given.get("weight")), ""), part, other)
        for call, plain in zip(fast, naive, strict=True)
        for (what, part), other in zip(call.parts().items(), plain.parts().values(), strict=True)
        if part.launches
    ]


# What a part must do


def least_bytes(part: Part) -> int:
    """Each array that the part needs is read once, each result is written once: what no program can do without."""
    given, results = part.fast.given, [result for result in part.fast.results if result is not None]
    if part.fast.operation == "adam_step":
        state = given["state"]
        written = [given["parameters"], state.m, state.v]
        return sum(array.nbytes for array in [*written, *written, state.l2, given["gradients"]])
    unused = {"": set(), "dx": set() if given.get("through_relu") else {"x"}, "dweight": {"weight", "add"}}[part.what]
    total = sum(result.nbytes for result in results)
    for name, array in given.items():
        if hasattr(array, "nbytes") and name not in unused:
            total += min(array.nbytes, max(result.size for result in results)) if name in READ_IN_PART else array.nbytes
    return total


def operations_of(part: Part) -> int:
    """How many operations its results need: a multiply-add is two."""
    operation, given = part.fast.operation, part.fast.given
    if operation == "adam_step":
        return 16 * given["parameters"].size  # 3 for m, 4 for v, 2 for l2, 7 for the parameter
    if operation == "softmax_cross_entropy":  # maximum, difference, exp, sum, quotient, scale; log, difference, sum
        return 6 * given["logits"].size + 3 * given["labels"].size
    if not operation.startswith("conv"):
        return sum(result.size for result in part.fast.results if result is not None)
    bias = given["dsum" if "dsum" in given else "dout"].size if part.what == "dweight" else 0
    return 2 * products_of(operation, given) + bias


def products_of(operation: str, given: Mapping[str, Any]) -> int:
    """How many products a convolution sums up: none of them with the zeros around the picture.

    A pooling's backward pass has one gradient for each of its windows, and no more products than they need.
    """
    (n, _, *size), (first, second, *kernel) = given["x"].shape, given["weight"].shape
    stride, padding = given.get("stride", 1), given.get("padding", 0)
    count = n * first * second
    for extent, taps in zip(size, kernel, strict=True):
        if operation.startswith("conv_transpose2d"):
            coarse, fine = extent, (extent - 1) * stride + taps - 2 * padding
        else:
            coarse, fine = (extent + 2 * padding - taps) // stride + 1, extent
        if operation == "conv2d_pool_backward":
            coarse = coarse // 2  # of two neighbours one has the gradient
        count *= sum(0 <= i * stride + u - padding < fine for i in range(coarse) for u in range(taps))
    return count


# What a kernel uses


def used(parts: Iterable[Part], architecture: str) -> list[dict[str, Any]]:
    """What the fast forms' kernels use, compiled for "sm_XX", and how much of a multiprocessor each can fill.

    Raises:
        DeviceError: NVRTC is not installed.
        KernelError: a kernel does not compile.
    """
    by_kernel: dict[tuple[str, str, int], list[tuple[Launch, Part]]] = {}
    for part in parts:
        for launch in part.fast.launches:
            key = launch.kernel.operation, launch.kernel.expression, prod(launch.block)
            by_kernel.setdefault(key, []).append((launch, part))
    compiled = {}
    for file in {file for file, _, _ in by_kernel}:
        instances = sorted({name for other, name, _ in by_kernel if other == file and "<" in name})
        compiled |= {each.kernel: each for each in nvrtc.compile_for(file, architecture, instances=instances)}
    found = []
    for (file, name, threads), launches in by_kernel.items():
        registers, shared = compiled[name].registers, compiled[name].shared_bytes + launches[0][0].shared_bytes
        takes = architecture, threads, registers, shared
        found.append(
            {
                "kernel": name,
                "file": f"{file}.cu",
                "for": [f"{part.layer} {part.what}".strip() for _, part in launches],
                "blocks": max(prod(launch.grid) for launch, _ in launches),
                "threads": threads,
                "registers": registers,
                "shared_bytes": shared,
                "spilled_bytes": compiled[name].spilled_bytes,
                "blocks_at_once": blocks_at_once(*takes) if architecture in MULTIPROCESSORS else None,
                "occupancy": occupancy(*takes) if architecture in MULTIPROCESSORS else None,
            }
        )
    return found


# How long it takes


def time_parts(
    parts: Sequence[Part], device: Device, clock: Clock, patience: Patience, equivalent: Callable[[Part], Any]
) -> list[dict[str, Timing]]:
    """Of each part the time "fast", "naive" and, where it has an equivalent, "torch", on arrays that no cache holds.

    Nothing is timed before all results were compared. equivalent: gives a torch_kernels.Equivalent, or None.

    Raises:
        TinyfcnError: two forms differ.
    """
    others = [equivalent(part) for part in parts]
    for part, other in zip(parts, others, strict=True):
        found = [device.to_numpy(result) for result in part.fast.results if result is not None]
        plain = [device.to_numpy(result) for result in part.naive.results if result is not None]
        expect_equal(part, "the fast form and the naive", found, plain)
        if other:
            expect_equal(part, "the fast form and PyTorch's", found, other.results())
    timed = []
    for part, other in zip(parts, others, strict=True):
        copies = copies_of(size_of(part.fast.launches))
        runs = {name: repeated(device, call.launches) for name, call in (("fast", part.fast), ("naive", part.naive))}
        if other:
            runs["torch"] = other.repeated(copies)
        times = in_turn({name: run for name, (run, _) in runs.items()}, clock, patience)
        timed.append({name: timing.divided(runs[name][1]) for name, timing in times.items()})
    return timed


def expect_equal(part: Part, forms: str, found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Raises TinyfcnError unless two forms of a part gave the same floats, but for rounding.

    Integers, such as a pooling's winners, may differ where two numbers are equal but for rounding.
    """
    for one, other in zip(found, expected, strict=True):
        error = relative_error(one.astype(np.float64), other.astype(np.float64)) if one.dtype.kind == "f" else 0
        if not error <= TOLERANCE:
            raise TinyfcnError(
                f"{part}, {part.layer or part.sizes()}: {forms} differ by {error:.1e}, "
                f"more than {TOLERANCE:.0e}, so none is timed"
            )


def arrays_of(launches: Sequence[Launch]) -> dict[int, Any]:
    """The arrays of some launches by where they lie, but for those of which little is read."""
    return {
        address(argument): argument
        for launch in launches
        for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
        if parameter.is_array and argument is not None and parameter.name not in READ_IN_PART
    }


def size_of(launches: Sequence[Launch]) -> int:
    """How many bytes the arrays of some launches have."""
    return sum(array.nbytes for array in arrays_of(launches).values())


def copies_of(size: int) -> int:
    """How many copies of its arrays, of so many bytes, a part takes turns with."""
    return min(max(ceil_div(COPIED_BYTES, max(size, 1)), MIN_COPIES), MAX_COPIES)


def repeated(device: Device, launches: Sequence[Launch]) -> tuple[Callable[[], None], int]:
    """Runs launches many times over, on copies of their arrays by turns; and how many times."""
    copies = copies_of(size_of(launches))
    kept = {place: device.to_numpy(array) for place, array in arrays_of(launches).items()}
    sets = [{place: device.asarray(array) for place, array in kept.items()} for _ in range(copies)]
    times = ceil_div(MIN_LAUNCHES, copies)

    def work() -> None:
        for arrays in sets * times:
            for launch in launches:
                arguments = [
                    arrays.get(address(argument), argument) if parameter.is_array and argument is not None else argument
                    for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
                ]
                name, template = launch.kernel.name, launch.kernel.instance
                device.launch(name, launch.grid, launch.block, arguments, launch.shared_bytes, template)

    return device.record(work).replay, times * copies


# The same on the CPU


def time_operations(
    parts: Sequence[Part],
    step: Step,
    clock: Clock,
    patience: Patience,
    equivalent: Callable[[Part], Any],
    say: Callable[[str], None],
) -> list[dict[str, Timing]]:
    """Of each part the time "numpy" on one thread and, where it has an equivalent, "torch" on as many as it is set to.

    NumPy gives a whole backward pass at once: dx has its time, and dweight none. Nothing is timed before all results
    were compared. step: of the same task, its operations Traced(None).

    Raises:
        TinyfcnError: the two differ.
    """
    first = [part.what != "dweight" or not part.fast.given["need_dx"] for part in parts]  # of its operation
    with step.parallel.computing():
        step.work()
        step.start_again()
        named = zip(itertools.compress(parts, first), step.ops.calls, strict=True)
        whole = [Part("" if part.what == "dx" else part.what, part.layer, call, call) for part, call in named]
        others = [equivalent(part) for part in whole]
        for part, other in zip(whole, others, strict=True):
            if other:
                found = [result for result in part.fast.results if result is not None]
                expect_equal(part, "NumPy's results and PyTorch's", found, other.results())
        timed = []
        for number, (part, other) in enumerate(zip(whole, others, strict=True), 1):
            say(f"{number} of {len(whole)}: {part} {part.layer or part.sizes()}".strip())
            copies = copies_of(least_bytes(part))
            runs = {"numpy": in_numpy(part.fast, copies)}
            if other:
                runs["torch"], _ = other.repeated(copies)
            timed.append(in_turn(runs, clock, patience))
    times = iter(timed)
    return [next(times) if is_first else {} for is_first in first]


def in_numpy(call: Call, copies: int) -> Callable[[], Any]:
    """Runs an operation in NumPy once, each time on the next of so many copies of its arrays."""

    def copied(name: str, value: Any) -> Any:
        return value.copy() if isinstance(value, np.ndarray) and name not in READ_IN_PART else value

    sets = itertools.cycle([{name: copied(name, value) for name, value in call.given.items()} for _ in range(copies)])
    function = getattr(reference, call.operation)
    return lambda: function(**next(sets))
