"""Prediction on image files: read a file as white ink on black, predict it in tiles, save the masks."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tinyfcn.errors import DataError, in_brief
from tinyfcn.files import make_folder, new_file
from tinyfcn.paper import is_clean, is_dark_on_light, remove_background

LARGEST = 50_000_000  # pixels; the masks of such an image are 550 MB
SMALLEST = 20  # pixels; the longer side of every MNIST digit's ink
MNIST_STROKES, MAX_STROKES = 2.6, 7.0  # pixels: stroke_width of the median digit; the widest has 5.8
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")
TRAINED_AT = (64, 84)  # height and width of an M2NIST image
MAX_FILE = 1 << 29  # bytes; LARGEST pixels of three 16-bit channels take 300 MB
# EXIF orientation -> what turns the image upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WAY_OUT = "free the disk, or name another folder"
FAINT_HALO = 4  # grey levels of the widest rim of compression's halo around white ink

# One colour for each digit, the last for background. Chosen by search: in normal sight and in simulated
# protanopia, deuteranopia and tritanopia no two are nearer than 0.10 in OKLab (tests/cli/test_images.py), and
# digits that networks confuse (4-9, 3-5, 1-7, ...) are the farthest apart.
PALETTE = np.frombuffer(
    bytes.fromhex("71a221 42bdb9 317f68 bf8eff ff7f7f b44811 c7c7ff ebbd17 66f2a5 8d51b9 14161c"), np.uint8
).reshape(11, 3)


def class_names(classes: int) -> list[str]:
    """The names of a network's classes: of 11, of 10 without background, or of 2 (ink, background)."""
    if classes not in (2, 10, 11):
        raise ValueError(f"a network has 2, 10 or 11 classes, not {classes}")
    return ["ink", "background"] if classes == 2 else [*map(str, range(10)), "background"][:classes]


def class_colours(classes: int) -> np.ndarray:
    """The colour of each class, uint8 (classes, 3): rows of PALETTE; ink is the yellow of 7."""
    return PALETTE[[7, 10]] if len(class_names(classes)) == 2 else PALETTE[:classes]


def read_image(path: str | Path, invert: bool | None = None, notice: Callable[[str], object] = print) -> np.ndarray:
    """The image file at `path` as uint8 (H, W), white ink on black. One `notice` names all conversions.

    invert: whether to invert. None looks whether the ink is dark. What lies behind the ink becomes 0, as in MNIST.
    Raises DataError if the file is not an image, is damaged, or is larger than LARGEST.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; name the image files in it")
        if not path.exists():
            raise DataError(f"{path} does not exist; expected an image file")
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
        if not content:
            raise DataError(f"{path} is empty (0 bytes); expected an image")
        if len(content) > MAX_FILE:
            raise DataError(f"{path} is longer than {MAX_FILE >> 20} MB; expected an image")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # junk in what is not pixels is nothing that the user can mend
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Not the file itself: it may be a pipe, and Pillow maps some files, also wrongly (a TIFF to be turned).
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > LARGEST:
                    raise Image.DecompressionBombError
                pixels, changes = _grey(image)
                lossy = image.format in LOSSY
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        limit = f"{LARGEST // 10**6} million pixels"
        raise DataError(f"{path} is too large (the limit is {limit}); cut it or scale it down") from None
    except UnidentifiedImageError:
        message = f"{path} is not an image, or cut short; expected PNG, JPEG, or another format that Pillow reads"
        raise DataError(message) from None
    except PermissionError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror})") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{path} is damaged, or not an image that Pillow can decode ({in_brief(error)})") from None

    is_dark = is_dark_on_light(pixels)
    inverts = is_dark if invert is None else invert
    if inverts:
        pixels = 255 - pixels
        changes.append("inverted" if invert else "dark on white, so inverted (--no-invert leaves it)")
    if inverts == is_dark and (lossy or not is_clean(pixels)):  # else --no-invert or --invert says it is no paper
        pixels, (low, high) = remove_background(pixels)
        is_halo = high <= (FAINT_HALO if lossy else 0)
        changes.append("halo of compression made 0" if is_halo else f"background, {low} to {high}, made 0")
    if changes:
        notice(f"{path}: {'; '.join(changes)}")
    return pixels


def stroke_width(pixels: np.ndarray) -> float:
    """How wide the strokes of an image, uint8 (H, W), white on black, are in pixels: twice their area by their edge."""
    ink = np.pad(pixels > 127, 1)
    middle = ink[1:-1, 1:-1]
    inner = middle & ink[:-2, 1:-1] & ink[2:, 1:-1] & ink[1:-1, :-2] & ink[1:-1, 2:]
    return float(2 * middle.sum() / max(1, (middle & ~inner).sum()))


def _grey(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """The first frame, upright, opaque and grey, as uint8 (H, W); and a phrase for each thing done to it."""
    changes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        changes.append(f"the first of {frames} frames taken")
    turned = image.format == "TIFF" and _turn_upright(image) is not None  # which Pillow does when it loads one
    image.load()
    turn = _turn_upright(image)
    if turned or turn is not None:
        changes.append("turned upright by its EXIF orientation")
    if turn is not None:
        image = image.transpose(turn)
    if image.mode[0] in "IF":  # 16- and 32-bit integers, floats
        values = np.asarray(image).astype(np.float64)
        low, high = _black_and_white(values)
        changes.append(f"values {low:g} to {high:g} scaled to 0 to 255")
        return np.rint((values - low) * (255 / (high - low))).astype(np.uint8), changes
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        return _on_backdrop(image.convert("RGBA"), changes)
    if image.mode not in ("1", "L"):
        changes.append(f"{'palette' if image.mode == 'P' else image.mode} colours turned to grey")
        image = image.convert("RGB")
    return np.array(image.convert("L")), changes


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright by its EXIF orientation, 2 to 8; None for any other, or where the EXIF is junk."""
    with contextlib.suppress(Exception):  # Pillow raises half a dozen kinds
        return UPRIGHT.get(image.getexif().get(0x0112, 1))
    return None


