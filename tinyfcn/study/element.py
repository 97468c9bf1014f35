"""One element of an output: who owns it, what its thread reads, and how its value comes about, from a run that is traced.

The kernels of an example run on the emulator in trace mode. What they read and write is compared with the formula.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Launch
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.profile import LANES
from tinyfcn.devices.emulator.trace import Access, LaunchTrace
from tinyfcn.errors import KernelError
from tinyfcn.ops import Operations
from tinyfcn.study.examples import EXAMPLES
from tinyfcn.study.formulas import FORMULAS, SUMS, Explained, Factor, Given, Index, Term

TOLERANCE = 1e-5  # relative, of a float32 result and the same formula in float64
# Sums of the owner's last reads of a shared variable: what the element is divided by, in elements of an input.
FROM_SHARED: Mapping[tuple[str, str], tuple[str, str]] = {
    ("softmax_cross_entropy", "parts"): ("in_warp", "labels"),
    ("linear_cross_entropy", "parts"): ("in_warp", "labels"),
    ("fast_conv_backward_weight", "workspace"): ("shared", ""),
}
MAX_COMPARED = 400  # reads of a neighbour


class NoSuchElement(ValueError):
    """There is no such output, or no such element. The message names the outputs, or the output's shape."""


@dataclass(frozen=True)
class Output:
    """An output of an example's launches. name: the operation's, or else the kernel's. parameter: the kernel's name."""

    name: str
    parameter: str
    trace: LaunchTrace

    @property
    def kernel(self) -> kernel_source.Kernel:
        return self.trace.launch.kernel

    @property
    def values(self) -> np.ndarray:
        after = self.trace.array(self.parameter).after
        assert after is not None, "an output is an array of the launch"
        return after

    @property
    def written(self) -> str:
        """Which elements the launch writes: "840 elements of y", "losses[1] alone"."""
        elements = {each.element for each in self.trace.stores(self.parameter)}
        return f"{self.name}[{elements.pop()}] alone" if len(elements) == 1 else f"{len(elements)} elements of {self.name}"


@dataclass(frozen=True)
class Row:
    """A term of the sum. reads: of the run, one for each factor; none where the loop skips the term."""

    reads: tuple[Access, ...]
    factors: tuple[Factor, ...]
    skipped: str = ""

    @property
    def product(self) -> float:
        return prod(read.value for read in self.reads)


@dataclass(frozen=True)
class Neighbour:
    """A lane beside the owner's. stores: the elements of the output that it writes. shifts: for each array that both
    read, how many elements the neighbour's reads lie behind the owner's, how many of its reads do, and how many there
    are."""

    lane: int
    stores: Sequence[int]
    shifts: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Element:
    """An element, from a run.

    owners: all threads that write it, as (block, thread). reads: those of the first owner, in order. rows: the terms
    whose products the run's reads give; none where the element is no sum of them. start: the read that the sum begins
    with. total: what these come to. follows_formula: whether the reads are those that the formula asks for, in its
    order. of_block: for each global array, how many of its elements the owner's block reads.
    """

    output: Output
    index: Index
    stored: float
    owners: Sequence[tuple[int, int]]
    place: str
    reads: Sequence[Access]
    rows: Sequence[Row]
    start: Access | None
    total: float | None
    divisor: int
    follows_formula: bool
    explained: Explained
    of_block: Mapping[str, int]
    neighbours: Sequence[Neighbour]

    @property
    def is_unique(self) -> bool:
        return len(self.owners) == 1

    @property
    def adds_up(self) -> bool:
        """Whether the run's products come to the stored value; true where it is no sum of them."""
        return self.total is None or _close(self.total, self.stored)

    @property
    def agrees(self) -> bool:
        """Whether the formula gives the stored value."""
        return _close(self.explained.value, self.stored)

    @property
    def lane(self) -> tuple[int, int]:
        """The owner's warp within the block, and its lane."""
        return divmod(self.owners[0][1], LANES)


def _close(value: float, stored: float) -> bool:
    return abs(value - stored) <= TOLERANCE * max(abs(value), abs(stored)) + 1e-12


def outputs(name: str, fast: bool, stride: int | None = None, kernels: Any = kernel_source.KERNELS) -> dict[str, Output]:
    """The outputs of an operation's example, or of one kernel of it, by name; the last launch counts.

    Raises:
        DeviceError: there is no C++ compiler.
        KernelError: a kernel does not compile, or check mode finds an error in it.
        NoSuchElement: the operation has no stride.
    """
    declared = kernel_source.kernels(kernels)
    operation = declared[name].operation if name in declared and name not in EXAMPLES else name
    example = EXAMPLES[operation]
    if stride is not None and example.stride is None:
        raise NoSuchElement(f"{operation} has no stride: leave out --stride")
    device = Emulator(kernels, mode="trace", naive=not fast)
    results = example.results(Operations(device), stride)
    found: dict[str, Output] = {}
    for trace in device.traces:
        launch = trace.launch
        if name in declared and name not in EXAMPLES and launch.kernel.name != name:
            continue
        for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True):
            if parameter.is_array and not parameter.is_const and argument is not None:
                known = (each for each, array in results.items() if _is_same(array, argument))
                named = next(known, parameter.name)
                found[named] = Output(named, parameter.name, trace)
    return found


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.ctypes.data == b.ctypes.data


