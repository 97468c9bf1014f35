"""The parts of a training step: the operations that a network asks for, each with its launches."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import nvrtc
from tinyfcn.devices.cpu import Cpu
from tinyfcn.devices.device import Device, Launch
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.devices.launch import DTYPES
from tinyfcn.operations import on, operation_names
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
        if self.operation == "linear_cross_entropy":
            return 2 * self.products() + 6 * self.results[1].size + 3 * arguments["labels"].size
        if not self.operation.startswith("conv"):
            return sum(result.size for result in self.results)
        return 2 * self.products() + (arguments["dout"].size if self.what == "dweight" else 0)  # and the sums of dbias

    def products(self) -> int:
        """The products that a convolution sums, but those with zeros around the image: a convolution of ones counts.

        0 for an operation that is no convolution.
        """
        arguments = self.arguments
        if self.operation == "linear_cross_entropy":  # the logits, and dx
            return 2 * arguments["x"].size * len(arguments["weight"])
        if not self.operation.startswith("conv"):
            return 0
        if self.operation == "conv2d_pool_backward":  # one gradient for each window, and no padding
            return arguments["dout"].size * arguments["weight"][0].size
        (n, _, *size), (first, second, *kernel_size) = arguments["x"].shape, arguments["weight"].shape
        ops, transposed = on("cpu"), self.operation.startswith("conv_transpose2d")
        convolve = ops.conv_transpose2d if transposed else ops.conv2d
        strides = {name: arguments[name] for name in ("stride", "padding") if name in arguments}
        one = convolve(np.ones((1, 1, *size)), np.ones((1, 1, *kernel_size)), np.zeros(1), **strides)
        return n * first * second * int(one.sum())


def changed(arguments: Mapping[str, Any]) -> list[Any]:
    """What Adam's operations give: they have no outputs, and change their arguments."""
    state = arguments["state"]
    return [state.rates, state.m, state.v, *(arguments[name] for name in ("parameters",) if name in arguments)]


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


def kernel_resources(
    launches: Iterable[tuple[str, Launch]], architecture: str, kernels: Path = KERNELS
) -> list[dict[str, Any]]:
    """What each kernel of some launches uses, compiled for "sm_XX", and how much of a multiprocessor it can fill.

    The launches come with what they are for. Raises DeviceError without NVRTC, KernelError where a kernel does not
    compile.
    """
    by_kernel: dict[tuple[str, str, int], list[tuple[str, Launch]]] = {}
    for name, launch in launches:
        key = launch.kernel.operation, launch.kernel.expression, prod(launch.block)
        by_kernel.setdefault(key, []).append((name, launch))
    compiled = nvrtc.compile_launched(
        (each for found in by_kernel.values() for _, each in found), architecture, kernels
    )
    rows = []
    for (file, expression, threads), found in by_kernel.items():
        row = {"file": f"{file}.cu", **asdict(compiled[expression]), "threads": threads}
        dynamic = found[0][1].shared_bytes
        row["shared_bytes"] += dynamic
        row["for"] = [name for name, _ in found]
        row["blocks"] = max(prod(launch.grid) for _, launch in found)
        row["blocks_at_once"], row["occupancy"] = compiled[expression].occupancy(architecture, threads, dynamic)
        rows.append(row)
    return rows
