"""tinyfcn profile"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from tinyfcn.bench.report import in_words, used_rows
from tinyfcn.checks.model import counts_of, predict, step_seconds
from tinyfcn.checks.parts import Part, kernel_resources
from tinyfcn.checks.profile import (
    COUNTED,
    Profiled,
    chain,
    compile_parts,
    count_instructions,
    profile_calls,
    profile_operation,
    profile_part,
    sectors,
    total,
    wavefronts,
    what_is_wrong,
)
from tinyfcn.cli.check import calls_of, own_file_options
from tinyfcn.cli.options import FILE, Whole, was_given
from tinyfcn.cli.sanitize import expect_known
from tinyfcn.cli.status import status
from tinyfcn.cli.tables import print_rows, show, table
from tinyfcn.devices import kernel_source, nvrtc, sass
from tinyfcn.devices.cards import CARDS, Card
from tinyfcn.devices.device import Launch
from tinyfcn.devices.emulator.profile import EVERY_BLOCK, LANES, SAMPLE, SECTOR, Requests, Sample
from tinyfcn.errors import DataError, DeviceError
from tinyfcn.fields import shown
from tinyfcn.files import new_file
from tinyfcn.networks import DESIGNS
from tinyfcn.operations import on, operation_names
from tinyfcn.study.ladder import LADDER, profile_rung, rungs
from tinyfcn.training.step import Task, launches_of_step, parts_of

# The ladder whose rungs compute what an operation's forward pass does.
LADDERS_OF = {ladder.operation: name for name, ladder in LADDER.items() if not ladder.what}
WORST = 8  # lines of a step that are shown


class Against(click.ParamType):
    """ "naive", or the number of a rung."""

    name = "naive|RUNG"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "naive" and not (value.isdecimal() and 0 < int(value) < 100):
            self.fail(f"{shown(value)} is neither 'naive' nor the number of a rung of the ladder.", param, ctx)
        return str(value)


@click.command(short_help="Count what kernels ask of a GPU's memory: requests, sectors, bank conflicts.")
@click.argument("name", required=False, metavar="[OPERATION|FILE.cu]")
@click.option("--step", is_flag=True, help="All launches of a training step, one line each.")
@click.option("--design", type=click.Choice([*DESIGNS]), default="skip", show_default=True, help="Whose step.")
@click.option("--batch", type=Whole(1, 4096), default=16, show_default=True, help="Images in the step.")
@click.option("--naive", is_flag=True, help="The naive kernels instead of the fast ones.")
@click.option("--layer", help="Only the launches of this layer, such as context or up1.")
@click.option(
    "--against", type=Against(), help="Lay the counts beside those of the naive kernels, or of a rung of the ladder."
)
@click.option(
    "--blocks",
    type=Whole(1, 1 << 30),
    help="Count so many blocks of each launch. [default: 16 and more, until the counts are certain]",
)
@click.option("--all", "every_block", is_flag=True, help="Count every block, which takes longer.")
@click.option("--arch", type=click.Choice(nvrtc.ARCHITECTURES), help="NVRTC's GPU. [default: that of --card]")
@click.option(
    "--card",
    "card_name",
    type=click.Choice([*CARDS]),
    default="h200",
    show_default=True,
    help="The GPU that the launches are made for.",
)
@click.option("--draw", metavar="FILE.cu:LINE", help="Draw the 32 lanes of a warp over memory at this line.")
@click.option("-o", "--out", type=FILE, default=Path("warp.png"), show_default=True, help="The picture of --draw.")
@click.option("--json", "json_file", type=FILE, help="Write all counts to this file.")
@own_file_options
@click.pass_context
def profile(
    context: click.Context,
    name: str | None,
    step: bool,
    design: str,
    batch: int,
    naive: bool,
    layer: str | None,
    against: str | None,
    blocks: int | None,
    every_block: bool,
    arch: str | None,
    card_name: str,
    draw: str | None,
    out: Path,
    json_file: Path | None,
    cases: Path | None,
    kernel: str | None,
    **launch: Any,
) -> None:
    """Count what kernels ask of a GPU's memory, without a GPU: the answer to "why is it slow?".

    A request is one access of a warp. In global memory it costs sectors of 32 bytes, in shared memory wavefronts, of
    which lanes that want different words of one bank take one each. Each source line is shown with its cost, the least
    that it could cost, and what is wrong. docs/profile.md explains it.

    The kernels run on the emulator, as they do in a training step; some blocks stand for all. No time is measured.

    FILE.cu instead of OPERATION is a file of your own, launched as for tinyfcn check.

    \b
    tinyfcn profile conv2d --layer context
    tinyfcn profile conv2d --layer context --against naive
    tinyfcn profile conv2d --layer context --against 5        rung 5 of the ladder
    tinyfcn profile --step --json step.json
    tinyfcn profile saxpy.cu --grid 4 --block 256 --arg n=1000 --arg a=2 --arg x=1000 --arg y=random:1000
    """
    if (name is None) != step:
        both = ", not both" if step else ""
        raise click.UsageError(f"name an OPERATION or a FILE.cu, or ask for a whole step with --step{both}")
    if draw is not None and not re.fullmatch(r"[^:]+\.cuh?:\d+", draw):
        raise click.UsageError(f"--draw {shown(draw)}: name a file and a line, such as fast_conv.cu:310")
    if was_given(context, "out") and draw is None:
        raise click.UsageError("-o is the picture of --draw FILE.cu:LINE")
    if naive and against == "naive":
        raise click.UsageError("--naive --against naive compares the naive kernels with themselves: leave one out")
    if every_block and blocks:
        raise click.UsageError("--all counts every block: leave out --blocks")
    sample = EVERY_BLOCK if every_block else Sample(blocks, accesses=0) if blocks else SAMPLE
    is_own = name is not None and name.endswith(".cu")
    if is_own and (naive or layer or against):
        raise click.UsageError("--naive, --layer and --against belong to the operations of tinyfcn, not to FILE.cu")
    if is_own and was_given(context, "card_name"):
        raise click.UsageError("--card chooses the launches of tinyfcn's operations; of FILE.cu you say them yourself")
    foreign = [option for option in ("cases", "kernel", *launch) if not is_own and was_given(context, option)]
    if foreign:
        flag = {"arguments": "--arg", "shared_bytes": "--shared"}.get(foreign[0], f"--{foreign[0]}")
        raise click.UsageError(f"{flag} belongs to a file of your own: tinyfcn profile FILE.cu")

    task, card = Task(design, batch), CARDS[card_name]
    arch = arch or card.architecture
    show_each = None if step or against else _show_launch
    if is_own:
        calls = calls_of(Path(str(name)), cases, kernel, launch)
        profiled = [*_each(profile_calls(Path(str(name)), calls, sample), show_each)]
    else:
        with status(f"a step of {design} runs, which tells its launches"):
            parts = _parts(name, task, layer, card)
        if not parts:
            click.echo(f"a step of {design} has no {name}: the largest of some random inputs is taken", err=True)
        if against not in (None, "naive"):
            parts = _of_ladder(name, parts, design)
        profiled = [*_each(_profiles(name, parts, naive, sample, card), show_each)]
    if against == "naive":
        _show_against(profiled, [*_profiles(name, parts, True, sample, card)], "naive")
    elif against:
        _show_against(profiled, _rung(str(name), against, parts, sample), f"rung {against}")
    elif step:
        _show_step(profiled)
    if not profiled:
        raise DataError(f"nothing was launched, so nothing is counted: {name} has no calls")
    used: list[dict[str, Any]] | None = None
    try:
        with status(f"NVRTC compiles the kernels for {arch}"):
            used = kernel_resources(((each.name, each.launch) for each in profiled), arch, profiled[0].profile.kernels)
        click.echo(f"\nwhat the kernels use, compiled for {arch}")
        print_rows(used_rows(used))
        if sass.nvdisasm():
            count_instructions(profiled, arch)
            click.echo()
            show(_instructions(profiled))
    except DeviceError as error:
        click.echo(f"\nregisters, spills and occupancy are NVRTC's: {error}")
    if draw is not None:
        _draw(profiled, draw, out)
    sums: dict[str, Any] = dict(total(profiled))
    model = None
    if step:
        with status("the step is recorded as a graph"):
            graph = launches_of_step(task, card.multiprocessors)
        if not (naive or layer):  # it knows the fast kernels, and a step has all of its launches
            model = _show_model(profiled, graph, card)
        sums |= {"graph_nodes": len(graph), "graph_chain": chain(graph)}
        counted = [each.instructions for each in profiled if each.instructions is not None]
        sums["instructions"] = round(sum(counted)) if counted else None
    _show_totals(sums)
    if blocks and blocks < SAMPLE.blocks:
        click.echo(f"blocks of each launch that were counted: {blocks}; what only others access is missing")
    if json_file is not None:
        content = {"counted": COUNTED, "design": design, "batch": batch, "naive": naive, "total": sums}
        content |= {"launches": [each.as_json() for each in profiled], "kernels": used, "model": model}
        with new_file(json_file, "name another file with --json") as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
        click.echo(f"written: {json_file}")


def _each(profiled: Iterable[Profiled], show: Callable[[Profiled], None] | None) -> Iterator[Profiled]:
    for each in profiled:
        if show:
            show(each)
        yield each


def _parts(name: str | None, task: Task, layer: str | None, card: Card) -> list[Part]:
    """The parts of a step, or those of one operation, kernel or file in it; none if the step has no such operation."""
    if name is not None:
        declared = kernel_source.kernels(kernel_source.KERNELS)
        name = declared[name].operation if name in declared else name
        expect_known(name)
    of_name = [
        part
        for part in parts_of(task, on("cpu"), card.multiprocessors)
        if name in (None, operation_names()[part.operation], *(each.kernel.operation for each in part.launches))
    ]
    chosen = [part for part in of_name if layer in (None, part.layer)]
    if layer is not None and not chosen:
        layers = {part.layer: None for part in of_name if part.layer}
        raise click.UsageError(
            f"{name or task.design} has no layer named {layer}; {task.design} has {', '.join(layers) or 'none'}"
        )
    return chosen


def _profiles(name: str | None, parts: list[Part], naive: bool, sample: Sample, card: Card) -> Iterator[Profiled]:
    """The launches of the parts; of the operation on random inputs if there are none."""
    if not parts:
        yield from profile_operation(str(name), naive, sample)
    elif not naive:
        with status("the kernels are compiled"):
            compile_parts(parts)
    for number, part in enumerate(parts, 1):
        click.echo(f"{number} of {len(parts)}: {part}", err=True)
        yield from profile_part(part, naive, sample, multiprocessors=card.multiprocessors)


def _of_ladder(name: str | None, parts: list[Part], design: str) -> list[Part]:
    """The forward passes among the parts, which the rungs of the operation's ladder compute too."""
    if name not in LADDERS_OF:
        raise click.UsageError(f"{name or 'a whole step'} has no ladder: there is one of {', '.join(LADDERS_OF)}")
    forward = [part for part in parts if part.operation == name]
    if not forward and parts:
        raise click.UsageError(f"a step of {design} has only gradients of {name} there: choose another --layer")
    if not forward:
        raise click.UsageError(f"a step of {design} has no {name}: choose another --design")
    return forward


