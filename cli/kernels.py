"""tinyfcn kernels"""

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import click

from tinyfcn.cli.options import Whole
from tinyfcn.cli.status import status
from tinyfcn.cli.tables import show, table
from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.errors import KernelError
from tinyfcn.fields import counted, shown
from tinyfcn.study.element import (
    Element,
    Neighbour,
    NoSuchElement,
    Output,
    Row,
    Shift,
    element,
    index_of,
    named,
    outputs,
)
from tinyfcn.study.examples import launches_of, operation_of
from tinyfcn.study.formulas import Index, at, number
from tinyfcn.study.kernels import STEP, KernelRow, arrays, kernel_rows, sentence

WIDTH = 80
MAX_LINES = 24  # of a sum, and of reads; --all shows every one
SHOWN = 16, 4  # at the beginning and at the end of a longer one


class Indices(click.ParamType):
    """ "1,3,2,4" """

    name = "n,c,h,w"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Index:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).strip("[]() ").split(",")]
        if not all(part.isdecimal() and len(part) < 10 for part in parts):
            self.fail(f"{shown(value)} is no list of whole numbers from 0, such as 1,3,2,4.", param, ctx)
        return tuple(map(int, parts))


@click.command(short_help="What kernels there are; or who computes one element, from which reads.")
@click.argument("name", required=False, metavar="[OPERATION|KERNEL]")
@click.option("--element", "index", type=Indices(), help="Explain this element of an output, from a run.")
@click.option("--output", "which", help="The output that --element is of. Default: the first one.")
@click.option("--fast", is_flag=True, help="With --element: the fast kernels instead of the plain ones.")
@click.option("--stride", type=Whole(1, 4), help="With --element: the stride of a convolution or pooling.")
@click.option("--all", "everything", is_flag=True, help="With --element: every product and every read.")
@click.option("--arch", type=click.Choice(nvrtc.ARCHITECTURES), default="sm_90", show_default=True, help="NVRTC's GPU.")
def kernels(
    name: str | None,
    index: Index | None,
    which: str | None,
    fast: bool,
    stride: int | None,
    everything: bool,
    arch: str,
) -> None:
    """What kernels there are; or which thread computes one element of an output, and from what.

    Without OPERATION: all kernels. With one: its kernels, with the arrays and the launches of a small example.

    With --element: the example runs on the emulator, which keeps every access. The output names the thread that
    writes the element, shows the products that add up to it or the formula with its numbers, and says what the
    neighbouring lanes compute. It exits with 1 if another thread writes the element too, or if the formula gives
    another number.

    \b
    tinyfcn kernels
    tinyfcn kernels conv2d
    tinyfcn kernels conv2d --element 1,3,2,4
    tinyfcn kernels conv2d --element 3,0,1,2 --output dweight
    tinyfcn kernels conv_transpose2d --element 0,1,5,6 --fast
    """
    if index is None:
        given = {"--output": which, "--fast": fast, "--stride": stride, "--all": everything}
        if wrong := [option for option, value in given.items() if value]:
            raise click.UsageError(f"{wrong[0]} belongs to --element: add an element, such as --element 0,0,0,0")
        return _list(name, arch)
    if name is None:
        raise click.UsageError("--element wants an operation: tinyfcn kernels conv2d --element 1,3,2,4")
    found = _output(name, which, fast, stride)
    try:
        explained = element(found, index)
    except NoSuchElement as error:
        raise click.UsageError(str(error)) from None
    _show_element(explained, everything)
    sys.exit(0 if explained.is_unique and explained.adds_up and explained.agrees else 1)


# --- The list ---


