"""tinyfcn ladder"""

import difflib
import sys

import click
import numpy as np
from rich.console import Console
from rich.text import Text

from tinyfcn.bench.report import in_words
from tinyfcn.bench.timing import Run, TimeBudget, gpu_clock, in_turn
from tinyfcn.checks.profile import COUNTED
from tinyfcn.cli.options import Whole
from tinyfcn.cli.status import status
from tinyfcn.cli.tables import print_rows, show, table
from tinyfcn.devices import cuda, nvrtc
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.environment import is_terminal
from tinyfcn.machine import gpu
from tinyfcn.operations import on
from tinyfcn.study.ladder import LADDER, Counts, Rung, counts, inputs_on, rungs


@click.command(short_help="From the plainest kernel to the one that trains, one idea a rung.")
@click.argument("name", required=False, metavar="[LADDER]", type=click.Choice([*LADDER]))
@click.argument("number", required=False, metavar="[RUNG]", type=Whole(1, 99))
@click.option("--arch", type=click.Choice(nvrtc.ARCHITECTURES), default="sm_90", show_default=True, help="NVRTC's GPU.")
def ladder(name: str | None, number: int | None, arch: str) -> None:
    """From the plainest kernel of an operation to the one that trains, one idea a rung, with what each idea saves.

    Without LADDER it lists the ladders. With one, it counts what the launches of each rung ask of a GPU's memory,
    for a layer of the network (see tinyfcn profile). With a RUNG it shows how that rung differs from the one before,
    and the counts of both.

    \b
    tinyfcn ladder
    tinyfcn ladder conv2d
    tinyfcn ladder conv2d 3
    """
    if name is None:
        for each in LADDER:
            click.echo(f"{each}")
            for rung in rungs(each):
                click.echo(f"  {rung.number}  {rung.idea}")
        return
    steps = rungs(name)
    if number is not None and number > len(steps):
        raise click.UsageError(f"{name} has {len(steps)} rungs, and {number} is none of them")
    if number is not None:
        steps = steps[max(number - 2, 0) : number]
        _show_difference(steps)
    sizes = ", ".join(f"{size} {value}" for size, value in LADDER[name].layer.items())
    click.echo(f"\n{name} of {sizes}")
    with status("") as line:
        found = []
        for step in steps:
            line.update(f"rung {step.number} is compiled and counted")
            found.append((step, counts(step, arch)))
    _show_counts(found, arch)
    if cuda.why_not() is None:
        click.echo(f"\nmedian times of a launch graph on {gpu()[0]}")
        print_rows([{"rung>": who, "time>": in_words(seconds)} for who, seconds in _times(steps).items()])


def _show_difference(steps: list[Rung]) -> None:
    """The file of the last rung, as it differs from the one before."""
    rung, before = steps[-1], steps[-2] if len(steps) > 1 else None
    if rung.file is None:
        click.echo(f"the last rung is launched from the kernels that train, in {KERNELS}")
        return
    text = rung.file.read_text(encoding="utf-8")
    if before is not None and before.file is not None:
        old = before.file.read_text(encoding="utf-8").splitlines()
        diff = difflib.unified_diff(old, text.splitlines(), before.file.name, rung.file.name, lineterm="")
        text = "\n".join(diff)
    if is_terminal(sys.stdout):
        from rich.syntax import Syntax  # which takes its time

        code = Syntax("", "diff" if before else "cuda", theme="ansi_light", background_color="default").highlight(text)
        Console().print(code, soft_wrap=True, end="")  # the terminal wraps a long line; as a Syntax, rich would cut it
    else:
        click.echo(text)


def _times(steps: list[Rung]) -> dict[str, float]:
    """Seconds of each rung on the GPU, for the ladder's layer, by its number; and of PyTorch, if it is installed."""
    ladder = LADDER[steps[0].ladder]
    inputs = ladder.inputs(np.random.default_rng(0), **ladder.layer)
    programs: dict[str, Run] = {}
    for step in steps:
        device, work = step.prepared(cuda.Cuda, inputs)
        programs[f"{step.number}"] = device.record(work).replay
    from tinyfcn.bench import pytorch  # which imports PyTorch, and so takes its time

    if pytorch.modes_on("cuda"):
        ops = on("cuda")
        part = ladder.part(inputs_on(ops.device, inputs))
        pytorch.switch(pytorch.OPERATIONS, threads=1)
        programs["PyTorch"] = pytorch.TorchForm(ops).program(part, copies=1, rounds=1)
    return {name: timing["seconds"] for name, timing in in_turn(programs, gpu_clock, TimeBudget(0.3)).items()}


def _show_counts(found: list[tuple[Rung, Counts]], arch: str) -> None:
    rows = table("rung>", "idea", "MB by lanes>", "MB L1>", "global requests>", "shared wavefronts>", "registers>",
                 "spilled B>")  # fmt: skip
    for rung, each in found:
        resources = [f"{value}" if value is not None else "" for value in (each.registers, each.spilled_bytes)]
        rows.add_row(
            f"{rung.number}",
            Text(rung.idea),
            f"{each.bytes_by_lanes / 1e6:,.1f}",
            f"{each.l1_bytes / 1e6:,.1f}",
            f"{each.requests:.3f}",
            f"{each.wavefronts:.3f}" if each.wavefronts else "",
            *resources,
        )
    click.echo()
    show(rows)
    unit = "multiply-add of a warp" if found[0][1].multiply_adds else "warp of losses"
    click.echo(
        f"\nrequests and wavefronts for each {unit}; registers and spills by NVRTC for {arch}, if it is installed"
    )
    click.echo(COUNTED)
