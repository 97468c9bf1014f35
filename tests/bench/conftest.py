"""What all tests of `tinyfcn bench` share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinyfcn.bench import steps
from tinyfcn.data import Digits


@pytest.fixture(autouse=True, scope="module")
def few_digits() -> Iterator[None]:
    """Digits of noise instead of drawn ones, and few images."""
    random = np.random.default_rng(0)
    digits = Digits(random.integers(0, 256, (30, 28, 28)).astype(np.uint8), (np.arange(30) % 10).astype(np.uint8), "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "drawn_digits", lambda: digits)
        patch.setattr(steps, "MIN_IMAGES", 8)
        steps.images_of.cache_clear()
        yield
    steps.images_of.cache_clear()


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
