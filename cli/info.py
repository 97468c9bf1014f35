"""tinyfcn info"""

from pathlib import Path

import click

from tinyfcn.cli.options import PATH


@click.command(short_help="Say what this machine has and lacks.")
@click.option("--data-dir", type=PATH, help="Search this folder for MNIST.")
def info(data_dir: Path | None) -> None:
    """Say what this machine has: GPU, compilers, data, folders, and how to supply a missing one.

    \b
    tinyfcn info
    tinyfcn info --data-dir DIR                  does it hold MNIST's files?
    """
    from tinyfcn.machine import findings

    for finding in findings(data_dir):
        click.echo(f"{finding.name:<14}{finding.text}")
        if finding.remedy:
            click.echo(f"{'':<14}to supply it: {finding.remedy}")
