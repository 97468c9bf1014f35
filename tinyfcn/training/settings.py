"""The settings of a training, checked before anything is loaded or written."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

from tinyfcn.networks import OPTIONS, Classifier, Design

SCHEDULES = ("cosine", "constant")

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
        ValueError: a number with which no training can work.
    """

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
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"the learning rate must be a number above 0, got {self.learning_rate}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be 0 steps or more, got {self.warmup}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"the seed must be 0 .. 4294967295, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(Settings):
    """epochs: how many times each training digit is used."""

    batch: int = 128
    learning_rate: float = Classifier.recipe.learning_rate
    warmup: int = Classifier.recipe.warmup
    beta2: float = Classifier.recipe.beta2
    schedule: str = Classifier.recipe.schedule
    epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class FcnSettings(Settings):
    """steps: batches to train on. evaluations: how many times to evaluate, at equal distances.

    learning_rate, warmup, beta2, schedule: where None, from the design's recipe.

    cnn: the classifier's run or file whose weights are taken; None trains from scratch. unlabelled: the gradient of a
    pixel without a label, for designs without a class for background (see reference/softmax_cross_entropy.py). l2: the
    weight of the penalty on the transposed convolutions' weights. fixed: the number of images to compose once, instead
    of fresh ones for every step. m2nist: a folder with the published files to train and test on.
    """

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
        network = self.design.network_class
        if not network.per_pixel:
            raise ValueError(f"the design must label every pixel, which {self.design.name} does not")
        for name in ("learning_rate", "warmup", "beta2", "schedule"):
            if getattr(self, name) is FROM_RECIPE:
                object.__setattr__(self, name, getattr(network.recipe, name))
        super().__post_init__()
        for name in ("steps", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.l2) and self.l2 >= 0):
            raise ValueError(f"l2 must be a number of 0 or more, got {self.l2}")
        for option in OPTIONS:
            if option.of_training:
                self.design.refuse_foreign(option, getattr(self, option.name))
        if self.fixed is not None and self.fixed < 1:
            raise ValueError(f"fixed must be at least 1 image, got {self.fixed}")
        if self.fixed is not None and self.m2nist is not None:
            raise ValueError("fixed and m2nist are two sources of images: choose one")
        if self.cnn is not None and not network.pretrained:
            raise ValueError(f"the design {self.design.name} takes no weights of a classifier: train it from scratch")
        if self.cnn is None and self.design.freeze:
            raise ValueError("without a classifier's weights there is nothing to freeze")
