"""tinyfcn check"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np

from tinyfcn.checks import gradcheck, own_file
from tinyfcn.checks.pieces import LACKS, affected, cases_of, missing, operations, still_missing
from tinyfcn.checks.sanitize import NEVER_LAUNCHED, check_after_edit
from tinyfcn.checks.watched import launches_of
from tinyfcn.cli.options import FILE, Whole
from tinyfcn.cli.sanitize import echo_conflicts, echo_findings, expect_known, progress
from tinyfcn.cli.status import status
from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import DeviceError, KernelError
from tinyfcn.fields import counted, shown
from tinyfcn.operations import on

ARCHITECTURE = nvrtc.ARCHITECTURES[0]
# Errors that nvcc does not have: of names that it knows without an #include, and of code of the host.
OF_NVRTC = re.compile(
    r'identifier "(?:__\w+|INFINITY|NAN|HUGE_VALF|M_PI|M_E|M_SQRT2|RAND_MAX|u?int\d+_t|uint|ushort|ulong)" is undefined'
    r"|^expected a|not allowed in JIT mode|--extended-lambda|more than one instance of overloaded function"
)
SHOWN_ERRORS = 3  # of these


class WholeNumbers(click.ParamType):
    """Whole numbers with commas between."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"\d{1,10}(,\d{1,10})*", value):
            self.fail(f"{shown(value)} is not a list of whole numbers such as 4 or 16,16.", param, ctx)
        return tuple(map(int, value.split(",")))


def own_file_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how a kernel of a person's own file is launched."""
    numbers = WholeNumbers()
    for option in (
        click.option(
            "--shared", "shared_bytes", type=Whole(0, 1 << 20), default=0, help="Bytes of dynamic shared memory."
        ),
        click.option(
            "--template",
            callback=lambda context, parameter, text: tuple(each.strip() for each in text.split(",")) if text else (),
            metavar="T[,T]...",
            help="Its template parameters: numbers and types.",
        ),
        click.option(
            "--constant", "constants", multiple=True, metavar="NAME=VALUE", help="What a __constant__ variable holds."
        ),
        click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="A number, or an array's shape."),
        click.option(
            "--block", type=numbers, default=(1,), metavar="X[,Y[,Z]]", help="Threads of a block. [default: 1]"
        ),
        click.option("--grid", type=numbers, default=(1,), metavar="X[,Y[,Z]]", help="Blocks. [default: 1]"),
        click.option("--kernel", help="The kernel to launch, if FILE.cu has several."),
        click.option(
            "--cases", type=FILE, help="Python with a function calls(random). [default: FILE.py, if it exists]"
        ),
    ):
        command = option(command)
    return command


@click.command(short_help="Check an operation after an edit: numbers, memory accesses, NVRTC.")
@click.argument("name", required=False, metavar="[NAME|FILE.cu]")
@click.option(
    "--seeds",
    type=Whole(1, 1_000_000),
    default=100,
    show_default=True,
    help="How many random shapes of each operation. Each runs with its threads forward, in reverse and shuffled.",
)
@own_file_options
def check(name: str | None, seeds: int, cases: Path | None, kernel: str | None, **launch: Any) -> None:
    """Check an operation after an edit of its kernels, its launcher or its reference.

    The gradients of the reference are compared with finite differences. The kernels run on the emulator in check mode,
    on fixed and on random shapes and with their threads in three orders: each memory access is checked, and each result
    is compared with the reference. NVRTC, if it is installed, compiles the file as it does for a GPU.

    NAME is an operation or a kernel, or a file that operations share (common, tiles ...); without it, all are checked.
    It exits with 1 if anything is found, and names the .cu file and line.

    FILE.cu instead of NAME is a file of your own. The options after --seeds say how a kernel of it is launched; or a
    Python file says it, and what comes out. tinyfcn/checks/own_file.py shows one.

    \b
    tinyfcn check relu
    tinyfcn check fast_conv                      and the operations that launch its kernels
    tinyfcn check common                         all operations: they share common.cuh
    tinyfcn check saxpy.cu                       launched by calls(random) in saxpy.py
    tinyfcn check saxpy.cu --grid 4 --block 256 --arg n=1000 --arg a=2 --arg x=1000 --arg y=random:1000
    """
    if name is not None and name.endswith(".cu"):
        sys.exit(0 if _is_own_file_right(Path(name), cases, kernel, launch) else 1)
    if cases or kernel:
        raise click.UsageError("--cases and --kernel belong to a file of your own: tinyfcn check FILE.cu")
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
        with status(f"{operation}: finite differences of the reference") as line:
            verdicts = [each for case in cases for each in gradcheck.check_differences(case, on("cpu"))]

            def bar(numbers: Sequence[int]) -> Iterable[int]:
                line.stop()
                return progress(operation)(numbers)

            line.update(f"{operation}: the kernels are compiled, and run on fixed shapes")
            report = check_after_edit(operation, range(seeds), KERNELS, bar)
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
    click.echo(f"  kernels    {counted(len(report.findings), 'finding')}; launches in check mode: {launches:,}")
    click.echo(f"  NVRTC      {nvrtc_says}")
    echo_findings(report, kernels)
    if missing(operation):
        click.echo(f"{operation}: {still_missing(missing(operation))}")
    return is_right


