"""tinyfcn predict"""

from pathlib import Path

import click

from tinyfcn.cli.options import FOLDER, device_option
from tinyfcn.images import class_names, read_image, save_prediction
from tinyfcn.model import load


@click.command(short_help="Name the digits in any image.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--out", type=FOLDER, default=Path("predictions"), show_default=True, help="Folder for the results.")
@click.option(
    "--invert/--no-invert",
    default=None,
    help="Whether the images are dark on white. Default: guessed from the border.",
)
@device_option
def predict(run: Path, images: tuple[Path, ...], out: Path, invert: bool | None, device: str) -> None:
    """Name the digit at every pixel of any image.

    RUN is an FCN's run folder. For each IMAGE a folder is made in --out with the coloured mask, an overlay and the ten
    masks. Digits should be about 20 pixels high, as MNIST's are. Large images are predicted in tiles.

    \b
    tinyfcn predict runs/fcn-1 photo.png
    tinyfcn predict runs/fcn-1 scans/*.jpg --out masks --invert
    """
    model = load(run, device)
    for path in images:
        image = read_image(path, invert, lambda text: click.echo(text, err=True))
        labels, masks = model.predict(image, str(path))
        if min(image.shape) < model.network.receptive_field:
            square = f"{model.network.receptive_field}x{model.network.receptive_field}"
            click.echo(
                f"{path}: smaller than the {square} pixels that a label depends on, so padded with black", err=True
            )
        folder = save_prediction(out, path.stem, image, labels, masks)
        names = class_names(len(masks))
        present = [name for k, name in enumerate(names) if name != "background" and (labels == k).any()]
        found = f"pixels of {', '.join(present)}" if present else "nothing but background"
        click.echo(f"{path}: {found}; written to {folder}")
