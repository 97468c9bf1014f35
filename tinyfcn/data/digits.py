"""The digits for training and testing: MNIST, or digits drawn by code where MNIST is not available."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyfcn.data import builtin_digits
from tinyfcn.data.layout import are_inverted, orientation, turn_upright
from tinyfcn.data.mnist import MnistUnavailable, find_mnist, load_mnist
from tinyfcn.environment import CACHE_WAY_OUT, cache_folder, cache_folders, is_offline, print_notice, writable_cache
from tinyfcn.fields import expect_choice
from tinyfcn.files import new_file

DATASETS = ("auto", "mnist", "builtin")
BUILTIN_COUNTS = {"train": 20_000, "test": 4_000}
BUILTIN_SEEDS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class Digits:
    """One split: `images` uint8 (N, 28, 28), `labels` uint8 (N,) 0..9, `source` "mnist" or "builtin"."""

    images: np.ndarray
    labels: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FoundData:
    """The data that training would use: `source` is "mnist", "download" (MNIST, once fetched) or "builtin"."""

    source: str
    folder: Path
    text: str


def load_digits(
    split: str,
    dataset: str = "auto",
    data_dir: Path | None = None,
    notice: Callable[[str], None] = print_notice,
) -> Digits:
    """Load the "train" or "test" digits of `dataset`: "mnist", "builtin", or "auto".

    "auto" is MNIST if it is found (see mnist.find_mnist) or can be downloaded, else the built-in digits
    after a loud notice. A caller that needs both splits passes the first one's `source` as `dataset` for
    the second, so that both are of one kind. Digits that are dark on white are inverted, and
    those that do not lie upright are turned, each with a notice.
    Raises DataError for bad files, for every value of `dataset`: bad files never lead silently to another
    data set.
    """
    if split not in BUILTIN_COUNTS:
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    expect_choice("dataset", dataset, DATASETS)
    if dataset != "builtin":
        try:
            return Digits(*_as_mnist(split, *load_mnist(split, data_dir, notice), notice), "mnist")
        except MnistUnavailable as error:
            if dataset == "mnist":
                raise
            notice(_loud_notice(error))
    return Digits(*_builtin(split, notice), "builtin")


def _as_mnist(
    split: str, images: np.ndarray, labels: np.ndarray, notice: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """The digits white on black and upright, with a notice if a person's own files hold them otherwise."""
    if are_inverted(images):
        images = 255 - images
        notice(f"the {split} digits are dark on white, where MNIST's are white on black: inverted")
    if (found := orientation(images, labels)) != "upright":
        images = turn_upright(images, found)
        notice(f"the {split} digits are {found}: turned upright")
    return images, labels


def find_data(data_dir: Path | None = None) -> FoundData:
    """Say what dataset="auto" would use, from which folder, without reading or downloading anything.

    Raises DataError, as load_digits does, if `data_dir` or TINYFCN_DATA names a folder without the files.
    """
    found = find_mnist(data_dir)
    if found.chosen_by or not found.missing:
        lacking = f", without {' and '.join(found.missing)}" if found.missing else ""
        return FoundData("mnist", found.folder, f"MNIST in {found.folder} ({found.chosen_by or 'cache'}){lacking}")
    if is_offline():
        text = f"built-in digits: no MNIST in {found.folder}, and TINYFCN_OFFLINE forbids downloading it"
        return FoundData("builtin", cache_folder(), text)
    text = f"no MNIST yet: training downloads it (12 MB) to {found.folder}, or else uses built-in digits"
    return FoundData("download", found.folder, text)


def _loud_notice(error: MnistUnavailable) -> str:
    bar = "!" * 80
    return (
        f"{bar}\n"
        "MNIST WAS NOT FOUND: the built-in digits, drawn by code, are used instead.\n"
        "Accuracy and IoU on them cannot be compared with figures on MNIST.\n"
        f"Why: {error}.\n"
        "To use MNIST: run again with a network, or put its four files (train-images-idx3-ubyte.gz, ...)\n"
        "into a folder and pass --data-dir FOLDER or set TINYFCN_DATA=FOLDER.\n"
        f"{bar}"
    )


def _builtin(split: str, notice: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """The built-in digits of a split, drawn at first use and kept in the cache."""
    # The name holds a hash of the code that draws, so that changed code never meets digits it did not draw.
    code = hashlib.sha256(Path(builtin_digits.__file__).read_bytes()).hexdigest()[:12]
    count, seed = BUILTIN_COUNTS[split], BUILTIN_SEEDS[split]
    name = f"builtin-{split}-{count}-{seed}-{code}.npz"
    for folder in cache_folders():
        if kept := _read_drawn(folder / name, count):
            return kept
    folder = writable_cache(cache_folder())
    notice(f"Drawing {count:,} built-in {split} digits (once: they are kept in {folder})")
    images, labels = builtin_digits.draw_digits(count, seed)
    with new_file(folder / name, CACHE_WAY_OUT) as file:
        np.savez_compressed(file, images=images, labels=labels)
    return images, labels


def _read_drawn(path: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The digits in the cache, or None if they are missing or damaged: they can be drawn again."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if sum(member.file_size for member in kept.zip.infolist()) > 1000 * count:  # 785 are right
                return None
            images, labels = kept["images"], kept["labels"]
        shapes_fit = images.shape == (count, 28, 28) and labels.shape == (count,)
        fits = shapes_fit and images.dtype == labels.dtype == np.uint8 and labels.max() <= 9
    except Exception:  # NumPy and zipfile raise a dozen kinds for a damaged file; for each the cure is the same
        return None
    return (images, labels) if fits else None
