"""tinyfcn train-fcn"""

from pathlib import Path
from typing import Any

import click

from tinyfcn.cli.options import (
    FCNS,
    FOLDER,
    PATH,
    data_options,
    design_options,
    device_option,
    refuse_foreign_options,
    training_options,
    whole,
)
from tinyfcn.cli.train_cnn import resume_run, start_run
from tinyfcn.errors import CheckpointError
from tinyfcn.networks import Design
from tinyfcn.runs import newest_finished
from tinyfcn.training import FcnSettings, available_threads
from tinyfcn.training.settings import fcn_settings


@click.command("train-fcn", short_help="Train the FCN on the classifier's weights.")
@click.option(
    "--design",
    "name",
    type=click.Choice([*FCNS]),
    default=Design.name,
    show_default=True,
    help=" ".join(f"{name}: {network.summary}." for name, network in FCNS.items()),
)
@click.option(
    "--cnn",
    type=PATH,
    help="The classifier whose weights the FCN begins with: a run folder or its state.safetensors. "
    "Default: the newest finished runs/cnn-N.",
)
@click.option("--from-scratch", is_flag=True, help="Begin with random weights instead of a classifier's.")
@click.option(
    "--steps",
    type=whole("steps"),
    default=FcnSettings.steps,
    show_default=True,
    help="Batches to train on.",
)
@click.option(
    "--evaluations",
    type=whole("evaluations"),
    default=FcnSettings.evaluations,
    show_default=True,
    help="How many times to evaluate and save.",
)
@design_options
@click.option(
    "--fixed",
    type=whole("fixed"),
    metavar="N",
    help="Compose N images once and train on these, as the article does, instead of fresh ones for every step.",
)
@click.option(
    "--m2nist",
    type=FOLDER,
    help="Train and test on combined.npy and segmented.npy in this folder, split into 4,000 and 1,000 images.",
)
@training_options(FcnSettings)
@data_options
@device_option
@click.pass_context
def train_fcn(
    context: click.Context,
    name: str,
    cnn: Path | None,
    from_scratch: bool,
    out: Path | None,
    resume: Path | None,
    threads: int | None,
    data_dir: Path | None,
    m2nist: Path | None,
    **options: Any,
) -> None:
    """Train an FCN to name the digit at every pixel of M2NIST images.

    Takes the weights of the newest finished classifier in runs/, so run `tinyfcn train-cnn` first. Makes a run folder,
    runs/fcn-1, runs/fcn-2, ..., with weights, metrics and figures. Ctrl-C, SIGTERM and SIGHUP
    save the run, --resume continues it.

    \b
    tinyfcn train-fcn
    tinyfcn train-fcn --steps 12000              longer, better
    tinyfcn train-fcn --design early             the source article's white backgrounds
    tinyfcn train-fcn --from-scratch             does pretraining help?
    tinyfcn train-fcn --resume runs/fcn-1
    """
    if resume:
        return resume_run(context, resume)
    refuse_foreign_options(context, name)
    return start_run(
        out,
        lambda: fcn_settings(
            name,
            {
                **options,
                "threads": threads or available_threads(),
                "data_dir": str(data_dir.resolve()) if data_dir else None,
                "m2nist": str(m2nist.resolve()) if m2nist else None,
            },
            cnn,
            from_scratch,
            _newest_classifier,
        ),
    )


def _newest_classifier() -> Path:
    run = newest_finished("cnn")
    if run is None:
        raise CheckpointError(
            "there is no finished classifier in runs/: run tinyfcn train-cnn first, name one with --cnn, "
            "or train with --from-scratch"
        )
    click.echo(f"weights of {run.folder}")
    return run.folder
