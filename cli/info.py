"""tinyfcn info"""

import click
from rich.console import Console
from rich.table import Table


@click.command()
@click.option("--data-dir", type=click.Path(), help="Look for MNIST here too.")
def info(data_dir: str | None) -> None:
    """Say what this machine has: GPU, compilers, data, folders, and how to supply what is missing."""
    from tinyfcn.machine import findings

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for finding in findings(data_dir):
        table.add_row(finding.name, finding.text)
        if finding.remedy:
            table.add_row("", f"[yellow]to supply it:[/] {finding.remedy}")
    Console(highlight=False, soft_wrap=True).print(table)
