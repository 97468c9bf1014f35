"""A classifier and an FCN, trained for a moment on tiny digits by the commands that users type."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tinyfcn.cli import main

CLASSIFIER = ["train-cnn", "--epochs", "2", "--batch", "20", "--threads", "1", "--device", "cpu"]
FCN = ["train-fcn", "--steps", "3", "--evaluations", "1", "--batch", "2", "--threads", "1", "--device", "cpu"]


def train_tiny(folder: Path, data: Path) -> list[Result]:
    """Makes runs/cnn-1 and runs/fcn-1 in a folder, of the digits in `data`; and what the commands printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tinyfcn.training.sources.TEST_COUNT", 20)
        printed = [CliRunner().invoke(main, [*command, "--data-dir", str(data)]) for command in (CLASSIFIER, FCN)]
    assert [result.exit_code for result in printed] == [0, 0]
    return printed