def _rung(name: str, number: str, parts: list[Part], sample: Sample) -> list[Profiled]:
    """The launches of a rung with the arguments of the parts."""
    steps = rungs(LADDERS_OF[name])
    if int(number) > len(steps):
        raise click.UsageError(f"the ladder of {name} has {len(steps)} rungs, and {number} is none of them")
    rung = steps[int(number) - 1]
    _, *names = inspect.signature(next(iter(LADDER[rung.ladder].rungs.values()))).parameters  # without the device
    inputs = ({name: part.arguments[name] for name in names} for part in parts)
    return [each for given in inputs for each in profile_rung(rung, given, sample)]


def _place(line: Requests) -> str:
    return f"{line.place} < {line.caller.rpartition(':')[2]}" if line.caller else line.place


def _access(line: Requests) -> str:
    width = f" x{line.bytes // 4}" if line.bytes > 4 else f" ({line.bytes} B)" if line.bytes < 4 else ""
    return f"{line.kind} {line.array}{width}"


def _show_launch(profiled: Profiled) -> None:
    """The lines of a launch, and its arrays."""
    profile, kernel = profiled.profile, profiled.launch.kernel
    counted = "all" if profile.blocks == profile.block_count else f"{profile.blocks}"
    click.echo(f"\n{profiled.name}")
    click.echo(f"{kernel.expression} in {kernel.operation}.cu")
    threads = prod(profiled.launch.block)
    click.echo(f"{profile.block_count:,} blocks of {threads} threads, {counted} of them counted")
    if profiled.multiply_adds:
        of_warps = profiled.multiply_adds / LANES
        figures = {
            "global requests": profiled.sum("requests", shared=False),
            "shared requests": profiled.sum("requests", shared=True),
            "shared wavefronts": profiled.sum("parts", shared=True),
        }
        told = ", ".join(f"{value / of_warps:.3g} {what}" for what, value in figures.items() if value)
        click.echo(f"{profiled.multiply_adds:,} multiply-adds; for each one of a warp {told}")

    for is_shared, unit in ((False, "sectors"), (True, "wavefronts")):
        lines = [line for line in profile.requests if line.is_shared == is_shared]
        where = "shared memory" if is_shared else "global memory"
        rows = table(where, "access", "requests>", "lanes>", f"{unit}>", "at best>", "worst>")
        for line in lines:
            each = f"{line.lanes / line.requests:.1f}", f"{line.parts / line.requests:.2f}"
            best = f"{line.fewest / line.requests:.2f}"
            requests = f"{profiled.scale * line.requests:,.0f}"
            rows.add_row(_place(line), _access(line), requests, *each, best, f"{line.worst}")
        if lines:
            click.echo()
            show(rows)
    for number, line in enumerate(profiled.wasteful()):
        click.echo("\n" * (not number) + f"{_place(line)}, {_access(line)}: {what_is_wrong(line)}")
        click.echo(f"    {_source_line(profiled, line)}")

    arrays = table("bytes", "access", "size>", "by lanes>", "L1>", "L2>", "DRAM>", "lanes/size>", "blocks/size>")
    for traffic in profile.traffic:
        if traffic.is_shared:
            continue
        l1, l2 = (SECTOR * profiled.scale * count for count in (traffic.parts, traffic.of_blocks))
        by_lanes = profiled.scale * traffic.by_lanes
        cells = [f"{value:,.0f}" for value in (traffic.size, by_lanes, l1, l2, profiled.dram_bytes(traffic))]
        times = [f"{value / traffic.size:,.2f}x" for value in (by_lanes, l2)]
        arrays.add_row(traffic.array, traffic.kind, *cells, *times)
    click.echo()
    show(arrays)


