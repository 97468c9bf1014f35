"""tinyfcn info"""

from pathlib import Path

import click


@click.command(short_help="Say what this machine has and lacks.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Look for MNIST here.")
def info(data_dir: Path | None) -> None:
    """Say what this machine has: GPU, compilers, data, folders, and how to supply what is missing.

    \b
    tinyfcn info
    tinyfcn info --data-dir DIR                  are MNIST's files there?
    """
    from tinyfcn.machine import findings

    for finding in findings(data_dir):
        click.echo(f"{finding.name:<14}{finding.text}")
        if finding.remedy:
            click.echo(f"{'':<14}to supply it: {finding.remedy}")
