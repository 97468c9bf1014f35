"""tinyfcn exercise"""

import json
import shutil
import sys
from collections.abc import Callable
from typing import Any

import click
from rich.text import Text

from tinyfcn.cli.options import FOLDER, InOrder, Whole
from tinyfcn.cli.tables import print_rows, show, table
from tinyfcn.environment import print_notice
from tinyfcn.errors import DataError
from tinyfcn.study import exercises
from tinyfcn.study.exercise_check import DEVICES, Verdict
from tinyfcn.study.exercise_check import check as check_exercise
from tinyfcn.study.exercises import Exercise, Folder

MAX_WIDTH = 100  # of running text

Command = Callable[..., Any]
number_argument = click.argument("number", required=False, metavar="[N]", type=Whole(1, exercises.count()))


def folder_option(command: Command) -> Command:
    """--folder, which every command takes."""
    return click.option(
        "--folder",
        type=FOLDER,
        default=exercises.FOLDER,
        show_default=True,
        callback=lambda context, parameter, path: Folder(path),
        help="Your own folder of exercises.",
    )(command)


@click.group(cls=InOrder, short_help="Kernels with a hole to fill, and a check that says what is wrong.")
def exercise() -> None:
    """Kernels with a hole to fill, and a check that says what is wrong. None of this needs a GPU.

    \b
    tinyfcn exercise start          writes my_exercises/01_guard.cu
    tinyfcn exercise check          after an edit: right, or the first thing wrong
    tinyfcn exercise hint
    """


@exercise.command("list")
@folder_option
def list_(folder: Folder) -> None:
    """List the exercises, and which of them have passed."""
    passed, started = folder.progress().passed, folder.started()
    rows = table("N>", "exercise", "minutes>", "")
    for each in exercises.exercises():
        state = "passed" if each.number in passed else "started" if each in started else ""
        rows.add_row(f"{each.number}", Text(each.title), f"{each.minutes}", state)
    show(rows)
    click.echo(f"\n{len(passed)} of {exercises.count()} passed; your files are in {folder.path}")
    _say_next(folder)


@exercise.command()
@number_argument
@folder_option
def start(number: int | None, folder: Folder) -> None:
    """Write the file of exercise N into your folder. Without N: the first exercise that has not passed yet."""
    chosen = exercises.exercise(number) if number else folder.next()
    if chosen is None:
        return _say_next(folder)
    is_new = folder.start(chosen)
    click.echo(f"Exercise {chosen.number}: {chosen.title} ({chosen.minutes} minutes)\n")
    _wrapped(chosen.question)
    click.echo(f"\n{folder.file(chosen)}{'' if is_new else ' is there already, and stays as it is'}")
    if not is_new:
        click.echo(f"{folder.command(f'reset {chosen.number}')}    keeps it under another name, and begins anew")
    click.echo(f"{folder.command(f'check {chosen.number}')}    when you have filled the hole")


@exercise.command()
@click.argument("numbers", nargs=-1, metavar="[N]...", type=Whole(1, exercises.count()))
@click.option("--all", "every", is_flag=True, help="All exercises that were started.")
@click.option("--watch", is_flag=True, help="Check again whenever the file changes. Ctrl-C ends it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for graders: an object, or a list of several.")
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where the kernel runs: the emulator, a GPU alone (cuda), or both, where there is a GPU.",
)
@folder_option
def check(numbers: tuple[int, ...], every: bool, watch: bool, as_json: bool, device: str, folder: Folder) -> None:
    """Check exercise N, up to the first thing that is wrong. Without N: the exercise whose file changed last.

    The hole is filled? It compiles, with the emulator's compiler and with NVRTC? It touches only memory that it may,
    without races? The order of threads makes no difference? The numbers are right, on awkward shapes? The counters are
    low enough, where the exercise is about them? It exits with 1 if anything is wrong.

    \b
    tinyfcn exercise check
    tinyfcn exercise check 3 --watch
    tinyfcn exercise check --all --json         for graders

    A JSON object has: exercise (the number), name, passed, stage (where the check stopped: file, hole, compile, memory,
    order, results, counters, gpu, training or passed), message, mistake (the sentence of a known mistake, or null),
    seconds.
    """
    if every and numbers:
        raise click.UsageError("--all checks every exercise that was started: leave out the numbers")
    chosen = [exercises.exercise(number) for number in numbers] if numbers else folder.started()
    if not chosen:
        raise DataError(f"no exercise was started in {folder.path}: {folder.command('start')}")
    chosen = sorted(chosen, key=lambda each: each.number) if every else chosen if numbers else chosen[-1:]
    if watch:
        if as_json or len(chosen) > 1:
            raise click.UsageError("--watch shows one exercise, and no JSON")
        return _watch(chosen[0], folder, device)
    if as_json:  # a grader's run leaves the folder as it is
        verdicts = []
        for each in chosen:
            print_notice(f"checking {folder.file(each)}")  # before the compiler takes its time
            verdicts.append(check_exercise(each, folder, device, print_notice))
        objects = [verdict.as_json() for verdict in verdicts]
        click.echo(json.dumps(objects if every or len(objects) > 1 else objects[0], indent=2))
    else:
        verdicts = [_shown_verdict(each, folder, device) for each in chosen]
    sys.exit(0 if all(verdict.passed for verdict in verdicts) else 1)


