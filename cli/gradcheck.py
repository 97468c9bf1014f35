"""tinyfcn gradcheck"""

import sys

import click
import numpy as np

from tinyfcn.checks.gradcheck import TOLERANCES, check_all
from tinyfcn.checks.pieces import cases_of, missing, operations, still_missing, unknown
from tinyfcn.cli.status import status
from tinyfcn.cli.tables import show, table
from tinyfcn.devices.emulator import Emulator
from tinyfcn.operations import DEVICE_NAMES, on
from tinyfcn.ops import Operations


@click.command(short_help="Check every gradient.")
@click.argument("operation", required=False)
@click.option(
    "--device",
    type=click.Choice(DEVICE_NAMES),
    default="emulator",
    show_default=True,
    help="The device whose kernels are checked. cpu: check the references only.",
)
@click.option(
    "--precision",
    type=click.Choice(["single", "double"]),
    default="single",
    show_default=True,
    help="double: check the kernels in float64, and by finite differences too. Only the emulator can.",
)
def gradcheck(operation: str | None, device: str, precision: str) -> None:
    """Check every gradient: finite differences against the references, then the kernels against the references.

    Edit a kernel and run this. It exits with 1 if a check fails, and names the line of the kernel that stored the worst
    number.

    \b
    tinyfcn gradcheck
    tinyfcn gradcheck conv2d
    tinyfcn gradcheck --precision double         finite differences on the kernels themselves
    tinyfcn gradcheck --device cuda
    """
    if operation is not None and operation not in operations():
        raise click.UsageError(unknown(operation))
    if operation is not None and not cases_of(operation).gradcheck_cases(np.random.default_rng(0)):
        raise click.UsageError(f"{operation} has no gradients: try tinyfcn check {operation}")
    if precision == "double" and device != "emulator":
        raise click.UsageError(
            f"--precision double compiles the kernels with float widened to double, which only the emulator does, "
            f"not {device}: leave out --device"
        )
    ops = Operations(Emulator(precision="double")) if precision == "double" else on(device)
    verdicts = []
    with status("the kernels are compiled") as line:
        for verdict in check_all(operation, ops):
            verdicts.append(verdict)
            line.update(f"{len(verdicts)} checks, now {verdict.operation}")
    if not verdicts:
        raise click.UsageError(f"{operation} has only kernels to check, and the {device} runs none: leave out --device")
    rows = table("operation", "", "result", "against", "device", "relative error>", "verdict")
    for verdict in verdicts:
        passed = "[green]right[/]" if verdict.passed else f"[red]WRONG[/], over {TOLERANCES[verdict.method]:.0e}"
        against = "finite differences" if verdict.method == "finite differences" else "reference"
        where = "cpu reference" if verdict.device == "cpu" else verdict.device
        if verdict.device == "emulator" and precision == "double":
            where += ", double"
        rows.add_row(verdict.operation, verdict.detail, verdict.result, against, where, f"{verdict.error:.1e}", passed)
    show(rows)
    for problem in dict.fromkeys(
        f"{verdict.operation} {verdict.detail}".strip() + f": {verdict.where}" for verdict in verdicts if verdict.where
    ):
        click.echo(problem)
    failed = sum(not verdict.passed for verdict in verdicts)
    click.echo(f"{len(verdicts)} checks, {failed} wrong")
    if operation is not None and missing(operation):
        click.echo(f"{operation}: {still_missing(missing(operation))}")
    sys.exit(1 if failed else 0)
