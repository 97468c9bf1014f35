"""One element of an output: who owns it, what its thread reads, and how its value comes about, from a traced run.

The kernels of an example run on the emulator in trace mode. What they read and write is compared with the formula.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.profile import LANES
from tinyfcn.devices.emulator.trace import Access, LaunchTrace
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import KernelError
from tinyfcn.ops import Operations
from tinyfcn.study.examples import example_of, launches_of, operation_of
from tinyfcn.study.formulas import FORMULAS, SUMS, Explained, Factor, Given, Index, Term, at

TOLERANCE = 1e-5  # of a float32 result and the same formula in float64, relative to the value or to what cancels
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
        return (
            f"{self.name}[{elements.pop()}] alone" if len(elements) == 1 else f"{len(elements)} elements of {self.name}"
        )


@dataclass(frozen=True)
class Row:
    """A term of a sum.

    factors: the name and the value of each. thread: of the block; None if the formula alone gives the term. skipped:
    why the loop leaves it out, or "".
    """

    factors: tuple[tuple[str, float], ...]
    thread: int | None = None
    skipped: str = ""

    @property
    def product(self) -> float:
        return prod(value for _, value in self.factors)


class Shift(NamedTuple):
    """How many elements a neighbour's reads lie behind the owner's: `matches` of its `reads`."""

    elements: int
    matches: int
    reads: int


@dataclass(frozen=True)
class Neighbour:
    """A lane beside the owner's. stores: the elements of the output that it writes. shifts: by array."""

    lane: int
    stores: Sequence[int]
    shifts: Mapping[str, Shift]


@dataclass(frozen=True)
class Element:
    """An element, from a run.

    owners: all threads that write it, as (block, thread). place: the line that does. reads: those of the first owner.
    rows: the terms that the run's reads give; none where the element is no sum of them.
    start: the name and value of the read that the sum begins with.
    total: what these come to, divided by `divisor`; None where there are no rows.
    follows_formula: whether the reads are those that the formula asks for, in its order.
    formula_rows: the formula's terms, with the values of the inputs.
    of_block: for each global array, how many of its elements the owner's block reads.
    unread: how many of the elements that the formula needs the block does not read.
    """

    output: Output
    index: Index
    stored: float
    owners: Sequence[tuple[int, int]]
    place: str
    reads: Sequence[Access]
    rows: Sequence[Row]
    start: tuple[str, float] | None
    total: float | None
    divisor: int
    follows_formula: bool
    explained: Explained | None
    formula_rows: Sequence[Row]
    of_block: Mapping[str, int]
    unread: int
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
        """Whether the formula gives the stored value; true where none is known."""
        return self.explained is None or _close(self.explained.value, self.stored, self.explained.scale)

    @property
    def lane(self) -> tuple[int, int]:
        """The owner's warp within the block, and its lane."""
        return divmod(self.owners[0][1], LANES)


def _close(value: float, stored: float, scale: float = 0.0) -> bool:
    return abs(value - stored) <= TOLERANCE * max(abs(value), abs(stored), scale)


def outputs(name: str, fast: bool, stride: int | None = None, kernels: Path = KERNELS) -> dict[str, Output]:
    """The outputs of an operation's example, or of one kernel of it, by name. Of several launches the last one counts.

    fast: those of the fast kernels. Those of a kernel or a file that is fast alone are so without being asked for.

    Raises:
        DeviceError: there is no C++ compiler.
        KernelError: no operation or kernel has this name; a kernel does not compile; check mode finds an error in it.
        NoSuchElement: the operation has no stride, or it has no fast form.
    """
    operation = operation_of(name, kernel_source.kernels())
    example, fast = example_of(operation), fast or _is_fast(name, operation)
    if stride is not None and example.stride is None:
        raise NoSuchElement(f"{operation} has no stride: leave out --stride")
    if fast and not has_fast_form(name):
        raise NoSuchElement(f"{name} has no fast form: leave out --fast")
    device = Emulator(kernels, mode="trace", naive=not fast)
    results = example.results(Operations(device), stride)
    found: dict[str, Output] = {}
    for trace in device.traces:
        launch = trace.launch
        if name not in (operation, launch.kernel.name):
            continue
        for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True):
            if parameter.is_array and not parameter.is_const and argument is not None:
                known = (each for each, array in results.items() if _is_same(array, argument))
                named = next(known, parameter.name)
                found[named] = Output(named, parameter.name, trace)
    return {each: found[each] for each in (*(name for name in results if name in found), *found)}


def _is_fast(name: str, operation: str) -> bool:
    """Whether an operation has fast kernels alone, or a kernel is launched as the fast form of another."""
    plain = {each.kernel.name for each in launches_of(operation, naive=True)}
    own = {each.name for each in kernel_source.kernels().values() if name in (each.operation, each.name)}
    own = {name} if name != operation else own
    return bool(own) and not own & plain


def has_fast_form(name: str) -> bool:
    """Whether a device that is not naive launches other kernels in an operation's example."""
    operation = operation_of(name, kernel_source.kernels())
    plain, fast = ({each.kernel.name for each in launches_of(operation, naive)} for naive in (True, False))
    return plain != fast if name == operation else name in fast - plain


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.ctypes.data == b.ctypes.data


