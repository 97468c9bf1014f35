"""Figures of training and prediction. Every function takes NumPy arrays, writes one PNG, and returns its path.

Figures are laid out in pixels from the top left, so that maps are shown pixel for pixel. They use neither pyplot nor
the user's matplotlib settings. A folder that cannot be written to, or a full disk, is a DataError.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

try:
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # where there is no home, it warns about folders that figures do not need
    import matplotlib
except Exception:
    # MPLBACKEND names a backend that is not there, or a matplotlibrc cannot be read, be it in the working folder. Once
    # more without them. What the first try has loaded would stand in the way.
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[name]
    environment = dict(os.environ)
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    try:
        with chdir(Path(__file__).parent):
            import matplotlib  # noqa: F401
    finally:
        os.environ.clear()
        os.environ.update(environment)

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from tinyfcn.errors import DataError
from tinyfcn.fields import short
from tinyfcn.files import make_folder, new_file
from tinyfcn.images import PALETTE, WAY_OUT, class_colours, class_names

logger.setLevel(level)

DPI = 160
SOFTWARE = "tinyfcn"  # which the PNGs name
MARGIN, HEADER = 40, 150  # pixels: around a figure; above its first panel, for title and note
INK, GREY, PALE = "#22252b", "#6b7280", "#e2e4e8"
LINES = ["#0b62a8", "#d1570e", "#1b8a5a", "#b0468f", "#c79a00", "#4aa3d8"]  # after Okabe and Ito
LANES = LinearSegmentedColormap.from_list("lanes", ["#cfe3f5", "#8fc7a8", "#f3d38b"])  # the first to the last
UNWANTED = "#f6dcd7"
BOXES = ("#1b8a5a", "#c79a00")
REDS = LinearSegmentedColormap.from_list("reds", ["#ffffff", "#f4b6a6", "#c8402f", "#7d1128"])
# Of values from -1 to 1: 0 is black, warm is above, cold below.
SIGNED = LinearSegmentedColormap.from_list(
    "signed",
    ["#d6f5ff", "#58b8f0", "#1f5fc4", "#14224f", "#000000", "#4d1230", "#c43a3a", "#f79a3c", "#fff3c4"],
    N=257,  # odd, so that one of them is black
)
STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.size": 11,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": PALE,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
}
METRICS = ("digit_miou", "test_accuracy", "ink_iou", "pixel_accuracy")
SCALES = {
    "fixed": "one scale for all: 0 is black, 1 is white",
    "panel": "each panel scaled to its own minimum (black) and maximum (white), as the article's were",
}

MetricsLine = Mapping[str, float]


def learning_curves(
    path: str | Path,
    metrics_lines: Sequence[MetricsLine] | Mapping[str, Sequence[MetricsLine]],
    metric: str | None = None,
    title: str = "Learning curves",
) -> Path:
    """Loss on the left, accuracy or IoU on the right, over training steps.

    metrics_lines: the lines of metrics.jsonl, dicts with "step" and any of "train_loss", "test_loss" and METRICS;
      other keys are ignored. Those of one run; or {name: one run's}, to compare test losses and `metric` (by
      default the first of METRICS that they have). Raises ValueError if there is nothing to draw.
    """
    compared = isinstance(metrics_lines, Mapping)
    runs = metrics_lines if isinstance(metrics_lines, Mapping) else {"": metrics_lines}
    wanted = [metric] if metric else METRICS
    metrics = [key for key in wanted if any(_series(lines, key)[0] for lines in runs.values())]
    if not metrics:
        raise ValueError(f"no line holds {' or '.join(wanted)}: nothing to draw")
    metrics = metrics[:1] if compared else metrics[:2]
    losses = ["test_loss"] if compared else ["test_loss", "train_loss"]

    with new_page(path, 1800, 760, title) as figure:
        for x, keys in ((130, losses), (1020, metrics)):
            axes = add_axes(figure, x, HEADER - 20, 740, 520)
            for number, (name, lines) in enumerate(runs.items()):
                for key in keys:
                    steps, values = _series(lines, key)
                    label = name or _in_words(key)
                    colour = LINES[number % len(LINES)] if key == keys[0] else "#98a1ae"
                    width, above = (2.2, 3) if key == keys[0] else (1.4, 2)
                    marker = "." if len(steps) < 15 else ""
                    if steps:
                        text = f"{label}  {values[-1]:.3f}"
                        style: dict[str, Any] = {"marker": marker, "c": colour, "lw": width, "zorder": above}
                        axes.plot(steps, values, label=text, clip_on=False, **style)  # a point at 1 is drawn whole
            axes.set_title(" and ".join(map(_in_words, keys)))
            axes.set_xlabel("training step")
            axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
            axes.grid(True)
            if keys is metrics:
                axes.set_ylim(top=1)
            else:
                axes.set_yscale("log")
                for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                    formatter(lambda loss, _: f"{loss:g}" if f"{loss:e}"[0] in "1235" else "")
            if axes.lines:
                axes.legend(loc="best")
    return Path(path)


def _in_words(key: str) -> str:
    return key.replace("_", " ").replace("iou", "IoU")


def _series(lines: Sequence[MetricsLine], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of `key`, in order; a step logged twice (before and after --resume) counts once."""
    points = {line["step"]: line[key] for line in lines if np.isfinite(np.array(line.get(key), float))}
    return sorted(points), [points[step] for step in sorted(points)]