def _black_and_white(values: np.ndarray) -> tuple[float, float]:
    """The values that become 0 and 255 in an image of other than 8 bits.

    A file does not tell how much of its range it uses (floats to 1, a 12-bit camera). White is the smallest of the
    usual maxima that the brightest pixel does not exceed.
    """
    if not np.isfinite(values).all():
        raise ValueError("it has NaN or infinite pixels")
    low, high = float(values.min()), float(values.max())
    usual = [white for white in (1, 255, 1023, 4095, 65535) if high <= white]
    return (0, usual[0]) if low >= 0 and usual else (low, max(high, low + 1))


def _on_backdrop(image: Image.Image, changes: list[str]) -> tuple[np.ndarray, list[str]]:
    """An RGBA image as uint8 (H, W) on white or black, whichever makes its ink visible."""
    opaque = np.asarray(image.getchannel("A"), np.float32) / 255
    grey = np.asarray(image.convert("RGB").convert("L"), np.float32)
    if len({image.getchannel(channel).tobytes() for channel in "RGB"}) > 1:
        changes.append("colours turned to grey")
    # If most pixels are opaque, they are paper: the backdrop is as bright. Else they are ink: it is the opposite.
    bright = (grey * opaque).sum() >= 128 * opaque.sum()
    backdrop = 255 if bright == (opaque.mean() > 0.5) else 0
    if opaque.min() < 1:
        changes.append(f"transparent parts made {'white' if backdrop else 'black'}")
    return np.rint(grey * opaque + backdrop * (1 - opaque)).astype(np.uint8), changes