def _list(name: str | None, arch: str) -> None:
    declared = kernel_source.kernels()
    files = [_operation(name)] if name else kernel_source.operations()
    without = False
    for file in files:
        if file not in kernel_source.operations():
            click.echo(f"{file} has no kernel file; it launches kernels of other files")
            return _show_launches(file)
        with status(f"{file}.cu is compiled by NVRTC, if it is not yet"):
            found = kernel_rows(file, arch)
        chosen = [row for row in found if name in (None, file, row.kernel.name)]
        without |= any(row.resources is None for row in chosen)
        click.echo(f"\n{_wrapped(sentence(file))}" if name is None else _wrapped(sentence(file)))
        _show_rows(chosen)
        if name:
            _show_launches(file, {row.kernel.name for row in chosen})
    click.echo(f"\n{len(declared)} kernels" if name is None else "")
    _say(f"launches: in a training step of {STEP}; rung: tinyfcn ladder conv2d 8, for instance")
    if without:
        _say("registers, shared memory and spills are NVRTC's, which is not installed: see tinyfcn info")
    else:
        _say(f"registers, shared and spilled bytes: by NVRTC for {arch}, over all instances of a template")


def _operation(name: str) -> str:
    try:
        return operation_of(name, kernel_source.kernels())
    except KernelError as error:
        raise click.UsageError(str(error)) from None


