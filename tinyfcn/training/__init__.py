"""Training: the loop, the classifier's trainer and the FCN's."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.data import load_digits, read_m2nist, split_indices
from tinyfcn.data.mnist import MnistUnavailable
from tinyfcn.errors import CheckpointError, DataError
from tinyfcn.model import load
from tinyfcn.networks import Design
from tinyfcn.operations import on
from tinyfcn.runs import CONFIG, STATE, Run, new_run, state_file
from tinyfcn.training.classifier import ClassifierTrainer, evaluate_classifier
from tinyfcn.training.fcn import FcnTrainer, evaluate_fcn
from tinyfcn.training.loop import Interrupted, Reporter, Trainer, train, training_step
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import (
    ClassifierSettings,
    FcnSettings,
    Settings,
    available_threads,
    same_data,
    settings_of,
)
from tinyfcn.training.sources import (
    TEST_SEED,
    Composed,
    as_bytes,
    composed_chunks,
    digits_test,
    evaluation_images,
    m2nist_part,
)

__all__ = [
    "ClassifierSettings",
    "FcnSettings",
    "Interrupted",
    "Reporter",
    "Settings",
    "Trainer",
    "available_threads",
    "composed_chunks",
    "evaluate_run",
    "first_test_image",
    "resume",
    "start",
    "trainer_of",
    "training_step",
]


def start(
    settings: ClassifierSettings | FcnSettings, out: Path | None = None, reporter: Reporter | None = None
) -> tuple[Run, dict[str, Any]]:
    """Trains a network in a new run folder. Returns the run and its result.

    Raises:
        TinyfcnError: data, classifier or device are missing, the folder is taken, the disk is full.
        Interrupted: Ctrl-C was pressed, or a signal asked to stop; the run is saved and can be resumed.
    """
    reporter = reporter or Reporter()
    trainer = _trainer(settings, reporter)
    trainer.begin()
    run = new_run(trainer.kind, out)
    run.write_json(CONFIG, trainer.config())
    return run, train(run, trainer, reporter)


def resume(
    folder: Path,
    reporter: Reporter | None = None,
    device: str | None = None,
    data_dir: Path | None = None,
    m2nist: Path | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Resumes a run that was stopped. On the same device it ends in the same bits as a run that was not.

    device: another one than before. data_dir, m2nist: where the run's data are now; config.json then says so too.

    Raises:
        CheckpointError: the folder is not a run, or the run is finished, or has not saved anything yet.
        DataError: the data are missing, or are not those on which the run was trained.
    """
    reporter = reporter or Reporter()
    run = Run(folder)
    if run.is_finished:
        raise CheckpointError(f"{folder} is finished: start a new run for further training")
    settings = settings_of(run)
    if not (folder / STATE).exists():
        raise CheckpointError(f"{folder} has not been saved yet: there is nothing to resume; start a new run")
    changed = _with_data_at(settings, folder, data_dir, m2nist)
    if device is not None:
        changed = replace(changed, device=device)
    trainer = _trainer(changed, reporter)
    if not same_data(run, trainer.data):
        option = "--m2nist" if isinstance(changed, FcnSettings) and changed.m2nist else "--data-dir"
        raise DataError(f"{folder} was trained on other data than are found now: name its own with {option}")
    now = trainer.network.ops.device_name
    if now != settings.device:
        reporter.notice(f"{folder} began on {settings.device}, now on {now}: equal bits need one device throughout")
    if changed != settings:
        run.write_json(CONFIG, trainer.config())
    return run, train(run, trainer, reporter, resumed=True)


def _with_data_at(
    settings: ClassifierSettings | FcnSettings, folder: Path, data_dir: Path | None, m2nist: Path | None
) -> ClassifierSettings | FcnSettings:
    """The settings of the run in `folder`, with the place where its data are now."""
    published = isinstance(settings, FcnSettings) and settings.m2nist is not None
    if published and data_dir is not None:
        raise CheckpointError(f"{folder} is trained on M2NIST files: name their folder with --m2nist, not --data-dir")
    if m2nist is not None and not published:
        raise CheckpointError(f"{folder} is not trained on M2NIST files: leave out --m2nist")
    name, option, now = ("m2nist", "--m2nist", m2nist) if published else ("data_dir", "--data-dir", data_dir)
    if now is not None:
        change: dict[str, Any] = {name: str(now.resolve())}
        return replace(settings, **change)
    before = getattr(settings, name)
    if before and settings.dataset != "builtin" and not os.path.isdir(before):
        raise DataError(
            f"{before!r}, where the data of {folder} were, is no longer a folder: name the new one by {option}"
        )
    return settings


