"""tinyfcn gradcheck"""

import sys

import click
from rich.console import Console
from rich.table import Table

from tinyfcn.cli.options import DEVICES
from tinyfcn.gradcheck import TOLERANCES, check_all, operations
from tinyfcn.operations import on


@click.command(short_help="Check every gradient.")
@click.argument("operation", required=False, type=click.Choice([*operations(), "adam"]))
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="emulator",
    show_default=True,
    help="Where the kernels run that are checked. cpu: check the references only.",
)
def gradcheck(operation: str | None, device: str) -> None:
    """Check every gradient: finite differences against the references, then the kernels against the references.

    Exits with 1 if a check fails. Edit a kernel and run this.

    \b
    tinyfcn gradcheck
    tinyfcn gradcheck conv2d
    tinyfcn gradcheck --device cuda
    """
    verdicts = list(check_all(operation, on(device)))
    if not verdicts:
        raise click.UsageError(f"{operation} has no gradient to check, and on the {device} no kernel: choose a device")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("operation", "", "gradient", "against", "device"):
        table.add_column(column)
    table.add_column("relative error", justify="right")
    table.add_column("verdict")
    against = {"finite differences": "finite differences", "kernel": "reference"}
    for verdict in verdicts:
        passed = "[green]right[/]" if verdict.passed else f"[red]WRONG[/], over {TOLERANCES[verdict.method]:.0e}"
        where = f"{verdict.device} reference" if verdict.method == "finite differences" else verdict.device
        table.add_row(
            verdict.operation,
            verdict.detail,
            verdict.gradient,
            against[verdict.method],
            where,
            f"{verdict.error:.1e}",
            passed,
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(table)
    failed = sum(not verdict.passed for verdict in verdicts)
    click.echo(f"{len(verdicts)} checks, {failed} wrong")
    sys.exit(1 if failed else 0)
