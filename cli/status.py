"""A line that moves on the terminal while a command works, and is gone afterwards."""

import sys

from rich.console import Console
from rich.status import Status

from tinyfcn.environment import is_terminal


def status(text: str) -> Status:
    """A context: `text` stands on standard error, if that is a terminal, until it ends or prints."""
    return Console(stderr=True, force_terminal=is_terminal(sys.stderr)).status(text)
