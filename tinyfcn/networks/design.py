"""Which network: the options of the command line, checked, and the network that they name."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyfcn.networks.classifier import Classifier
from tinyfcn.networks.early import Early
from tinyfcn.networks.network import Network
from tinyfcn.networks.skip import Skip
from tinyfcn.ops import Operations

BACKGROUND = 10  # the label of a pixel without ink, after the ten digits

KNOWN = {
    "name": ("classifier", "early", "corrected", "skip"),
    "reduce": ("first", "last"),
    "upsample": ("staged", "once"),
    "labels": ("digits", "binary"),
}


@dataclass(frozen=True)
class Design:
    """A network's design.

    name: "classifier", "early", "corrected" or "skip". labels: "digits" (0 .. 9, and 10 for background) or "binary" (0
    for ink, 1 for background). reduce ("first", "last"), upsample ("staged", "once") and article_skip are of early and
    corrected, see early.py. freeze: leave the classifier's weights as they are. ink_start: of skip, see skip.py.

    Raises:
        ValueError: options that do not go together.
    """

    name: str = "skip"
    reduce: str = "first"
    upsample: str = "staged"
    article_skip: bool = False
    labels: str = "digits"
    freeze: bool = False
    ink_start: bool = True

    def __post_init__(self) -> None:
        for option, known in KNOWN.items():
            if getattr(self, option) not in known:
                raise ValueError(f"{option} must be one of {', '.join(known)}, got {getattr(self, option)!r}")
        if self.name == "early" and self.labels == "binary":
            raise ValueError("--labels binary needs a background channel, which the design early has not")
        plain = (self.reduce, self.upsample, self.article_skip) == ("first", "staged", False)
        if self.name == "skip" and not plain:
            raise ValueError("--reduce, --upsample and --article-skip are for the designs early and corrected")
        if self.article_skip and self.upsample == "once":
            raise ValueError("--article-skip joins a half-size map, and --upsample once makes none")

    @property
    def classes(self) -> int:
        """Channels of the logits."""
        if self.name in ("classifier", "early"):
            return 10
        return 2 if self.labels == "binary" else 11

    @property
    def background(self) -> int:
        """The label of a pixel without ink."""
        return 1 if self.labels == "binary" else BACKGROUND

    def build(self, ops: Operations, seed: int = 0, dtype: Any = np.float32) -> Network:
        """The network, with initial weights from the seed."""
        if self.name == "classifier":
            return Classifier(ops, seed, dtype)
        if self.name == "skip":
            return Skip(ops, seed, self.classes, self.freeze, self.ink_start, dtype)
        options = (self.reduce, self.upsample, self.article_skip)
        return Early(ops, seed, self.classes, self.freeze, *options, dtype)

    def as_dict(self) -> dict[str, Any]:
        """The options by name, for config.json."""
        return asdict(self)
