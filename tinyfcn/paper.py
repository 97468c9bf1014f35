"""Ink on paper: tell dark ink from light, and make an unevenly lit background 0.

The background is a morphological opening of the image, white on black: what is left once everything narrower than a
window is gone. It keeps the edge of a shadow, where a blurred background would leave a line of false ink.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

HALO = 32  # grey levels that compression and paper add to black, of an ink of 255
FAINT = 64  # of 255: less ink on a pixel of paper is noise or compression, or the outermost rim of a stroke
NEIGHBOURHOOD = 12  # pixels; about half the height of a digit
WINDOWS = (6, 1.45)  # the first window, wider than MNIST's thin strokes, and the ratio of each to the last
WIDEST = 19  # at least, of the last window: no stroke of MNIST holds such a square
PLATEAU, GRADUAL = 1.1, 1.6  # a window half as wide again finds so little more that the narrower one held the strokes
LEAST = 0.02  # of the ink found by the widest window; less is noise, and the corners of wide strokes
DARK = 0.5  # of the typical ink: what is lighter may be a shadow, and does not choose the window
AS_DARK = 0.7  # of the ink: anything as dark and only a little wider than a stroke is ink as well
SPREADS, BESIDE_INK = 3.5, 1.5  # standard deviations of the noise by which ink exceeds the background; beside other ink

# For each level of the background (rows) and of a pixel (columns): the difference, and the share of the pixel that
# ink covers if bare ink is 255.
_LEVELS = np.arange(256)
_ABOVE = _LEVELS - _LEVELS[:, None]
_COVER = np.maximum(_ABOVE, 0) / np.maximum(255 - _LEVELS[:, None], 1)


def is_dark_on_light(pixels: np.ndarray) -> bool:
    """Whether the ink of an image, uint8 (H, W), is darker than its background.

    A border that is bright or black tells. Else, ink is what stands out the most from its neighbourhood: the light
    changes the mean of the neighbourhood too, and a shadow's edge stands out as much on one side as on the other.
    """
    border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]))
    if not HALO < border < 128:
        return bool(border >= 128)
    mean = np.asarray(Image.fromarray(pixels).filter(ImageFilter.BoxBlur(NEIGHBOURHOOD)))
    return bool((_pairs(mean, pixels) * _ABOVE.astype(float) ** 3).sum() < 0)


def is_clean(pixels: np.ndarray) -> bool:
    """Whether the background of an image, uint8 (H, W), white on black, is exactly 0, as MNIST's is.

    Then every pixel above 0 is ink: each wide window holds a 0, and faint pixels stand beside brighter ones only.
    """
    if ((pixels == 0) | (pixels == 255)).all():
        return True
    if _opening(pixels, _widest(pixels)).any():
        return False
    side = max(5, min(pixels.shape) // 4)
    brightest = _slide(np.pad(pixels, (side // 2, side - 1 - side // 2), mode="edge"), side, np.maximum)
    far_from_ink = brightest <= pixels.max() * (HALO / 255)
    return bool((pixels[far_from_ink] > 0).sum() <= 2 + far_from_ink.sum() / 100)


def remove_background(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """An image, uint8 (H, W), light ink on a darker background, as white ink on black: 0 where there is no ink.

    Also returns the lowest and the highest level of the background. The typical ink becomes 255. Paper may be dim,
    coloured, noisy, and lit unevenly; a shadow inside the image that is hardly wider than a stroke counts as ink.
    """
    smooth = _median_of_three(pixels)
    noise = _noise(pixels, smooth)
    widths = _widths(pixels)
    amounts = [_amount_of_ink(pixels, smooth, width, noise) for width in widths]
    growths = [after / before if before > LEAST * amounts[-1] else np.inf for before, after in pairwise(amounts)]
    # Wide enough for the strokes is the window after which little is found: shadows come later, if at all.
    chosen = next((k for k, growth in enumerate(growths) if growth <= PLATEAU), int(np.argmin(growths)))
    if growths[chosen] > GRADUAL:
        chosen = len(widths) - 1
    background = _opening(smooth, widths[chosen])
    wider = _opening(smooth, widths[min(chosen + 1, len(widths) - 1)])
    counts = _pairs(background, pixels)
    strength = _strength(counts, _stands_out(counts, noise))
    junctions = _look_up(AS_DARK * strength < _COVER, wider, background)
    background[junctions] = wider[junctions]

    counts = _pairs(background, pixels)
    is_ink = _stands_out(counts, noise)
    # Noise on a blank sheet is not stretched to black ink.
    strength = max(_strength(counts, is_ink), 3 * SPREADS * noise / 255)
    levels = np.rint(np.minimum(255 / strength * _COVER, 255))
    levels[levels <= FAINT] = 0
    # Beside what is ink for certain, less is enough: hysteresis, as in Canny, "A computational approach to edge
    # detection" (1986). Elsewhere as little is noise.
    may_be_ink = _stands_out(counts, noise, BESIDE_INK)
    ink = _look_up((levels * may_be_ink).astype(np.uint8), background, pixels)
    is_certain = _look_up(is_ink, background, pixels) & (ink > 0)
    ink[~_slide(np.pad(is_certain, 1), 3, np.maximum)] = 0
    low, high = np.percentile(background, [1, 99])
    return ink, (int(low), int(high))


def _widest(pixels: np.ndarray) -> int:
    """The side of the widest window: no stroke of a digit that fills the image holds such a square."""
    return max(WIDEST, min(pixels.shape) * 2 // 5)


def _widths(pixels: np.ndarray) -> list[int]:
    """The sides of the windows, ascending."""
    width, ratio = WINDOWS
    widths = []
    while width < _widest(pixels):
        widths.append(width)
        width = int(width * ratio) | 1
    return [*widths, _widest(pixels)]


def _amount_of_ink(pixels: np.ndarray, smooth: np.ndarray, width: int, noise: float) -> float:
    """How much dark ink stands out from the background that a window of this side gives. Wide windows skip pixels."""
    step = max(1, width // 20)
    some = np.s_[::step, ::step]
    counts = _pairs(_opening(smooth[some], width // step), pixels[some])
    is_ink = _stands_out(counts, noise)
    is_dark = is_ink & (DARK * _strength(counts, is_ink) < _COVER)
    return float((counts * _COVER**2)[is_dark].sum()) * step**2


def _stands_out(counts: np.ndarray, noise: float, spreads: float = SPREADS) -> np.ndarray:
    """Which pairs of levels exceed the background by more than its noise, bool (256, 256), from _pairs' counts."""
    # Paper is the lower half of the differences, since ink is the rarer; the opening of noise lies below its mean.
    return (quantile(_ABOVE, counts, 0.3) + (spreads + 0.5) * noise) < _ABOVE


