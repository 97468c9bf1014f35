"""Training: the loop, and what it trains, the classifier and the FCN."""

from pathlib import Path
from typing import Any

from tinyfcn.data import load_digits
from tinyfcn.errors import CheckpointError
from tinyfcn.model import load
from tinyfcn.networks import Design
from tinyfcn.runs import CONFIG, STATE, Run, new_run
from tinyfcn.training.classifier import ClassifierTrainer, evaluate_classifier
from tinyfcn.training.fcn import FcnTrainer, evaluate_fcn
from tinyfcn.training.loop import Interrupted, Reporter, Trainer, train
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import ClassifierSettings, FcnSettings, Settings, available_threads
from tinyfcn.training.sources import composed_chunks, digits_test, evaluation_pictures

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
]


def start(
    settings: ClassifierSettings | FcnSettings, out: Path | None = None, reporter: Reporter | None = None
) -> tuple[Run, dict[str, Any]]:
    """Trains a network in a new run folder; gives back the run and its result.

    Raises:
        TinyfcnError: data, classifier or device that are not there, a folder that is taken, a full disk.
        Interrupted: Ctrl-C; the run is saved and can be resumed.
    """
    reporter = reporter or Reporter()
    made = ClassifierTrainer if isinstance(settings, ClassifierSettings) else FcnTrainer
    trainer = made(settings, reporter)
    trainer.begin()
    run = new_run(trainer.kind, out)
    run.write_json(CONFIG, trainer.config())
    return run, train(run, trainer, reporter)


def resume(folder: Path, reporter: Reporter | None = None) -> tuple[Run, dict[str, Any]]:
    """Goes on with a run that was stopped, to the same bits as if it never had been.

    Raises:
        CheckpointError: no run, a finished run, or one that has not saved anything yet.
    """
    reporter = reporter or Reporter()
    run = Run(folder)
    if run.is_finished:
        raise CheckpointError(f"{folder} is finished: start a new run for further training")
    trainer = trainer_of(run, reporter)
    if not (folder / STATE).exists():
        raise CheckpointError(f"{folder} has not been saved yet: there is nothing to go on with; start a new run")
    return run, train(run, trainer, reporter, resumed=True)


def evaluate_run(
    folder: Path,
    device: str = "auto",
    dataset: str = "auto",
    data_dir: Path | None = None,
    m2nist: Path | None = None,
) -> dict[str, Any]:
    """What result.json holds of the test pictures, measured anew, and perhaps on others than the run's own.

    dataset, data_dir: see tinyfcn.data.load_digits; m2nist: a folder with the published files. With none of them, the
    pictures that the run was tested on.

    Raises:
        TinyfcnError: no run, damaged weights, data that are not there.
    """
    model = load(folder, device)
    if (dataset, data_dir, m2nist) == ("auto", None, None):
        config = Run(folder).config()
        dataset, m2nist = config.get("dataset", dataset), _folder(config.get("m2nist"))
        data_dir = _folder(config.get("data_dir"))
        data_dir = data_dir if data_dir and data_dir.is_dir() else None  # it may have moved; look where others do
    parallel = ParallelNetwork(model.network, available_threads())
    with parallel.computing():
        if model.design.name == "classifier":
            if m2nist is not None:
                raise CheckpointError(f"{folder} is a classifier's run: --m2nist tests FCNs")
            test = load_digits("test", dataset, data_dir)
            return evaluate_classifier(parallel, *digits_test(parallel.ops, test))[0]
        test = evaluation_pictures(parallel.ops, model.design, dataset, data_dir, m2nist)
        return evaluate_fcn(parallel, model.design, *test)


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
            return FcnTrainer(FcnSettings(**config | {"design": Design(**config["design"])}), reporter)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.folder / CONFIG} does not describe a run: {error}") from None
    raise CheckpointError(f"{run.folder / CONFIG} is not tinyfcn's: its command is {command!r}")
