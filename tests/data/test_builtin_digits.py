"""Digits drawn by code: reproducible, framed as MNIST's are, with MNIST's amount of ink, and told apart."""

import time

import numpy as np
import pytest

from tinyfcn.data import builtin_digits
from tinyfcn.data.builtin_digits import BOX, LEAN, SIDE, SKELETONS, WIDTH, draw_digits

# Measured on the 60,000 training digits of MNIST, 0-255 over all 784 pixels: the mean of each digit, of all images,
# and the standard deviation from image to image.
MNIST_INK = (44.2, 19.4, 38.0, 36.1, 30.9, 32.8, 35.0, 29.2, 38.3, 31.3)
MNIST_MEAN, MNIST_DEVIATION = 33.3, 11.0


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return draw_digits(3000, seed=1)


def centre_of_mass(images: np.ndarray) -> np.ndarray:
    """(N, 2): row and column in index coordinates, where the first pixel's middle is 0."""
    ink = images / images.sum(axis=(1, 2), keepdims=True, dtype=np.float64)
    steps = np.arange(SIDE)
    return np.stack([ink.sum(2) @ steps, ink.sum(1) @ steps], axis=1)


def test_shapes_and_types(drawn):
    images, labels = drawn
    assert images.shape == (3000, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (3000,) and labels.dtype == np.uint8
    # Ink on a background of exactly 0: masks are taken as pixel > 0.
    assert (images.max(axis=(1, 2)) > 150).all() and (np.median(images, axis=(1, 2)) == 0).all()


def test_the_same_seed_gives_the_same_bytes(drawn):
    images, labels = draw_digits(3000, seed=1)
    assert images.tobytes() == drawn[0].tobytes() and labels.tobytes() == drawn[1].tobytes()


def test_other_seeds_give_other_images():
    one, two = draw_digits(200, seed=1), draw_digits(200, seed=2)
    assert not np.array_equal(one[1], two[1])
    different = {image.tobytes() for image in np.concatenate([one[0], two[0]])}
    assert len(different) == 400


def test_labels_are_balanced_and_shuffled(drawn):
    assert (np.bincount(drawn[1], minlength=10) == 300).all()
    assert len(set(drawn[1][:30])) >= 7 and not np.array_equal(drawn[1][:20], np.sort(drawn[1][:20]))
    assert sorted(np.bincount(draw_digits(25, seed=3)[1], minlength=10)) == [2] * 5 + [3] * 5


@pytest.mark.parametrize("count", [0, 1, 7])
def test_few(count):
    images, labels = draw_digits(count, seed=4)
    assert images.shape == (count, 28, 28) and labels.shape == (count,) and (images.max(axis=(1, 2)) > 0).all()


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="count must be 0 or more, got -1"):
        draw_digits(-1, seed=0)


def test_the_centre_of_mass_is_in_the_middle(drawn):
    away = np.abs(centre_of_mass(drawn[0]) - 14)
    # MNIST's are within half a pixel of index 14; a lopsided digit whose box would leave the image may be further.
    assert (away <= 0.51).mean() > 0.99
    assert away.max() < 2.5
    assert np.abs(centre_of_mass(drawn[0]).mean(0) - 14).max() < 0.05


def test_the_ink_fills_a_box_of_20(drawn):
    rows, columns = (drawn[0] > 0).any(2), (drawn[0] > 0).any(1)
    extents = [[np.ptp(np.flatnonzero(line)) + 1 for line in lines] for lines in (rows, columns)]
    longer = np.maximum(*extents)
    assert longer.max() == BOX and longer.min() >= BOX - 1
    # Proportions are kept: a 1 stays slim, a 0 does not.
    width = np.array(extents[1])
    assert width[drawn[1] == 1].mean() < 12 < 16 < width[drawn[1] == 0].mean()


def test_there_is_as_much_ink_as_in_mnist(drawn):
    ink = drawn[0].mean(axis=(1, 2))
    assert abs(ink.mean() / MNIST_MEAN - 1) < 0.1
    assert abs(ink.std() / MNIST_DEVIATION - 1) < 0.2
    for digit, expected in enumerate(MNIST_INK):
        assert abs(ink[drawn[1] == digit].mean() / expected - 1) < 0.2, f"digit {digit}"


def test_the_ten_digits_are_distinct(drawn):
    """The nearest of 300 drawn digits names most digits of another seed, and every class is named."""
    images, labels = draw_digits(500, seed=5)
    known, new = (some.reshape(len(some), -1) / np.float32(255) for some in (drawn[0], images))
    nearest = ((known**2).sum(1) - 2 * new @ known.T).argmin(1)
    right = drawn[1][nearest] == labels
    assert right.mean() > 0.8
    for digit in range(10):
        assert right[labels == digit].mean() > 0.6, f"digit {digit}"