def _strength(counts: np.ndarray, is_ink: np.ndarray) -> float:
    """The typical share of a pixel that ink covers."""
    weights = np.where(is_ink, counts * _COVER**2, 0)  # squared: a few strokes outweigh much noise
    return quantile(_COVER, weights, 0.5) if weights.any() else 1.0


def quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The value below which this share of the weights lies."""
    used = weights > 0
    values, weights = values[used], weights[used]
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, share * below[-1])])


def _noise(pixels: np.ndarray, smooth: np.ndarray) -> float:
    """The noise's standard deviation, at least 0.5, of what a median takes away where pixels are not clipped to 0."""
    away = np.abs(pixels.astype(np.int16) - smooth)[pixels > 0]
    away = away[away <= 3 * np.median(away) + 2] if away.size else away
    return max(0.5, 1.75 * float(away.mean())) if away.size else 0.5


def _median_of_three(pixels: np.ndarray) -> np.ndarray:
    """The medians of each pixel and its neighbours in the column, then in the row: noise is less, edges stay."""
    for axis in (0, 1):
        rows = np.moveaxis(np.pad(pixels, [(1 - axis, 1 - axis), (axis, axis)], mode="edge"), axis, 0)
        a, b, c = rows[:-2], rows[1:-1], rows[2:]
        pixels = np.moveaxis(np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c)), 0, axis)
    return pixels


def _opening(pixels: np.ndarray, width: int) -> np.ndarray:
    """Morphological opening by a square window of this side; the edges continue outside."""
    padded = np.pad(pixels, width - 1, mode="edge")
    return _slide(_slide(padded, width, np.minimum), width, np.maximum)


def _slide(pixels: np.ndarray, width: int, extreme: Any) -> np.ndarray:
    """np.minimum or np.maximum over square windows that lie inside (H, W) -> (H - width + 1, W - width + 1)."""
    for axis in (0, 1):
        rows = np.moveaxis(pixels, axis, 0)
        covered = 1
        while covered < width:  # the extreme of 2, 4, 8, ... rows
            step = min(covered, width - covered)
            rows = extreme(rows[:-step], rows[step:])
            covered += step
        pixels = np.moveaxis(rows, 0, axis)
    return pixels


def _strips(pixels: np.ndarray) -> Iterator[slice]:
    """Rows of about a million pixels: NumPy makes 8 bytes of each byte that it uses as an index."""
    rows = 1 + 2**20 // pixels.shape[1]
    return (slice(start, start + rows) for start in range(0, len(pixels), rows))


def _pairs(background: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """How many pixels have each level (columns) on each level of the background (rows), (256, 256)."""
    counts = sum(
        np.bincount((background[rows].astype(np.intp) * 256 + pixels[rows]).ravel(), minlength=65536)
        for rows in _strips(pixels)
    )
    return np.reshape(counts, (256, 256))


def _look_up(table: np.ndarray, background: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The entries of a table (256, 256) at each pixel's background and level, (H, W)."""
    return np.concatenate([table[background[rows], pixels[rows]] for rows in _strips(pixels)])
