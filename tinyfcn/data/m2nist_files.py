"""M2NIST in its published form: `combined.npy` (the images) and `segmented.npy` (the true label of each pixel).

Images are (N, 64, 84), 0..255. The truth is either one-hot (N, 64, 84, 11), background last, or labels
(N, 64, 84), 0..9 and 10 for background. Any integer type is read; uint8 is written.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinyfcn.data.layout import are_inverted, cut_out, orientation, turn_upright
from tinyfcn.environment import print_notice
from tinyfcn.errors import DataError, in_brief
from tinyfcn.files import make_folder, new_file

IMAGES, TRUTH = "combined.npy", "segmented.npy"
HEIGHT, WIDTH, CLASSES = 64, 84, 11
SPLIT_SEED = 84
CHUNK = 64  # images that are checked together: 30 MB of the published int64 one-hot truth


@dataclass(frozen=True)
class M2nist:
    """Checked images uint8 (N, 64, 84) and labels uint8 (N, 64, 84): 0..9, background 10."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images, uint8 (B, 64, 84), and labels, int32 (B, 64, 84), at `indices` (B,)."""
        return self.images[indices], self.labels[indices].astype(np.int32)


def split_indices(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the test images: 4,000 and 1,000 of 5,000, else 80 and 20 %.

    A function of `count` alone. Each part is in ascending order. Raises DataError below two images.
    """
    if count < 2:
        raise DataError(f"{count} image(s) cannot be split into training and test images: give at least 2")
    # RandomState, since its stream is frozen for good; default_rng's may change with NumPy.
    order = np.random.RandomState(SPLIT_SEED).permutation(count)
    train_count = count * 4 // 5
    return np.sort(order[:train_count]), np.sort(order[train_count:])


def write_m2nist(
    folder: Path, chunks: Iterable[tuple[np.ndarray, np.ndarray]], count: int, one_hot: bool = True
) -> None:
    """Write `count` images to combined.npy and their truth to segmented.npy in `folder`, both as uint8.

    chunks: pairs of images uint8 (B, 64, 84) and integer labels (B, 64, 84), 0..10, of any B that add up
    to `count`. Each is written as it comes, so memory stays small. Both files appear once both are complete.
    Raises DataError if one is there already, or the folder or disk does not take them.
    """
    folder = Path(folder)
    way_out = "free some space, or choose another folder"
    make_folder(folder, "choose a folder that you can write to")
    for name in (IMAGES, TRUTH):
        if (folder / name).exists():
            raise DataError(f"{folder / name} is there already and is not overwritten: choose another folder")
    truth_shape = (HEIGHT, WIDTH, CLASSES) if one_hot else (HEIGHT, WIDTH)
    channels = np.eye(CLASSES, dtype=np.uint8)
    written = 0
    # Plain writes, not a memory map: a full disk is then an error, where with a map it kills the process.
    with (
        new_file(folder / IMAGES, way_out) as images_file,
        new_file(folder / TRUTH, way_out) as truth_file,
    ):
        _write_header(images_file, (count, HEIGHT, WIDTH))
        _write_header(truth_file, (count, *truth_shape))
        for images, labels in chunks:
            if images.shape != (len(images), HEIGHT, WIDTH) or images.dtype != np.uint8:
                raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 (B, 64, 84)")
            if labels.shape != images.shape or labels.dtype.kind not in "iu":
                raise ValueError(f"labels are {labels.dtype} {labels.shape}, expected integers {images.shape}")
            if labels.size and not 0 <= labels.min() <= labels.max() < CLASSES:
                raise ValueError(f"labels are {labels.min()}..{labels.max()}, expected 0..{CLASSES - 1}")
            images_file.write(images.tobytes())
            truth_file.write((channels[labels] if one_hot else labels.astype(np.uint8)).tobytes())
            written += len(images)
        for file in (images_file, truth_file):
            file.flush()  # while both can still be taken back
        if written != count:
            raise ValueError(f"the chunks hold {written} images, expected {count}")


def read_m2nist(folder: Path, notice: Callable[[str], None] = print_notice) -> M2nist:
    """Read and check both files of `folder`, in either form and any integer type.

    Images that are dark on white are inverted, and labels with the background first are renumbered, both with a notice.

    A few images are read at a time, and every value is checked and kept as uint8: a fault is found before training
    starts, the published 2.5 GB shrink to 54 MB, and no step decodes one-hot rows.
    Raises DataError that names the file, the image and the value.
    """
    images_path, truth_path = Path(folder) / IMAGES, Path(folder) / TRUTH
    images_file, truth_file = _Npy(images_path), _Npy(truth_path)
    images_shape, truth_shape = images_file.shape, truth_file.shape
    if images_shape[1:] != (HEIGHT, WIDTH) or images_shape[0] == 0:
        raise DataError(f"{images_path} has shape {images_shape}, expected (N, 64, 84): is it M2NIST's?")
    if truth_shape[1:] not in ((HEIGHT, WIDTH), (HEIGHT, WIDTH, CLASSES)):
        raise DataError(
            f"{truth_path} has shape {truth_shape}, expected (N, 64, 84) or (N, 64, 84, 11): is it M2NIST's?"
        )
    count = images_shape[0]
    if truth_shape[0] != count:
        raise DataError(
            f"{images_path} holds {count} images but {truth_path} the truth for {truth_shape[0]}: "
            "expected two files written together"
        )
    images = np.empty((count, HEIGHT, WIDTH), np.uint8)
    labels = np.empty((count, HEIGHT, WIDTH), np.uint8)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        images[part] = _checked(images_file.read(part), 255, start, images_path)
        truth = truth_file.read(part)
        if truth.ndim == 4:
            labels[part] = _labels_of_one_hot(truth, start, truth_path)
        else:
            labels[part] = _checked(truth, CLASSES - 1, start, truth_path)
    if are_inverted(images):
        np.subtract(255, images, out=images)
        notice(f"{images_path} holds dark digits on white, where M2NIST's are white on black: inverted")
    _put_background_last(images, labels, truth_path, notice)
    if (found := orientation(*cut_out(images, labels))) != "upright":
        turned = turn_upright(images, found)
        if turned.shape == images.shape:
            notice(f"the digits in {images_path} are {found}: images and truth are turned upright")
            return M2nist(turned, turn_upright(labels, found))
        notice(f"the digits in {images_path} are {found}, and are learned so: compose the images of upright digits")
    return M2nist(images, labels)


def _put_background_last(images: np.ndarray, labels: np.ndarray, path: Path, notice: Callable[[str], None]) -> None:
    """Renumbers labels, in place, whose background comes first; DataError if black pixels have a digit's label."""
    black = np.bincount(labels[images == 0], minlength=CLASSES)
    commonest, background = int(black.argmax()), CLASSES - 1
    if commonest == background or black[commonest] < 0.9 * black.sum() or black.sum() < 0.1 * images.size:
        return  # too few black pixels, or too mixed a truth, to tell
    if commonest != 0 or labels.max() != background:
        raise DataError(
            f"{path}: most black pixels have the label {commonest}, expected {background}, the background: "
            "write the file again with the digits 0..9 first and the background last"
        )
    labels += background
    labels %= CLASSES
    notice(f"{path} has the background first, where M2NIST's is last: its labels are renumbered")


def _labels_of_one_hot(one_hot: np.ndarray, start: int, path: Path) -> np.ndarray:
    """Labels (B, 64, 84) from one-hot channels (B, 64, 84, 11). At each pixel exactly one must be 1."""
    channels = _checked(one_hot, 1, start, path).astype(np.float32)  # float: a matrix product is quickest so
    ones, labels = np.moveaxis(channels @ np.stack([np.ones(CLASSES), np.arange(CLASSES)], 1, dtype=np.float32), -1, 0)
    if (ones != 1).any():
        image, row, column = np.argwhere(ones != 1)[0]
        raise DataError(
            f"{path}: image {start + image} has {int(ones[image, row, column])} ones in the channels "
            f"of row {row}, column {column}, expected exactly one: write the file again"
        )
    return labels


def _checked(values: np.ndarray, highest: int, start: int, path: Path) -> np.ndarray:
    if values.min() < 0 or values.max() > highest:
        where = tuple(np.argwhere((values < 0) | (values > highest))[0])
        raise DataError(
            f"{path}: image {start + where[0]} holds {values[where]} at row {where[1]}, column {where[2]}, "
            f"expected 0..{highest}: write the file again"
        )
    return values


class _Npy:
    """The array in an .npy file, whose images are read a few at a time; DataError unless it holds integers.

    The file is read, not mapped: where another program cuts a mapped file short, its next access kills the process.
    """

    def __init__(self, path: Path) -> None:
        header = _header(path)
        self.path, self.shape, self.dtype, self._offset = path, header.shape, header.dtype, header.offset
        # Column by column, each image is spread over the whole file.
        is_by_column = header.ndim > 1 and header.flags.f_contiguous and not header.flags.c_contiguous
        self._whole = self._values(0, header.size).reshape(self.shape, order="F") if is_by_column else None

    def read(self, images: slice) -> np.ndarray:
        """Some images, a copy."""
        if self._whole is not None:
            return self._whole[images]
        each = math.prod(self.shape[1:])
        count = len(range(*images.indices(self.shape[0])))
        return self._values(images.start * each, count * each).reshape(count, *self.shape[1:])

    def _values(self, first: int, count: int) -> np.ndarray:
        try:
            values = np.fromfile(self.path, self.dtype, count, offset=self._offset + first * self.dtype.itemsize)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}): it was there a moment ago") from error
        if len(values) < count:
            raise DataError(f"{self.path} became shorter while it was read: try again when it is written")
        return values


def _header(path: Path) -> np.memmap:
    """An array that is mapped but not read; DataError unless it is a whole file of integers."""
    way_out = f"give a folder that holds {IMAGES} and {TRUTH}"
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'a device or pipe'}, expected a file: {way_out}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that overflow, of headers as Python 2 wrote them
            array = np.lib.format.open_memmap(path, mode="r")
        left = path.stat().st_size - array.offset - array.nbytes
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: {way_out}, as make-m2nist writes them") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it readable, or {way_out}") from error
    except Exception as error:  # for a damaged header NumPy raises half a dozen kinds, tokenize's among them
        raise DataError(f"{path} is not a whole .npy file of integers ({in_brief(error)}): write it again") from error
    if left:
        raise DataError(f"{path} has {left} bytes left over after the {array.shape} of its header: write it again")
    if array.dtype.kind not in "iu":
        raise DataError(f"{path} holds {in_brief(array.dtype)}, expected integers: write it again as uint8")
    return array


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
