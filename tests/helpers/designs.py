"""Designs with their options."""

from collections.abc import Iterable
from contextlib import suppress
from itertools import product

from tinyfcn.networks import DESIGNS, Design
from tinyfcn.networks.options import Option


def all_designs(leave_out: Iterable[Option] = ()) -> dict[str, Design]:
    """Every design with every choice of the options that it takes, by its name and the choice.

    leave_out: options that keep their defaults.
    """
    found = {}
    for name, network in DESIGNS.items():
        options = [each for each in network.options if not each.of_training and each not in leave_out]
        assert all(option.choices for option in options)
        for choice in product(*(option.choices for option in options)):
            with suppress(ValueError):  # options that exclude each other
                given = {option.name: value for option, value in zip(options, choice, strict=True)}
                found[", ".join([name, *map(str, choice)])] = Design(name, **given)
    return found
