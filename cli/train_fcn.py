"""tinyfcn train-fcn"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tinyfcn.cli.options import FOLDER, data_options, device_option, only_resume, training_options, was_given
from tinyfcn.cli.train_cnn import run_training
from tinyfcn.errors import CheckpointError
from tinyfcn.networks import Design
from tinyfcn.runs import newest_finished
from tinyfcn.training import FcnSettings, available_threads


@click.command("train-fcn", short_help="Train the FCN on the classifier's weights.")
@click.option(
    "--design",
    "name",
    type=click.Choice(["skip", "corrected", "early"]),
    default="skip",
    show_default=True,
    help="early: the source article's. corrected: early with a background channel. skip: with skip connections.",
)
@click.option(
    "--cnn",
    type=click.Path(path_type=Path),
    help="The classifier whose weights to begin with: a run folder or its state.safetensors. "
    "Default: the newest finished runs/cnn-N.",
)
@click.option("--from-scratch", is_flag=True, help="Begin with random weights instead of a classifier's.")
@click.option(
    "--freeze-encoder/--finetune-encoder",
    "freeze",
    default=None,
    help="Leave the classifier's weights as they are, or train them too. "
    "Default: freeze for early and corrected, finetune for skip and with --from-scratch.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=FcnSettings.steps,
    show_default=True,
    help="Batches to train on.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(1),
    default=FcnSettings.evaluations,
    show_default=True,
    help="How often to evaluate and save on the way.",
)
@click.option(
    "--labels",
    type=click.Choice(["digits", "binary"]),
    default="digits",
    show_default=True,
    help="binary: only ink or background (corrected and skip).",
)
@click.option(
    "--reduce",
    type=click.Choice(["first", "last"]),
    default="first",
    show_default=True,
    help="Reduce 32 channels to the classes before upsampling, or after it (early and corrected).",
)
@click.option(
    "--upsample",
    type=click.Choice(["staged", "once"]),
    default="staged",
    show_default=True,
    help="Two transposed convolutions of stride 2, or one of stride 4 (early and corrected).",
)
@click.option(
    "--ink-start/--plain-start",
    default=True,
    show_default=True,
    help="Begin with two channels that tell ink from background, or with random weights only (skip).",
)
@click.option(
    "--article-skip",
    is_flag=True,
    help="The skip connection of the article's notebook: the mean with a 1x1 convolution of pool1 "
    "(early and corrected).",
)
@click.option(
    "--unlabelled",
    type=click.Choice(["softmax", "zero"]),
    default="softmax",
    show_default=True,
    help="The gradient of a background pixel in the design early: softmax, as TensorFlow's, which whitens "
    "the background, or zero, as mathematics has it.",
)
@click.option(
    "--l2",
    type=float,
    default=0.0,
    show_default=True,
    help="Weight of the penalty on the transposed convolutions' kernels; the article declares 1e-3.",
)
@click.option(
    "--fixed",
    type=click.IntRange(1),
    metavar="N",
    help="Compose N pictures once and train on these, as the article does, instead of fresh ones every step.",
)
@click.option(
    "--m2nist",
    type=FOLDER,
    help="Train and test on combined.npy and segmented.npy in this folder, split 4,000 to 1,000.",
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
    freeze: bool | None,
    labels: str,
    reduce: str,
    upsample: str,
    article_skip: bool,
    ink_start: bool,
    out: Path | None,
    resume: Path | None,
    threads: int | None,
    data_dir: Path | None,
    m2nist: Path | None,
    **options: Any,
) -> None:
    """Train an FCN to name the digit at every pixel of M2NIST pictures.

    Takes the weights of the newest finished classifier in runs/, so run `tinyfcn train-cnn` first. Makes a run folder,
    runs/fcn-1, runs/fcn-2, ..., with weights, metrics and figures. Ctrl-C saves; --resume goes on.

    \b
    tinyfcn train-fcn
    tinyfcn train-fcn --steps 12000              longer, better
    tinyfcn train-fcn --design early             the source article's white backgrounds
    tinyfcn train-fcn --from-scratch             does pretraining help?
    tinyfcn train-fcn --resume runs/fcn-1
    """
    if resume:
        only_resume(context)
        return run_training(resume, None, None)
    if from_scratch and cnn:
        raise click.UsageError("--from-scratch begins without a classifier: leave out --cnn")
    if from_scratch and freeze:
        raise click.UsageError("--from-scratch has no classifier's weights that --freeze-encoder could keep")
    if name != "early" and was_given(context, "unlabelled"):
        raise click.UsageError("--unlabelled is for the design early, which has no class for background")
    if name != "skip" and was_given(context, "ink_start"):
        raise click.UsageError("--ink-start and --plain-start are for the design skip")
    if freeze is None:
        freeze = name != "skip" and not from_scratch
    try:
        design = Design(name, reduce, upsample, article_skip, labels, freeze, ink_start)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    def settings() -> FcnSettings:
        chosen = FcnSettings(
            **options,
            design=design,
            cnn=None if from_scratch else "",
            threads=threads or available_threads(),
            data_dir=str(data_dir.resolve()) if data_dir else None,
            m2nist=str(m2nist.resolve()) if m2nist else None,
        )
        if from_scratch:
            return chosen
        # Only now: wrong usage is told before a missing classifier.
        return replace(chosen, cnn=str((cnn or _newest_classifier()).resolve()))

    return run_training(None, out, settings)


def _newest_classifier() -> Path:
    run = newest_finished("cnn")
    if run is None:
        raise CheckpointError(
            "there is no finished classifier in runs/: run tinyfcn train-cnn first, name one with --cnn, "
            "or train with --from-scratch"
        )
    click.echo(f"weights of {run.folder}")
    return run.folder
