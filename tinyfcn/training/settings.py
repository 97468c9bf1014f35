"""What a training is told, checked before anything is loaded or written."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

from tinyfcn.networks import Design

SCHEDULES = ("cosine", "constant")

# What each design trains best with; early as its article did, since its white backgrounds come of a rate that stays.
RECIPES: dict[str, dict[str, Any]] = {
    "skip": {"learning_rate": 1e-2, "warmup": 100, "beta2": 0.99, "schedule": "cosine"},
    "corrected": {"learning_rate": 1e-2, "warmup": 100, "beta2": 0.99, "schedule": "cosine"},
    "early": {"learning_rate": 1e-3, "warmup": 0, "beta2": 0.999, "schedule": "constant"},
}


def available_threads() -> int:
    """Cores that this process may use, at most 8: a batch of 16 is soon cut too fine."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What both trainings share.

    learning_rate, beta2: Adam's; the rate is reached after `warmup` steps. schedule: "cosine" lets it fall to 0 by half
    a cosine, "constant" leaves it. device: "auto", "cuda", "cpu" or "emulator". threads: of the device cpu; each takes
    a part of the batch, so they are part of what makes two runs equal to the bit. dataset and data_dir: see
    tinyfcn.data.load_digits.

    Raises:
        ValueError: a number that no training can use.
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
    """`epochs`: times that every training digit is seen."""

    batch: int = 128
    learning_rate: float = 1e-2
    epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class FcnSettings(Settings):
    """`steps`: batches to train on, evaluated `evaluations` times on the way.

    learning_rate, warmup, beta2, schedule: where None, the design's own, from RECIPES.

    cnn: the classifier's run or file whose weights are taken; None trains from scratch. unlabelled: the gradient of a
    pixel without label, for the design early (see reference/softmax_cross_entropy.py). l2: weight of the penalty on
    the transposed convolutions' kernels. fixed: compose so many pictures once, instead of fresh ones every step.
    m2nist: a folder with the published files to train and test on.
    """

    batch: int = 16
    learning_rate: float | None = None
    warmup: int | None = None
    beta2: float | None = None
    schedule: str | None = None
    steps: int = 2500
    evaluations: int = 10
    design: Design = field(default_factory=Design)
    cnn: str | None = None
    unlabelled: str = "softmax"
    l2: float = 0.0
    fixed: int | None = None
    m2nist: str | None = None

    def __post_init__(self) -> None:
        for name, value in RECIPES[self.design.name].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        for name in ("steps", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.l2) and self.l2 >= 0):
            raise ValueError(f"l2 must be a number of 0 or more, got {self.l2}")
        if self.fixed is not None and self.fixed < 1:
            raise ValueError(f"fixed must be at least 1 picture, got {self.fixed}")
        if self.fixed is not None and self.m2nist is not None:
            raise ValueError("fixed and m2nist are two sources of pictures: choose one")
        if self.cnn is None and self.design.freeze:
            raise ValueError("without a classifier's weights there is nothing to freeze")
