"""tinyfcn sweep"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyfcn.cli.options import FILE, FOLDER, PATH, Whole
from tinyfcn.cli.progress import Printer, main_figure
from tinyfcn.cli.tables import print_rows
from tinyfcn.fields import counted
from tinyfcn.files import new_file

if TYPE_CHECKING:
    from tinyfcn.sweep.run import Folder


class OwnOrSubcommand(click.Group):
    """A group whose arguments go to its command `run`, unless they begin with the name of another."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] and args[0] in self.commands else ["run", *args])


@click.group(cls=OwnOrSubcommand, short_help="A study of many small trainings.")
def sweep() -> None:
    """A study of many small trainings, and its answer."""


class SweepPrinter(Printer):
    """Prints a line for each training that ends, and on a terminal a bar for all of them."""

    def began(self, folder: "Folder", size: int, finished: int, workers: int, threads: int) -> None:
        done = f", {finished:,} of them finished" if finished else ""
        of = f"{counted(workers, 'worker')} of {counted(threads, 'thread')}"
        self.say(f"{folder.path}: {counted(size, 'training')}{done}, {of}")
        self.width = len(f"{size - 1:,}")
        self.start_bar(size, finished, "{task.completed:,.1f}/{task.total:,.0f} trainings", "{task.description}")

    def progressed(self, finished: int, shares: list[float]) -> None:
        if self.progress and self.task is not None:
            self.progress.update(self.task, completed=finished + sum(shares), description=f"{len(shares)} at a time")

    def ended(self, number: int, options: Mapping[str, Any], state: str, figures: Mapping[str, Any]) -> None:
        words = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in options.items())  # fmt: skip
        if state != "COMPLETE" or not figures:
            why = f": {figures['error']}" if "error" in figures else ""
            return self.say(f"trial {number:>{self.width}}  {words}: {state.lower()}{why}")
        name, value = main_figure(figures)
        self.say(f"trial {number:>{self.width}}  {words}: {name} {value:.4f}, {figures['seconds']:.0f} s")


@sweep.command(short_help="Run a study.")
@click.argument("space", type=PATH)
@click.option("--trials", type=Whole(1, 1_000_000), help="Trainings of the study. Default: the whole grid, or 20 drawn "
              "configurations with all seeds. A resumed study grows to this number.")  # fmt: skip
@click.option("--workers", type=Whole(1, 1024), help="Trainings at a time; each has its share of the cores. "
              "Default: one for each core, on a GPU four.")  # fmt: skip
@click.option("--storage", metavar="URL", help="The study's database, such as postgresql://user@host/name. The same "
              "command on other machines joins the study. Default: a file in the study's folder.")  # fmt: skip
@click.option("--out", type=FOLDER, help="The study's folder. Default: the next in runs/.")
@click.option(
    "--resume", is_flag=True, help="Continue the study in the folder SPACE, or the newest one of the file SPACE."
)
def run(
    space: Path, trials: int | None, workers: int | None, storage: str | None, out: Path | None, resume: bool
) -> None:
    """Run a study: many small trainings with the options that a file lists, several at a time.

    SPACE is a file such as those in experiments/. Makes a folder, runs/sweep-1, runs/sweep-2, ..., with a run folder
    for each training. Ctrl-C and SIGTERM stop the study, --resume continues it. `tinyfcn sweep show` shows its answer.

    \b
    tinyfcn sweep experiments/seeds.toml
    tinyfcn sweep experiments/seeds.toml --trials 4 --workers 2
    tinyfcn sweep runs/sweep-1 --resume
    tinyfcn sweep experiments/width.toml --storage postgresql://user@host/studies
    tinyfcn sweep show runs/sweep-1
    """
    if resume and out:
        raise click.UsageError("--resume goes on in the study's own folder: leave out --out")
    if space.is_dir() and not resume:
        raise click.UsageError(f"{space} is a folder: tinyfcn sweep {space} --resume continues the study in it")
    click.echo(f"reading {space}", err=True)  # what is imported next takes a while
    study = _sweeps()
    if storage and not resume:
        from tinyfcn.sweep.study import open_storage

        open_storage(storage)  # before a folder is made for nothing
    folder = study.folder_to_resume(space, storage) if resume else study.new_folder(space, storage, out)
    with SweepPrinter() as printer:
        study.run_study(folder, workers or study.default_workers(folder.space), trials, printer)
    printer.say(f"to see the answer: tinyfcn sweep show {folder.path}")


@sweep.command(short_help="Show a study's answer.")
@click.argument("folder", type=FOLDER)
@click.option("--csv", "csv_file", type=FILE, help="Write one line for each training to this file.")
@click.option("--json", "json_file", type=FILE, help="Write all of the answer to this file.")
@click.option("--storage", metavar="URL", help="The study's database, if its URL has a password: none is kept.")
def show(folder: Path, csv_file: Path | None, json_file: Path | None, storage: str | None) -> None:
    """Show what a study found so far, finished or not.

    Prints the best configurations, the importance of each option and what each of its values does, and which
    differences are certain. Draws figures and writes answer.html, one page with everything, into the study's folder.
    The importance is the share of the variance that an option explains alone.

    \b
    tinyfcn sweep show runs/sweep-1
    tinyfcn sweep show runs/sweep-1 --csv trainings.csv --json answer.json
    """
    click.echo(f"reading {folder}", err=True)
    study = _sweeps()
    from tinyfcn.sweep.page import PAGE, Answer  # with matplotlib, which is slow to import

    saved = study.saved_folder(folder, storage)
    answer = Answer(saved.open())
    click.echo(answer.summary())
    for title, rows in answer.tables().items():
        click.echo(f"\n{title}", nl=False)
        print_rows(rows)
    click.echo()
    for sentence in answer.sentences():
        click.echo(sentence)
    drawn = answer.figures(folder)
    answer.write_page(folder / PAGE, (folder / study.SPACE).read_text(encoding="utf-8"), drawn)
    contents = [(csv_file, answer.as_csv()), (json_file, json.dumps(answer.as_json(), indent=2) + "\n")]
    for file, content in contents:
        if file is not None:
            with new_file(file, "name another file") as opened:
                opened.write(content.encode())
    written = [folder / PAGE, *drawn, *(file for file, _ in contents if file)]
    click.echo(f"\nwritten: {', '.join(map(str, written))}")


def _sweeps() -> Any:
    """The module that runs studies, which needs the extra `sweep`."""
    try:
        from tinyfcn.sweep import run
    except ModuleNotFoundError as error:
        raise click.ClickException(f"studies need a package: {error}; pip install -e '.[sweep]'") from None
    return run
