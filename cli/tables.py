"""Tables on the terminal."""

import sys
from collections.abc import Mapping, Sequence

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tinyfcn.environment import is_terminal

WIDTH = 140  # in a file or a pipe, which have no width
MIN_WIDTH = 40  # COLUMNS may be 0
MAX_OVER = 1.4  # a table that is wider by more than this, in terminals, has too many broken lines


def table(*columns: str) -> Table:
    """An empty table. A column whose name ends with ">" holds numbers, aligned to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.removesuffix(">"), justify="right" if column.endswith(">") else "left")
    return made


def show(filled: Table) -> None:
    """Prints a table. Where it is wider than the terminal: with lines broken between words, or where that would
    break too many, each row as a paragraph, so that nothing is cut."""
    console = Console(highlight=False, width=None if is_terminal(sys.stdout) else WIDTH)
    console.width = max(console.width, MIN_WIDTH)
    for column in filled.columns:  # of one word a cell: rich would cut it, not break it
        column.no_wrap = not any(" " in str(cell) for cell in column.cells)
    needed = console.measure(filled, options=console.options.update(width=sys.maxsize)).maximum
    if needed <= console.width or (needed <= MAX_OVER * console.width and _has_all_words(filled, console)):
        return console.print(filled)
    rest = filled.columns[1:]
    for name, *cells in zip(*(column.cells for column in filled.columns), strict=True):
        words = [f"{column.header} {cell}".strip() for column, cell in zip(rest, cells, strict=True) if cell]
        console.print(f"[bold]{name}[/]", Padding("; ".join(words), (0, 0, 0, 2)), sep="\n")


def _has_all_words(filled: Table, console: Console) -> bool:
    """Whether each word of a table is printed whole: rich cuts words where it has made a column too narrow."""
    with console.capture() as captured:
        console.print(filled)
    printed = Text.from_ansi(captured.get()).plain
    cells = (cell for column in filled.columns for cell in (column.header, *column.cells))
    plain = (Text.from_markup(cell).plain if isinstance(cell, str) else str(cell) for cell in cells)
    return all(word in printed for cell in plain for word in cell.split())


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """A table, an empty line before it."""
    if rows:
        made = table(*rows[0])
        for row in rows:
            made.add_row(*row.values())
        click.echo()
        show(made)
