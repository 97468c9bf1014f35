"""Training: the loop, the classifier's trainer and the FCN's."""

from pathlib import Path
from typing import Any

from tinyfcn.data import load_digits
from tinyfcn.errors import CheckpointError
from tinyfcn.model import load
from tinyfcn.networks import Design
from tinyfcn.runs import CONFIG, STATE, Run, new_run
from tinyfcn.training.classifier import ClassifierTrainer, evaluate_classifier
from tinyfcn.training.fcn import FcnTrainer, evaluate_fcn
from tinyfcn.training.loop import Interrupted, Reporter, Trainer, train, training_step
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import ClassifierSettings, FcnSettings, Settings, available_threads
from tinyfcn.training.sources import composed_chunks, digits_test, evaluation_images

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
        Interrupted: Ctrl-C was pressed; the run is saved and can be resumed.
    """
    reporter = reporter or Reporter()
    trainer: Trainer
    if isinstance(settings, ClassifierSettings):
        trainer = ClassifierTrainer(settings, reporter)
    else:
        trainer = FcnTrainer(settings, reporter)
    trainer.begin()
    run = new_run(trainer.kind, out)
    run.write_json(CONFIG, trainer.config())
    return run, train(run, trainer, reporter)


def resume(folder: Path, reporter: Reporter | None = None) -> tuple[Run, dict[str, Any]]:
    """Resumes a run that was stopped. It ends in the same bits as a run that was not.

    Raises:
        CheckpointError: the folder is not a run, or the run is finished, or has not saved anything yet.
    """
    reporter = reporter or Reporter()
    run = Run(folder)
    if run.is_finished:
        raise CheckpointError(f"{folder} is finished: start a new run for further training")
    trainer = trainer_of(run, reporter)
    if not (folder / STATE).exists():
        raise CheckpointError(f"{folder} has not been saved yet: there is nothing to resume; start a new run")
    return run, train(run, trainer, reporter, resumed=True)


def evaluate_run(
    folder: Path,
    device: str = "auto",
    dataset: str = "auto",
    data_dir: Path | None = None,
    m2nist: Path | None = None,
) -> dict[str, Any]:
    """The figures of result.json, measured anew, on the run's own test images or on others.

    dataset, data_dir: see tinyfcn.data.load_digits. m2nist: a folder with the published files. Without any of them, the
    run is tested on the same images as in its training.

    Raises:
        TinyfcnError: the folder is not a run, its weights are damaged, data are missing.
    """
    model = load(folder, device)
    if (dataset, data_dir, m2nist) == ("auto", None, None):
        config = Run(folder).config()
        dataset, m2nist = config.get("dataset", dataset), _folder(config.get("m2nist"))
        data_dir = _folder(config.get("data_dir"))
        data_dir = data_dir if data_dir and data_dir.is_dir() else None  # it may have moved: search the usual folders
    parallel = ParallelNetwork(model.network, available_threads())
    with parallel.computing():
        if not model.network.per_pixel:
            if m2nist is not None:
                raise CheckpointError(f"{folder} is a classifier's run: --m2nist tests FCNs")
            digits = load_digits("test", dataset, data_dir)
            return evaluate_classifier(parallel, *digits_test(parallel.ops, digits))[0]
        images, labels = evaluation_images(parallel.ops, model.design, dataset, data_dir, m2nist)
        return evaluate_fcn(parallel, model.design, images, labels)


def _folder(name: str | None) -> Path | None:
    return Path(name) if name else None


def trainer_of(run: Run, reporter: Reporter) -> Trainer:
    """The trainer that a run's config.json describes."""
    config = run.config()
    command = config.pop("command", None)
    config.pop("parameters", None)
    try:
        if command == "train-cnn":
            return ClassifierTrainer(ClassifierSettings(**config), reporter)
        if command == "train-fcn":
            return FcnTrainer(FcnSettings(**config | {"design": Design.saved(config["design"])}), reporter)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.folder / CONFIG} does not describe a run: {error}") from None
    raise CheckpointError(f"{run.folder / CONFIG} was not written by tinyfcn: its command is {command!r}")