def evaluate_run(
    path: Path,
    device: str = "auto",
    dataset: str = "auto",
    data_dir: Path | None = None,
    m2nist: Path | None = None,
) -> dict[str, Any]:
    """The figures of result.json, measured anew, on the run's own test images or on others.

    path: a run folder, or the state in it. dataset, data_dir: see tinyfcn.data.load_digits. m2nist: a folder with the
    published files. Without any of them, the run is tested on the same images as in its training.

    Raises:
        TinyfcnError: the path is not a run's, its weights are damaged, data are missing.
    """
    model = load(path, device)
    if (dataset, data_dir, m2nist) == ("auto", None, None):
        dataset, data_dir, m2nist = _data_of_tests(path, "name them by --dataset or --m2nist")[1:]
    parallel = ParallelNetwork(model.network, available_threads())
    with parallel.computing():
        if not model.network.per_pixel:
            if m2nist is not None:
                raise CheckpointError(f"{path} is a classifier's run: --m2nist tests FCNs")
            digits = load_digits("test", dataset, data_dir)
            return evaluate_classifier(parallel, *digits_test(parallel.ops, digits))[0]
        images, labels = evaluation_images(parallel.ops, model.design, dataset, data_dir, m2nist)
        return evaluate_fcn(parallel, model.design, images, labels)


def _data_of_tests(path: Path, way_out: str) -> tuple[ClassifierSettings | FcnSettings, str, Path | None, Path | None]:
    """The settings of a run, and its data set, folder of digits and folder of M2NIST's files, for its test images.

    Raises:
        CheckpointError: there is no config.json beside the weights. The message ends with `way_out`.
    """
    run = Run(state_file(path).parent)
    if not os.path.exists(run.folder / CONFIG):
        raise CheckpointError(f"{path} has no {CONFIG} beside it, which names its test images: {way_out}")
    settings = settings_of(run)
    m2nist = Path(settings.m2nist) if isinstance(settings, FcnSettings) and settings.m2nist else None
    has_moved = not (settings.data_dir and os.path.isdir(settings.data_dir))  # then the usual folders are searched
    return settings, settings.dataset, None if has_moved else Path(str(settings.data_dir)), m2nist


@dataclass(frozen=True)
class Example:
    """An image, uint8 (H, W); its labels, int32 (H, W), or (1, 1) of a digit; what it is, in words.

    unlabelled: the gradient of a pixel without a label in the run's training, see FcnSettings.
    """

    image: np.ndarray
    labels: np.ndarray
    words: str
    unlabelled: str


def first_test_image(path: Path, design: Design, notice: Callable[[str], object]) -> Example:
    """The first of the images on which `evaluate_run` tests a run, whose network has this design.

    Where MNIST is not available, the built-in digits stand in for it, with a notice.

    Raises:
        CheckpointError: there is no config.json beside the weights.
        DataError: a folder of data is missing or damaged.
    """
    settings, dataset, data_dir, m2nist = _data_of_tests(path, "name an IMAGE")
    unlabelled = settings.unlabelled if isinstance(settings, FcnSettings) else "zero"
    if m2nist is not None:
        files = read_m2nist(m2nist)
        images, labels = m2nist_part(design, files, split_indices(len(files))[1][:1])
        return Example(images[0], labels[0], f"the first test image of the M2NIST files in {m2nist}", unlabelled)
    try:
        digits = load_digits("test", dataset, data_dir)
    except MnistUnavailable:
        notice(f"built-in digits stand in for MNIST, on which {path} was trained: TINYFCN_DATA can name its folder")
        digits = load_digits("test", "builtin")
    source = "MNIST's" if digits.source == "mnist" else "built-in"
    if not design.network_class.per_pixel:
        labels = digits.labels[:1, None].astype(np.int32)
        return Example(digits.images[0], labels, f"the first of {source} test digits", unlabelled)
    x, pixel_labels = Composed(on("cpu"), digits, design, 1, TEST_SEED).batch(0)
    words = f"the first test image, composed of {source} test digits"
    return Example(as_bytes(x)[0], pixel_labels[0], words, unlabelled)


def trainer_of(run: Run, reporter: Reporter) -> Trainer:
    """The trainer that a run's config.json describes."""
    return _trainer(settings_of(run), reporter)


def _trainer(settings: ClassifierSettings | FcnSettings, reporter: Reporter) -> Trainer:
    if isinstance(settings, ClassifierSettings):
        return ClassifierTrainer(settings, reporter)
    return FcnTrainer(settings, reporter)