def calls_of(file: Path, cases: Path | None, kernel: str | None, launch: dict[str, Any]) -> list[own_file.Call]:
    """The launches that the command line asks for, or a Python file. UsageError if there is no such file."""
    if not file.is_file():
        raise click.UsageError(f"{file} is a folder: name a file" if file.is_dir() else f"{file} does not exist")
    beside = file.with_suffix(".py")
    if cases or (beside.is_file() and not launch["arguments"]):
        return own_file.read_calls(cases or beside)
    return [own_file.parse_call(file, kernel, **launch)]


def _is_own_file_right(file: Path, cases: Path | None, kernel: str | None, launch: dict[str, Any]) -> bool:
    """Checks a person's own file and prints what was found."""
    calls = calls_of(file, cases, kernel, launch)
    with status(f"{file.name} is compiled and run"):
        outcome = own_file.check_calls(file, calls)
    instances = {call.kernel: own_file.instance(file, call) for call in calls}
    refused, nvrtc_says = _compiled(file.stem, file, [each for each in instances.values() if each])
    source = kernel_source.source(file.stem, file)
    if refused and source.for_nvcc:
        refused, nvrtc_says = _as_nvcc_would(nvrtc_says, bool(source.includes))
    zeros = [name for name in own_file.constants_of(file) if not any(name in call.constants for call in calls)]

    is_right = not (outcome.findings or refused)
    click.echo(f"{file.name}: {'right' if is_right else 'WRONG'}")
    compared = sum(len(call.expected) for call in calls)
    click.echo(f"  kernels    {counted(len(outcome.findings), 'finding')}; launches in check mode: {outcome.launches}")
    click.echo(
        f"  results    {f'{compared} compared' if compared else 'not compared: --cases says what they should be'}"
    )
    for name, array in outcome.arrays.items():
        for field, values, _ in own_file.fields_of(array, array):
            has_bounds = values.size and values.dtype.kind in "fiu"
            bounds = f": from {values.min():g} to {values.max():g}" if has_bounds else ""
            click.echo(f"    {name}{field} {values.dtype} {values.shape}{bounds}")
    for note in outcome.notes:
        click.echo(f"  note       {note}")
    for name in zeros:
        click.echo(f"  constants  {name} holds zeros, since the host has to fill it: --constant {name}=random:SHAPE")
    click.echo(f"  NVRTC      {nvrtc_says}")
    for finding in outcome.findings:
        click.echo(f"\n{finding}")
    return is_right


def _as_nvcc_would(message: str, has_headers: bool) -> tuple[bool, str]:
    """Whether nvcc would refuse it too, as far as NVRTC's errors tell, and what to print of them.

    NVRTC compiles for the GPU alone: it takes no code of the host, and has none of its headers.
    """
    errors = re.findall(r"^(\S+)\((\d+)\): (?:catastrophic )?error: (.*)", message, re.MULTILINE)
    if not errors or not (has_headers or all(OF_NVRTC.search(what) for _, _, what in errors)):
        return True, message
    lines = [f"    {file}:{line}: {_briefly(what)}" for file, line, what in errors[:SHOWN_ERRORS]]
    if len(errors) > SHOWN_ERRORS:
        lines.append(f"    and {len(errors) - SHOWN_ERRORS} more")
    return False, "\n".join(["refuses what nvcc may take, since it has no code and no headers of the host:", *lines])


def _briefly(error: str) -> str:
    """NVRTC's text; but of code of the host, what a person must know."""
    code = re.match(r"A (function|namespace scope variable) without", error)
    if code:
        return f"a {code[1].split()[-1]} without __device__: kernels cannot use it"
    return error.split(". ")[0]


def _ask_nvrtc(operation: str) -> tuple[bool, str]:
    """Whether NVRTC refuses the operation's file, and what it says."""
    if LACKS.get(operation) == "kernels/{}.cu":
        return False, "no file of its own"
    cases = gradcheck.cases(operation) + cases_of(operation).sanitize_cases(np.random.default_rng(0))
    kernels = [launch.kernel for launch in launches_of(cases, KERNELS)]
    instances = {
        kernel.name: kernel.expression for kernel in kernels if kernel.operation == operation and not kernel.is_c
    }
    return _compiled(operation, KERNELS, [*instances.values()])


def _compiled(operation: str, kernels: Path, instances: list[str]) -> tuple[bool, str]:
    try:
        nvrtc.compile_for(operation, ARCHITECTURE, kernels, instances)
    except KernelError as error:  # a kind of DeviceError
        return True, f"refuses it: {error}"
    except DeviceError as error:
        return False, f"not asked: {error}"
    return False, f"compiles {operation}.cu for {ARCHITECTURE}"
