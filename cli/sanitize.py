"""tinyfcn sanitize"""

import sys

import click
from rich.console import Console
from rich.progress import track

from tinyfcn.checks.pieces import cases_of, unknown
from tinyfcn.checks.pieces import operations as all_operations
from tinyfcn.checks.sanitize import NEVER_LAUNCHED, NO_FINDING, Report, check, conflicts_in_steps, counted
from tinyfcn.cli.options import Whole
from tinyfcn.cli.tables import show, table
from tinyfcn.devices import kernel_source
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.environment import is_terminal


@click.command(short_help="Check every kernel's memory accesses.")
@click.argument("kernel", required=False)
@click.option(
    "--seeds",
    type=Whole(1, 1_000_000),
    default=100,
    show_default=True,
    help="How many random shapes of each operation. Each runs with its threads forward, in reverse and shuffled.",
)
def sanitize(kernel: str | None, seeds: int) -> None:
    """Check every kernel on small random shapes: races, accesses out of bounds, reads of uninitialised values, NaNs,
    and results that depend on the order of threads. Also check each network's training step: launches that may overlap
    must not touch each other's arrays.

    Runs on the emulator, on any machine with a C++ compiler. Exits with 1 if anything is found; each finding names the
    .cu file and line. KERNEL is a kernel's or an operation's name; without it, all are checked.

    \b
    tinyfcn sanitize
    tinyfcn sanitize conv2d                      all kernels of conv2d.cu
    tinyfcn sanitize conv2d_forward_naive --seeds 1000
    """
    declared, operations = kernel_source.kernels(KERNELS), kernel_source.operations(KERNELS)
    if kernel is not None and kernel not in (*operations, *declared):
        if kernel not in all_operations():
            if kernel_source.unread(KERNELS):
                raise kernel_source.no_kernel(kernel, KERNELS)
            raise click.UsageError(unknown(kernel, [*declared]))
        cases_of(kernel)  # raises if it is incomplete
        raise click.UsageError(f"{kernel} has no kernels of its own: try tinyfcn sanitize fast_conv")
    if kernel is not None:
        operations = [kernel if kernel in operations else declared[kernel].operation]

    progress = Console(stderr=True)
    quiet = not is_terminal(sys.stderr)
    report = Report()
    for operation in operations:
        drawn = range(seeds) if quiet else track(range(seeds), operation, console=progress, transient=True)
        report.add(check(operation, drawn, KERNELS))

    if kernel is None or kernel in operations:
        shown = {each.name for each in declared.values() if each.operation in operations}
        shown |= {name for name, statistics in report.statistics.items() if statistics.launches}
    else:
        shown = {kernel}
    shown |= {finding.kernel for finding in report.findings.values()}
    verdicts = {each: report.verdict(each) for each in declared.values() if each.name in shown}

    rows = table("kernel", "file", "launches>", "threads>", "accesses checked>", "verdict")
    for each, verdict in verdicts.items():
        numbers = (f"{number:,}" for number in vars(report.statistics[each.name]).values())
        colour = "green" if verdict == NO_FINDING else "red"
        rows.add_row(each.name, f"{each.operation}.cu", *numbers, f"[{colour}]{verdict}[/]")
    show(rows)
    for finding in report.findings.values():
        click.echo(f"\n{finding.text}\n  with {finding.inputs}; seed {finding.seed}, threads in {finding.order} order")
    for each, verdict in verdicts.items():
        if verdict == NEVER_LAUNCHED:
            click.echo(
                f"\n{each.name} was never launched: add a case that does to sanitize_cases in "
                f"tinyfcn/checks/cases/{each.operation}.py"
            )
    disorder = conflicts_in_steps() if kernel is None else {}
    for network, lines in disorder.items():
        found = counted(len(lines), "conflict")
        click.echo(f"\na training step of {network}, launches that may run at the same time: {found}")
        for line in lines:
            click.echo(f"  {line}")
    click.echo(f"\n{counted(len(verdicts), 'kernel')}, {counted(len(report.findings), 'finding')}")
    sys.exit(1 if report.findings or {*verdicts.values()} != {NO_FINDING} or any(disorder.values()) else 0)
