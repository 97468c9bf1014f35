"""tinyfcn make-m2nist"""

from pathlib import Path

import click

from tinyfcn.cli.options import FOLDER, Whole, data_options, whole
from tinyfcn.data import load_digits, write_m2nist
from tinyfcn.training import composed_chunks


@click.command("make-m2nist", short_help="Write M2NIST images to files.")
@click.argument("out", type=FOLDER)
@click.option("--count", type=Whole(1, 1_000_000), default=5000, show_default=True, help="The number of images.")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="The digits that the images are composed of.",
)
@click.option(
    "--truth",
    type=click.Choice(["one-hot", "labels"]),
    default="one-hot",
    show_default=True,
    help="segmented.npy as (N,64,84,11), background last, or as labels (N,64,84), background 10.",
)
@click.option("--seed", type=whole("seed"), default=0, show_default=True)
@data_options
def make_m2nist(out: Path, count: int, split: str, truth: str, seed: int, dataset: str, data_dir: Path | None) -> None:
    """Write M2NIST images in the published format: combined.npy and segmented.npy, uint8.

    Each image is 64x84 pixels and holds one to three digits, which never overlap.

    \b
    tinyfcn make-m2nist m2nist
    tinyfcn make-m2nist m2nist-test --count 1000 --split test --truth labels
    """
    digits = load_digits(split, dataset, data_dir, lambda text: click.echo(text, err=True))
    write_m2nist(out, composed_chunks(digits, seed, count), count, one_hot=truth == "one-hot")
    click.echo(f"{count:,} images of {digits.source} {split} digits in {out}: combined.npy, segmented.npy")
