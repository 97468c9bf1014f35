"""Pictures of what was learned. Every function takes NumPy arrays, writes one PNG, and returns its path.

Figures are laid out in pixels from the top left, so that maps are shown pixel for pixel. They use neither
pyplot nor the user's matplotlib settings. An unwritable folder or a full disk is a DataError.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tinyfcn.data.folders import make_folder, new_file
from tinyfcn.pictures import PALETTE, WAY_OUT, class_colours, class_names

DPI = 160
MARGIN, HEADER = 40, 150  # pixels: around a figure; above its first panel, for title and note
INK, GREY, LIGHT = "#22252b", "#6b7280", "#d9dce1"
WRONG = "#b3261e"
LINES = ["#0b62a8", "#d1570e", "#1b8a5a", "#b0468f", "#c79a00", "#4aa3d8"]  # after Okabe and Ito
STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
}
METRICS = {
    "digit_miou": "digit mIoU",
    "test_accuracy": "test accuracy",
    "pixel_accuracy": "pixel accuracy",
    "ink_iou": "ink IoU",
}

Record = Mapping[str, float]


def learning_curves(
    path: str | Path,
    records: Sequence[Record] | Mapping[str, Sequence[Record]],
    metric: str | None = None,
    title: str = "What training did",
) -> Path:
    """Loss on the left, accuracy or IoU on the right, over training steps.

    records: the lines of metrics.jsonl as dicts: "step" and any of "train_loss", "test_loss" and METRICS (other
      keys are left alone). One run's; or {name: one run's}, to compare test losses and `metric` (by default
      the first of METRICS that they have). Raises ValueError if there is nothing to draw.
    """
    compared = isinstance(records, Mapping)
    runs = dict(records) if compared else {"": records}
    found = {key for lines in runs.values() for record in lines for key in record}
    metrics = [metric] if metric else [key for key in METRICS if key in found][: 1 if compared else 2]
    if not metrics or metrics[0] not in found:
        raise ValueError(f"no record holds {metric or ' or '.join(METRICS)}: nothing to draw")
    losses = ["test_loss"] if compared else ["test_loss", "train_loss"]

    with _page(path, 1800, 800, title) as figure:
        for x, keys in ((130, losses), (1020, metrics)):
            axes = _axes(figure, x, HEADER, 740, 530)
            for colour, (name, lines) in enumerate(runs.items()):
                for key in keys:
                    steps, values = _series(lines, key)
                    if not len(steps):
                        continue
                    main = key == keys[0]
                    axes.plot(
                        steps,
                        values,
                        color=LINES[colour % len(LINES)] if main else "#98a1ae",
                        linewidth=2.2 if main else 1.4,
                        zorder=3 if main else 2,
                        marker="o" if len(steps) < 15 else "",
                        markersize=4,
                        label=f"{name or METRICS.get(key, key.replace('_', ' '))}  {values[-1]:.3f}",
                    )
            axes.set_title(METRICS.get(keys[0], "loss"), loc="left", fontsize=11)
            axes.set_xlabel("training step")
            axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
            axes.grid(True)
            if keys is losses:
                axes.set_yscale("log")
            else:
                axes.set_ylim(top=1)
            if axes.lines:
                axes.legend(loc="best")
    return Path(path)


def _series(lines: Sequence[Record], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of `key`, in order; a step logged twice (before and after --resume) counts once."""
    points = {record["step"]: record[key] for record in lines if np.isfinite(record.get(key, np.nan))}
    return sorted(points), [points[step] for step in sorted(points)]


def mistakes(
    path: str | Path,
    images: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray,
    count: int = 40,
) -> Path:
    """The `count` mistakes the classifier was surest of, and the confusion matrix of all N test digits.

    images uint8 (N, 28, 28); true and predicted integers (N,); confidence (N,): the probability it gave `predicted`.
    """
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (true, predicted), 1)
    wrong = np.flatnonzero(true != predicted)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    note = f"{len(wrong):,} of {len(true):,} test digits misread; the {len(surest)} it was surest of, true → read"
    with _page(path, 1960, 1010, "The classifier's mistakes", note) as figure:
        for place, which in enumerate(surest):
            x, y = MARGIN + place % 8 * 130, HEADER + place // 8 * 164
            _panel(figure, x, y, images[which] / 255, 4)
            _words(figure, x, y + 116, f"{true[which]} → ", weight="bold")
            _words(figure, x + 50, y + 116, str(predicted[which]), weight="bold", color=WRONG)
            sure = f"{100 * min(confidence[which], 0.999):.1f} %"
            _words(figure, x + 112, y + 120, sure, size=8, color=GREY, ha="right")

        axes = _axes(figure, 1180, HEADER + 10, 740, 740)
        off_diagonal = np.where(np.eye(10, dtype=bool), 0, confusion)
        reds = LinearSegmentedColormap.from_list("reds", ["#ffffff", "#f4b6a6", "#c8402f", "#7d1128"])
        axes.imshow(off_diagonal, cmap=reds, vmin=0, vmax=max(off_diagonal.max(), 1))
        for i, j in np.argwhere(confusion):
            if i == j:
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="#eceef1"))
            dark = i != j and off_diagonal[i, j] > 0.5 * off_diagonal.max()
            colour = "white" if dark else GREY if i == j else INK
            axes.text(j, i, confusion[i, j], ha="center", va="center", size=9, color=colour)
        axes.set(xticks=range(10), yticks=range(10), xlabel="read as", ylabel="true digit")
        axes.tick_params(length=0, labelsize=11, labelcolor=INK)
        axes.spines[:].set_visible(False)
    return Path(path)


