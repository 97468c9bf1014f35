"""Every kernel that a training step launches: what it must move and compute, what it uses, how long it takes.

The kernels are those of a real step: each operation that the network asks for is recorded by itself, once with the fast
kernels and once with the naive ones. A `Part` is what gives some results of an operation: a forward pass, dx, or
dweight and dbias; of one kernel or of several. Its two forms, and PyTorch's equivalent, do the same work, and are
compared part by part.

Least bytes: each array that comes from outside the part is read once, each result is written once. Operations: those
that the results need; a multiply-add is two, and products with the zeros around a picture or beside a pooling's winners
are none. So a share of a ceiling says how near a kernel is to what is possible, however it goes about it.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyfcn import ops as launchers
from tinyfcn.bench.resources import MULTIPROCESSORS, blocks_at_once, occupancy
from tinyfcn.bench.steps import Batches, Step, Task
from tinyfcn.bench.timing import Clock, Patience, Timing, in_turn
from tinyfcn.devices import nvrtc
from tinyfcn.devices.device import Device, Launch, Recording
from tinyfcn.errors import TinyfcnError
from tinyfcn.gradcheck import relative_error
from tinyfcn.operations import Operations

# Arrays that a kernel reads and writes, though its parameters do not say so; and those of which it reads little, for
# each element of its largest result a byte at the most.
READ_AND_WRITTEN = {"adam_step": {"parameters", "m", "v", "step"}}
READ_IN_PART = {"digits", "digit_labels", "images", "all_labels", "order"}

TOLERANCE = 1e-3  # between the fast and the naive form, each after all of its own step before
FEWEST_COPIES, MOST_COPIES = 2, 64  # of a part's arrays,
COPIED_BYTES = 1 << 28  # which together should be more than a cache holds
FEWEST_LAUNCHES = 20  # in a graph that is timed


@dataclass
class Call:
    """An operation that a step asked for: its arguments by name, its results, the launches that gave them."""

    operation: str
    given: Mapping[str, Any]
    results: tuple[Any, ...]
    recording: Recording

    def parts(self) -> dict[str, tuple[list[Any], list[Launch]]]:
        """What the results are called that belong together -> they, and the launches that they need.

        A launch that several need is the first one's.
        """
        if not (self.operation.endswith("_backward") and len(self.results) == 3):
            return {"": ([result for result in self.results if result is not None], self.recording.launches)}
        dx, *others = self.results
        wanted = {"dx": [dx], "dweight": others} if dx is not None else {"dweight": others}
        left, parts = self.recording.launches, {}
        for name, results in wanted.items():
            needed, mine = {address(result) for result in results}, []
            for launch in reversed(left):
                reads, writes = reads_and_writes(launch)
                if needed & {address(array) for array in writes}:
                    needed |= {address(array) for array in reads}
                    mine.insert(0, launch)
            left = [launch for launch in left if not any(launch is one for one in mine)]
            parts[name] = results, mine
        return parts


class Recorder(Device):
    """Records what is launched and runs none of it: enough to count what kernels do, on any machine."""

    name = "recorder"
    array_type = np.ndarray

    def empty(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        return np.empty(shape, self.dtypes["float"] if dtype is None else dtype)

    def asarray(self, array: np.ndarray) -> np.ndarray:
        return np.array(array, order="C")

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def _launch(self, launch: Launch) -> None:
        raise NotImplementedError(f"{launch.kernel.name}: a recorder runs nothing")


class Traced(Operations):
    """Operations that keep an account of what they are asked for, each recorded by itself. `runs`: and then run."""

    def __init__(self, device: Device, runs: bool) -> None:
        super().__init__(device)
        self.calls: list[Call] = []
        self.runs = runs
        for name in launchers.__all__:
            setattr(self, name, partial(self._traced, name, getattr(launchers, name)))

    def _traced(self, name: str, launcher: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        given = inspect.signature(launcher).bind(self.device, *arguments, **named)
        given.apply_defaults()
        results: list[Any] = []
        recording = self.device.record(lambda: results.append(launcher(self.device, *arguments, **named)))
        if self.runs:
            recording.replay()
        [result] = results
        results = list(result) if isinstance(result, tuple) else results
        self.calls.append(Call(name, given.arguments, tuple(results), recording))
        return result


@dataclass
class Part:
    """What gives some results of an operation, in its fast and its naive form. `layer` is "" where there is none."""

    operation: str
    what: str
    layer: str
    sizes: str
    bytes: int
    operations: int
    given: Mapping[str, Any]
    results: list[Any]
    fast: list[Launch]
    naive: list[Launch]
    naive_results: list[Any]

    def __str__(self) -> str:
        return f"{self.operation} {self.what}".strip()


def parts_of(task: Task, batches: Batches, device: Device, runs: bool) -> list[Part]:
    """All parts of a training step, in order.

    runs: run the kernels, so that arrays hold what they do in training. Without that nothing is compiled.
    """
    source = "composed" if task.design == "skip" and task.scale == 1 else "gathered"
    steps: list[tuple[Step, Traced]] = []
    try:
        for device.naive in (False, True):
            if runs:
                Step(task, batches, Operations(device), source, record=False).work()  # so that kernels are compiled
            traced = Traced(device, runs)
            steps.append((Step(task, batches, traced, source, record=False), traced))
            steps[-1][0].work()
            steps[-1][0].start_again()  # the parameters with which all but Adam was done
    finally:
        device.naive = False
    (step, fast), (_, naive) = steps
    layers = {address(value): name.split(".")[0] for name, value in step.network.parameter.items()}
    found = []
    for call, plain in zip(fast.calls, naive.calls, strict=True):
        plain_parts = plain.parts()
        operations = operations_of(call.operation, call.given, call.results)
        layer = layers.get(address(call.given["weight"]), "") if "weight" in call.given else ""
        for what, (results, launches) in call.parts().items():
            plain_results, plain_launches = plain_parts[what]
            if launches:
                found.append(
                    Part(
                        call.operation,
                        what,
                        layer,
                        sizes_of(call),
                        least_bytes(launches),
                        operations[what],
                        call.given,
                        results,
                        launches,
                        plain_launches,
                        plain_results,
                    )
                )
    return found


def address(array: Any) -> int | None:
    """Where an array lies, as a number that no other array has which is in use."""
    if array is None:
        return None
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def reads_and_writes(launch: Launch) -> tuple[list[Any], list[Any]]:
    """The arrays that a launch reads, and those that it writes."""
    arrays = [
        (parameter, argument)
        for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
        if parameter.is_array and argument is not None
    ]
    both = READ_AND_WRITTEN.get(launch.kernel.name, set())
    reads = [array for parameter, array in arrays if parameter.is_const or parameter.name in both]
    return reads, [array for parameter, array in arrays if not parameter.is_const]


def least_bytes(launches: Sequence[Launch]) -> int:
    """The bytes that some launches must move: what passes between them need not be, a small cache could hold it."""
    read: dict[int, int] = {}
    written: dict[int, int] = {}
    passed: set[int] = set()
    for launch in launches:
        reads, writes = reads_and_writes(launch)
        little = {
            address(argument)
            for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
            if parameter.name in READ_IN_PART
        }
        most = max(array.size for array in writes)
        for array in reads:
            place = address(array)
            if place in written and place not in read:
                passed.add(place)
            elif place not in written:
                read[place] = min(array.nbytes, most) if place in little else array.nbytes
        written |= {address(array): array.nbytes for array in writes}
    return sum(read.values()) + sum(size for place, size in written.items() if place not in passed)


def sizes_of(call: Call) -> str:
    """ "16x8x30x40, 8x8x3x3": of the first array that the operation was given, and of its weight."""
    shown = [value for name, value in call.given.items() if name in ("x", "weight", "logits", "parameters")]
    shown = shown or [result for result in call.results if result is not None][:1]
    return ", ".join("x".join(map(str, array.shape)) for array in shown)


def operations_of(operation: str, given: Mapping[str, Any], results: Sequence[Any]) -> dict[str, int]:
    """How many operations the results of an operation need, by the names of `Call.parts`."""
    if operation == "adam_step":
        return {"": 16 * given["parameters"].size}  # 3 for m, 4 for v, 2 for l2, 7 for the parameter
    if operation == "softmax_cross_entropy":
        logits, labels = given["logits"], given["labels"]
        return {
            "": 6 * logits.size + 3 * labels.size
        }  # maximum, difference, exp, sum, quotient, scale; log, difference, sum
    if operation not in (
        "conv2d",
        "conv2d_backward",
        "conv2d_pool",
        "conv2d_pool_backward",
        "conv_transpose2d",
        "conv_transpose2d_backward",
    ):
        return {"": sum(result.size for result in results if result is not None)}
    products = convolution_products(operation, given)
    if not operation.endswith("_backward"):
        return {"": 2 * products}
    bias = next(value.size for name, value in given.items() if name in ("dout", "dsum"))
    return {"dx": 2 * products, "dweight": 2 * products + bias}


def convolution_products(operation: str, given: Mapping[str, Any]) -> int:
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


@dataclass(frozen=True)
class Used:
    """What a kernel uses on an architecture, and how much of a multiprocessor it can fill. `launches`: of a step."""

    kernel: str
    file: str
    launches: int
    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    spilled_bytes: int
    at_once: int
    occupancy: float


def used(launches: Iterable[Launch], architecture: str) -> list[Used]:
    """What the kernels of some launches use, compiled for "sm_XX", each with its largest number of blocks.

    Raises:
        DeviceError: NVRTC is not installed.
        KernelError: a kernel does not compile.
    """
    by_kernel: dict[tuple[str, str, int], list[Launch]] = {}
    for launch in launches:
        key = launch.kernel.operation, launch.kernel.expression, int(np.prod(launch.block))
        by_kernel.setdefault(key, []).append(launch)
    instances: dict[str, set[str]] = {}
    for file, expression, _ in by_kernel:
        instances.setdefault(file, set()).update([expression] if "<" in expression else [])
    compiled = {
        (file, each.kernel): each
        for file, names in instances.items()
        for each in nvrtc.compile_for(file, architecture, instances=sorted(names))
    }
    found = []
    for (file, expression, threads), same in by_kernel.items():
        each = compiled[file, expression]
        shared = each.shared_bytes + same[0].shared_bytes
        takes = architecture, threads, each.registers, shared
        known = architecture in MULTIPROCESSORS
        blocks = max(int(np.prod(launch.grid)) for launch in same)
        at_once, share = (blocks_at_once(*takes), occupancy(*takes)) if known else (0, 0.0)
        found.append(
            Used(
                expression,
                f"{file}.cu",
                len(same),
                blocks,
                threads,
                each.registers,
                shared,
                each.spilled_bytes,
                at_once,
                share,
            )
        )
    return found


# How long it takes


@dataclass(frozen=True)
class Timed:
    """Seconds of a part in each of its forms; PyTorch's is None where it has no equivalent, or is not there."""

    fast: Timing
    naive: Timing
    torch: Timing | None


