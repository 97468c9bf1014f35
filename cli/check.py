"""tinyfcn check"""

import sys
from concurrent.futures import ThreadPoolExecutor

import click
import numpy as np

from tinyfcn.checks import gradcheck
from tinyfcn.checks.pieces import LACKS, affected, cases_of, missing, operations, still_missing
from tinyfcn.checks.sanitize import NEVER_LAUNCHED, check_after_edit, counted
from tinyfcn.checks.watched import launches_of
from tinyfcn.cli.options import Whole
from tinyfcn.cli.sanitize import echo_conflicts, echo_findings, expect_known, progress
from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import DeviceError, KernelError
from tinyfcn.operations import on

ARCHITECTURE = nvrtc.ARCHITECTURES[0]


@click.command(short_help="Check an operation after an edit: numbers, memory accesses, NVRTC.")
@click.argument("name", required=False)
@click.option(
    "--seeds",
    type=Whole(1, 1_000_000),
    default=100,
    show_default=True,
    help="How many random shapes of each operation. Each runs with its threads forward, in reverse and shuffled.",
)
def check(name: str | None, seeds: int) -> None:
    """Check an operation after an edit of its kernels, its launcher or its reference.

    The gradients of the reference are compared with finite differences. The kernels run on the emulator in check mode,
    on fixed and on random shapes and with their threads in three orders: each memory access is checked, and each result
    is compared with the reference. NVRTC, if it is installed, compiles the file as it does for a GPU.

    NAME is an operation or a kernel, or a file that operations share (common, tiles ...); without it, all are checked.
    It exits with 1 if anything is found, and names the .cu file and line.

    \b
    tinyfcn check relu
    tinyfcn check fast_conv                      and the operations that launch its kernels
    tinyfcn check common                         all operations: they share common.cuh
    """
    declared = kernel_source.kernels(KERNELS)
    if name in declared:
        name = declared[name].operation
    names = operations() if name is None else affected(name)
    for operation in names:
        expect_known(operation)
    wrong = [operation for operation in names if not _is_right(operation, seeds)]
    if name is None:
        wrong += ["the order of launches"] * echo_conflicts()
    if wrong and len(names) > 1:
        click.echo(f"\nwrong: {', '.join(wrong)}")
    sys.exit(1 if wrong else 0)


def _is_right(operation: str, seeds: int) -> bool:
    """Checks one operation and prints what was found."""
    cases = gradcheck.cases(operation)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_ask_nvrtc, operation)  # beside the emulator
        verdicts = [each for case in cases for each in gradcheck.check_differences(case, on("cpu"))]
        report = check_after_edit(operation, range(seeds), KERNELS, progress(operation))
        refused, nvrtc_says = asked.result()
    kernels = {
        kernel: report.verdict(kernel)
        for kernel in kernel_source.kernels(KERNELS).values()
        if kernel.operation == operation
    }
    launches = sum(statistics.launches for statistics in report.statistics.values())
    differ = [each for each in verdicts if not each.passed]
    is_right = not (differ or report.findings or refused or NEVER_LAUNCHED in kernels.values())

    click.echo(f"{operation}: {'right' if is_right else 'WRONG'}")
    if verdicts:
        text = f"{len(verdicts)} of the reference, {len(differ)} differ from finite differences"
        click.echo(f"  gradients  {text}")
    for each in differ:
        click.echo(f"    {each.detail} {each.result}: relative error {each.error:.1e}".replace("  ", " "))
    click.echo(f"  kernels    {launches:,} launches in check mode, {counted(len(report.findings), 'finding')}")
    click.echo(f"  NVRTC      {nvrtc_says}")
    echo_findings(report, kernels)
    if missing(operation):
        click.echo(f"{operation}: {still_missing(missing(operation))}")
    return is_right


def _ask_nvrtc(operation: str) -> tuple[bool, str]:
    """Whether NVRTC refuses the operation's file, and what it says."""
    if LACKS.get(operation) == "kernels/{}.cu":
        return False, "no file of its own"
    cases = gradcheck.cases(operation) + cases_of(operation).sanitize_cases(np.random.default_rng(0))
    kernels = [launch.kernel for launch in launches_of(cases, KERNELS)]
    instances = {
        kernel.name: kernel.expression for kernel in kernels if kernel.operation == operation and not kernel.is_c
    }
    try:
        nvrtc.compile_for(operation, ARCHITECTURE, KERNELS, [*instances.values()])
    except KernelError as error:  # a kind of DeviceError
        return True, f"refuses it: {error}"
    except DeviceError as error:
        return False, f"not asked: {error}"
    return False, f"compiles {operation}.cu for {ARCHITECTURE}"
