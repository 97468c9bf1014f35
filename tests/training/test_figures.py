"""The figures, read back pixel by pixel where they show maps."""

import json
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tinyfcn import figures
from tinyfcn.errors import DataError
from tinyfcn.images import PALETTE


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def find(page, panel, size):
    """Where `panel`, RGB uint8, stands on the page with each pixel size x size: a list of (y, x)."""
    panel = panel.repeat(size, axis=0).repeat(size, axis=1).astype(np.int16)
    page, (height, width) = page.astype(np.int16), panel.shape[:2]
    y, x = np.unravel_index(np.abs(panel[..., 0] - 128).argmin(), (height, width))  # neither black nor white
    starts = page[y : y + page.shape[0] - height + 1, x : x + page.shape[1] - width + 1, 0]
    corners = np.argwhere(np.abs(starts - panel[y, x, 0]) <= 1)
    for y, x in np.random.default_rng(0).integers(0, (height, width), (40, 2)):
        there = page[corners[:, 0] + y, corners[:, 1] + x]
        corners = corners[np.abs(there - panel[y, x]).max(axis=-1) <= 1]
    return [(y, x) for y, x in corners if np.abs(page[y : y + height, x : x + width] - panel).max() <= 1]


def grey(panel):
    return np.repeat(np.rint(panel * 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture
def maps():
    """Two images, (2, 16, 20), their probabilities (2, 11, 16, 20) and true labels (2, 16, 20)."""
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet(np.full(11, 0.3), (2, 16, 20)).transpose(0, 3, 1, 2).astype(np.float32)
    images = rng.integers(0, 256, (2, 16, 20)).astype(np.uint8)
    return images, probabilities, rng.integers(0, 11, (2, 16, 20))


def one_hot(labels):
    return (labels[:, None] == np.arange(11)[:, None, None]).astype(np.uint8)


def lines(steps, **metrics):
    return [{"step": step, **{key: value(step) for key, value in metrics.items()}} for step in steps]


RUN = lines(
    range(100, 2100, 100),
    train_loss=lambda step: 30 / step,
    test_loss=lambda step: 40 / step,
    digit_miou=lambda step: 1 - 50 / step,
    pixel_accuracy=lambda step: 1 - 5 / step,
)


@pytest.mark.parametrize(
    "records",
    [
        RUN,
        RUN[:1],
        lines([1, 2], test_accuracy=lambda step: 0.9, train_loss=lambda step: float("nan")),
        {"pretrained": RUN, "from scratch": RUN[:9]},
        [{"step": 1, "test_loss": None, "digit_miou": None, "ink_iou": 0.5, "iou_per_class": [0.5]}],
    ],
    ids=["fcn", "one line", "classifier", "compared", "gaps"],
)
def test_learning_curves_are_drawn(records, tmp_path):
    path = figures.learning_curves(tmp_path / "new" / "curves.png", records)
    assert path == tmp_path / "new" / "curves.png"
    page = pixels(path)
    blue = np.array([0x0B, 0x62, 0xA8])
    assert page.shape == (760, 1800, 3) and (np.abs(page.astype(int) - blue).max(axis=-1) < 8).sum() > 100
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def test_a_point_at_the_upper_end_is_drawn_whole(tmp_path):
    def blue_pixels(value):
        path = figures.learning_curves(tmp_path / f"{value}.png", lines([1, 2, 3], test_accuracy=lambda step: value))
        right = pixels(path)[:, 1020:].astype(int)
        return (np.abs(right - [0x0B, 0x62, 0xA8]).max(axis=-1) < 8).sum()

    assert blue_pixels(1.0) > 0.95 * blue_pixels(0.99)


def test_learning_curves_without_a_metric_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"digit_miou.*nothing to draw"):
        figures.learning_curves(tmp_path / "curves.png", [])
    with pytest.raises(ValueError, match="no line holds speed"):
        figures.learning_curves(tmp_path / "curves.png", {"a": RUN}, metric="speed")
    assert not list(tmp_path.iterdir())


def test_a_step_logged_twice_counts_once_and_gaps_are_left_out():
    records = [{"step": 2, "a": 0.2}, {"step": 1, "a": 0.1}, {"step": 3, "a": np.nan}, {"step": 2, "a": 0.5}]
    assert figures._series([*records, {"step": 4}], "a") == ([1, 2], [0.1, 0.5])


@pytest.mark.slow
def test_mistakes_shows_the_surest_mistakes_and_nothing_else(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (60, 28, 28)).astype(np.uint8)
    true = rng.integers(0, 10, 60)
    predicted = np.where(np.arange(60) < 40, (true + 1) % 10, true)
    confidence = np.linspace(0.9, 0.1, 60)
    page = pixels(figures.mistakes(tmp_path / "mistakes.png", images, true, predicted, confidence))
    positions = [find(page, grey(image / 255), 5) for image in images]
    assert [len(found) for found in positions] == [1] * 30 + [0] * 30
    assert positions[0] < positions[1] < positions[6] < positions[29]
    figures.mistakes(tmp_path / "none.png", images, true, true, confidence)


def test_mask_grid_shows_each_map_unchanged_predicted_above_true(maps, tmp_path):
    images, probabilities, labels = maps
    page = pixels(figures.mask_grid(tmp_path / "grid.png", images, probabilities, one_hot(labels)))
    for row in range(2):
        assert len(find(page, grey(images[row] / 255), 2)) == 1
        columns = []
        for channel in range(11):
            [(y, x)] = find(page, grey(probabilities[row, channel]), 2)
            [(y_true, x_true)] = find(page, grey(one_hot(labels)[row, channel]), 2)
            assert x == x_true and y < y_true < y + 50
            columns.append(x)
        assert columns == sorted(columns)


def test_mask_grid_scales_panel_by_panel_only_when_asked(maps, tmp_path):
    images, probabilities, labels = maps
    early = 0.3 + 0.2 * probabilities[:, :10]
    early[1, 3] = 1
    low, high = early[0, 0].min(), early[0, 0].max()
    stretched = grey((early[0, 0] - low) / (high - low))
    fixed = pixels(figures.mask_grid(tmp_path / "a.png", images, early, one_hot(labels)))
    panel = pixels(figures.mask_grid(tmp_path / "b.png", images, early, one_hot(labels), scale="panel"))
    assert find(fixed, grey(early[0, 0]), 2) and not find(fixed, stretched, 2)
    assert find(panel, stretched, 2) and not find(panel, grey(early[0, 0]), 2)
    with pytest.raises(KeyError):
        figures.mask_grid(tmp_path / "c.png", images, early, one_hot(labels), scale="log")


def test_side_by_side_has_early_left_and_skip_right(maps, tmp_path):
    images, skip, _ = maps
    early = np.random.default_rng(3).random((2, 10, 16, 20))
    page = pixels(figures.side_by_side(tmp_path / "both.png", images, early, skip))
    for row in range(2):
        assert len(find(page, grey(images[row] / 255), 3)) == 1
        for digit in range(10):
            [(y, x)] = find(page, grey(early[row, digit]), 2)
            [(y_skip, x_skip)] = find(page, grey(skip[row, digit]), 2)
            assert y == y_skip and x < x_skip
    assert not find(page, grey(skip[0, 10]), 2)


@pytest.mark.slow
def test_score_map_puts_the_best_digit_in_the_middle_of_its_window(tmp_path):
    scores = np.full((10, 10, 15), 1e-3)
    scores[0] = 0.991
    scores[:, 2, 3] = 1e-3
    scores[7, 2, 3] = 0.991
    page = pixels(figures.score_map(tmp_path / "map.png", np.zeros((64, 84), np.uint8), scores))
    y, x = np.argwhere(np.abs(page - 0.9 * PALETTE[7]).max(axis=-1) < 8).mean(axis=0)
    # The window begins at pixel (8, 12); the right-hand map begins at (190, 912), 848 / 84 as large.
    assert abs((y - 190) * 84 / 848 - (8 + 14)) < 0.5
    assert abs((x - 912) * 84 / 848 - (12 + 14)) < 0.5


@pytest.mark.parametrize("classes", [11, 2])
def test_label_overview_shows_true_above_predicted_in_palette_colours(classes, maps, tmp_path):
    images, _, labels = maps
    true = labels % classes
    predicted = (true + 1) % classes
    page = pixels(figures.label_overview(tmp_path / "labels.png", images, true, predicted, classes))
    colours = PALETTE if classes == 11 else PALETTE[[7, 10]]
    size = 1640 // 40
    for column in range(2):
        (y, x), *_ = find(page, grey(images[column] / 255), size)
        (y_true, x_true), *_ = find(page, colours[true[column]], size)
        (y_predicted, x_predicted), *_ = find(page, colours[predicted[column]], size)
        assert x == x_true == x_predicted and y < y_true < y_predicted


def test_layer_maps_are_on_one_scale_by_the_root_of_their_values(tmp_path):
    maps = np.zeros((4, 3, 5), np.float32)
    maps[0], maps[1, 0], maps[1, 1], maps[2] = 16, 4, -4, np.arange(15).reshape(3, 5) / 2
    page = pixels(figures.layer_maps(tmp_path / "maps.png", maps, ["a", "b", "c", "d"], "layer", "note"))
    ends = {value: np.rint(255 * np.array(figures.SIGNED(0.5 + value / 2))[:3]) for value in (-0.5, 0, 0.5, 1)}
    size = 24
    places = [find(page, figures._rooted(each, maps) * 255, size) for each in maps[:3]]
    assert all(len(found) == 1 for found in places)
    (y, x), (y_right, x_right) = places[0][0], places[1][0]
    assert y == y_right and x < x_right and places[2][0][0] > y
    middle = size // 2
    assert np.abs(page[y + middle, x + middle] - ends[1]).max() <= 1
    shown = [page[y + middle + row * size, x_right + middle] for row in range(3)]
    for found, value in zip(shown, (0.5, -0.5, 0), strict=True):  # the roots of 4/16
        assert np.abs(found - ends[value]).max() <= 1
    assert (ends[0] == 0).all()


def test_the_image_among_the_layer_maps_is_grey(tmp_path):
    image = np.random.default_rng(0).uniform(-1, 1, (1, 6, 8)).astype(np.float32)
    page = pixels(figures.layer_maps(tmp_path / "x.png", image, ["0"], "x", "note", grey=True))
    assert len(find(page, grey((image[0] - image.min()) / np.ptp(image)), 12)) == 1


def test_the_effective_field_shows_the_pixel_apart_from_the_others(tmp_path):
    image, gradient = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.float32)
    gradient[2, 3], gradient[2, 6], gradient[4, 1] = -500, 4, 1
    box = {"all": (range(0, 6), range(0, 8))}
    page = pixels(figures.effective_field(tmp_path / "g.png", image, gradient, box, (2, 3), "title", "note"))
    size, corner = 20, (figures.MARGIN + 580, figures.HEADER + 60)

    def colour(h, w):
        return page[corner[1] + h * size + size // 2, corner[0] + w * size + size // 2]

    for (h, w), value in {(2, 3): -1, (2, 6): 1, (4, 1): 0.5, (0, 0): 0}.items():
        assert np.abs(colour(h, w) - np.rint(255 * np.array(figures.SIGNED(0.5 + value / 2))[:3])).max() <= 1


def test_a_file_that_is_no_figure_of_ours_is_not_overwritten(tmp_path):
    own, other, text = (tmp_path / name for name in ("own.png", "other.png", "text.png"))
    figures.layer_maps(own, np.ones((1, 2, 2), np.float32), ["0"], "x", "")
    figures.expect_own([own, tmp_path / "new.png"], "choose another")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(other)
    text.write_text("mine")
    for path in (other, text):
        with pytest.raises(DataError, match=f"{path.name} is there already, is no figure .* overwritten: choose anoth"):
            figures.expect_own([own, path], "choose another")


def test_the_users_matplotlib_is_left_alone_and_leaves_figures_alone(tmp_path, monkeypatch):
    def settings():
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it is an error now
    first = figures.learning_curves(tmp_path / "first.png", RUN)
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "savefig.bbox": "tight"}):
        before = settings()
        second = figures.learning_curves(tmp_path / "second.png", RUN)
        assert settings() == before
    np.testing.assert_array_equal(pixels(first), pixels(second))


