"""What all tests of `tinyfcn bench` share."""

from pathlib import Path

import numpy as np
import pytest

from tinyfcn.bench import steps
from tinyfcn.data import Digits


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder for each test, and digits of noise instead of drawn ones."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    digits = Digits(random.integers(0, 256, (30, 28, 28)).astype(np.uint8), (np.arange(30) % 10).astype(np.uint8), "")
    monkeypatch.setattr(steps, "drawn_digits", lambda: digits)
    monkeypatch.setattr(steps, "MIN_IMAGES", 8)
    steps.batches_of.cache_clear()
