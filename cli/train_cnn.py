"""tinyfcn train-cnn"""

from pathlib import Path
from typing import Any

import click

from tinyfcn.cli.options import data_options, device_option, only_resume, training_options
from tinyfcn.cli.progress import ProgressReporter, main_figure
from tinyfcn.training import ClassifierSettings, available_threads, resume, start


@click.command("train-cnn", short_help="Train the classifier.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=ClassifierSettings.epochs,
    show_default=True,
    help="Times that every training digit is seen.",
)
@training_options(ClassifierSettings)
@data_options
@device_option
@click.pass_context
def train_cnn(
    context: click.Context,
    out: Path | None,
    resume: Path | None,
    threads: int | None,
    data_dir: Path | None,
    **options: Any,
) -> None:
    """Train the classifier on MNIST.

    Makes a run folder, runs/cnn-1, runs/cnn-2, ..., with weights, metrics and figures. Ctrl-C saves; --resume goes on.

    \b
    tinyfcn train-cnn
    tinyfcn train-cnn --epochs 10 --seed 1 --out runs/cnn-long
    tinyfcn train-cnn --dataset builtin          no network, no MNIST
    tinyfcn train-cnn --resume runs/cnn-1
    """
    if resume:
        only_resume(context)
    run_training(
        resume,
        out,
        lambda: ClassifierSettings(
            **options,
            threads=threads or available_threads(),
            data_dir=str(data_dir.resolve()) if data_dir else None,
        ),
    )


def run_training(folder: Path | None, out: Path | None, settings: Any) -> None:
    """Resumes `folder`, or starts a run with what `settings()` gives; then says what came of it."""
    with ProgressReporter() as reporter:
        if folder:
            run, result = resume(folder, reporter)
        else:
            try:
                chosen = settings()
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            run, result = start(chosen, out, reporter)
    name, value = main_figure(result)
    click.echo(f"{name} {value:.4f} after {result['seconds']:.0f} s")
    click.echo(f"saved in {run.folder}: " + ", ".join(sorted(path.name for path in run.folder.glob("*.png"))))
