"""tinyfcn train-cnn"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tinyfcn.cli.options import RESUMABLE, data_options, device_option, only_resume, training_options, was_given, whole
from tinyfcn.cli.progress import ProgressReporter, main_figure
from tinyfcn.runs import Run
from tinyfcn.training import ClassifierSettings, FcnSettings, available_threads, resume, start


@click.command("train-cnn", short_help="Train the classifier.")
@click.option(
    "--epochs",
    type=whole("epochs"),
    default=ClassifierSettings.epochs,
    show_default=True,
    help="How many times each training digit is used.",
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

    Makes a run folder, runs/cnn-1, runs/cnn-2, ..., with weights, metrics and figures. Ctrl-C, SIGTERM and
    SIGHUP save the run, --resume continues it.

    \b
    tinyfcn train-cnn
    tinyfcn train-cnn --epochs 10 --seed 1 --out runs/cnn-long
    tinyfcn train-cnn --dataset builtin          no network, no MNIST
    tinyfcn train-cnn --resume runs/cnn-1
    """
    if resume:
        return resume_run(context, resume)
    return start_run(
        out,
        lambda: ClassifierSettings(
            **options,
            threads=threads or available_threads(),
            data_dir=str(data_dir.resolve()) if data_dir else None,
        ),
    )


def start_run(out: Path | None, settings: Callable[[], ClassifierSettings | FcnSettings]) -> None:
    """Starts a run with the result of `settings()`, whose ValueError is wrong usage."""
    try:
        chosen = settings()
    except ValueError as error:
        raise click.UsageError(_with_options(str(error))) from None
    with ProgressReporter() as reporter:
        run, result = start(chosen, out, reporter)
    reporter.lasting(lambda: print_result(run, result))


def _with_options(text: str) -> str:
    """A message that begins with the name of a setting, or of two, with the options in their place."""
    options = {each.name: each.opts[0] for each in click.get_current_context().command.params}
    return re.sub(
        r"^(\w+)(?: and (\w+))?", lambda names: " and ".join(options.get(n, n) for n in names.groups() if n), text
    )


def resume_run(context: click.Context, folder: Path) -> None:
    """Resumes the run in `folder`, with those options of the command line that a resumed run takes."""
    only_resume(context)
    given = {name: context.params[name] for name in RESUMABLE if was_given(context, name)}
    with ProgressReporter() as reporter:
        run, result = resume(folder, reporter, **given)
    reporter.lasting(lambda: print_result(run, result))


def print_result(run: Run, result: Mapping[str, Any]) -> None:
    """Prints the main figure of a result, and the files with figures."""
    name, value = main_figure(result)
    click.echo(f"{name} {value:.4f} after {result['seconds']:.0f} s")
    figures = ", ".join(sorted(path.name for path in run.folder.glob("*.png")))
    click.echo(f"saved in {run.folder}" + (f": {figures}" if figures else ""))