def mistakes(
    path: str | Path, images: np.ndarray, true: np.ndarray, predicted: np.ndarray, confidence: np.ndarray
) -> Path:
    """The 30 mistakes that the classifier was surest of, and the confusion matrix of all N test digits.

    images uint8 (N, 28, 28); true, predicted integers (N,); confidence (N,): the probability of `predicted`
    """
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (true, predicted), 1)
    errors = np.where(np.eye(10, dtype=bool), 0, confusion)
    wrong = np.flatnonzero(true != predicted)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:30]
    note = f"{len(wrong):,} of {len(true):,} test digits misread; the surest mistakes: true → read as"
    with new_page(path, 1990, 1130, "The classifier's mistakes", note) as figure:
        for number, index in enumerate(surest):
            x, y = MARGIN + number % 6 * 166, HEADER + 10 + number // 6 * 194
            _panel(figure, x, y, images[index] / 255, 5)
            _words(figure, x, y + 146, f"{true[index]} →", weight="bold")
            _words(figure, x + 56, y + 146, str(predicted[index]), weight="bold", color="#b3261e")
            sure = f"{min(100 * confidence[index], 99.9):.1f}%"
            _words(figure, x + 140, y + 151, sure, size=8, color=GREY, ha="right")

        axes = add_axes(figure, 1150, HEADER + 10, 800, 800)
        axes.imshow(errors, cmap=REDS, vmin=0, vmax=max(errors.max(), 1))
        for i, j in np.argwhere(confusion):
            if i == j:
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="#eceef1"))
            colour = GREY if i == j else "white" if errors[i, j] > errors.max() / 2 else INK
            axes.text(j, i, confusion[i, j], ha="center", va="center", size=9, color=colour)
        axes.set(xticks=range(10), yticks=range(10), xlabel="read as", ylabel="true digit")
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
    return Path(path)


