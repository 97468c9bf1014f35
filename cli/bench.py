"""tinyfcn bench"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tinyfcn.bench.resources import CARDS
from tinyfcn.cli.options import FOLDER
from tinyfcn.cli.tables import show, table
from tinyfcn.files import make_folder, new_file

PLOT = "step-times.png"
PARTS = ("steps", "kernels", "sweep")


def batch_sizes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """ "16,64" as numbers."""
    if value is None:
        return None
    try:
        sizes = tuple(int(size) for size in value.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{value!r} is no list of numbers from 1, such as 16,64")
    return sizes


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
@click.option("--only", type=click.Choice(PARTS), help="Measure just this. Default: steps and kernels.")
@click.option("--sweep", is_flag=True, help=f"Also how time grows with batch and pictures, drawn in OUT/{PLOT}.")
@click.option(
    "--card",
    type=click.Choice([*CARDS]),
    default="h200",
    show_default=True,
    help="Without a GPU: the card from whose datasheet the kernels' floors are reckoned.",
)
@click.option("--threads", type=click.IntRange(1), help="Of the device cpu. Default: its cores, at most 8.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all numbers here.")
@click.option("--out", type=FOLDER, default=Path("bench"), show_default=True, help="Folder for the plot.")
@click.option(
    "--update-readme",
    "readme",
    type=click.Path(path_type=Path, dir_okay=False),
    is_flag=False,
    flag_value=Path("README.md"),
    help="Put the table of steps into this file, README.md unless named, between <!-- bench --> and <!-- /bench -->.",
)
@click.option("--quick", is_flag=True, help="Tiny sizes and hardly any repeats, to see whether it works.")
def bench(
    device: str,
    batches: tuple[int, ...] | None,
    only: str | None,
    sweep: bool,
    card: str,
    threads: int | None,
    json_file: Path | None,
    out: Path,
    readme: Path | None,
    quick: bool,
) -> None:
    """Measure whole training steps and every kernel in them, beside PyTorch where it is installed.

    Both sides do the same work, which is checked before anything is timed, and take turns. Times are medians. PyTorch
    runs as it comes (eager) and in each of its fast modes in float32, of which the fastest is shown. TF32, which is
    less exact, is shown beside. Without a GPU, steps are NumPy's beside PyTorch's on the same cores, and of the kernels
    you see what they use, and the least time that their bytes and operations would take on a card.

    Exits with 1 if the two sides disagree, or if two runs with one seed do not end in the same bits.

    \b
    tinyfcn bench
    tinyfcn bench --only steps --batches 16
    tinyfcn bench --only kernels --card a100
    tinyfcn bench --sweep --json bench.json --update-readme
    """
    from tinyfcn.bench import report
    from tinyfcn.bench.run import QUICK, Bench, Plan

    parts = {only} if only else {"steps", "kernels"}
    parts |= {"sweep"} if sweep else set()
    if readme is not None:
        if "steps" not in parts:
            raise click.UsageError(f"--update-readme writes the table of steps: leave out --only {only}")
        report.expect_markers(readme)
    if json_file is not None:
        make_folder(json_file.parent, "name another file with --json")
    if "sweep" in parts:
        make_folder(out, "name another folder with --out")

    plan = replace(QUICK if quick else Plan(), device=device, parts=frozenset(parts), card=card)
    plan = replace(plan, batches=batches or plan.batches, threads=threads or plan.threads)
    measured = Bench(plan, lambda text: click.echo(text, err=True)).run()

    print_tables(measured)
    if json_file is not None:
        with new_file(json_file, "name another file with --json") as file:
            file.write((json.dumps(measured, indent=2) + "\n").encode())
    if "sweep" in measured:
        from tinyfcn.bench.plots import step_times

        click.echo(f"\ndrawn: {step_times(out / PLOT, measured)}")
    if readme is not None:
        report.update_readme(readme, measured)
    sys.exit(0 if all(measured.get("same_bits", {}).values()) else 1)


def print_tables(measured: dict[str, Any]) -> None:
    """All that was measured, on the terminal."""
    from tinyfcn.bench import report

    def filled(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        made = table(*columns)
        made.columns[0].no_wrap = True
        for row in rows:
            made.add_row(*row)
        show(made)

    machine = measured["machine"]
    click.echo(report.described(machine))
    if machine["torch"] is None:
        click.echo("PyTorch is not installed, or not for this device: ours alone. pip install torch")
    if "steps" in measured:
        click.echo()
        filled(report.STEP_COLUMNS, report.step_rows(measured["steps"]))
        for step in measured["steps"]:
            for mode, why in step["failed"].items():
                click.echo(f"{step['design']}, batch {step['batch']}: PyTorch, {mode}, not timed: {why}")
        for task, same in measured["same_bits"].items():
            click.echo(f"two runs with one seed, {task}: {'equal bits' if same else 'DIFFERENT BITS'}")
    if "kernels" in measured:
        kernels = measured["kernels"]
        click.echo(f"\nkernels of a step, {kernels['task']}")
        filled(report.PART_COLUMNS, report.part_rows(kernels))
        click.echo(report.about_floors(kernels))
        click.echo(f"\ncompiled for {kernels['architecture']}")
        filled(report.USED_COLUMNS, report.used_rows(kernels))
    if "sweep" in measured:
        click.echo()
        filled(report.SWEEP_COLUMNS, report.sweep_rows(measured["sweep"]))
        for growth in measured["sweep"]:
            for name, why in growth["stopped"].items():
                click.echo(f"{report.who(name)} ended at {why}")