def element(output: Output, index: Index) -> Element:
    """An element of an output.

    Raises:
        NoSuchElement: the index is not one of the output's.
        KernelError: no thread writes the element.
    """
    values, trace = output.values, output.trace
    if len(index) != values.ndim or not all(0 <= each < size for each, size in zip(index, values.shape, strict=False)):
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
    explained = FORMULAS[key](given, index) if key in FORMULAS else None
    terms = explained.terms if explained else ()
    products, start, divisor = _products(key, given, terms, of_block, stores[0])
    follows = _expected(given, terms) == [[(read.array, read.element) for read in reads] for reads in products]
    rows = [Row(tuple(_named(trace, read) for read in reads), reads[0].thread) for reads in products]
    if follows:  # with those that the loop skips
        left = iter(rows)
        rows = [_skipped(term) if term.skipped else next(left) for term in terms]
    total = None
    if products or key in SUMS:
        total = ((start.value if start else 0.0) + sum(row.product for row in rows if not row.skipped)) / divisor
    arrays = {each.name for each in trace.arrays if each.before is not None}
    different = {(each.array, each.element) for each in of_block if each.kind == "read" and each.array in arrays}
    needed = {
        read
        for factors in _expected(given, terms)
        for read in factors
        if given[read[0]].shape == _shape(trace, read[0])
    }
    return Element(
        output,
        index,
        float(values[index]),
        owners,
        stores[0].place,
        [each for each in own if each.kind == "read"],
        rows,
        _named(trace, start) if start else None,
        total,
        divisor,
        follows,
        explained,
        [_formula_row(given, term) for term in terms],
        dict(Counter(array for array, _ in different)),
        len(needed - different),
        [*_neighbours(output, of_block, own, [read.array for read in products[0]] if products else [])],
    )


def _products(
    key: tuple[str, str],
    given: Given,
    terms: Sequence[Term],
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
    arrays = [factor.array for factor in terms[0].factors]
    each_array = [[each for each in mine if each.array == array] for array in arrays]
    starts = [each for each in own if each.array == rule.start and rule.start not in arrays]
    pairs = list(zip(*each_array, strict=False))
    if len({*map(len, each_array)}) > 1:
        pairs = []  # a kernel that reads one array more often than another adds up something else
    return pairs, starts[0] if starts else None, rule.divisor(terms)


def _expected(given: Given, terms: Sequence[Term]) -> list[list[tuple[str, int]]]:
    """The elements that the formula multiplies, in its order."""
    return [_numbers(given, term.factors) for term in terms if not term.skipped]


def _skipped(term: Term) -> Row:
    return Row(tuple((at(factor.array, factor.index), 0.0) for factor in term.factors), None, term.skipped)


def _formula_row(given: Given, term: Term) -> Row:
    if term.skipped:
        return _skipped(term)
    return Row(tuple((at(factor.array, factor.index), factor.value(given)) for factor in term.factors))


def _named(trace: LaunchTrace, read: Access) -> tuple[str, float]:
    """ "x[1,0,2,3]" and its value; of a shared variable the number of the element."""
    return named(trace, read.array, read.element), read.value


def index_of(number: int, shape: tuple[int, ...]) -> Index:
    """The index of an element with this number in the flattened array."""
    return tuple(map(int, np.unravel_index(number, shape)))


def named(trace: LaunchTrace, array: str, number: int) -> str:
    """ "x[1,0,2,3]"; "partial[7]" of a shared variable."""
    before = trace.array(array).before
    return at(array, index_of(number, before.shape) if before is not None else (number,))


def _numbers(given: Given, factors: Sequence[Factor]) -> list[tuple[str, int]]:
    """For each factor its array in the launch, and the element's number there."""
    shapes = (given[factor.array].shape for factor in factors)
    places = (tuple(map(int, factor.index)) for factor in factors)
    numbers = (int(np.ravel_multi_index(p, s)) for p, s in zip(places, shapes, strict=True))
    return [given.place(factor.array, number) for factor, number in zip(factors, numbers, strict=True)]


def _shape(trace: LaunchTrace, array: str) -> tuple[int, ...] | None:
    before = trace.array(array).before
    return None if before is None else before.shape


def _neighbours(
    output: Output, of_block: Sequence[Access], own: Sequence[Access], together: Sequence[str]
) -> Iterator[Neighbour]:
    """The lanes beside the owner's. together: the arrays whose elements are multiplied."""
    thread = own[0].thread
    inputs = [each.name for each in output.kernel.parameters if each.is_array and each.is_const]
    groups = [together, *([each] for each in inputs if each not in together)]
    for other in (thread - 1, thread + 1):
        if other // LANES != thread // LANES or not 0 <= other < prod(output.trace.launch.block):
            continue
        its = [each for each in of_block if each.thread == other]
        stores = [each.element for each in its if each.kind != "read" and each.array == output.parameter]
        shifts: dict[str, Shift] = {}
        for group in groups:
            shifts |= _shifts(group, own, its)
        yield Neighbour(other % LANES, stores, shifts)


def _shifts(arrays: Sequence[str], own: Sequence[Access], its: Sequence[Access]) -> dict[str, Shift]:
    """How many elements a lane's reads lie behind another's: the shift that most pairs of them have.

    Elements of several arrays that are read for one product stay together. Among equals, the last array is shifted
    least: a weight.
    """

    def elements(accesses: Sequence[Access]) -> list[tuple[int, ...]]:
        lists = ([e.element for e in accesses if e.kind == "read" and e.array == array] for array in arrays)
        return list(dict.fromkeys(zip(*lists, strict=False)))[:MAX_COMPARED]

    mine, others = elements(own), elements(its)
    apart = Counter(tuple(b - a for a, b in zip(m, o, strict=True)) for m in mine for o in others)
    if not apart:
        return {}
    shift, count = min(apart.items(), key=lambda item: (-item[1], [abs(each) for each in reversed(item[0])]))
    return {array: Shift(each, count, len(others)) for array, each in zip(arrays, shift, strict=True)}
