"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tinyfcn.operations import DEVICES
from tinyfcn.training import Settings
from tinyfcn.training.settings import RECIPES, SCHEDULES

Command = Callable[..., Any]

FOLDER = click.Path(path_type=Path, file_okay=False)


def device_option(command: Command) -> Command:
    """--device, for commands that compute."""
    return click.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="Where to compute: the kernels on a GPU (cuda), NumPy (cpu), or the kernels on the CPU, "
        "slowly (emulator). auto: cuda if there is a GPU, else cpu.",
    )(command)


def data_options(command: Command) -> Command:
    """--dataset and --data-dir."""
    command = click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        help="Folder with the four MNIST files, gzipped or not, or with torchvision's MNIST/raw. "
        "Default: $TINYFCN_DATA, else the cache folder, into which they are downloaded.",
    )(command)
    return click.option(
        "--dataset",
        type=click.Choice(["auto", "mnist", "builtin"]),
        default="auto",
        show_default=True,
        help="MNIST, or digits drawn by code. auto: MNIST, or the built-in digits where it cannot be had.",
    )(command)


def by_design(defaults: type[Settings], name: str) -> str:
    """Says what an option's default is for each design, if it has none of its own."""
    if getattr(defaults, name) is not None:
        return ""
    return f" Default: {RECIPES['skip'][name]}; for early, as its article, {RECIPES['early'][name]}."


def training_options(defaults: type[Settings]) -> Callable[[Command], Command]:
    """What both trainings take."""

    def add(command: Command) -> Command:
        for option in reversed(
            [
                click.option(
                    "--batch",
                    type=click.IntRange(1),
                    default=defaults.batch,
                    show_default=True,
                    help="Pictures a step.",
                ),
                click.option(
                    "--learning-rate",
                    "--lr",
                    type=float,
                    default=defaults.learning_rate,
                    show_default=defaults.learning_rate is not None,
                    help="Adam's." + by_design(defaults, "learning_rate"),
                ),
                click.option(
                    "--schedule",
                    type=click.Choice(SCHEDULES),
                    default=defaults.schedule,
                    show_default=defaults.schedule is not None,
                    help="cosine: the learning rate falls to 0 by half a cosine. constant: it stays."
                    + by_design(defaults, "schedule"),
                ),
                click.option(
                    "--warmup",
                    type=click.IntRange(0),
                    default=defaults.warmup,
                    show_default=defaults.warmup is not None,
                    help="Steps in which the learning rate climbs from 0." + by_design(defaults, "warmup"),
                ),
                click.option(
                    "--seed",
                    type=click.IntRange(0, (1 << 32) - 1),
                    default=defaults.seed,
                    show_default=True,
                    help="Of initial weights and pictures: same seed, same machine, same bits.",
                ),
                click.option(
                    "--threads",
                    type=click.IntRange(1),
                    default=None,
                    help="Of the device cpu. Default: its cores, at most 8.",
                ),
                click.option("--out", type=FOLDER, help="The run's folder. Default: the next in runs/."),
                click.option(
                    "--resume",
                    type=FOLDER,
                    metavar="RUN",
                    help="Go on with a stopped run, with its own settings; no other option applies.",
                ),
            ]
        ):
            command = option(command)
        return command

    return add


def was_given(context: click.Context, name: str) -> bool:
    """Whether an option stood on the command line."""
    return context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def only_resume(context: click.Context) -> None:
    """UsageError if another option was given beside --resume: a run goes on as it began."""
    given = [
        " / ".join([*parameter.opts, *parameter.secondary_opts])
        for parameter in context.command.params
        if parameter.name != "resume" and was_given(context, parameter.name)
    ]
    if given:
        raise click.UsageError(f"--resume goes on with the run's own settings: leave out {given[0]}")
