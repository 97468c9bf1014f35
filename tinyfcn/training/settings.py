"""The settings of a training, checked before anything is loaded or written, and read back from config.json."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from tinyfcn.adam_state import MAX_STEPS
from tinyfcn.data import DATASETS
from tinyfcn.errors import CheckpointError
from tinyfcn.fields import expect_choice, expect_names, expect_number, expect_path, shown
from tinyfcn.networks import DESIGNS, OPTIONS, Classifier, Design
from tinyfcn.operations import DEVICE_NAMES
from tinyfcn.runs import CONFIG, Run

SCHEDULES = ("cosine", "constant")
CHOICES = {"schedule": SCHEDULES, "device": DEVICE_NAMES, "dataset": DATASETS}
PATHS = ("data_dir", "cnn", "m2nist")
# The least and the greatest value of each number. Floats keep their meaning when they are rounded to 32 bits.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "batch": (1, 65_536),
    "learning_rate": (1e-30, 1e30),
    "warmup": (0, MAX_STEPS),
    "beta2": (0.0, 0.9999999),
    "seed": (0, (1 << 32) - 1),
    "threads": (1, 1024),
    "epochs": (1, 10_000),
    "steps": (1, MAX_STEPS),
    "evaluations": (1, MAX_STEPS),
    "l2": (0.0, 1e30),
    "fixed": (1, 100_000),
}

FROM_RECIPE: Any = None  # a setting for which the design's recipe has a value


def available_threads() -> int:
    """The cores that this process may use, at most 8: a batch of 16 gives more threads too little to do."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that both trainings share.

    learning_rate, beta2: Adam's. warmup: steps in which the learning rate climbs from 0. schedule: "cosine" lets it
    fall to 0 by half a cosine, "constant" does not. device: "auto", "cuda", "cpu" or "emulator". threads: of the device
    cpu. Each computes a part of the batch, so runs are equal to the bit only if their threads are as many. dataset and
    data_dir: see tinyfcn.data.load_digits.

    Raises:
        ValueError: a value of another type, or with which no training can work.
    """

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = BOUNDS

    batch: int
    learning_rate: float
    warmup: int = 0
    beta2: float = 0.999
    schedule: str = "cosine"
    seed: int = 0
    device: str = "auto"
    threads: int = field(default_factory=available_threads)
    dataset: str = "auto"
    data_dir: str | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in PATHS:
                expect_path(each.name, value)
            elif each.name in CHOICES:
                expect_choice(each.name, value, CHOICES[each.name])
            elif each.name in self.bounds and not (each.name == "fixed" and value is None):
                expect_number(each.name, value, *self.bounds[each.name])


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(Settings):
    """epochs: how many times each training digit is used."""

    batch: int = 128
    learning_rate: float = Classifier.recipe.learning_rate
    warmup: int = Classifier.recipe.warmup
    beta2: float = Classifier.recipe.beta2
    schedule: str = Classifier.recipe.schedule
    epochs: int = 5


@dataclass(frozen=True, kw_only=True)
class FcnSettings(Settings):
    """steps: batches to train on. evaluations: how many times to evaluate, at equal distances.

    learning_rate, warmup, beta2, schedule: where None, from the design's recipe.

    cnn: the classifier's run or file whose weights are taken; None trains from scratch. unlabelled: the gradient of a
    pixel without a label, for designs without a class for background (see reference/softmax_cross_entropy.py). l2: the
    weight of the penalty on the transposed convolutions' weights. fixed: the number of images to compose once, instead
    of fresh ones for every step. m2nist: a folder with the published files to train and test on.
    """

    bounds: ClassVar = {**BOUNDS, "batch": (1, 8192)}  # the kernels number a layer's outputs in 32 bits

    batch: int = 16
    learning_rate: float = FROM_RECIPE
    warmup: int = FROM_RECIPE
    beta2: float = FROM_RECIPE
    schedule: str = FROM_RECIPE
    steps: int = 2500
    evaluations: int = 10
    design: Design = field(default_factory=Design)
    cnn: str | None = None
    unlabelled: str = "softmax"
    l2: float = 0.0
    fixed: int | None = None
    m2nist: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.design, Design):
            raise ValueError(f"design must be a Design, got {shown(self.design)}")
        network = self.design.network_class
        if not network.per_pixel:
            raise ValueError(f"the design must label every pixel, which {self.design.name} does not")
        for name in ("learning_rate", "warmup", "beta2", "schedule"):
            if getattr(self, name) is FROM_RECIPE:
                object.__setattr__(self, name, getattr(network.recipe, name))
        super().__post_init__()
        for option in OPTIONS:
            if option.of_training:
                self.design.refuse_foreign(option, getattr(self, option.name))
        if self.fixed is not None and self.m2nist is not None:
            raise ValueError("fixed and m2nist are two sources of images: choose one")
        if self.cnn is not None and not network.pretrained:
            raise ValueError(f"the design {self.design.name} takes no weights of a classifier: train it from scratch")
        if self.cnn is None and self.design.freeze:
            raise ValueError("without a classifier's weights there is nothing to freeze")


def fcn_settings(
    name: str, options: Mapping[str, Any], cnn: Path | None, from_scratch: bool, newest: Callable[[], Path]
) -> FcnSettings:
    """The settings that options of `tinyfcn train-fcn` mean.

    Args:
        name: of the design.
        options: by name, the design's and the training's. Without `freeze`, or with None, the design's recipe decides.
        cnn: the classifier that was named.
        from_scratch: whether the FCN begins with random weights.
        newest: gives the classifier if none was named. It is called last, after everything else was found right.

    Raises:
        ValueError: the options exclude each other, or as FcnSettings.
    """
    options = dict(options)
    of_design = {each.name: options.pop(each.name) for each in OPTIONS if each.name in options and not each.of_training}
    expect_choice("design", name, [*DESIGNS])
    network = DESIGNS[name]
    if cnn and not network.pretrained:
        raise ValueError(f"the design {name} takes no weights of a classifier: leave out --cnn")
    if from_scratch and cnn:
        raise ValueError("--from-scratch begins without a classifier: leave out --cnn")
    if from_scratch and of_design.get("freeze"):
        raise ValueError("--from-scratch has no classifier's weights that --freeze-encoder could keep")
    from_scratch = from_scratch or not network.pretrained
    if of_design.get("freeze") is None:
        of_design["freeze"] = network.recipe.freeze and not from_scratch
    settings = FcnSettings(**options, design=Design(name, **of_design), cnn=None if from_scratch else "")
    return settings if from_scratch else replace(settings, cnn=str((cnn or newest()).resolve()))


def settings_of(run: Run) -> ClassifierSettings | FcnSettings:
    """The settings in a run's config.json, after checking every field.

    Raises:
        CheckpointError: names the file and the field, what was expected and what was found.
    """
    config = run.config()
    kinds: dict[str, type[ClassifierSettings | FcnSettings]] = {
        "train-cnn": ClassifierSettings,
        "train-fcn": FcnSettings,
    }
    try:
        expect_choice("command", config.get("command"), [*kinds])
        kind = kinds[config.pop("command")]
        expect_number("parameters", config.pop("parameters", None), 1, MAX_STEPS)
        data = config.pop("data", None)  # version 0.1.0 did not write it
        if data is not None and not (isinstance(data, str) and re.fullmatch("[0-9a-f]{64}", data)):
            raise ValueError(f"data must be a SHA-256 of 64 hexadecimal digits, got {shown(data)}")
        expect_names(config, [each.name for each in fields(kind)])
        if kind is FcnSettings:
            config["design"] = Design.saved(config["design"])
        return kind(**config)
    except ValueError as error:
        raise CheckpointError(f"{run.folder / CONFIG}: {error}") from None


def same_data(run: Run, data: str) -> bool:
    """Whether a run was trained on the data of this digest. Of a run of version 0.1.0, which has none, it may be."""
    return run.config().get("data") in (None, data)