SETTINGS = {
    "a notebook's backend": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "a backend that is not there": {"MPLBACKEND": "nowhere"},
    "a broken matplotlibrc": {"MATPLOTLIBRC": "broken"},
    "a matplotlibrc that is not there": {"MATPLOTLIBRC": "nowhere"},
    "a broken matplotlibrc in the working folder": {},
    "a folder that cannot be written to": {"MPLCONFIGDIR": "broken/below"},
    "no home": {"HOME": "broken/below", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_the_environment_prevents_figures(tmp_path, name):
    figures.learning_curves(tmp_path / "here.png", RUN)
    (tmp_path / "broken").write_bytes(b"\xff\xfe font.size: 40")
    if name.endswith("working folder"):
        (tmp_path / "broken").rename(tmp_path / "matplotlibrc")
    program = (
        "import json, sys; from tinyfcn import figures; figures.learning_curves('there.png', json.load(sys.stdin))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(RUN),
        env={**os.environ, **SETTINGS[name]},
        cwd=tmp_path,
        text=True,
        check=True,
        stderr=subprocess.PIPE,
    )
    assert result.stderr == ""
    np.testing.assert_array_equal(pixels(tmp_path / "here.png"), pixels(tmp_path / "there.png"))


def test_an_unwritable_folder_is_an_error_and_a_failure_leaves_the_old_figure(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file"):
        figures.learning_curves(tmp_path / "file" / "curves.png", RUN)

    path = figures.learning_curves(tmp_path / "curves.png", RUN)
    before = path.read_bytes()

    def fill_the_disk(figure, file, **kwargs):
        file.write(b"half a figure")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures.Figure, "savefig", fill_the_disk)
    with pytest.raises(DataError, match=r"curves\.png.*No space left"):
        figures.learning_curves(path, RUN)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"file", "curves.png"}
