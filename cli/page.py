"""tinyfcn page"""

import webbrowser
from pathlib import Path

import click

from tinyfcn.cli.options import FILE, PATH
from tinyfcn.errors import DataError
from tinyfcn.files import is_stream, make_folder, new_file
from tinyfcn.model import load
from tinyfcn.study.page import GENERATOR, MAX_RUNS
from tinyfcn.study.page import page as made_page

WAY_OUT = "name another file with -o"


@click.command(short_help="A page to draw digits on and to see into the network, in one file.")
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN [RUN]")
@click.option("-o", "--out", type=FILE, default=Path("page.html"), show_default=True, help="The file.")
@click.option("--open", "opens", is_flag=True, help="Open the file in the browser.")
def page(runs: tuple[Path, ...], out: Path, opens: bool) -> None:
    """Write a page to draw digits on: the network names every pixel while you draw.

    RUN is a run folder of train-fcn or train-cnn, or the state.safetensors in it. Two runs are shown side by side, on
    the same drawing. The page is one file, which holds the weights and computes in the browser, offline: send it to
    whom you like. It shows every layer's maps, how each number came about, and what it depends on.

    \b
    tinyfcn page runs/fcn-1 --open
    tinyfcn page runs/early-1 runs/fcn-1 -o compare.html
    """
    if len(runs) > MAX_RUNS:
        raise click.UsageError(f"a page shows one run, or two side by side; {len(runs)} are named")
    if opens and is_stream(out):
        raise click.UsageError(f"--open opens a file, and {out} is none")
    if len({run.resolve() for run in runs}) < len(runs):
        raise click.UsageError(f"the two runs are one and the same: {runs[0]}")
    _expect_own(out)
    models = {}
    for run, name in zip(runs, _names(runs), strict=True):
        models[name] = load(run, "cpu")
        click.echo(f"{run}: {models[name].design.name}, {models[name].network.parameters.size:,} parameters")
    content = made_page(models)
    make_folder(out.parent, WAY_OUT)
    with new_file(out, WAY_OUT) as file:
        file.write(content)
    click.echo(f"written: {out}, {len(content) / 1000:,.0f} KB", err=is_stream(out))
    if opens:
        address = out.resolve().as_uri()
        is_open = webbrowser.open(address)
        click.echo(f"opened in the browser: {address}" if is_open else f"no browser was found: open {address} yourself")


def _names(runs: tuple[Path, ...]) -> list[str]:
    """The runs' folders' names; the whole paths where these are equal."""
    names = [(run.parent if run.suffix else run).resolve().name for run in runs]
    return names if len({*names}) == len(names) else [str(run) for run in runs]


def _expect_own(path: Path) -> None:
    """DataError if a file is there already that is not a page of tinyfcn."""
    if path.is_file() and not is_stream(path) and GENERATOR not in path.read_text(errors="replace")[:4000]:
        raise DataError(f"{path} is there already, is no page of tinyfcn and is not overwritten: {WAY_OUT}")