def with_border(
    image: np.ndarray, multiple: int = 4, minimum: tuple[int, int] = TRAINED_AT, name: str = "the image"
) -> tuple[np.ndarray, int, int]:
    """The image, uint8 (H, W), with as much black on all sides as a network needs; and the rows above, columns left.

    Its sides become multiples of `multiple`, and no less than `minimum`. Raises DataError for an image too small for a
    digit.
    """
    height, width = image.shape
    if not image.size or max(height, width) < SMALLEST:
        message = (
            f"{name} is {height}x{width} pixels, too small to hold a digit: the network knows digits about "
            f"{SMALLEST} pixels high, as in MNIST; enlarge the image"
        )
        raise DataError(message)
    rows = -(-max(height, minimum[0]) // multiple) * multiple
    columns = -(-max(width, minimum[1]) // multiple) * multiple
    top, left = (rows - height) // 2, (columns - width) // 2
    padded = np.zeros((rows, columns), np.uint8)
    padded[top : top + height, left : left + width] = image
    return padded, top, left


def predict_image(
    predict_tile: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    receptive_field: int,
    multiple: int = 4,
    tile: int = 512,
    minimum: tuple[int, int] = TRAINED_AT,
    name: str = "the image",
) -> tuple[np.ndarray, np.ndarray]:
    """The label of each pixel, uint8 (H, W), and the probability of each class times 255, uint8 (K, H, W).

    predict_tile: float32 (1, 1, h, w), (pixel - 127) / 127 -> probabilities (1, K, h, w). h and w are
      multiples of `multiple`, no less than `minimum` and otherwise no more than `tile`.
    image: uint8 (H, W), white on black; padded with black on all sides to `minimum` and `multiple`.
    receptive_field: the side of the square of pixels that one output pixel sees. Tiles overlap by twice as much and
      begin at multiples of `multiple`, as pooling windows do, so the result equals that of the whole image.

    The masks have 8 bits, because those of a 2000x3000 image take 66 MB, and floats 264 MB. An image smaller than
    `receptive_field` is padded: a 28x28 digit must work. Raises DataError for an image too small for a digit.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 2 or image.dtype != np.uint8:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise ValueError(f"image must be a uint8 array (H, W), white on black; found {found}")
    height, width = image.shape
    padded, top, left = with_border(image, multiple, minimum, name)
    rows, columns = padded.shape

    margin = -(-receptive_field // multiple) * multiple
    labels = np.empty(padded.shape, np.uint8)
    masks: np.ndarray | None = None
    tile_rows, tile_columns = (max(tile, least) // multiple * multiple for least in minimum)
    for y, y_first, y_last in _tiles(rows, tile_rows, margin):
        for x, x_first, x_last in _tiles(columns, tile_columns, margin):
            pixels = padded[None, None, y : y + tile_rows, x : x + tile_columns]
            probabilities = np.asarray(predict_tile((pixels.astype(np.float32) - 127) / 127))
            if probabilities.ndim != 4 or probabilities.shape[2:] != pixels.shape[2:]:
                raise ValueError(f"predict_tile returned {probabilities.shape} for a tile {pixels.shape}")
            kept = probabilities[0, :, y_first - y : y_last - y, x_first - x : x_last - x]
            if masks is None:
                masks = np.empty((len(kept), *padded.shape), np.uint8)
            labels[y_first:y_last, x_first:x_last] = kept.argmax(axis=0)
            masks[:, y_first:y_last, x_first:x_last] = np.rint(kept * 255)
    assert masks is not None, "at least one tile was predicted"
    inside = np.s_[top : top + height, left : left + width]
    return labels[inside], masks[:, *inside]


def _tiles(size: int, tile: int, margin: int) -> Iterator[tuple[int, int, int]]:
    """Tiles of one length over 0..size: (origin, first, last). The result from first up to last is this tile's.

    That part lies `margin` inside the tile, except at the image's own edges.
    """
    if tile < size and tile <= 2 * margin:
        raise ValueError(f"tiles of {tile} pixels have nothing between margins of {margin}")
    first = last = 0
    while last < size:
        origin = max(0, min(first - margin, size - tile))
        last = size if origin + tile >= size else origin + tile - margin
        yield origin, first, last
        first = last


def save_prediction(folder: str | Path, stem: str, image: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> Path:
    """Make the folder FOLDER/STEM, or STEM-2, STEM-3, ... where that is taken, and return its path. In it:

    mask.png     every pixel in the colour of its class; a palette image: its pixel values are the labels
    overlay.png  the image in grey, under translucent colour wherever it is not background
    digit-0.png to digit-9.png, or ink.png for 2 classes: probabilities as grey, 0 black, 1 white

    image and labels uint8 (H, W), masks uint8 (K, H, W), as predict_image has them. Raises DataError if
    the folder cannot be written to.
    """
    names, colours = class_names(len(masks)), class_colours(len(masks))
    mask = Image.fromarray(np.ascontiguousarray(labels))
    mask.putpalette(colours.tobytes())
    grey = np.repeat(image[..., None], 3, axis=2)
    blended = (3 * colours[labels].astype(int) + 2 * grey.astype(int)) // 5
    background = labels[..., None] == 10 if len(names) > 2 else labels[..., None] == 1
    files = {"mask": mask, "overlay": Image.fromarray(np.where(background, grey, blended).astype(np.uint8))}
    for name, channel in zip(names, masks, strict=True):
        if name != "background":
            file_name = name if name == "ink" else f"digit-{name}"
            files[file_name] = Image.fromarray(np.ascontiguousarray(channel))

    folder = _new_folder(Path(folder), stem)
    for name, content in files.items():
        with new_file(folder / f"{name}.png", WAY_OUT) as file:
            content.save(file, "PNG")
    return folder


def _new_folder(parent: Path, stem: str) -> Path:
    make_folder(parent, WAY_OUT)
    count, folder = 1, parent / stem
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            count += 1
            folder = parent / f"{stem}-{count}"
