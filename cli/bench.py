"""tinyfcn bench"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tinyfcn.cli.options import FILE, FOLDER, whole
from tinyfcn.cli.tables import print_rows
from tinyfcn.devices.cards import CARDS
from tinyfcn.fields import shown
from tinyfcn.files import is_stream, make_folder, new_file
from tinyfcn.training import FcnSettings

PLOT = "step-times.png"


def batch_sizes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """ "16,64" as numbers."""
    if value is None:
        return None
    batch = whole("batch", FcnSettings)
    try:
        return tuple(batch.convert(size, parameter, context) for size in value.split(","))
    except click.BadParameter:
        numbers = f"a list of numbers from 1 to {batch.max:,}, such as 16,64"
        raise click.BadParameter(f"{shown(value)} is not {numbers}") from None


@click.command(short_help="Measure how fast steps and kernels are.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="What to measure: the kernels on a GPU (cuda) or NumPy (cpu). auto: cuda if there is a GPU, else cpu.",
)
@click.option(
    "--batches",
    callback=batch_sizes,
    metavar="N,N,...",
    help="Batches of the design skip. Default: 16,64,256,1024; on the cpu 16,64. The classifier's is 128.",
)
@click.option(
    "--only", type=click.Choice(["steps", "kernels", "growth"]), help="Measure just this. Default: steps and kernels."
)
@click.option("--growth", is_flag=True, help=f"Also how time grows with batch and images, drawn in OUT/{PLOT}.")
@click.option(
    "--card",
    type=click.Choice([*CARDS]),
    default="h200",
    show_default=True,
    help="Without a GPU: the card from whose datasheet the kernels' rooflines are reckoned.",
)
@click.option("--json", "json_file", type=FILE, help="Write all numbers here.")
@click.option("--out", type=FOLDER, default=Path("bench"), show_default=True, help="Folder for the plot.")
@click.option(
    "--update-readme",
    "readme",
    type=FILE,
    is_flag=False,
    flag_value=Path("README.md"),
    help="Put the table of steps into this file, README.md unless named, between <!-- bench --> and <!-- /bench -->.",
)
@click.option("--quick", is_flag=True, help="Tiny sizes and hardly any repeats, to see whether it works.")
def bench(
    device: str,
    batches: tuple[int, ...] | None,
    only: str | None,
    growth: bool,
    card: str,
    json_file: Path | None,
    out: Path,
    readme: Path | None,
    quick: bool,
) -> None:
    """Measure whole training steps and every kernel in them, beside PyTorch where it is installed.

    Both sides do the same work, which is checked before anything is timed, and take turns. Times are medians. PyTorch
    runs as it comes (eager) and in each of its fast modes in float32, of which the fastest is shown. TF32, which is
    less exact, is shown beside. Without a GPU, steps and their operations are NumPy's beside PyTorch's on the same
    cores, and of the kernels you see what they use, and the least time that their bytes and flops would take on a
    card.

    Exits with 1 if the two sides disagree, or if two runs with one seed do not end in the same bits.

    \b
    tinyfcn bench
    tinyfcn bench --only steps --batches 16
    tinyfcn bench --only kernels --card a100
    tinyfcn bench --growth --json bench.json --update-readme
    """
    from tinyfcn.bench import report
    from tinyfcn.operations import on

    parts = {only or "steps", only or "kernels", *(["growth"] if growth else [])}
    if readme is not None:
        if "steps" not in parts:
            raise click.UsageError(f"--update-readme writes the table of steps: leave out --only {only}")
        report.expect_markers(readme)
    streamed = json_file is not None and is_stream(json_file)
    if json_file is not None and not streamed:
        make_folder(json_file.parent, "name another file with --json")
    if "growth" in parts:
        make_folder(out, "name another folder with --out")

    ops = on(device)
    click.echo("looking for PyTorch", err=True)
    from tinyfcn.bench import run  # which imports PyTorch, and so takes its time

    measure = run.Bench(ops, lambda text: click.echo(text, err=True), run.QUICK if quick else None)
    found: dict[str, Any] = {"machine": measure.machine()}
    if batches:
        measure.plan = replace(measure.plan, batches=batches)
    click.echo(report.described(found["machine"]))
    if not measure.modes:
        click.echo("PyTorch is not installed, or not for this device: ours alone. pip install torch")

    def keep(done: bool = False) -> None:
        if json_file is not None and (done or not streamed):
            with new_file(json_file, "name another file with --json") as file:
                file.write((json.dumps(found, indent=2) + "\n").encode())

    if "steps" in parts:
        found["steps"] = []
        for step in measure.steps():
            found["steps"].append(step)
            keep()  # what is measured stays, whatever comes next
        print_rows(report.step_rows(found["steps"]))
        click.echo("composing: ours with fresh images composed in the step, as in training; PyTorch best: in float32")
        for step in found["steps"]:
            name = f"{step['design']}, batch {step['batch']}"
            if step["equal_bits"] is not None:
                bits = "equal bits" if step["equal_bits"] else "DIFFERENT BITS"
                click.echo(f"{name}: two runs with one seed: {bits}")
            for mode, why in step["failed"].items():
                click.echo(f"{name}: PyTorch, {mode}, not timed: {why}")
    if "kernels" in parts:
        kernels = found["kernels"] = measure.kernels(card)
        keep()
        click.echo(f"\nthe kernels of a step, {kernels['task']}")
        print_rows(report.part_rows(kernels))
        click.echo(report.about_rooflines(kernels))
        if kernels["used"]:
            click.echo(f"\nwhat they use, compiled for {kernels['peaks']['architecture']}")
            print_rows(report.used_rows(kernels["used"]))
        else:
            click.echo(f"\nwhat they use of a GPU is NVRTC's to say: {kernels['used_not_known']}")
    if "growth" in parts:
        found["growth"] = measure.growth()
        keep()
        for series in found["growth"]:
            click.echo(f"\ntime of a step of skip against {'the batch' if series['by'] == 'batch' else 'the image'}")
            for name, line in report.growth_lines(series).items():
                why = series["stopped"].get(name)
                click.echo(f"  {line}" + (f"; ended at {why}" if why else ""))
        from tinyfcn.bench.plots import step_times

        click.echo(f"drawn: {step_times(out / PLOT, found['machine'], found['growth'])}")
    if json_file is not None:
        keep(done=True)
        click.echo(f"written: {json_file}")
    if readme is not None:
        report.update_readme(readme, found["machine"], found["steps"])
        click.echo(f"updated: {readme}")
    sys.exit(1 if measure.disagreeing or any(step["equal_bits"] is False for step in found.get("steps", ())) else 0)
