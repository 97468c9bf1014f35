"""Ink on paper of all kinds of light: nearly all ink is kept, nearly no paper is taken for ink, clean images stay."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyfcn.data.builtin_digits import draw_digits
from tinyfcn.images import read_image
from tinyfcn.reference.compose_m2nist import compose_m2nist

DIGITS = draw_digits(60, seed=5)[0]
SIZES = {"small": (64, 84, 1), "large": (300, 400, 3)}  # height, width, and how much larger than MNIST's digits are


def scene(random: np.random.Generator, height: int, width: int, scale: int) -> np.ndarray:
    """How much of each pixel ink covers, 0 .. 1: one to three digits."""
    ink, side = np.zeros((height, width)), 28 * scale
    for _ in range(random.integers(1, 4)):
        digit = Image.fromarray(DIGITS[random.integers(len(DIGITS))]).resize((side, side), Image.Resampling.BICUBIC)
        top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
        part = ink[top : top + side, left : left + side]
        np.maximum(part, np.asarray(digit) / 255, out=part)
    return ink


def light(random: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """The brightness of the paper, (H, W)."""
    y, x = np.mgrid[0:height, 0:width] / np.reshape([height, width], (2, 1, 1)) - 0.5
    brightest, angle = random.uniform(90, 255), random.uniform(0, 2 * np.pi)
    across = np.cos(angle) * x + np.sin(angle) * y  # -0.71 .. 0.71
    return {
        "even": np.full((height, width), brightest),
        "dim": np.full((height, width), random.uniform(60, 140)),
        "gradient": brightest * (1 - random.uniform(0.1, 0.55) * (across / 1.42 + 0.5)),
        "vignette": brightest * (1 - random.uniform(0.1, 0.5) * 2 * (x**2 + y**2)),
        "band": np.where(np.abs(across) * height > random.uniform(10, 22) * height / 64, 1, random.uniform(0.5, 0.85))
        * brightest,
        "shadow": np.where(across > random.uniform(-0.3, 0.3), brightest, brightest * random.uniform(0.5, 0.85)),
    }[kind]


def expect_ink(ink: np.ndarray, photo: np.ndarray, file: Path, **options: int) -> None:
    """Nearly all ink of a photo is found in its file, and nearly none of its paper."""
    Image.fromarray(np.clip(np.rint(photo), 0, 255).astype(np.uint8)).save(file, **options)
    pixels = read_image(file, notice=lambda text: None)
    kept, taken = (pixels[ink > 0.5] > 0).mean(), (pixels[ink == 0] > 0).mean()
    assert kept >= 0.95 and taken <= 0.01, (kept, taken)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["even", "dim", "gradient", "vignette", "shadow", "band"])
def test_ink_is_kept_and_paper_is_not_taken_for_it(kind: str, size: str, tmp_path: Path) -> None:
    height, width, scale = SIZES[size]
    for seed in range(24 // scale):
        random = np.random.default_rng(seed)
        ink = scene(random, height, width, scale)
        photo = light(random, kind, height, width) * (1 - random.uniform(0.6, 0.95) * ink)
        photo += random.normal(0, random.uniform(0, 4), photo.shape)
        expect_ink(ink, photo, tmp_path / "photo.png")


@pytest.mark.slow
@pytest.mark.parametrize(("contrast", "noise"), [((0.6, 0.95), (4, 8)), ((0.3, 0.6), (0, 4))], ids=["noisy", "faint"])
@pytest.mark.parametrize("kind", ["even", "dim", "gradient", "vignette"])
def test_ink_hardly_darker_than_the_noise_is_kept(
    kind: str, contrast: tuple[float, float], noise: tuple[float, float], tmp_path: Path
) -> None:
    for seed in range(24):
        random = np.random.default_rng(seed)
        ink = scene(random, 64, 84, 1)
        photo = light(random, kind, 64, 84) * (1 - random.uniform(*contrast) * ink)
        photo += random.normal(0, random.uniform(*noise), photo.shape)
        expect_ink(ink, photo, tmp_path / "photo.png")


@pytest.mark.parametrize("quality", [60, 75, 90])
@pytest.mark.parametrize("kind", ["even", "gradient", "vignette"])
def test_compression_is_not_taken_for_ink(kind: str, quality: int, tmp_path: Path) -> None:
    for seed in range(12):
        random = np.random.default_rng(seed)
        ink = scene(random, 64, 84, 1)
        photo = light(random, kind, 64, 84) * (1 - random.uniform(0.6, 0.95) * ink)
        expect_ink(ink, photo, tmp_path / "photo.jpg", quality=quality)


@pytest.mark.parametrize("invert", [False, True])
def test_clean_images_stay_as_they_are(invert: bool, tmp_path: Path) -> None:
    composed, _ = compose_m2nist(DIGITS, np.zeros(len(DIGITS), np.uint8), 1, 0, 20)
    clean = [*DIGITS, *np.rint(composed[:, 0] * 127 + 127).astype(np.uint8)]
    for image in [*clean, *(np.kron(digit, np.ones((5, 5), np.uint8)) for digit in DIGITS[:10])]:
        Image.fromarray(255 - image if invert else image).save(tmp_path / "clean.png")
        said: list[str] = []
        np.testing.assert_array_equal(read_image(tmp_path / "clean.png", notice=said.append), image)
        assert "made 0" not in " ".join(said)


def test_blank_paper_has_no_ink(tmp_path: Path) -> None:
    for kind in ("even", "gradient", "vignette"):
        random = np.random.default_rng(0)
        blank = light(random, kind, 200, 300) + random.normal(0, 3, (200, 300))
        Image.fromarray(np.clip(np.rint(blank), 0, 255).astype(np.uint8)).save(tmp_path / "blank.png")
        assert (read_image(tmp_path / "blank.png", notice=lambda text: None) > 0).mean() <= 0.01


def test_no_invert_leaves_dark_ink_on_paper_as_it_is(tmp_path: Path) -> None:
    photo = (200 * (1 - scene(np.random.default_rng(0), 64, 84, 1) * 0.8)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png", invert=False), photo)
