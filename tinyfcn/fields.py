"""Checks of single values: of the settings, and of every field of a run's files. A ValueError names the field."""

import os
import reprlib
from collections.abc import Mapping, Sequence

_short = reprlib.Repr()  # a damaged file may hold a text of megabytes
_short.maxstring = _short.maxother = 80


def shown(value: object) -> str:
    """The value as Python writes it, shortened."""
    return _short.repr(value)


def short(number: float, digits: int = 3) -> str:
    """The number with so many digits that count: "0.0123", "-1130", "2.5e-07"."""
    return f"{number:.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.{digits}g}"


def counted(count: int, what: str) -> str:
    """ "1 finding", "1,000 findings"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def expect_number(name: str, value: object, least: float, most: float) -> None:
    """ValueError unless `value` is a number from `least` to `most`: a whole one where the bounds are whole."""
    kinds, words = ((int,), "a whole number") if isinstance(least, int) else ((int, float), "a number")
    if type(value) not in kinds or not least <= value <= most:  # type: ignore[operator]  # NaN is in no range
        raise ValueError(f"{name} must be {words} from {least:,} to {most:,}, got {shown(value)}")


def expect_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """ValueError unless `value` is one of the choices, and of their type: 0 is not False."""
    if type(value) is not type(choices[0]) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {shown(value)}")


def expect_path(name: str, value: object) -> None:
    """ValueError unless `value` is None or a text that can name a file or a folder."""
    try:
        encoded = os.fsencode(value) if isinstance(value, str) else b"\0"
        valid = value is None or (b"\0" not in encoded and len(encoded) < 4096)
    except UnicodeEncodeError:  # half of a surrogate pair
        valid = False
    if not valid:
        raise ValueError(f"{name} must be the path of a file or folder, or null, got {shown(value)}")


def expect_names(found: Mapping[str, object], required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """ValueError unless the fields that were found are the required ones and perhaps some of the optional ones."""
    known = [*required, *optional]
    if missing := [name for name in required if name not in found]:
        raise ValueError(f"the field {missing[0]} is missing")
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"unknown field {shown(unknown[0])}, expected {', '.join(known)}")