def time_parts(
    parts: Sequence[Part], device: Device, clock: Clock, patience: Patience, equivalents: Any = None
) -> list[Timed]:
    """Times all parts, each form on arrays that no cache holds. Nothing is timed before all results were compared.

    equivalents: of tinyfcn.bench.torch_kernels, or None.

    Raises:
        TinyfcnError: two forms differ.
    """
    others = [equivalents.of(part) if equivalents else None for part in parts]
    for part, other in zip(parts, others, strict=True):
        found = [device.to_numpy(result) for result in part.results]
        compare(part, "naive", found, [device.to_numpy(result) for result in part.naive_results])
        if other:
            compare(part, "PyTorch's", found, other.results())
    timed = []
    for part, other in zip(parts, others, strict=True):
        runs, each = {}, {}
        for name, launches in (("fast", part.fast), ("naive", part.naive)):
            runs[name], each[name] = repeated(device, launches)
        if other:
            runs["torch"], each["torch"] = other.repeated(copies_of(part.fast))
        times = in_turn(runs, clock, patience)
        of = {name: divided(timing, each[name]) for name, timing in times.items()}
        timed.append(Timed(of["fast"], of["naive"], of.get("torch")))
    return timed


def compare(part: Part, form: str, found: Sequence[np.ndarray], expected: Sequence[np.ndarray | None]) -> None:
    """Raises TinyfcnError unless two forms of a part gave the same floats, but for rounding.

    Integers, such as a pooling's winners, may differ where two numbers are equal but for rounding.
    """
    for one, other in zip(found, expected, strict=True):
        if other is None or one.dtype.kind != "f":
            continue
        error = relative_error(one.astype(np.float64), other.astype(np.float64))
        if not error <= TOLERANCE:
            raise TinyfcnError(
                f"{part}, {part.layer or part.sizes}: the fast kernel and the {form} differ by {error:.1e}, more than "
                f"{TOLERANCE:.0e}, so none is timed"
            )


