"""The description of a network: a design's name and its options, checked, and the network that they describe."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from tinyfcn.fields import expect_choice, expect_names, shown
from tinyfcn.networks.network import DESIGNS, Network
from tinyfcn.networks.options import (
    ARTICLE_SKIP,
    DECODER_RELU,
    FREEZE,
    INK_START,
    LABELS,
    OPTIONS,
    REDUCE,
    UP1_KERNEL,
    UP2_KERNEL,
    UPSAMPLE,
    WIDTH,
    Option,
)
from tinyfcn.ops import Operations

BACKGROUND = 10  # the label of a pixel without ink, after the ten digits


@dataclass(frozen=True)
class Design:
    """A network's design, as config.json holds it: one of DESIGNS and the options of networks/options.py.

    labels: "digits" (0 .. 9, and 10 for background) or "binary" (0 for ink, 1 for background). freeze: leave the
    classifier's weights as they are. The other options are explained by the network that takes them.

    Raises:
        ValueError: the name or a value is unknown, the design does not take an option, or options exclude each other.
    """

    name: str = "skip"
    reduce: str = REDUCE.default
    upsample: str = UPSAMPLE.default
    article_skip: bool = ARTICLE_SKIP.default
    decoder_relu: bool = DECODER_RELU.default
    labels: str = LABELS.default
    freeze: bool = FREEZE.default
    ink_start: bool = INK_START.default
    up1_kernel: int = UP1_KERNEL.default
    up2_kernel: int = UP2_KERNEL.default
    width: int = WIDTH.default

    def __post_init__(self) -> None:
        expect_choice("name", self.name, [*DESIGNS])
        for option in OPTIONS:
            if not option.of_training:
                self.refuse_foreign(option, getattr(self, option.name))
        self.network_class.validate(self)

    @classmethod
    def saved(cls, options: object) -> "Design":
        """The design of a saved run. Options that the design does not take are left out: early versions saved any.

        Raises:
            ValueError: as the class, or the options are not a dictionary of the names above.
        """
        if not isinstance(options, dict):
            raise ValueError(f"design must be a dictionary of options, got {shown(options)}")
        expect_names(options, [], [each.name for each in fields(cls)])
        for option in OPTIONS:
            if option.name in options:
                expect_choice(option.name, options[option.name], option.choices)
        network = cls(options.get("name", cls.name)).network_class
        foreign = {option.name for option in OPTIONS if not option.of_training and option not in network.options}
        return cls(**{name: value for name, value in options.items() if name not in foreign})

    @property
    def network_class(self) -> type[Network]:
        """The class of the network, which says what the design is."""
        return DESIGNS[self.name]

    def refuse_foreign(self, option: Option, value: Any) -> None:
        """ValueError for a value that an option does not have, or that this design does not take."""
        if option.choices:
            expect_choice(option.name, value, option.choices)
        if value != option.default and option not in self.network_class.options:
            raise ValueError(foreign(option, option.spelled(value), self.name))

    @property
    def classes(self) -> int:
        """Channels of the logits."""
        if self.labels == "binary":
            return 2
        return 11 if self.network_class.has_background else 10

    @property
    def background(self) -> int:
        """The label of a pixel without ink."""
        return 1 if self.labels == "binary" else BACKGROUND

    @property
    def ignore_index(self) -> int | None:
        """The label of pixels without a class, which the loss leaves out; None where background is a class."""
        return None if self.network_class.has_background else BACKGROUND

    def build(self, ops: Operations, seed: int = 0, dtype: Any = np.float32) -> Network:
        """The network, with initial weights from the seed."""
        return self.network_class(ops, self, seed, dtype)

    def as_dict(self) -> dict[str, Any]:
        """The options by name, for config.json."""
        return asdict(self)


def takers(option: Option) -> list[str]:
    """The names of the designs that take an option."""
    return [name for name, network in DESIGNS.items() if option in network.options]


def foreign(option: Option, spelled: str, name: str) -> str:
    """Says that the design `name` does not take an option, and which designs do."""
    names = takers(option)
    several = len(names) != 1
    why = f", which {'have' if several else 'has'} {option.takers}" if option.takers else ""
    return f"{spelled} is for the design{'s' if several else ''} {listed(names)}{why}; {name} does not take it"


def listed(names: Sequence[str]) -> str:
    """ "early, corrected and skip"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "(none)"
