"""tinyfcn predict"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np

from tinyfcn.cli.options import FOLDER, PATH, device_option, invert_option
from tinyfcn.errors import DataError
from tinyfcn.images import MAX_STROKES, MNIST_STROKES, class_names, read_image, save_prediction, stroke_width
from tinyfcn.model import load

STDERR = 2  # the number of its file, which C libraries write to


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Keeps off stderr what C libraries such as libtiff write there about a damaged file, besides raising an error."""
    stderr = os.dup(STDERR)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), STDERR)
        yield
    finally:
        os.dup2(stderr, STDERR)
        os.close(stderr)


def read(given: Path, invert: bool | None, notice: Callable[[str], object]) -> tuple[Path, np.ndarray]:
    """The path of an image, where - is standard input, and its pixels as `read_image` gives them."""
    path = Path("/dev/stdin") if given == Path("-") else given
    with silent_libraries():
        return path, read_image(path, invert, notice)


@click.command(short_help="Name the digits in any image.")
@click.argument("run", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--out", type=FOLDER, default=Path("predictions"), show_default=True, help="Folder for the results.")
@invert_option
@device_option
def predict(run: Path, images: tuple[Path, ...], out: Path, invert: bool | None, device: str) -> None:
    """Name the digit at every pixel of any image.

    RUN is an FCN's run folder, or the state.safetensors in it. For each IMAGE a folder is made in --out with the
    coloured mask, an overlay and the ten masks; - is an image on standard input. Digits should be about 20 pixels high,
    as MNIST's are. Large images are predicted in tiles. Exits with 1 if an image cannot be read, after all others.

    \b
    tinyfcn predict runs/fcn-1 photo.png
    tinyfcn predict runs/fcn-1 scans/*.jpg --out masks --invert
    """
    model = load(run, device)
    bad: list[str] = []
    try:
        for given in images:
            path, notices = given, list[str]()
            try:
                path, image = read(given, invert, notices.append)
                labels, masks = model.predict(image, str(path))
            except DataError as error:
                bad.append(str(error))
                continue
            except MemoryError as error:
                bad.append(f"{path}: not enough memory ({error}); cut it or scale it down")
                continue
            for notice in notices:
                click.echo(notice, err=True)
            if min(image.shape) < (side := model.network.receptive_field):
                small = f"smaller than the {side}x{side} pixels that a label depends on, so padded with black"
                click.echo(f"{path}: {small}", err=True)
            if (strokes := stroke_width(image)) > MAX_STROKES:
                wide = f"its strokes are about {strokes:.0f} pixels wide, and those of MNIST {MNIST_STROKES:g}"
                click.echo(f"{path}: {wide}: scale it to {MNIST_STROKES / strokes:.0%} of its size", err=True)
            folder = save_prediction(out, path.stem, image, labels, masks)
            names = class_names(len(masks))
            present = [name for k, name in enumerate(names) if name != "background" and (labels == k).any()]
            found = f"pixels of {', '.join(present)}" if present else "nothing but background"
            click.echo(f"{path}: {found}; written to {folder}")
    finally:  # the disk may be full in between
        for reason in bad:
            click.echo(f"Error: {reason}", err=True)
    sys.exit(1 if bad else 0)
