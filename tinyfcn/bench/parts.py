"""The parts of a training step: noted as the network asks for them, compared in all forms that they have, and timed.

On a GPU the forms are the fast kernels, the naive kernels and PyTorch; elsewhere NumPy and PyTorch.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np

from tinyfcn.bench.steps import Step, Task
from tinyfcn.bench.timing import Clock, Run, TimeBudget, Timing, in_turn
from tinyfcn.checks.gradcheck import relative_error
from tinyfcn.checks.profile import multiply_adds
from tinyfcn.devices.cpu import Cpu
from tinyfcn.devices.device import Device, Launch
from tinyfcn.devices.launch import DTYPES, ceil_div
from tinyfcn.errors import TinyfcnError
from tinyfcn.operations import operation_names
from tinyfcn.ops import Operations

READ_IN_PART = {"digits", "digit_labels"}  # arrays of which a launch reads at most a byte for each result
TOLERANCE = 1e-3  # of the relative difference of two forms
COPIED_BYTES = 1 << 28  # of a part's arrays, all copies together: more than a cache holds
MIN_COPIES, MAX_COPIES = 2, 64
MIN_LAUNCHES = 20  # in a graph that is timed


@dataclass(frozen=True)
class Part:
    """What gives some results of an operation, by one launch or several.

    what: "dx" or "dweight" (dweight and dbias) of a layer's backward pass, else "" for all outputs of the operation.
    layer: "" for an operation without weights. arguments: by name, with their defaults.
    """

    operation: str
    what: str
    layer: str
    arguments: Mapping[str, Any]
    outputs: Any
    launches: Sequence[Launch] = ()

    def __str__(self) -> str:
        return " ".join(filter(None, (self.operation, self.what, self.layer or self.sizes)))

    @property
    def sizes(self) -> str:
        """ "16x8x30x40, 8x8x3x3": of the operation's input and weight, or of its first result."""
        names = ("x", "weight", "logits", "parameters")
        shown = [self.arguments[name] for name in names if name in self.arguments] or self.results[:1]
        return ", ".join("x".join(map(str, array.shape)) for array in shown)

    @property
    def comes_with_dx(self) -> bool:
        """Whether this is dweight of an operation that gives dx too."""
        return self.what == "dweight" and self.arguments["need_dx"]

    @property
    def results(self) -> list[Any]:
        return self.chosen(self.outputs)

    def chosen(self, outputs: Any) -> list[Any]:
        """Those of an operation's outputs that this part gives."""
        wanted = {"": slice(None), "dx": slice(1), "dweight": slice(1, None)}[self.what]
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [output for output in outputs[wanted] if output is not None]

    def own(self, launches: Iterable[Launch]) -> list[Launch]:
        """Those of an operation's launches that give this part, to run one after another.

        The launchers put dweight on a side stream where there is a dx to compute meanwhile.
        """
        halved = self.what == "dx" or self.comes_with_dx
        kept = [each for each in launches if not halved or bool(each.stream) == (self.what == "dweight")]
        return [replace(launch, stream=0, joins=False) for launch in kept]

    def copied_arguments(self, copy: Callable[[Any], Any]) -> dict[str, Any]:
        """The arguments with a copy of each array, also in Adam's state; without `out`, so that results are new."""

        def copied(value: Any) -> Any:
            if is_dataclass(value) and not isinstance(value, type):
                return replace(value, **{name: copied(each) for name, each in vars(value).items()})
            return copy(value) if getattr(value, "shape", ()) else value

        rest = {name: value for name, value in self.arguments.items() if name != "out"}
        return {name: value if name in READ_IN_PART else copied(value) for name, value in rest.items()}

    @property
    def byte_count(self) -> int:
        """The bytes that no program can do without: each array that it needs read once, each result written once."""
        arguments = self.arguments
        if self.operation == "adam_step":
            written = changed(arguments)[1:]
            return sum(array.nbytes for array in [*written, *written, arguments["state"].l2, arguments["gradients"]])
        unused = {"dx": set() if arguments.get("through_relu") else {"x"}, "dweight": {"weight", "add"}}
        needed = {name: array for name, array in arguments.items() if name not in unused.get(self.what, ())}
        largest = max((result.size for result in self.results), default=0)
        return sum(result.nbytes for result in self.results) + sum(
            min(array.nbytes, largest) if name in READ_IN_PART else array.nbytes
            for name, array in needed.items()
            if hasattr(array, "nbytes")
        )

    @property
    def flops(self) -> int:
        """The flops that its results need; a multiply-add is two."""
        arguments = self.arguments
        if self.operation == "adam_step":
            return 16 * arguments["parameters"].size  # 3 for m, 4 for v, 2 for l2, 7 for the parameter
        if self.operation == "softmax_cross_entropy":  # a logit: max, -, exp, sum, /, *; a label: log, -, sum
            return 6 * arguments["logits"].size + 3 * arguments["labels"].size
        if not self.operation.startswith("conv"):
            return sum(result.size for result in self.results)
        return 2 * self.products() + (arguments["dout"].size if self.what == "dweight" else 0)  # and the sums of dbias

    def products(self) -> int:
        """The products that a convolution sums, but those with zeros around the image."""
        arguments = self.arguments
        if self.operation == "conv2d_pool_backward":  # one gradient for each window, and no padding
            return arguments["dout"].size * arguments["weight"][0].size
        strides = {name: arguments[name] for name in ("stride", "padding") if name in arguments}
        transposed = self.operation.startswith("conv_transpose2d")
        return multiply_adds(arguments["x"].shape, arguments["weight"].shape, **strides, transposed=transposed)


