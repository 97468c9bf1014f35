"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tinyfcn.data import DATASETS
from tinyfcn.environment import expand_home
from tinyfcn.errors import DataError
from tinyfcn.fields import shown
from tinyfcn.networks import DESIGNS, OPTIONS
from tinyfcn.networks.design import foreign, listed, takers
from tinyfcn.operations import DEVICE_NAMES
from tinyfcn.training import Settings
from tinyfcn.training.settings import FROM_RECIPE, SCHEDULES

RESUMABLE = ("device", "data_dir", "m2nist")  # the options that a resumed run takes

Command = Callable[..., Any]


class InOrder(click.Group):
    """Lists its commands in the order of use, not alphabetically."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class UserPath(click.Path):
    """A path. A ~ in front is the home folder, which shells leave to the program in --out=~/runs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            path = expand_home(value, "the command line")
        except DataError as error:
            self.fail(str(error), param, ctx)
        return super().convert(path, param, ctx)


PATH = UserPath(path_type=Path)
FOLDER = UserPath(path_type=Path, file_okay=False)
FILE = UserPath(path_type=Path, dir_okay=False)
FCNS = {name: network for name, network in DESIGNS.items() if network.per_pixel}  # the designs that train-fcn trains


class Whole(click.IntRange):
    """A whole number within bounds. Its error does not repeat hundreds of digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{shown(value)} is not a whole number from {self.min:,} to {self.max:,}.", param, ctx)


def whole(setting: str, settings: type[Settings] = Settings) -> Whole:
    """The type of an option that is a whole number of the settings, within their bounds."""
    least, most = settings.bounds[setting]
    return Whole(int(least), int(most))


def device_option(command: Command) -> Command:
    """--device, for commands that compute."""
    return click.option(
        "--device",
        type=click.Choice(DEVICE_NAMES),
        default="auto",
        show_default=True,
        help="Where to compute: the kernels on a GPU (cuda), NumPy (cpu), or the kernels on the CPU, "
        "slowly (emulator). auto: cuda if there is a GPU, else cpu.",
    )(command)


def invert_option(command: Command) -> Command:
    """--invert, for commands that read images."""
    return click.option(
        "--invert/--no-invert",
        default=None,
        help="Whether the images are dark on white. Default: guessed from the border.",
    )(command)


def data_options(command: Command) -> Command:
    """--dataset and --data-dir."""
    command = click.option(
        "--data-dir",
        type=PATH,
        help="Folder with the four MNIST files, gzipped or not, or with torchvision's MNIST/raw. "
        "Default: $TINYFCN_DATA, else the cache folder, into which they are downloaded.",
    )(command)
    return click.option(
        "--dataset",
        type=click.Choice(DATASETS),
        default="auto",
        show_default=True,
        help="MNIST, or digits drawn by code. auto: MNIST, or the built-in digits where MNIST is not available.",
    )(command)


def by_design(setting: str, spelled: Callable[[Any], str] = str) -> str:
    """Says which default a setting has in each design's recipe."""
    designs: dict[str, list[str]] = {}
    for name, network in FCNS.items():
        designs.setdefault(spelled(getattr(network.recipe, setting)), []).append(name)
    return "Default: " + "; ".join(f"{value} for {listed(names)}" for value, names in designs.items()) + "."


def design_options(command: Command) -> Command:
    """Every option of every design, with its choices, its default and the designs that take it."""
    for option in reversed(OPTIONS):
        from_recipe = option.name == "freeze"
        kind: dict[str, Any] = {"default": option.default, "show_default": True}
        text = f"{option.help} For {listed(takers(option))}."
        if from_recipe:
            kind = {"default": None}
            text += f" {by_design('freeze', lambda freeze: 'freeze' if freeze else 'finetune')}"
            text += " With --from-scratch: finetune."
        if isinstance(option.default, bool):
            kind["is_flag"] = True
        elif option.choices:
            kind["type"] = click.Choice(option.choices)
        else:
            kind["type"] = type(option.default)
        command = click.option(option.flag, option.name, help=text, **kind)(command)
    return command


def refuse_foreign_options(context: click.Context, name: str) -> None:
    """UsageError if the command line holds an option that the design does not take, even with its default value."""
    for option in OPTIONS:
        if was_given(context, option.name) and option not in FCNS[name].options:
            raise click.UsageError(foreign(option, option.spelled(context.params[option.name]), name))


def training_options(defaults: type[Settings]) -> Callable[[Command], Command]:
    """The options that both trainings take."""

    def default(name: str, help: str) -> dict[str, Any]:
        """The default of a setting, which the help says: its own, or that of each design."""
        value = getattr(defaults, name)
        if value is FROM_RECIPE:
            return {"default": None, "help": f"{help} {by_design(name)}"}
        return {"default": value, "show_default": True, "help": help}

    def add(command: Command) -> Command:
        for option in reversed(
            [
                click.option("--batch", type=whole("batch", defaults), **default("batch", "Images a step.")),
                click.option(
                    "--learning-rate", "--lr", type=float, **default("learning_rate", "Adam's learning rate.")
                ),
                click.option(
                    "--schedule",
                    type=click.Choice(SCHEDULES),
                    **default("schedule", "cosine: the learning rate falls to 0 by half a cosine. constant: it stays."),
                ),
                click.option(
                    "--warmup",
                    type=whole("warmup"),
                    **default("warmup", "Steps in which the learning rate climbs from 0."),
                ),
                click.option(
                    "--seed",
                    type=whole("seed"),
                    **default("seed", "Of initial weights and images: same seed, same machine, same bits."),
                ),
                click.option(
                    "--threads",
                    type=whole("threads"),
                    default=None,
                    help="How many cores of the device cpu compute. Default: all, at most 8.",
                ),
                click.option("--out", type=FOLDER, help="The run's folder. Default: the next in runs/."),
                click.option(
                    "--resume",
                    type=FOLDER,
                    metavar="RUN",
                    help="Resume a stopped run, with its own settings. Besides, only --device applies, and where its "
                    "data were moved --data-dir or --m2nist.",
                ),
            ]
        ):
            command = option(command)
        return command

    return add


def was_given(context: click.Context, name: str) -> bool:
    """Whether the command line holds an option."""
    return context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def only_resume(context: click.Context) -> None:
    """UsageError if an option was given with --resume that changes the run's settings."""
    given = [
        " / ".join([*parameter.opts, *parameter.secondary_opts])
        for parameter in context.command.params
        if parameter.name not in ("resume", *RESUMABLE) and was_given(context, parameter.name)
    ]
    if given:
        raise click.UsageError(f"--resume keeps the run's own settings: leave out {given[0]}")
