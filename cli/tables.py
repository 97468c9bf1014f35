"""Tables on the terminal."""

from rich.console import Console
from rich.table import Table

WIDTH = 140  # in a file or a pipe, which have no width


def table(*columns: str) -> Table:
    """An empty table. A column whose name ends with ">" holds numbers, aligned to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.removesuffix(">"), justify="right" if column.endswith(">") else "left")
    return made


def show(filled: Table) -> None:
    """Prints a table."""
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=WIDTH)).print(filled)