def test_500_are_drawn_quickly():
    draw_digits(10, seed=6)  # the skeletons' curves are made once
    start = time.process_time()
    draw_digits(500, seed=6)
    assert time.process_time() - start < 1.5  # 0.05 s where this was written


ALL_STYLES = [(digit, name) for digit, styles in SKELETONS.items() for name in styles]


@pytest.mark.parametrize(("digit", "name"), ALL_STYLES, ids=str)
def test_a_curve_passes_through_its_points_in_order(digit, name):
    strokes = SKELETONS[digit][name][1]
    skeleton = builtin_digits._skeleton(strokes)
    assert skeleton.careful.shape == skeleton.hasty.shape
    for matrix in (skeleton.careful, skeleton.hasty):
        assert np.allclose(matrix.sum(1), 1, atol=1e-5), "a digit that is moved must be drawn moved"
        curve = matrix @ skeleton.points
        dot = 0
        for point in strokes.replace("|", " ").split():
            wanted = np.array(point.split(","), float) / 100
            near = np.flatnonzero(np.abs(curve[dot:] - wanted).max(1) < 1e-5)
            assert len(near), f"{point} is not reached after dot {dot}"
            dot += near[0]
        assert np.linalg.norm(curve, axis=1).max() < 1.6, "the curve overshoots"


def test_a_stroke_of_two_points_is_straight_and_a_bow_follows_a_circle():
    line = builtin_digits._skeleton("0,0 30,60")
    assert np.allclose(line.careful @ line.points @ [2, -1], 0, atol=1e-6)
    angles = np.radians(range(0, 181, 30))
    corners = [(round(1000 * np.cos(angle)), round(1000 * np.sin(angle))) for angle in angles]
    circle = builtin_digits._skeleton(" ".join(f"{x},{y}" for x, y in corners))
    assert np.allclose(np.linalg.norm(circle.careful @ circle.points, axis=1), 10, atol=0.1)


def test_hasty_pens_round_corners_and_leave_the_paper_where_careful_ones_do():
    corner = builtin_digits._skeleton("0,0 50,0 | 50,0 50,50")
    assert np.abs(corner.careful @ corner.points - corner.hasty @ corner.points).max() > 0.02
    lifted = builtin_digits._skeleton("0,0 50,0 | 50,10 50,50")
    assert np.array_equal(lifted.careful, lifted.hasty)


def test_ink_is_the_distance_to_the_stroke():
    """An upright line of radius 2, from end to end of the box, against the distance to a segment."""
    curve = np.stack([np.zeros(200), np.linspace(-1, 1, 200)], axis=1)[None].astype(np.float32)
    softness = np.float32([[1.5]])
    image = builtin_digits._rasterise(curve, np.full((1, 200), 2, np.float32), softness)[0]
    row, column = np.mgrid[:SIDE, :SIDE]
    # The box is centred: its middle is the corner between pixels 13 and 14, or a pixel further.
    middle = centre_of_mass(image[None])[0]
    assert set(middle.round(3)) <= {13.5, 14.5}
    beyond_the_ends = np.maximum(np.abs(row - middle[0]) - (BOX / 2 - 2), 0)
    distance = np.hypot(column - middle[1], beyond_the_ends)
    expected = np.clip(0.5 - (distance - 2) / softness[0, 0], 0, 1) * 255
    in_the_box = (np.abs(row - middle[0]) < BOX / 2) & (np.abs(column - middle[1]) < BOX / 2)
    assert np.abs(image[in_the_box] - expected[in_the_box]).max() < 3


def test_images_are_not_mirrored():
    """An L: from the top left down, then right."""
    skeleton = builtin_digits._skeleton("0,0 0,100 | 0,100 100,100")
    curve = (skeleton.careful @ skeleton.points)[None]
    radius = np.ones(curve.shape[:2], np.float32)
    image = builtin_digits._rasterise(curve, radius, np.ones((1, 1), np.float32))[0]
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    corners = image[np.ix_(rows[[1, -2]], columns[[1, -2]])]
    assert (corners > 200).tolist() == [[True, False], [True, True]]


def test_digits_lean_as_the_table_says():
    """Slant is what moves sideways with height: digits written with more lean have more of it."""
    skeleton = builtin_digits._skeleton(SKELETONS[1]["straight"][1])

    def mean_slant(lean: float) -> float:
        curve = builtin_digits._write(skeleton, lean, 1.0, 2000, np.random.default_rng(7))
        return float(np.mean((curve[:, 0, 0] - curve[:, -1, 0]) / (curve[:, -1, 1] - curve[:, 0, 1])))

    assert mean_slant(0.0) == pytest.approx(0, abs=0.05)
    assert mean_slant(0.3) == pytest.approx(0.3, abs=0.05)
    assert len(LEAN) == len(WIDTH) == len(SKELETONS) == 10
