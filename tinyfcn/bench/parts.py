"""The parts of a training step: what the network asks for, each with its arguments, its results and its launches."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np

from tinyfcn.bench.steps import Batches, Step, Task
from tinyfcn.devices.device import Device, Launch
from tinyfcn.operations import operation_names
from tinyfcn.ops import Operations

READ_IN_PART = {"digits", "digit_labels"}  # arrays of which a launch reads at most a byte for each result


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
        return " ".join(filter(None, (self.operation, self.what, self.layer or self.sizes())))

    def sizes(self) -> str:
        """ "16x8x30x40, 8x8x3x3": of the operation's input and weight, or of its first result."""
        names = ("x", "weight", "logits", "parameters")
        shown = [self.arguments[name] for name in names if name in self.arguments] or self.results[:1]
        return ", ".join("x".join(map(str, array.shape)) for array in shown)

    def comes_with_dx(self) -> bool:
        """Whether this is dweight of an operation that gives dx too."""
        return self.what == "dweight" and self.arguments["need_dx"]

    def whole(self) -> "Part":
        """dx with the dweight that comes with it."""
        return replace(self, what="") if self.what == "dx" else self

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
        if self.what == "dx" or self.comes_with_dx():
            launches = [launch for launch in launches if bool(launch.stream) == (self.what == "dweight")]
        return [replace(launch, stream=0, joins=False) for launch in launches]

    def copied_arguments(self, copy: Callable[[Any], Any]) -> dict[str, Any]:
        """The arguments with a copy of each array, also in Adam's state; without `out`, so that results are new."""

        def copied(value: Any) -> Any:
            if is_dataclass(value) and not isinstance(value, type):
                return replace(value, **{name: copied(each) for name, each in vars(value).items()})
            return copy(value) if getattr(value, "shape", ()) else value

        rest = {name: value for name, value in self.arguments.items() if name != "out"}
        return {name: value if name in READ_IN_PART else copied(value) for name, value in rest.items()}


class Recorder(Device):
    """Notes launches and runs none: enough to count what kernels do, without a GPU and without a compiler."""

    name, array_type = "recorder", np.ndarray

    def empty(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        return np.empty(shape, self.dtypes["float"] if dtype is None else dtype)

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError("a recorder runs nothing")

    asarray = write = to_numpy = _launch = _refuse


def note_calls(ops: Operations) -> list[Part]:
    """A list that grows with each call of `ops` from now on: whole operations, without their layer and launches."""
    calls: list[Part] = []

    def noted(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(operation)

        def call(*arguments: Any, **named: Any) -> Any:
            bound = signature.bind(*arguments, **named)
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
    arguments = call.copied_arguments(np.ascontiguousarray if device.array_type is np.ndarray else lambda array: array)
    launches = device.record(lambda: getattr(Operations(device), call.operation)(**arguments)).launches
    kinds = [""]
    if "need_dx" in call.arguments:
        kinds = ["dx", "dweight"] if call.arguments["need_dx"] else ["dweight"]
    parts = [replace(call, what=what) for what in kinds]
    return [replace(part, launches=part.own(launches)) for part in parts]


def parts_of(task: Task, batches: Batches, ops: Operations) -> list[Part]:
    """All parts of a training step, in order; on the CPU with the launches that a GPU would get.

    Arrays hold what they do in training, and parameters what they held before the step. `ops` must have no other user.
    """
    step = Step(task, batches, ops, "composed" if task.design == "skip" else "gathered")
    calls = note_calls(ops)
    with step.parallel.computing():
        step.work()
    step.start_again()
    layers = {id(value): name.split(".")[0] for name, value in step.network.parameter.items()}
    named = [replace(call, layer=layers.get(id(call.arguments.get("weight")), "")) for call in calls]
    return [
        part
        for call in named
        for part in split(call, ops.device if ops.device.runs_kernels else Recorder())
        if part.launches
    ]