def _show_rows(found: Sequence[KernelRow]) -> None:
    # An exercise's number would be one more column here.
    columns = {
        "kernel": [row.kernel.name for row in found],
        "place": [f"{row.kernel.operation}.cu:{row.kernel.line}" for row in found],
        "form": [row.form for row in found],
        "launches>": [f"{row.launches}" for row in found],
        "registers>": _used(found, "registers"),
        "shared B>": _used(found, "shared_bytes"),
        "spilled B>": _used(found, "spilled_bytes"),
        "rung": [row.rung for row in found],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    made = table(*filled)
    for cells in zip(*filled.values(), strict=True):
        made.add_row(*cells)
    show(made)


def _used(found: Sequence[KernelRow], what: str) -> list[str]:
    return [_range(getattr(each, what) for each in row.resources or ()) for row in found]


def _range(values: Iterable[int]) -> str:
    """ "40", or "40-128"."""
    ends = sorted(set(values))
    return f"{ends[0]}-{ends[-1]}" if len(ends) > 1 else "".join(map(str, ends))


def _show_launches(file: str, wanted: set[str] | None = None) -> None:
    """The launch and the arrays in the example of each of the wanted kernels, or of all."""
    done: set[str] = set()
    for launch in (each for naive in (True, False) for each in launches_of(file, naive)):
        name = launch.kernel.name
        if name in done or (wanted is not None and name not in wanted):
            continue
        done.add(name)
        grid, block = (_sizes(each) for each in (launch.grid, launch.block))
        click.echo(f"\n{name}: in the example, grid {grid}, block {block}")
        made = table("array", "shape", "type", "in or out")
        for array, shape, kind, direction in arrays(launch):
            made.add_row(array, ", ".join(map(str, shape)), kind, direction)
        show(made)


def _sizes(dim3: Sequence[int]) -> str:
    """A dim3 as a launch gives it: "3", or "(1, 8)"."""
    while len(dim3) > 1 and dim3[-1] == 1:
        dim3 = dim3[:-1]
    return str(tuple(dim3)) if len(dim3) > 1 else str(dim3[0])


# --- An element ---


def _output(name: str, which: str | None, fast: bool, stride: int | None) -> Output:
    operation = _operation(name)
    click.echo(f"the example of {operation} runs on the emulator", err=True)
    try:
        with status("its kernels are compiled, if they are not yet"):
            found = outputs(name, fast, stride)
    except NoSuchElement as error:
        raise click.UsageError(str(error)) from None
    if which is None and found:
        return next(iter(found.values()))
    if which not in found:
        there_are = ", ".join(f"{each.name} {each.values.shape}" for each in found.values()) or "none"
        raise click.UsageError(f"{name} has no output {shown(which)}; there are {there_are}")
    return found[which]


def _show_element(found: Element, everything: bool) -> None:
    output, (block, thread), (warp, lane) = found.output, found.owners[0], found.lane
    launch, kernel = output.trace.launch, output.kernel
    name = at(output.name, found.index)
    of_block = _block(launch.grid, block)
    where = f"thread {thread} of block {of_block}, lane {lane} of warp {warp}, at {found.place}"
    _say(f"{name} = {number(found.stored)} is written by {where}, in {kernel.name}.")
    _say(
        "No other thread writes it."
        if found.is_unique
        else f"WRONG: {len(found.owners)} threads write it, such as thread {found.owners[1][1]} of block "
        f"{_block(launch.grid, found.owners[1][0])}."
    )
    grid, threads = _sizes(launch.grid), _sizes(launch.block)
    shape = "x".join(map(str, output.values.shape))
    elements = "1 element" if output.values.size == 1 else f"{shape} elements"
    _say(f"The launch: grid {grid}, block {threads}. {output.name} has {elements}.")
    if output.parameter != output.name:
        _say(f"{kernel.name} calls this array {output.parameter}.")
    if found.explained:
        click.echo(f"\n{_wrapped(f'{output.name} = {found.explained.formula}')}")
    else:
        _say(f"No formula is known: FORMULAS in tinyfcn/study/formulas.py has none for {kernel.name}.")
    click.echo()
    if found.rows:
        _show_sum(found, everything)
    else:
        _show_reads(found, everything)
    if found.explained and not (found.rows and found.follows_formula):
        _show_formula(found, everything)
    verdict = "" if found.adds_up and found.agrees else ": WRONG, the kernel and the formula differ"
    click.echo(f"stored: {number(found.stored)}{verdict}\n")
    for each in found.neighbours:
        _say(_beside(found, each))


def _show_sum(found: Element, everything: bool) -> None:
    """The terms that the run's reads give, and what they add up to."""
    _echo_terms(found.rows, everything)
    used = [row for row in found.rows if not row.skipped]
    skipped = len(found.rows) - len(used)
    what = counted(len(used), "product" if len(found.rows[0].factors) > 1 else "read")
    total = sum(row.product for row in used)
    click.echo(f"{what}{f', {skipped} skipped' if skipped else ''}: sum {number(total)}")
    if found.start:
        click.echo(f"with {found.start[0]} {number(found.start[1])}: {number(total + found.start[1])}")
    if found.divisor > 1:
        click.echo(f"divided by {found.divisor}: {number(total / found.divisor)}")


def _show_reads(found: Element, everything: bool) -> None:
    """What the owner reads, where the element is no sum of it."""
    trace = found.output.trace
    click.echo(f"thread {found.owners[0][1]} reads")
    if len(found.reads) > MAX_LINES and not everything:
        return _show_counts(found)
    lines = [(named(trace, each.array, each.element), number(each.value), each.place) for each in found.reads]
    widths = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    texts = [f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {place}" for name, value, place in lines]
    _echo_elided(texts, "reads", everything)


def _show_counts(found: Element) -> None:
    """How often the owner reads each array, and what its block reads, where the products pass through shared memory."""
    trace = found.output.trace
    for array in dict.fromkeys(each.array for each in found.reads):
        reads = [each for each in found.reads if each.array == array]
        memory = "shared" if trace.array(array).is_shared else "global"
        places = ", ".join(dict.fromkeys(each.place for each in reads))
        _say(f"  {array}, {memory} memory: {len({e.element for e in reads})} elements, {len(reads)} reads, {places}")
    listed = ", ".join(f"{count} elements of {array}" for array, count in found.of_block.items())
    _say(f"Its block reads {listed} from global memory.")


def _show_formula(found: Element, everything: bool) -> None:
    """The formula with the numbers of the inputs."""
    explained = found.explained
    assert explained is not None, "the caller has seen one"
    if found.rows and found.formula_rows and found.unread:
        _say(f"The formula asks for {found.unread} elements that no thread of the block reads.")
    click.echo("\nby the formula, from the inputs")
    if found.formula_rows:
        _echo_terms(found.formula_rows, everything)
        used = [row for row in found.formula_rows if not row.skipped]
        click.echo(f"{counted(len(used), 'term')}: sum {number(sum(row.product for row in used))}")
        if not found.unread:
            _say("The owner's block reads all of these elements.")
    for step in explained.steps:
        _say(f"  {step}")
    click.echo(f"which gives {number(explained.value)}")


def _echo_terms(rows: Sequence[Row], everything: bool) -> None:
    """The terms, one a line; those of a run of skipped ones share a line."""
    used = [row for row in rows if not row.skipped]
    shared = len({row.thread for row in used}) > 1
    widths = [
        (max(len(row.factors[k][0]) for row in used), max(len(number(row.factors[k][1])) for row in used))
        for k in range(len(rows[0].factors) if used else 0)
    ]
    result = max((len(number(row.product)) for row in used), default=0)
    lines = []
    for group in _runs(rows):
        row = group[0]
        if row.skipped:
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            lines.append(f"  {' * '.join(name for name, _ in row.factors)}{more}: skipped, {row.skipped}")
            continue
        cells = [
            f"{name:<{a}}  {number(value):>{b}}" for (name, value), (a, b) in zip(row.factors, widths, strict=True)
        ]
        equals = f" = {number(row.product):>{result}}" if len(cells) > 1 else ""
        lines.append(f"  {f'thread {row.thread}: ' if shared else ''}{' * '.join(cells)}{equals}")
    _echo_elided(lines, "lines", everything)


def _runs(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Each term that counts, and each run of terms that are skipped for one reason."""
    for _, run in groupby(enumerate(rows), key=lambda pair: (pair[1].skipped, pair[0] if not pair[1].skipped else 0)):
        yield [row for _, row in run]


def _echo_elided(lines: Sequence[str], what: str, everything: bool) -> None:
    if everything or len(lines) <= MAX_LINES:
        click.echo("\n".join(lines))
        return
    first, last = SHOWN
    click.echo(
        "\n".join([*lines[:first], f"  ... {len(lines) - first - last} more {what}, --all shows them", *lines[-last:]])
    )


def _beside(found: Element, neighbour: Neighbour) -> str:
    """What a neighbouring lane computes, and how its reads lie beside the owner's."""
    output, lane = found.output, found.lane[1]
    stores = [at(output.name, index_of(each, output.values.shape)) for each in neighbour.stores]
    which = ", ".join(stores[:2]) if len(stores) < 3 else f"{len(stores)} elements, {stores[0]} to {stores[-1]}"
    text = f"Lane {neighbour.lane} stores {which or f'nothing in {output.name}'}."
    told: dict[str, list[str]] = {}
    for array, shift in sorted(neighbour.shifts.items(), key=lambda item: not item[1].elements):
        told.setdefault(_told(shift), []).append(array)
    reads = "; ".join(f"{', '.join(names)} {where}" for where, names in told.items())
    return f"{text} Beside lane {lane}, it reads {reads}." if reads else text


def _told(shift: Shift) -> str:
    """Where a neighbour's reads lie: "1 element further, a neighbour in memory"."""
    some = "" if shift.matches == shift.reads else f" in {shift.matches} of {shift.reads} reads"
    if not shift.elements:
        return f"the same{some}"
    where = f"{counted(abs(shift.elements), 'element')} {'further' if shift.elements > 0 else 'before'}"
    return f"{where}{some}{', neighbours in memory' * (abs(shift.elements) == 1)}"


def _block(grid: Sequence[int], number_of_block: int) -> str:
    """ "2", or "(0,3,0)" where the grid has more than one dimension."""
    if grid[1:] == (1, 1):
        return str(number_of_block)
    x, y = number_of_block % grid[0], number_of_block // grid[0]
    return f"({x},{y % grid[1]},{y // grid[1]})"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * (len(text) - len(text.lstrip())))


def _say(text: str) -> None:
    click.echo(_wrapped(text))