def element(output: Output, index: Index) -> Element:
    """An element of an output.

    Raises:
        NoSuchElement: the index is not one of the output's.
        KernelError: no thread writes the element.
    """
    values, trace = output.values, output.trace
    if len(index) != values.ndim or not all(0 <= at < size for at, size in zip(index, values.shape, strict=False)):
        example = ",".join(str(size - 1) for size in values.shape)
        raise NoSuchElement(
            f"{output.name} has the shape {values.shape}: no element {','.join(map(str, index))}; the last is {example}"
        )
    number = int(np.ravel_multi_index(index, values.shape))
    stores = trace.stores(output.parameter, number)
    if not stores:
        raise KernelError(f"{output.kernel.name} writes {output.written}, and not {output.name}{list(index)}")
    owners = list(dict.fromkeys((each.block, each.thread) for each in stores))
    block, thread = owners[0]
    of_block = trace.of_block(block)
    own = [each for each in of_block if each.thread == thread]
    given = Given(trace)
    key = output.kernel.name, output.parameter
    explained = FORMULAS[key](given, index)
    products, start, divisor = _products(key, given, index, explained, of_block, stores[0])
    rows, follows = _rows(given, products, explained.terms)
    total = None
    if products or key in SUMS:
        total = ((start.value if start else 0.0) + sum(prod(e.value for e in reads) for reads in products)) / divisor
    constant = {each.name for each in trace.arrays if each.before is not None}
    different = {(each.array, each.element) for each in of_block if each.kind == "read" and each.array in constant}
    return Element(
        output,
        index,
        float(values[index]),
        owners,
        stores[0].place,
        [each for each in own if each.kind == "read"],
        rows,
        start,
        total,
        divisor,
        follows,
        explained,
        dict(Counter(array for array, _ in different)),
        [*_neighbours(output, of_block, own, thread)],
    )


def _products(
    key: tuple[str, str],
    given: Given,
    index: Index,
    explained: Explained,
    of_block: Sequence[Access],
    store: Access,
) -> tuple[list[tuple[Access, ...]], Access | None, int]:
    """The reads of the run whose products the element adds up, the read that it begins with, and what divides the sum.

    Where the threads of a block share the sum, the reads are those of all of them.
    """
    reads = [each for each in of_block if each.kind == "read" and each.number < store.number]
    if key in FROM_SHARED:
        array, counted = FROM_SHARED[key]
        writes = (each.number for each in of_block if each.thread == store.thread and each.kind != "read")
        since = max((number for number in writes if number < store.number), default=-1)
        last = [e for e in reads if e.thread == store.thread and e.array == array and e.number > since]
        return [(each,) for each in last], None, given[counted].size if counted else 1
    if key not in SUMS:
        return [], None, 1
    rule = SUMS[key]
    own = [each for each in reads if each.thread == store.thread]
    if rule.sharing:
        mine = [each for each in reads if each.thread % rule.sharing == store.thread % rule.sharing]
    else:
        mine = own
    arrays = [factor.array for factor in explained.terms[0].factors]
    each_array = [[each for each in mine if each.array == array] for array in arrays]
    starts = [each for each in own if each.array == rule.start and rule.start not in arrays]
    pairs = list(zip(*each_array, strict=False))
    if len({*map(len, each_array)}) > 1:
        pairs = []  # a kernel that reads one array more often than another adds up something else
    return pairs, starts[0] if starts else None, rule.divisor(explained.terms)


def _rows(given: Given, products: Sequence[tuple[Access, ...]], terms: Sequence[Term]) -> tuple[list[Row], bool]:
    """The terms in the order of the kernel's loop, with those that it skips; and whether they are the formula's."""

    def numbers(factors: Sequence[Factor]) -> list[tuple[str, int]]:
        shapes = (given[factor.array].shape for factor in factors)
        places = (tuple(int(at) for at in factor.index) for factor in factors)
        return [(f.array, int(np.ravel_multi_index(p, s))) for f, p, s in zip(factors, places, shapes, strict=True)]

    expected = [numbers(term.factors) for term in terms if not term.skipped]
    follows = expected == [[(read.array, read.element) for read in reads] for reads in products]
    if not follows:
        return [Row(reads, ()) for reads in products], False
    left = iter(products)
    return [Row(() if term.skipped else next(left), term.factors, term.skipped) for term in terms], True


def _neighbours(output: Output, of_block: Sequence[Access], own: Sequence[Access], thread: int) -> list[Neighbour]:
    constant = {
        parameter.name
        for parameter in output.kernel.parameters
        if parameter.is_array and parameter.is_const  # the inputs
    }
    found = []
    for lane in (thread - 1, thread + 1):
        if lane // LANES != thread // LANES or not 0 <= lane < prod(output.trace.launch.block):
            continue
        other = [each for each in of_block if each.thread == lane]
        stores = [each.element for each in other if each.kind != "read" and each.array == output.parameter]
        shifts = {}
        for array in constant:
            mine, its = (
                list(dict.fromkeys(e.element for e in a if e.array == array and e.kind == "read"))[:MAX_COMPARED]
                for a in (own, other)
            )
            if mine and its:
                apart = Counter(b - a for a in mine for b in its)
                shift, count = min(apart.items(), key=lambda item: (-item[1], abs(item[0])))
                shifts[array] = shift, count, len(its)
        found.append(Neighbour(lane % LANES, stores, shifts))
    return found


def launches(name: str, fast: bool) -> list[Launch]:
    """Not run: the launches of an operation's example."""
    from tinyfcn.checks.parts import Recorder

    device = Recorder()
    device.naive = not fast
    return device.record(lambda: EXAMPLES[name].results(Operations(device))).launches
