"""Runs every kernel in check mode on small random shapes, with its threads in several orders.

Each seed draws small, awkward inputs for an operation. All of its kernels run on them in the emulator's check mode,
which watches every memory access. A finding is an error of check mode (a race, an access out of bounds, a read of
memory that was never written, inf - inf ...), a result whose bits depend on the order of threads, or a result that is
not the reference's.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from tinyfcn.adam_state import AdamState
from tinyfcn.checks.case import Case
from tinyfcn.checks.conflicts import conflicts
from tinyfcn.checks.gradcheck import TOLERANCES, relative_error
from tinyfcn.checks.pieces import cases_of
from tinyfcn.checks.watched import Found, Watched, index_text, launches_of
from tinyfcn.devices.device import Array
from tinyfcn.devices.emulator.emulator import ORDERS, Emulator, Statistics
from tinyfcn.devices.kernel_source import KERNELS, Kernel
from tinyfcn.fields import counted
from tinyfcn.networks import DESIGNS, Design, Network
from tinyfcn.operations import on
from tinyfcn.ops import Operations

Draw = Callable[[np.random.Generator], list[Case]]

NO_FINDING = "no finding"
NEVER_LAUNCHED = "never launched"
COMPILED_FIRST = 20  # seeds: what later ones need besides is compiled when they come


@dataclass(frozen=True)
class Finding:
    """An error in a kernel; and the operation, the inputs, the seed and the order of threads that reproduce it."""

    operation: str
    kernel: str
    text: str
    inputs: str
    seed: int
    order: str

    @property
    def key(self) -> str:
        """The text without its numbers, except line numbers: the same for other threads and other shapes."""
        return re.sub(r"(?<![:\d])-?\d[\d.e+-]*", "#", self.text)


@dataclass
class Report:
    """The statistics of each kernel, and the first occurrence of each finding."""

    statistics: dict[str, Statistics] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Adds another report to this one."""
        for name, part in other.statistics.items():
            whole = self.statistics.setdefault(name, Statistics())
            whole.launches += part.launches
            whole.threads += part.threads
            whole.accesses += part.accesses
        self.findings = other.findings | self.findings

    def verdict(self, kernel: Kernel) -> str:
        """The number of findings, or the reason why there are none."""
        found = sum(finding.kernel == kernel.name for finding in self.findings.values())
        if found:
            return counted(found, "finding")
        if self.statistics[kernel.name].launches:
            return NO_FINDING
        if any(finding.operation == kernel.operation for finding in self.findings.values()):
            return "not reached: a finding came first"
        return NEVER_LAUNCHED


def check(
    operation: str,
    seeds: Sequence[int],
    kernels: Path = KERNELS,
    orders: Sequence[str] = ORDERS,
    draw: Draw | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Report:
    """Runs the cases that each seed draws for an operation, in each order of threads. `draw` replaces its own cases.

    `progress` passes the seeds on, one by one.

    Raises:
        DeviceError: there is no C++ compiler.
        KernelError: a kernel file does not compile, or the operation lacks a file.
    """
    draw = draw or cases_of(operation).sanitize_cases
    devices = {order: Watched(kernels, order=order) for order in orders}
    report = Report()
    first = (case for seed in seeds[:COMPILED_FIRST] for case in draw(np.random.default_rng(seed)))
    devices[orders[0]].compile(launch.kernel for launch in launches_of(first, kernels))
    for seed in progress(seeds):
        finding = first_finding(operation, draw(np.random.default_rng(seed)), seed, devices)
        if finding:
            report.findings.setdefault(finding.key, finding)
    for device in devices.values():
        report.add(Report(device.statistics))
    return report


def check_after_edit(
    operation: str,
    seeds: Sequence[int],
    kernels: Path = KERNELS,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Report:
    """As `check`, on the cases of gradcheck and, if they find nothing, on those that each seed draws."""
    report = check(operation, [0], kernels, draw=cases_of(operation).gradcheck_cases)
    if not report.findings:
        report.add(check(operation, seeds, kernels, progress=progress))
    return report


def first_finding(operation: str, cases: list[Case], seed: int, devices: dict[str, Watched]) -> Finding | None:
    """Runs the cases of one seed up to the first finding, because a wrong array makes later ones wrong."""
    exact = seed % 2 == 0  # only every second seed, since exact sums do not depend on the order of threads
    for case in cases:
        case = replace(case, exact=exact)
        expected = case.run(on("cpu"), seed=seed) if exact else {}
        first: dict[str, np.ndarray] = {}
        for order, device in devices.items():
            device.launches, device.seed = [], seed
            try:
                results = case.run(Operations(device), seed=seed)
                copies = device.copies(results)
                first = first or copies
                for name, result in results.items():
                    compare(name, device, result, first[name])
                    if exact and relative_error(copies[name], expected[name]) > TOLERANCES["kernel"]:
                        raise Found(device.given_to(result), device.wrong(name, result, expected[name]))
            except Found as found:
                inputs = (f"{name} {np.shape(value) or value}" for name, value in case.inputs.items())
                return Finding(operation, found.kernel, str(found), ", ".join(inputs), seed, order)
    return None


def compare(name: str, device: Watched, found: Array, expected: np.ndarray) -> None:
    """Raises Found unless the arrays have the same bits."""
    bits = [array.ravel().view(f"u{array.itemsize}") for array in (found, expected)]
    different = np.flatnonzero(bits[0] != bits[1])
    if len(different):
        element = int(different[0])
        raise Found(
            device.given_to(found),
            f"{name} depends on the order of threads: {found.flat[element]!s} or {expected.flat[element]!s} at "
            f"{index_text(element, found.shape)}, stored by {device.stored_by(found, element)}",
        )


def conflicts_in_steps() -> dict[str, list[str]]:
    """The conflicts between the launches of one training step, for each network; see conflicts.py.

    No kernel is compiled or run.
    """
    found = {}
    for name in DESIGNS:
        ops = Operations(Emulator())
        network = Design(name).build(ops)
        state = AdamState.create(ops, np.zeros(network.parameters.shape, np.float32), base_rate=1e-3, steps=1)
        found[name] = conflicts(ops.device.record(partial(training_step, network, state)).launches)
    return found


def training_step(network: Network, state: AdamState) -> None:
    """Forward, loss, backward and update for two uninitialised images."""
    ops = network.ops
    is_classifier = not network.per_pixel
    x = ops.device.empty((2, 1, 28, 28))
    labels = ops.device.empty((2, 1, 1) if is_classifier else (2, 28, 28), np.int32)
    ops.adam_schedule(state)
    loss = network.loss(x, labels)
    ops.adam_step(network.parameters, network.gradients, state, loss)
