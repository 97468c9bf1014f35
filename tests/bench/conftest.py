"""What all tests of `tinyfcn bench` share."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="module")
def noise(few_digits: None) -> None:
    """Steps train on noise."""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
