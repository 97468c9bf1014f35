"""tinyfcn evaluate"""

import json
from pathlib import Path
from typing import Any

import click

from tinyfcn.cli.options import FOLDER, PATH, data_options, device_option
from tinyfcn.cli.status import status
from tinyfcn.images import class_names
from tinyfcn.training import evaluate_run


@click.command(short_help="Measure a trained network.")
@click.argument("run", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option(
    "--m2nist", type=FOLDER, help="Test on the 1,000 test images of combined.npy and segmented.npy in this folder."
)
@data_options
@device_option
def evaluate(run: Path, as_json: bool, m2nist: Path | None, dataset: str, data_dir: Path | None, device: str) -> None:
    """Measure a trained network on the test images, which are always the same.

    Prints a classifier's accuracy and loss on the test digits, and an FCN's IoU on 1,000 images composed of test
    digits. All figures are fractions. Without options, the run is tested on the same images as in its training. A
    classifier that was trained on the built-in digits can be tested on MNIST, with --dataset mnist. RUN is a run folder
    or the state.safetensors in it.

    \b
    tinyfcn evaluate runs/cnn-1
    tinyfcn evaluate runs/fcn-1 --json
    tinyfcn evaluate runs/fcn-1 --m2nist DIR
    """
    with status(f"{run} reads the test images"):
        result = evaluate_run(run, device, dataset, data_dir, m2nist)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        if name == "iou_per_class":
            for label, iou in zip(class_names(len(value)), value, strict=True):
                click.echo(f"{f'IoU of {label}':<18}{_shown(iou)}")
        else:
            click.echo(f"{name:<18}{_shown(value)}")


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"