def changed(arguments: Mapping[str, Any]) -> list[Any]:
    """What Adam's operations give: they have no outputs, and change their arguments."""
    state = arguments["state"]
    return [state.rates, state.m, state.v, *(arguments[name] for name in ("parameters",) if name in arguments)]


# Taking a step apart


class Recorder(Cpu):
    """Notes launches and runs none: enough to count what kernels do, without a GPU and without a compiler."""

    name, dtypes = "recorder", DTYPES
    side_stream, join = Device.side_stream, Device.join


def note_calls(ops: Operations) -> list[Part]:
    """A list that grows with each call of `ops` from now on: whole operations, without their layer and launches."""
    calls: list[Part] = []

    def noted(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            bound = inspect.signature(operation).bind(*arguments, **named)
            bound.apply_defaults()
            outputs = operation(*arguments, **named)
            calls.append(Part(name, "", "", bound.arguments, outputs))
            return outputs

        return call

    for name in operation_names():
        setattr(ops, name, noted(name, getattr(ops, name)))
    return calls


def split(call: Part, device: Device) -> list[Part]:
    """The parts of a whole operation, each with the launches that it takes on a device."""
    need_dx = call.arguments.get("need_dx")
    kinds = [""] if need_dx is None else ["dx", "dweight"] if need_dx else ["dweight"]
    arguments = call.copied_arguments(np.ascontiguousarray if device.array_type is np.ndarray else lambda array: array)
    launches = device.record(lambda: getattr(Operations(device), call.operation)(**arguments)).launches
    return [replace(part, launches=part.own(launches)) for part in (replace(call, what=what) for what in kinds)]


def parts_of(task: Task, ops: Operations) -> list[Part]:
    """All parts of a training step, in order; on the CPU with the launches that a GPU would get.

    Arrays hold what they do in training, and parameters what they held before the step. `ops` must have no other user.
    """
    step = Step(task, ops, composed=task.design == "skip")
    calls = note_calls(ops)
    with step.parallel.computing():
        step.work()
    step.start_again()
    layers = {id(value): name.split(".")[0] for name, value in step.network.parameter.items()}
    named = [replace(call, layer=layers.get(id(call.arguments.get("weight")), "")) for call in calls]
    device = ops.device if ops.device.runs_kernels else Recorder()
    return [part for call in named for part in split(call, device) if part.launches]


# Timing the parts


class Form:
    """A way to do the parts of a step: by the operations that `ops` has."""

    def __init__(self, ops: Operations) -> None:
        self.ops = ops

    def does(self, part: Part) -> bool:
        return True

    def copy(self, array: Any) -> Any:
        return self.ops.asarray(self.ops.to_numpy(array))

    def to_numpy(self, result: Any) -> np.ndarray:
        return self.ops.to_numpy(result)

    def prepared(self, part: Part) -> Run:
        """Gives the part's results, from copies of its arguments."""
        function, arguments = getattr(self.ops, part.operation), part.copied_arguments(self.copy)
        return lambda: part.chosen(function(**arguments)) or changed(arguments)

    def record(self, part: Part, work: Run) -> Run:
        """Runs those launches of `work` that give the part."""
        recording = self.ops.device.record(work)
        recording.launches[:] = part.own(recording.launches)
        return recording.replay

    def program(self, part: Part, copies: int, rounds: int) -> Run:
        """Runs the part on copies of its arrays: kernels on each copy in each round, as one graph; the CPU on the next
        copy."""
        runs = [self.prepared(part) for _ in range(copies)]
        if not self.ops.device.runs_kernels:
            for run in runs:
                run()  # the first run takes longer
            turns = cycle(runs)
            return lambda: next(turns)()

        def work() -> None:
            for _ in range(rounds):
                [run() for run in runs]  # all outputs live at once, each in memory of its own

        return self.record(part, work)


def expect_same_results(part: Part, forms: Mapping[str, Form]) -> None:
    """Raises TinyfcnError unless all forms of a part give the same floats, but for rounding.

    Integers, such as max indices, may differ where two numbers are equal but for rounding.
    """
    results = {name: [*map(form.to_numpy, form.prepared(part)())] for name, form in forms.items()}
    first, *others = forms
    for name in others:
        pairs = zip(results[name], results[first], strict=True)
        error = max((relative_error(*pair) for pair in pairs if pair[1].dtype.kind == "f"), default=0)
        if not error <= TOLERANCE:
            differ = f"{first} and {name} differ by {error:.1e}, more than {TOLERANCE:.0e}"
            raise TinyfcnError(f"{part}: {differ}, so none is timed")


def time_parts(
    parts: Sequence[Part], forms: Mapping[str, Form], clock: Clock, budget: TimeBudget, say: Callable[[str], None]
) -> list[dict[str, Timing]]:
    """The timing of each part in each form that can do it, on arrays that no cache holds.

    NumPy gives dx and dweight at once. Where it is among the forms, a dx has the time of both, a dweight with it none.

    Raises:
        TinyfcnError: two forms of a part differ. Then nothing is timed.
    """
    at_once = "numpy" in forms
    timed = {row: part for row, part in enumerate(parts) if not (at_once and part.comes_with_dx)}
    if at_once:
        timed = {row: replace(part, what="") if part.what == "dx" else part for row, part in timed.items()}
    ways = {row: {name: form for name, form in forms.items() if form.does(part)} for row, part in timed.items()}
    for row, part in timed.items():
        expect_same_results(part, ways[row])
    timings: list[dict[str, Timing]] = [{} for _ in parts]
    for number, (row, part) in enumerate(timed.items(), 1):
        say(f"{number} of {len(timed)}: {part}")
        copies = min(max(ceil_div(COPIED_BYTES, max(part.byte_count, 1)), MIN_COPIES), MAX_COPIES)
        rounds = ceil_div(MIN_LAUNCHES, copies)
        programs = {name: form.program(part, copies, rounds) for name, form in ways[row].items()}
        timings[row] = in_turn(programs, clock, budget, 1 if at_once else copies * rounds)
    return timings