def mask_grid(
    path: str | Path,
    pictures: np.ndarray,
    predicted: np.ndarray,
    true: np.ndarray,
    scale: str = "fixed",
    title: str = "The probability of each class at every pixel",
) -> Path:
    """For each picture, as in the source article: the input, the masks predicted, and under them the true ones.

    pictures uint8 (N, H, W); predicted and true (N, K, H, W), 0 to 1; true may have fewer or more channels.
    scale: "fixed" shows 0 black and 1 white; "panel" scales each panel to its own minimum and maximum, as the
      article's plots were. Each panel is grey and none is changed otherwise.
    """
    names = class_names(predicted.shape[1])
    height, width = 2 * pictures.shape[1], 2 * pictures.shape[2]
    left, step, band = MARGIN + width + 70, width + 6, 2 * height + 40
    page = (left + step * len(names) + MARGIN, HEADER + 30 + band * len(pictures) + MARGIN - 34)
    with _page(path, *page, title, _scale_note(scale)) as figure:
        for column, name in enumerate(names):
            _words(figure, left + column * step + width // 2, HEADER - 12, name, ha="center", weight="bold")
        for row, picture in enumerate(pictures):
            y = HEADER + 30 + row * band
            _panel(figure, MARGIN, y + height // 2, picture / 255, 2)
            for masks, y_masks, word in ((predicted, y, "predicted"), (true, y + height + 6, "true")):
                _words(
                    figure,
                    left - 34,
                    y_masks + height // 2,
                    word,
                    color=GREY,
                    size=10,
                    rotation=90,
                    va="center",
                )
                for column in range(min(len(names), masks.shape[1])):
                    _panel(figure, left + column * step, y_masks, masks[row, column], 2, scale)
    return Path(path)


def side_by_side(
    path: str | Path,
    pictures: np.ndarray,
    early: np.ndarray,
    skip: np.ndarray,
    scale: str = "fixed",
    titles: tuple[str, str] = ("early: no background class", "skip: with one, and with a wider view"),
) -> Path:
    """Two networks on the same pictures: the input, the ten digits' maps of the one and of the other.

    pictures uint8 (N, H, W); early and skip (N, 10 or 11, H, W), 0 to 1, of which the first ten are shown.
    scale: as in mask_grid.
    """
    height, width = 2 * pictures.shape[1], 2 * pictures.shape[2]
    block, band = 5 * (width + 6), 2 * height + 120
    lefts = (2 * MARGIN + width * 3 // 2, 3 * MARGIN + width * 3 // 2 + block)
    page = (lefts[1] + block + MARGIN, HEADER + 60 + len(pictures) * band)
    with _page(path, *page, "The ten masks at every pixel", _scale_note(scale)) as figure:
        for x, title in zip(lefts, titles, strict=True):
            _words(figure, x, HEADER - 5, title, weight="bold", size=13)
        for row, picture in enumerate(pictures):
            y = HEADER + 90 + row * band
            _panel(figure, MARGIN, y + height // 4 + 3, picture / 255, 3)
            for x, masks in zip(lefts, (early[row], skip[row]), strict=True):
                for digit in range(10):
                    x_panel, lower = x + digit % 5 * (width + 6), digit // 5
                    _panel(figure, x_panel, y + lower * (height + 6), masks[digit], 2, scale)
                    y_name = y + 2 * height + 12 if lower else y - 36
                    _words(figure, x_panel + width // 2, y_name, str(digit), ha="center", color=GREY)
    return Path(path)


def score_map(
    path: str | Path, picture: np.ndarray, scores: np.ndarray, field: int = 28, stride: int = 4
) -> Path:
    """The classifier slid over a picture: which digit it reads at each place, and its probability of each digit.

    picture uint8 (H, W); scores (10, h, w), softmax: each looks at field x field pixels, `stride` pixels apart.
    """
    rows, columns = picture.shape
    first, half = field / 2 - 0.5, stride / 2  # the middle pixel of the first window; half a cell
    right, bottom = first + stride * (scores.shape[2] - 1), first + stride * (scores.shape[1] - 1)
    extent = (first - half, right + half, bottom + half, first - half)
    winner, best = scores.argmax(axis=0), scores.max(axis=0)
    y_best, x_best = np.unravel_index(best.argmax(), best.shape)
    note = f"trained on {field}x{field} digits only; each cell is one {field}x{field} window, {stride} pixels apart"
    with _page(
        path, 1800, 1620, "The classifier slid over a picture, before any FCN training", note
    ) as figure:
        window = _map_axes(
            figure, MARGIN, HEADER + 40, 840, picture, "the picture, and the window read most surely"
        )
        corner = (x_best * stride - 0.5, y_best * stride - 0.5)
        window.add_patch(Rectangle(corner, field, field, fill=False, color="#ffb000", linewidth=2))
        digits = _map_axes(
            figure, 920, HEADER + 40, 840, picture // 3, "the digit read at each place, fainter if unsure"
        )
        colours = np.dstack([PALETTE[winner] / 255, 0.15 + 0.85 * best])
        digits.imshow(colours, extent=extent, interpolation="nearest")
        for (i, j), digit in np.ndenumerate(winner):
            place = (first + j * stride, first + i * stride)
            digits.text(*place, digit, ha="center", va="center", size=9, alpha=0.35 + 0.65 * best[i, j])
        for digit, score in enumerate(scores):
            x, y = MARGIN + digit % 5 * 346, 970 + digit // 5 * 300
            axes = _map_axes(figure, x, y, 336, picture * 0, str(digit))
            shown = axes.imshow(score, cmap="magma", vmin=0, vmax=1, extent=extent, interpolation="nearest")
            axes.contour(picture, [64], colors="white", linewidths=0.6, alpha=0.6)
        bar = figure.colorbar(shown, cax=_axes(figure, 620, 1560, 560, 16), orientation="horizontal")
        bar.outline.set_visible(False)
    return Path(path)


def label_overview(
    path: str | Path,
    pictures: np.ndarray,
    labels_true: np.ndarray,
    labels_predicted: np.ndarray,
    classes: int = 11,
    title: str = "The label of every pixel",
) -> Path:
    """Pictures side by side, under each its true labels and the predicted ones in colour, and what colours mean.

    pictures uint8 (N, H, W); labels_true and labels_predicted integers (N, H, W), below `classes`.
    """
    rows, columns = pictures.shape[1:]
    scale = max(1, 1640 // (len(pictures) * columns))
    width, height = scale * columns, scale * rows
    colours, names = class_colours(classes), class_names(classes)
    left = MARGIN + 50
    legend = HEADER - 30 + 3 * (height + 8) + 20
    with _page(path, max(left + len(pictures) * (width + 8) + MARGIN, 1200), legend + 80, title) as figure:
        for row, (word, maps) in enumerate(
            (("input", pictures), ("true", labels_true), ("predicted", labels_predicted))
        ):
            y = HEADER - 30 + row * (height + 8)
            _words(figure, left - 16, y + height // 2, word, color=GREY, rotation=90, ha="right", va="center")
            for column, one in enumerate(maps):
                _panel(figure, left + column * (width + 8), y, one / 255 if row == 0 else colours[one], scale)
        for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
            x = left + place * 100
            _panel(figure, x, legend, np.tile(colour, (15, 15, 1)), 2)
            _words(figure, x + 40, legend + 15, name, va="center")
    return Path(path)


@contextmanager
def _page(path: str | Path, width: int, height: int, title: str, note: str = "") -> Iterator[Figure]:
    """A white figure of width x height pixels with a heading, written to `path` whole or not at all."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width / DPI, height / DPI))
        _words(figure, MARGIN, 34, title, size=15, weight="bold")
        _words(figure, MARGIN, 86, note, color=GREY)
        yield figure
        make_folder(Path(path).parent, WAY_OUT)
        with new_file(Path(path), WAY_OUT) as file:
            figure.savefig(file, format="png")


def _panel(figure: Figure, x: int, y: int, image: np.ndarray, scale: int, range_: str = "fixed") -> None:
    """An image with its upper left corner at (x, y), each pixel scale x scale: grey 0 to 1, or RGB."""
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    low, high = (image.min(), image.max()) if range_ == "panel" else (0, 1)
    bottom = round(figure.bbox.height) - y - len(image)
    figure.figimage(image, x, bottom, cmap="gray", vmin=low, vmax=high, origin="upper")


def _words(figure: Figure, x: float, y: float, text: str, **kwargs: object) -> None:
    look = {"va": "top", **kwargs}
    figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, text, **look)


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    page = figure.bbox
    return figure.add_axes(
        (x / page.width, 1 - (y + height) / page.height, width / page.width, height / page.height)
    )


def _map_axes(figure: Figure, x: int, y: int, width: int, picture: np.ndarray, title: str) -> Axes:
    """Axes whose coordinates are the pixels of `picture`, which is shown in them."""
    axes = _axes(figure, x, y, width, width * picture.shape[0] / picture.shape[1])
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_axis_off()
    return axes


def _scale_note(scale: str) -> str:
    notes = {
        "fixed": "one scale for all: 0 is black, 1 is white",
        "panel": "each panel scaled to its own minimum (black) and maximum (white), as the article's plots were",
    }
    if scale not in notes:
        raise ValueError(f"scale is {scale!r}; expected {' or '.join(notes)}")
    return notes[scale]