def _source_line(profiled: Profiled, line: Requests) -> str:
    return kernel_source.source(profiled.launch.kernel.operation, profiled.profile.kernels).line(line.place)


def _show_step(profiled: list[Profiled]) -> None:
    """A row for each launch of a step."""
    rows = table("for", "kernel", "blocks>", "M FMA>", "lanes>", "sectors>", "excess>", "wavefronts>", "conflicts>")
    worst = []
    for each in profiled:
        sums, shared = each.totals(), each.sum("parts", shared=True)
        rows.add_row(
            each.name,
            each.launch.kernel.name,
            f"{each.profile.block_count:,}",
            f"{each.multiply_adds / 1e6:.1f}" if each.multiply_adds else "",
            f"{each.sum('lanes') / max(each.sum('requests'), 1):.1f}",
            f"{sums['sectors']:,.0f}",
            _excess(sums["sectors"], sums["sectors_ideal"]),
            f"{shared:,.0f}" if shared else "",
            _excess(shared, sums["shared_wavefronts_ideal"]),
        )
        worst += [(each.scale * (line.parts - line.fewest), each, line) for line in each.wasteful() if line.is_shared]
    click.echo()
    show(rows)
    click.echo("\nthe lines with the most bank conflicts, in wavefronts beyond the fewest")
    for excess, each, line in sorted(worst, key=lambda row: -row[0])[:WORST]:
        click.echo(f"  {excess:>9,.0f}  {each.name}: {_place(line)}, {_access(line)}: {what_is_wrong(line)}")


