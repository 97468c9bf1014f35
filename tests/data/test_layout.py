"""Images of another layout than MNIST's: mended where they look like MNIST's, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest
from helpers.idx_files import write_idx

from tinyfcn.data import load_digits, read_m2nist
from tinyfcn.data.builtin_digits import draw_digits
from tinyfcn.data.layout import ORIENTATIONS, are_inverted, orientation, turn_upright
from tinyfcn.reference.compose_m2nist import compose_m2nist

INVERTED = "the train digits are dark on white, where MNIST's are white on black: inverted"
NUMBERED = np.arange(28 * 28).reshape(1, 28, 28)
# What lays images so that `turn_upright` mends them: for each orientation the one that undoes it.
LAID = {
    name: next(o for o in ORIENTATIONS if (turn_upright(turn_upright(NUMBERED, o), name) == NUMBERED).all())
    for name in ORIENTATIONS
}


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
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_other_layouts_are_mended_and_told(tmp_path: Path, drawn, inverted: bool, name: str) -> None:
    images, labels = drawn
    laid = turn_upright(images, LAID[name])
    found, said = loaded(tmp_path, 255 - laid if inverted else laid, labels)
    np.testing.assert_array_equal(found, images)
    assert said == [INVERTED] * inverted + [f"the train digits are {name}: turned upright"] * (name != "upright")


def test_the_names_of_the_orientations(drawn) -> None:
    images = drawn[0]
    laid = {
        "transposed, as in EMNIST's files": images.transpose(0, 2, 1),
        "mirrored": images[:, :, ::-1],
        "upside down": images[:, ::-1],
        "turned to the left": np.rot90(images, 1, (1, 2)),
        "turned to the right": np.rot90(images, -1, (1, 2)),
    }
    for name, turned in laid.items():
        np.testing.assert_array_equal(turn_upright(turned, name), images)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_m2nist_is_turned_where_its_size_allows(tmp_path: Path, drawn, name: str) -> None:
    images, labels = drawn
    composed, truth = compose_m2nist(images, labels, 1, 0, 80)
    pixels, truth = np.rint(composed[:, 0] * 127 + 127).astype(np.uint8), truth.astype(np.uint8)
    transposed, turns = ORIENTATIONS[name]
    keeps_size = transposed == turns % 2
    if keeps_size:
        laid, laid_truth = turn_upright(pixels, LAID[name]), turn_upright(truth, LAID[name])
    else:
        composed, laid_truth = compose_m2nist(turn_upright(images, LAID[name]), labels, 1, 0, 80)
        laid = np.rint(composed[:, 0] * 127 + 127).astype(np.uint8)
    np.save(tmp_path / "combined.npy", laid)
    np.save(tmp_path / "segmented.npy", laid_truth.astype(np.uint8))
    said: list[str] = []
    data = read_m2nist(tmp_path, said.append)
    np.testing.assert_array_equal(data.images, pixels if keeps_size else laid)
    np.testing.assert_array_equal(data.labels, truth if keeps_size else laid_truth)
    mended = "images and truth are turned upright" if keeps_size else "and are learned so"
    assert len(said) == (name != "upright")
    assert all(f"combined.npy are {name}" in line and mended in line for line in said)


def test_nothing_is_said_of_digits_that_are_only_unusual(drawn) -> None:
    images, labels = drawn
    random = np.random.default_rng(0)
    assert not are_inverted(random.integers(0, 256, (50, 28, 28), np.uint8)), "noise"
    assert not are_inverted(images // 2 + 60), "grey"
    for seed in range(20):  # few of them, noisy, and in no place
        some = random.choice(len(images), 60 if seed % 2 else 200)
        moved = np.roll(images[some], tuple(random.integers(-4, 5, 2)), (1, 2))
        noisy = np.clip(moved + random.normal(0, 40, moved.shape), 0, 255).astype(np.uint8)
        assert orientation(moved, labels[some]) == orientation(noisy, labels[some]) == "upright"
    transposed = images.transpose(0, 2, 1)
    for step in range(1, 10):
        assert orientation(transposed, (labels + step) % 10) == "upright", "another script"
    assert orientation(transposed[labels != 3], labels[labels != 3]) == "upright", "a digit is missing"
    assert orientation(np.zeros_like(images), labels) == "upright", "no ink"
