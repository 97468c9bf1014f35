"""Digits of another layout than MNIST's: noticed on digits that look like MNIST's, and on no others."""

from pathlib import Path

import numpy as np
import pytest
from helpers.idx_files import write_idx

from tinyfcn.data import load_digits
from tinyfcn.data.builtin_digits import draw_digits
from tinyfcn.data.layout import are_inverted, are_transposed

TRANSPOSED = (
    "the train digits look transposed, as EMNIST's files are, and are learned so: "
    "write images.transpose(0, 2, 1) to have them upright"
)
INVERTED = "the train digits are dark on white, where MNIST's are white on black: inverted"


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return draw_digits(400, seed=1)


def loaded(folder: Path, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The training digits of a folder with these images, and what is said."""
    write_idx(folder / "train-images-idx3-ubyte", images)
    write_idx(folder / "train-labels-idx1-ubyte", labels)
    said: list[str] = []
    return load_digits("train", "mnist", folder, said.append).images, said


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_other_layouts_are_told(tmp_path: Path, drawn, inverted: bool, transposed: bool) -> None:
    images, labels = drawn
    images = np.ascontiguousarray(images.transpose(0, 2, 1)) if transposed else images
    found, said = loaded(tmp_path, 255 - images if inverted else images, labels)
    np.testing.assert_array_equal(found, images)
    assert said == [INVERTED] * inverted + [TRANSPOSED] * transposed


def test_nothing_is_said_of_digits_that_are_only_unusual(drawn) -> None:
    images, labels = drawn
    assert not are_inverted(np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)), "noise"
    assert not are_inverted(images // 2 + 60), "grey"
    lying = images.copy()
    lying[labels == 1] = images[labels == 1].transpose(0, 2, 1)
    assert not are_transposed(lying, labels), "a script whose one is a horizontal stroke"
    assert not are_transposed(images.transpose(0, 2, 1)[:40], labels[:40]), "too few to tell"
    assert not are_transposed(images.transpose(0, 2, 1), np.zeros_like(labels)), "one kind alone"
    assert not are_transposed(np.zeros_like(images), labels), "no ink"