def mask_grid(
    path: str | Path,
    images: np.ndarray,
    predicted: np.ndarray,
    true: np.ndarray,
    scale: str = "fixed",
    title: str = "The probability of each class at every pixel",
) -> Path:
    """For each image, as in the source article: the input, the predicted masks, and below them the true ones.

    images uint8 (N, H, W); predicted and true (N, K, H, W) from 0 to 1; `true` may have K + 1 or K - 1.
    scale: "fixed" shows 0 black and 1 white; "panel" scales each panel to its own minimum and maximum, as the
      article's plots were (a constant panel is black). Maps are not changed in any other way.
    """
    names = class_names(predicted.shape[1])
    height, width = 2 * images.shape[1], 2 * images.shape[2]
    left, step, band = MARGIN + width + 70, width + 8, 2 * height + 44
    page_height = HEADER + 30 + band * len(images)
    with new_page(path, left + step * len(names) + MARGIN, page_height, title, SCALES[scale]) as figure:
        for column, name in enumerate(names):
            _words(figure, left + column * step + width // 2, HEADER - 12, name, ha="center", weight="bold")
        for row, image in enumerate(images):
            y = HEADER + 30 + row * band
            _panel(figure, MARGIN, y + height // 2, image / 255, 2)
            for masks, y_masks, row_name in ((predicted, y, "predicted"), (true, y + height + 8, "true")):
                _words(figure, left - 34, y_masks + height // 2, row_name, color=GREY, rotation=90, va="center")
                for column, mask in enumerate(masks[row][: len(names)]):
                    _panel(figure, left + column * step, y_masks, mask, 2, scale)
    return Path(path)


def side_by_side(
    path: str | Path,
    images: np.ndarray,
    early: np.ndarray,
    skip: np.ndarray,
    scale: str = "fixed",
    titles: tuple[str, str] = ("early: no class for background", "skip: background is a class"),
) -> Path:
    """Two networks on the same images: the input, then the ten digits' maps of each network.

    images uint8 (N, H, W); early and skip (N, 10 or 11, H, W) from 0 to 1. Only the ten digits are shown.
    scale: as in mask_grid.
    """
    height, width = 2 * images.shape[1], 2 * images.shape[2]
    block, band = 5 * (width + 8), 2 * height + 116
    lefts = (2 * MARGIN + width * 3 // 2, 3 * MARGIN + width * 3 // 2 + block)
    page = (lefts[1] + block + MARGIN, HEADER + 50 + len(images) * band)
    with new_page(path, *page, "The mask of each digit", SCALES[scale]) as figure:
        for x, title in zip(lefts, titles, strict=True):
            _words(figure, x, HEADER - 5, title, weight="bold", size=13)
        for row, image in enumerate(images):
            y = HEADER + 90 + row * band
            _panel(figure, MARGIN, y + height // 4 + 4, image / 255, 3)
            for x, masks in zip(lefts, (early[row], skip[row]), strict=True):
                for digit in range(10):
                    x_panel, lower = x + digit % 5 * (width + 8), digit // 5
                    _panel(figure, x_panel, y + lower * (height + 8), masks[digit], 2, scale)
                    y_name = y + 2 * height + 14 if lower else y - 36
                    _words(figure, x_panel + width // 2, y_name, str(digit), ha="center", color=GREY)
    return Path(path)


def score_map(path: str | Path, image: np.ndarray, scores: np.ndarray, field: int = 28, stride: int = 4) -> Path:
    """The classifier slid over an image: the digit that it reads at each position, and each digit's probability.

    image uint8 (H, W); scores (10, h, w) after softmax, of field x field pixels each, `stride` apart.
    """
    left = (field - stride - 1) / 2  # of the first cell, which covers the middle of the first window
    extent = (left, left + stride * scores.shape[2], left + stride * scores.shape[1], left)
    max_index, sure = scores.argmax(axis=0), scores.max(axis=0)
    title = "The classifier slid over an image, before any FCN training"
    note = f"each cell stands for the {field}x{field} window around it; windows are {stride} pixels apart"
    with new_page(path, 1800, 1580, title, note) as figure:
        window = _map_axes(figure, MARGIN, HEADER + 40, 848, image, "the image and the first window")
        read = _map_axes(figure, 912, HEADER + 40, 848, image // 3, "the digit read, darker if unsure")
        read.imshow(PALETTE[max_index], extent=extent, alpha=0.9 * sure)
        for (i, j), digit in np.ndenumerate(max_index):
            centre = (left + (j + 0.5) * stride, left + (i + 0.5) * stride)
            colour = "black" if sure[i, j] > 0.75 else "white"
            read.text(*centre, digit, ha="center", va="center_baseline", size=9, color=colour)
        for axes, corner, side in ((window, -0.5, field), (read, left, stride)):
            axes.add_patch(Rectangle((corner, corner), side, side, fill=False, color="#ffb000", linewidth=2))
        _words(figure, MARGIN, 880, "the probability of each digit")
        for digit, score in enumerate(scores):
            x, y = MARGIN + digit % 5 * 347, 976 + digit // 5 * 300
            axes = _map_axes(figure, x, y, 332, image * 0, str(digit))
            shown = axes.imshow(score, cmap="magma", vmin=0, vmax=1, extent=extent)
            axes.contour(image, [64], colors="white", linewidths=0.6, alpha=0.7)
        bar = add_axes(figure, 460, 882, 400, 16)
        figure.colorbar(shown, cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])
    return Path(path)


def label_overview(
    path: str | Path, images: np.ndarray, true: np.ndarray, predicted: np.ndarray, classes: int = 11
) -> Path:
    """Images in columns: the input, the true and the predicted labels in colour, and a legend.

    images uint8 (N, H, W); true and predicted integers (N, H, W): 0 to 10, or 0 and 1 if `classes` is 2.
    """
    scale = max(1, 1640 // (len(images) * images.shape[2]))
    height, width = scale * images.shape[1], scale * images.shape[2]
    left, top, colours = MARGIN + 50, HEADER - 30, class_colours(classes) / 255
    legend = top + 3 * (height + 8) + 20
    maps = {"input": images / 255, "true": colours[true], "predicted": colours[predicted]}
    with new_page(
        path, max(left + len(images) * (width + 8) + 32, 1360), legend + 70, "The label of every pixel"
    ) as figure:
        for row, (row_name, panels) in enumerate(maps.items()):
            y = top + row * (height + 8)
            _words(figure, left - 16, y + height // 2, row_name, color=GREY, rotation=90, ha="right", va="center")
            for column, panel in enumerate(panels):
                _panel(figure, left + column * (width + 8), y, panel, scale)
        for number, (name, colour) in enumerate(zip(class_names(classes), colours, strict=True)):
            _panel(figure, left + number * 100, legend, np.tile(colour, (15, 15, 1)), 2)
            _words(figure, left + number * 100 + 40, legend + 15, name, va="center")
    return Path(path)


class Page(Figure):
    """A white figure of width x height pixels. panels, uint8 (height, width, RGBA), are drawn below all else."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(figsize=(width / DPI, height / DPI), frameon=False)
        self.panels = np.full((height, width, 4), 255, np.uint8)

    def draw(self, renderer: Any) -> None:
        renderer.draw_image(renderer.new_gc(), 0, 0, self.panels[::-1])  # not figimage, which would resample each
        super().draw(renderer)


@contextmanager
def new_page(path: str | Path, width: int, height: int, title: str, note: str = "") -> Iterator[Page]:
    """A white figure of width x height pixels with a heading. It is written to `path` completely or not at all."""
    with style.context(["default", STYLE]):
        figure = Page(width, height)
        _words(figure, MARGIN, 34, title, size=15, weight="bold")
        _words(figure, MARGIN, 86, note, color=GREY)
        yield figure
        make_folder(Path(path).parent, WAY_OUT)
        with new_file(Path(path), WAY_OUT) as file:
            figure.savefig(file, format="png", metadata={"Software": SOFTWARE})


def expect_own(paths: Iterable[Path], way_out: str) -> None:
    """DataError if one of the files is there already and is not a figure of tinyfcn."""
    for path in paths:
        if os.path.lexists(path):
            try:
                with Image.open(path) as image:
                    is_own = image.info.get("Software") == SOFTWARE
            except OSError:  # not an image, or not to be read
                is_own = False
            if not is_own:
                raise DataError(f"{path} is there already, is no figure of tinyfcn and is not overwritten: {way_out}")


def memory(path: str | Path, title: str, note: str, rows: Sequence[tuple[str, Sequence[Any]]], shared: bool) -> Path:
    """The words of 4 bytes that a warp's lanes want of memory.

    rows: a label and 32 cells, each with the lanes that want the word, or None where nothing is fetched. In shared
    memory a row is a wavefront, and a column a bank. In global memory a row is 128 bytes, of four sectors.
    """
    size, left = 46, 225
    height = HEADER + 50 + len(rows) * size + 110
    with new_page(path, left + 32 * size + MARGIN, height, title, note) as figure:
        axes = add_axes(figure, left, HEADER + 50, 32 * size, len(rows) * size)
        axes.set(xlim=(0, 32), ylim=(len(rows), 0), xticks=[], yticks=[])
        for edge in axes.spines.values():
            edge.set_visible(False)
        for y, (label, cells) in enumerate(rows):
            axes.text(-0.3, y + 0.5, label, ha="right", va="center", fontsize=9, color=GREY)
            for x, lanes in enumerate(cells):
                missing = lanes is None
                colour = "#ffffff" if missing else UNWANTED if not lanes else LANES(lanes[0] / 31)
                axes.add_patch(
                    Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, facecolor=colour, edgecolor=PALE, linewidth=0.8)
                )
                if lanes:
                    text = f"{lanes[0]}" if len(lanes) == 1 else f"{lanes[0]}+{len(lanes) - 1}"
                    size_of_text = 8 if len(text) < 3 else 6
                    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=size_of_text, color=INK)
        for x in range(0, 33, 32 if shared else 8):
            axes.plot((x, x), (0, len(rows)), color=GREY, linewidth=1.2, clip_on=False)
        for x in range(0, 32, 4 if shared else 8):
            where = f"{x}" if shared else f"+{4 * x} bytes"
            axes.text(x + 0.5 * shared, -0.15, where, ha="center" if shared else "left", fontsize=9, color=GREY)
        axes.text(-0.3, -0.15, "wavefront \\ bank" if shared else "byte", ha="right", fontsize=9, color=GREY)
        below = HEADER + 50 + len(rows) * size + 40
        is_shared_word = any(lanes and len(lanes) > 1 for _, cells in rows for lanes in cells)
        told = "A number is a lane" + "; 4+3 is lane 4 and 3 more that want the same word" * is_shared_word
        told += (
            ". Each row takes a turn: a bank gives one word."
            if shared
            else ". Pale red: fetched with its sector, wanted by nobody."
        )
        _words(figure, MARGIN, below, told, color=GREY)
    return Path(path)


def layer_maps(
    path: str | Path, maps: np.ndarray, names: Sequence[str], title: str, note: str, grey: bool = False
) -> Path:
    """The channels of a layer, (C, H, W), in a grid, all on one scale, which is drawn below them.

    0 is black. Colour grows with the root of the value, warm above 0 and cold below, so that small values are seen
    beside large ones. grey: from black, the least value, to white, the greatest. names: what stands above each channel.
    """
    channels, height, width = maps.shape
    columns = next((n for n in range(ceil(channels**0.5), 9) if channels % n == 0), ceil(channels**0.5))
    gap, band = 22, 40
    most = 12 if channels == 1 else 24 if height > 1 else 120
    size = max(1, min(most, (1720 + gap) // columns // width - gap // width - 1))
    step, rows = max(size * width, 60) + gap, ceil(channels / columns)
    across = max(columns * step - gap, 1000)
    down = HEADER + 30 + rows * (size * height + band)
    colours = _greys if grey else _rooted
    with new_page(path, across + 2 * MARGIN, down + 100, title, note) as figure:
        for channel, (name, shown) in enumerate(zip(names, maps, strict=True)):
            x, y = MARGIN + channel % columns * step, HEADER + 30 + channel // columns * (size * height + band)
            said = "all 0" if not shown.any() else short(shown.item()) if shown.size == 1 else ""
            _words(figure, x, y - 26, f"{name}  {said}", size=9, color=GREY if shown.any() else "#b3261e")
            _panel(figure, x, y, colours(shown, maps), size)
        low, high = float(maps.min()), float(maps.max())
        _scale(figure, down, np.array([low, high] if grey else [min(low, 0), max(high, 0)]), colours)
    return Path(path)


def effective_field(
    path: str | Path,
    image: np.ndarray,
    gradient: np.ndarray,
    boxes: Mapping[str, tuple[range, range]],
    pixel: tuple[int, int] | None,
    title: str,
    note: str,
) -> Path:
    """The image, uint8 (H, W), and the gradient of a logit by it, (H, W), each with the boxes and the pixel marked.

    boxes: rows and columns by the name of the box, at most as many as BOXES has colours. The gradient's colours grow
    with its root, up to the greatest value beside that of the pixel itself, which may be a thousand times as great.
    """
    height, width = image.shape
    size = max(1, min(20, 1640 // (2 * width)))
    step, top = max(size * width, 520) + 60, HEADER + 60
    page = (2 * step + 2 * MARGIN - 60, top + size * height + 150)
    with new_page(path, max(page[0], 1100), page[1], title, note) as figure:
        others, told = gradient.copy(), "the gradient of the logit by each pixel"
        if pixel is not None:
            others[pixel] = 0
        panels = {"the image": image / 255, told: _rooted(gradient, others)}
        for number, (name, panel) in enumerate(panels.items()):
            x = MARGIN + number * step
            _words(figure, x, top - 34, name, weight="bold")
            _panel(figure, x, top, panel, size)
            axes = add_axes(figure, x, top, size * width, size * height)
            axes.set(xlim=(0, width), ylim=(height, 0), zorder=1)  # above the panel
            axes.set_axis_off()
            style: dict[str, Any] = {"fill": False, "linewidth": 1.6, "clip_on": False}
            for colour, (rows, columns) in zip(BOXES, boxes.values(), strict=False):
                corner = columns.start, rows.start
                axes.add_patch(Rectangle(corner, len(columns), len(rows), edgecolor=colour, **style))
            if pixel is not None:  # a frame around it, so that its colour is seen
                axes.add_patch(Rectangle((pixel[1] - 1, pixel[0] - 1), 3, 3, edgecolor="#ffffff", **style))
        y = top + size * height + 24
        for number, (name, colour) in enumerate(zip(boxes, BOXES, strict=False)):
            _words(figure, MARGIN, y + 36 * number, f"▢  {name}", color=colour, weight="bold")
        if pixel is not None:
            own = f"white frame: the pixel itself, gradient {short(gradient[pixel])}"
            _words(figure, MARGIN, y + 36 * len(boxes), own, color=GREY)
        ends = np.array([min(float(others.min()), 0), max(float(others.max()), 0)])
        _scale(figure, y, ends, _rooted, MARGIN + step)
    return Path(path)


def _greys(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Greys of values, RGB, from black, the least value of `of`, to white, its greatest."""
    return np.repeat(((values - of.min()) / (np.ptp(of) or 1))[..., None], 3, axis=-1)


def _rooted(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The colours of the roots of values, RGB: 0 is black, the greatest absolute value of `of` has the last colour."""
    most = float(np.abs(of).max()) or 1.0
    return SIGNED(0.5 + np.sign(values) * np.sqrt(np.abs(values) / most) / 2)[..., :3]


def _scale(
    figure: Figure,
    y: int,
    ends: np.ndarray,
    colours: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: int = MARGIN,
) -> None:
    """A bar with the colours of values between two ends, which are written below it; and 0, where it is between."""
    low, high = ends
    bar = add_axes(figure, x + 30, y, 480, 18)  # the numbers stand below the ends, half of each farther left or right
    values, last = np.linspace(low, high, 480)[None], high if high > low else low + 1
    bar.imshow(colours(values, ends), extent=(low, last, 0, 1), aspect="auto")
    marks = {end for end in (low, high) if low * high >= 0 or abs(end) > 0.2 * (high - low)}
    bar.set(yticks=[], xticks=sorted(marks | ({0.0} if low < 0 < high else set())))
    bar.xaxis.set_major_formatter(lambda value, _: short(value))
    bar.spines[:].set_visible(False)


def _panel(figure: Page, x: int, y: int, panel: np.ndarray, size: int, scale: str = "fixed") -> None:
    """A map from 0 to 1, grey or RGB, at (x, y), each pixel size x size, in a grey frame of one pixel."""
    if scale == "panel":
        panel = (panel - panel.min()) / (np.ptp(panel) or 1)
    rgb = panel if panel.ndim == 3 else np.repeat(panel[..., None], 3, axis=2)
    height, width = len(panel) * size, panel.shape[1] * size
    figure.panels[y - 1 : y + height + 1, x - 1 : x + width + 1, :3] = 153
    figure.panels[y : y + height, x : x + width, :3] = 255 * rgb.repeat(size, axis=0).repeat(size, axis=1)


def _words(figure: Figure, x: float, y: float, text: str, va: str = "top", **style: Any) -> None:
    figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, text, va=va, **style)


def add_axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes of width x height pixels, whose upper left corner is at (x, y) from that of the figure."""
    across, down = figure.bbox.width, figure.bbox.height
    return figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))


def _map_axes(figure: Figure, x: int, y: int, width: int, image: np.ndarray, title: str) -> Axes:
    """Axes whose coordinates are the pixels of `image`, which is shown in them."""
    axes = add_axes(figure, x, y, width, width * image.shape[0] / image.shape[1])
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.autoscale(False)
    axes.set_title(title, y=1)  # given, else the sizes of all ticks would be measured
    axes.set_axis_off()
    return axes