def _show_model(profiled: list[Profiled], graph: Sequence[Launch], card: Card) -> dict[str, Any]:
    """The launches that should take longest on a card, and the step; returns what --json says of it."""
    found = [(each, predict(counts_of(each), card)) for each in profiled]
    seconds = step_seconds(graph, profiled, card)
    click.echo(f"\nthe longest launches by the model of docs/speed.md, on an {card.name}, and what bounds them")
    for each, predicted in sorted(found, key=lambda pair: -pair[1].seconds)[:WORST]:
        click.echo(f"  {in_words(predicted.seconds):>9}  {each.name}: {predicted.bound}")
    click.echo(f"  {in_words(seconds):>9}  the step, which is its longest chain of launches")
    launches = [{"for": each.name, "seconds": p.seconds, "bound": p.bound} for each, p in found]
    return {"card": card.name, "step_seconds": seconds, "launches": launches}


def _draw(profiled: list[Profiled], place: str, out: Path) -> None:
    """Draws the costliest request of a line, or of its accesses the one that costs most."""
    found = [(line.worst / max(line.fewest / line.requests, 1), each, line) for each in profiled
             for line in each.profile.requests if place in (line.place, line.caller)]  # fmt: skip
    if not found:
        places = {line.place: None for each in profiled for line in each.profile.requests}
        raise click.UsageError(f"no request at {place}: there are some at {', '.join(places)}")
    from tinyfcn import figures

    _, each, line = max(found, key=lambda row: row[0])
    rows = wavefronts(line) if line.is_shared else sectors(line)
    title = f"{each.launch.kernel.name}: {_place(line)}, {_access(line)}"
    cost = f"{line.worst} wavefronts: " * line.is_shared + what_is_wrong(line)
    note = f"{_source_line(each, line)}\n{cost.removesuffix(': ') or f'{line.worst} sectors'}"
    path = figures.memory(out, title, note, [(row.label, row.lanes) for row in rows], line.is_shared)
    click.echo(f"\ndrawn: {path}")


