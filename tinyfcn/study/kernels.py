"""All kernels: where they stand, what they are, and what they take of a GPU."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from tinyfcn.checks.parts import Recorder
from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.device import Launch
from tinyfcn.devices.kernel_source import KERNELS, Kernel
from tinyfcn.devices.nvrtc import Resources
from tinyfcn.errors import DeviceError, KernelError
from tinyfcn.ops import Operations
from tinyfcn.study.examples import launches_of
from tinyfcn.study.ladder import LADDER, inputs_on, rungs
from tinyfcn.training.step import Task, launches_of_step

STEP = Task("skip", 16)
PLAIN, FAST = "plain", "fast"
_SENTENCE = re.compile(r".*?[.](?=\s|$)", re.DOTALL)


@dataclass(frozen=True)
class KernelRow:
    """A kernel. form: PLAIN or FAST. launches: in a step of STEP. rung: "conv2d 8", or "". resources: of each instance
    that the step, or else the example, launches; None without NVRTC."""

    kernel: Kernel
    form: str
    launches: int
    rung: str
    resources: list[Resources] | None


def sentence(operation: str) -> str:
    """The first sentence of a kernel file."""
    lines = (KERNELS / f"{operation}.cu").read_text(encoding="utf-8").splitlines()
    header = " ".join(line.removeprefix("//").strip() for line in lines[: lines.index("//") if "//" in lines else 1])
    found = _SENTENCE.match(header)
    return found[0] if found else header


def kernel_rows(operation: str, architecture: str | None) -> list[KernelRow]:
    """The kernels of a file. architecture: NVRTC compiles them for it; None leaves `resources` out.

    Raises:
        KernelError: the file cannot be read, or NVRTC does not compile it.
    """
    plain, fast = ([*launches_of(operation, naive)] for naive in (True, False))
    forms = dict.fromkeys((each.kernel.name for each in fast), FAST)
    forms |= dict.fromkeys((each.kernel.name for each in plain), PLAIN)
    in_step = Counter(each.kernel.name for each in step())
    of_file = [each for each in (*step(), *plain, *fast) if each.kernel.operation == operation]
    compiled = _compiled(operation, of_file, architecture) if architecture else None
    return [
        KernelRow(
            kernel,
            forms.get(kernel.name, PLAIN),
            in_step[kernel.name],
            rung_of().get(kernel.name, ""),
            None if compiled is None else compiled.get(kernel.name, []),
        )
        for kernel in kernel_source.source(operation).kernels
    ]


def _compiled(operation: str, launches: list[Launch], architecture: str) -> dict[str, list[Resources]] | None:
    """The resources of a file's kernels. Of a template: its instances in the step, or else those of the example."""
    instances: dict[str, list[str]] = {}
    steps = {each.kernel.expression for each in step()}
    for launch in launches:
        kernel = launch.kernel
        known = instances.setdefault(kernel.name, [])
        if not kernel.is_c and kernel.expression not in known and (kernel.expression in steps or not known):
            known.append(kernel.expression)
    try:
        chosen = sorted(expression for each in instances.values() for expression in each)
        found: dict[str, list[Resources]] = {}
        for each in nvrtc.compile_for(operation, architecture, instances=chosen):
            found.setdefault(each.kernel.partition("<")[0], []).append(each)
        return found
    except KernelError:
        raise  # a kind of DeviceError
    except DeviceError:
        return None  # without NVRTC


@cache
def step() -> list[Launch]:
    """The launches of a training step."""
    return launches_of_step(STEP)


@cache
def rung_of() -> dict[str, str]:
    """The ladder and the rung of each kernel that is one: the last rungs are the kernels that train."""
    found: dict[str, str] = {}
    for name, ladder in LADDER.items():
        device = Recorder()
        given = inputs_on(device, ladder.inputs(np.random.default_rng(0), **ladder.layer))
        launches = device.record(partial(ladder.trained, Operations(device), **given)).launches
        found |= {each.kernel.name: f"{name} {len(rungs(name))}" for each in launches}
    return found


def arrays(launch: Launch) -> Iterator[tuple[str, tuple[int, ...], str, str]]:
    """Each array of a launch: its name, its shape, its type, and whether it is "in" or "out". An output may be read."""
    for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True):
        if parameter.is_array and argument is not None:
            yield parameter.name, argument.shape, parameter.type, "in" if parameter.is_const else "out"
