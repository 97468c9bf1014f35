"""tinyfcn sanitize"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import click
from rich.console import Console
from rich.progress import track

from tinyfcn.checks.pieces import cases_of, unknown
from tinyfcn.checks.pieces import operations as all_operations
from tinyfcn.checks.sanitize import NEVER_LAUNCHED, NO_FINDING, Report, check, conflicts_in_steps
from tinyfcn.cli.options import Whole
from tinyfcn.cli.tables import show, table
from tinyfcn.devices import kernel_source
from tinyfcn.devices.kernel_source import KERNELS, Kernel
from tinyfcn.environment import is_terminal
from tinyfcn.fields import counted


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
        expect_known(kernel)
        raise click.UsageError(f"{kernel} has no kernels of its own: try tinyfcn sanitize fast_conv")
    if kernel is not None:
        operations = [kernel if kernel in operations else declared[kernel].operation]

    report = Report()
    for operation in operations:
        report.add(check(operation, range(seeds), KERNELS, progress=progress(operation)))

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
    echo_findings(report, verdicts)
    disorder = kernel is None and echo_conflicts()
    click.echo(f"\n{counted(len(verdicts), 'kernel')}, {counted(len(report.findings), 'finding')}")
    sys.exit(1 if report.findings or {*verdicts.values()} != {NO_FINDING} or disorder else 0)


def expect_known(name: str) -> None:
    """Raises an error unless an operation or a kernel has this name, and the operation its files."""
    if name not in all_operations():
        if kernel_source.unread(KERNELS):
            raise kernel_source.no_kernel(name, KERNELS)
        raise click.UsageError(unknown(name, [*kernel_source.kernels(KERNELS)]))
    cases_of(name)


def progress(operation: str) -> Callable[[Sequence[int]], Iterable[int]]:
    """Shows on a terminal how many of the seeds were run."""
    if not is_terminal(sys.stderr):
        return iter
    return partial(track, description=operation, console=Console(stderr=True), transient=True)


def echo_findings(report: Report, verdicts: Mapping[Kernel, str]) -> None:
    """Prints the findings, and the kernels that no case launches."""
    for finding in report.findings.values():
        click.echo(f"\n{finding.text}\n  with {finding.inputs}; seed {finding.seed}, threads in {finding.order} order")
    for each, verdict in verdicts.items():
        if verdict == NEVER_LAUNCHED:
            click.echo(
                f"\n{each.name} was never launched: add a case that does to sanitize_cases in "
                f"tinyfcn/checks/cases/{each.operation}.py"
            )


def echo_conflicts() -> bool:
    """Prints the conflicts in the networks' steps. Returns whether there are any."""
    disorder = conflicts_in_steps()
    for network, lines in disorder.items():
        found = counted(len(lines), "conflict")
        click.echo(f"\na training step of {network}, launches that may run at the same time: {found}")
        for line in lines:
            click.echo(f"  {line}")
    return any(disorder.values())