def copies_of(launches: Sequence[Launch]) -> int:
    """How many copies of its arrays a part takes turns with."""
    size = sum({address(array): array.nbytes for launch in launches for array in copied(launch)}.values())
    return int(np.clip(-(-COPIED_BYTES // max(size, 1)), FEWEST_COPIES, MOST_COPIES))


def copied(launch: Launch) -> list[Any]:
    """The arrays of a launch that are worth a copy: not those of which it reads little."""
    return [
        argument
        for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
        if parameter.is_array and argument is not None and parameter.name not in READ_IN_PART
    ]


def repeated(device: Device, launches: Sequence[Launch]) -> tuple[Callable[[], None], int]:
    """Runs launches many times over, on copies of their arrays by turns; and how many times."""
    copies = copies_of(launches)
    sets: list[dict[int, Any]] = []
    for _ in range(copies):
        arrays = {address(array): array for launch in launches for array in copied(launch)}
        sets.append({place: array.copy() for place, array in arrays.items()})
    times = -(-FEWEST_LAUNCHES // copies)

    def work() -> None:
        for _ in range(times):
            for arrays in sets:
                for launch in launches:
                    arguments = [
                        arrays.get(address(argument), argument) if parameter.is_array else argument
                        for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
                    ]
                    name, template = launch.kernel.name, launch.kernel.instance
                    device.launch(name, launch.grid, launch.block, arguments, launch.shared_bytes, template)

    return device.record(work).replay, times * copies


def divided(timing: Timing, count: int) -> Timing:
    """The timing of one of so many."""
    return Timing(timing.seconds / count, timing.low / count, timing.high / count, timing.turns, timing.runs * count)