def _excess(parts: float, fewest: float) -> str:
    """The share of the parts that the fewest would have saved."""
    return f"{1 - fewest / parts:.0%}" if parts else ""


def _show_against(mine: list[Profiled], others: list[Profiled], name: str) -> None:
    """The totals of both side by side."""
    rows = table("of all launches", "these>", f"{name}>", "ratio>")
    for (count, value), other in zip(total(mine).items(), total(others).values(), strict=True):
        if count != "multiply_adds":
            ratio = f"{other / value:,.2f}" if value else ""
            rows.add_row(count.replace("_", " "), f"{value:,}", f"{other:,}", ratio)
    click.echo()
    show(rows)


def _instructions(profiled: list[Profiled]) -> Table:
    """What nvdisasm tells of each launch."""
    rows = table("by nvdisasm", "kernel", "instructions of warps>", "a multiply-add>", "multiply-adds a shared load>")
    for each in profiled:
        count, load = each.instructions or 0, each.products_of_a_load
        rows.add_row(
            each.name,
            each.launch.kernel.name,
            f"{count:,.0f}",
            f"{count / (each.multiply_adds / LANES):.2f}" if each.multiply_adds else "",
            f"{load:.1f}" if load else "",
        )
    return rows


def _show_totals(sums: dict[str, Any]) -> None:
    conflicts = _excess(sums["shared_wavefronts"], sums["shared_wavefronts_ideal"]) or "none"
    products = f"{sums['multiply_adds']:,} multiply-adds, " if sums["multiply_adds"] else ""
    click.echo(f"\nall launches: {products}{sums['requests']:,} requests")
    click.echo(f"  {sums['sectors']:,} sectors ({sums['sectors_ideal']:,} at best)")
    if sums["shared_wavefronts"]:
        click.echo(f"  {sums['shared_wavefronts']:,} shared wavefronts, of which bank conflicts make {conflicts}")
    moved = (f"{sums[f'{level}_bytes']:,} bytes {level.upper()}" for level in ("l1", "l2", "dram"))
    click.echo(f"  {', '.join(moved)}")
    if sums.get("instructions"):
        click.echo(f"  about {sums['instructions']:,} instructions of warps")
    if "graph_nodes" in sums:
        click.echo(f"  as a graph {sums['graph_nodes']} launches, {sums['graph_chain']} of them one after another")
    click.echo(COUNTED)