@exercise.command()
@number_argument
@click.option("--number", "which", type=Whole(1, 9), help="The hint of this number. Default: the next one.")
@folder_option
def hint(number: int | None, which: int | None, folder: Folder) -> None:
    """Print the next hint for exercise N. Without N: the exercise whose file changed last."""
    chosen = _chosen(number, folder)
    progress = folder.progress()
    shown = progress.hints.get(chosen.number, 0)
    count = len(chosen.hints)
    if which is None and shown >= count:
        which = count
        click.echo(f"there are no more hints; {folder.command(f'solution {chosen.number}')} shows the solution")
    at = which or shown + 1
    if at > count:
        raise click.UsageError(f"exercise {chosen.number} has {count} hints, and {at} is none of them")
    _wrapped(f"hint {at} of {count}: {chosen.hints[at - 1]}")
    if which is None:
        progress.hints[chosen.number] = at
        folder.keep(progress)


@exercise.command()
@number_argument
@folder_option
def reset(number: int | None, folder: Folder) -> None:
    """Begin exercise N anew. Your file is kept under another name."""
    chosen = _chosen(number, folder)
    kept = folder.reset(chosen)
    click.echo(f"{folder.file(chosen)} is as it was at the start; yours is now {kept}")


@exercise.command()
@number_argument
@folder_option
def solution(number: int | None, folder: Folder) -> None:
    """Show the solution of exercise N, as a diff. Without N: of the exercise whose file changed last."""
    click.echo(_chosen(number, folder).difference)


def _chosen(number: int | None, folder: Folder) -> Exercise:
    """The exercise of a number, or the one whose file changed last."""
    started = folder.started()
    if number is None and not started:
        raise DataError(f"no exercise was started in {folder.path}: {folder.command('start')}")
    return exercises.exercise(number) if number else started[-1]


def _shown_verdict(chosen: Exercise, folder: Folder, device: str) -> Verdict:
    """Checks an exercise, shows the verdict, and keeps whether it has passed."""
    click.echo(f"{chosen.number} {chosen.title}: {folder.file(chosen)}")  # before the compiler takes its time
    verdict = check_exercise(chosen, folder, device, click.echo)
    _show(verdict, folder)
    if verdict.passed:
        try:
            progress = folder.progress()
            progress.passed.add(chosen.number)
            folder.keep(progress)
            _say_next(folder)
        except DataError as error:
            print_notice(f"this is not kept: {error}")
    return verdict


def _show(verdict: Verdict, folder: Folder) -> None:
    """Prints a verdict."""
    chosen = verdict.exercise
    if not verdict.passed:
        click.echo(f"\nnot yet ({verdict.stage}, {verdict.seconds:.1f} s)")
        click.echo(verdict.message) if "\n" in verdict.message else _wrapped(verdict.message)
        if verdict.mistake:
            click.echo()
            _wrapped(verdict.mistake)
        _show_counts(verdict)
        if verdict.stage not in ("file", "hole"):
            next_ = f"check {verdict.other.number}" if verdict.other else f"hint {chosen.number}"
            click.echo(f"\n{folder.command(next_)}")
        return
    click.echo(f"\npassed ({verdict.seconds:.1f} s)")
    for line in verdict.asked:
        click.echo(f"  {line}")
    _show_counts(verdict)
    click.echo()
    _wrapped(chosen.taught)
    click.echo(f"\nread next: {', '.join(chosen.read)}")


def _show_counts(verdict: Verdict) -> None:
    print_rows(
        [
            {"": count.what, "before>": f"{count.before:,.0f}", "yours>": f"{count.found:,.0f}",
             "at most>": f"{count.most:,.0f}"}
            for count in verdict.counts
        ]
    )  # fmt: skip


def _say_next(folder: Folder) -> None:
    following = folder.next()
    done = "all exercises have passed; tinyfcn ladder goes on from here"
    verb = "check" if following in folder.started() else "start"
    click.echo(f"next: {folder.command(f'{verb} {following.number}')}" if following else done)


def _watch(chosen: Exercise, folder: Folder, device: str) -> None:
    """Checks an exercise now and whenever its file changes."""
    for _ in exercises.changes(folder.file(chosen)):
        _shown_verdict(chosen, folder, device)
        click.echo(f"\nwatching {folder.file(chosen)}; Ctrl-C ends it\n")


def _wrapped(text: str) -> None:
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    click.echo(click.wrap_text(text, width))
