"""MNIST's four IDX files: found on this machine, or downloaded once, and checked when they are read.

Format and data: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
"""

import contextlib
import functools
import gzip
import hashlib
import http.client
import os
import struct
import sys
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyfcn.errors import DataError
from tinyfcn.files import CACHE_WAY_OUT, cache_folder, make_folder, new_file

# The original site no longer answers.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# Of the decompressed bytes, since mirrors compress the files differently.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
TIMEOUT_SECONDS = 15.0  # for each connection and each read, not for a whole file
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
# Subfolders that may hold the files: the folder itself, the cache's, torchvision's.
LAYOUTS = (".", "mnist", "raw", "MNIST/raw")


class MnistUnavailable(DataError):
    """MNIST is neither on this machine nor on a mirror that answers. Bad files raise another error."""


@dataclass(frozen=True)
class MnistFolder:
    """A folder that holds MNIST's files, or will hold them. `chosen_by` is empty for the cache folder."""

    folder: Path
    chosen_by: str
    files: dict[str, Path]

    @property
    def missing(self) -> list[str]:
        """The names of the files that the folder does not hold."""
        return [name for name in SHA256 if name not in self.files]


def find_mnist(data_dir: Path | None = None) -> MnistFolder:
    """Look in `data_dir`, else in TINYFCN_DATA, else in the cache folder; nothing is read or downloaded.

    Raises DataError if a folder that was asked for holds none of the files; the cache may well be empty.
    """
    from_environment = os.environ.get("TINYFCN_DATA")
    if data_dir is not None:
        root, chosen_by = Path(data_dir).expanduser(), "--data-dir"
    elif from_environment:
        root, chosen_by = Path(from_environment).expanduser(), "TINYFCN_DATA"
    else:
        root, chosen_by = cache_folder(), ""
    folders = list(dict.fromkeys(root / layout for layout in LAYOUTS))
    for folder in folders:
        if files := _files_in(folder):
            return MnistFolder(folder, chosen_by, files)
    if not chosen_by:
        return MnistFolder(root / "mnist", "", {})
    wrong = "holds none of the MNIST files" if root.is_dir() else "is not a folder"
    raise DataError(
        f"{root} (from {chosen_by}) {wrong}: "
        f"searched for {', '.join(SHA256)}, each also with .gz, in {', '.join(map(str, folders))}; "
        f"give the folder that holds them, or leave out {chosen_by} to have them downloaded"
    )


def load_mnist(split: str, data_dir: Path | None, notice: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """Load the "train" or "test" split: images uint8 (N, 28, 28) and labels uint8 (N,), 0..9.

    The user's own files (`data_dir`, TINYFCN_DATA) may hold other digits in the same format; those in the
    cache must be the official ones, and are downloaded if missing. Raises MnistUnavailable where that fails,
    DataError where a file is bad.
    """
    found = find_mnist(data_dir)
    if found.chosen_by:
        remedy = "replace the file by an intact copy"
        if missing := [name for name in FILES[split] if name not in found.files]:
            raise DataError(
                f"{found.folder} (from {found.chosen_by}) lacks {' and '.join(missing)} (also with .gz): "
                f"add what is missing, or leave out {found.chosen_by} to have MNIST downloaded"
            )
    else:
        remedy = "delete the file and run again to download it anew"
        # All four at once: training digits of MNIST must not be joined by test digits of another source.
        for name in found.missing:
            found.files[name] = _download(name, found.folder, notice)
    images_path, labels_path = (found.files[name] for name in FILES[split])
    images_bytes, labels_bytes = _read(images_path, remedy), _read(labels_path, remedy)
    images = parse_images(images_bytes, str(images_path), remedy)
    labels = parse_labels(labels_bytes, str(labels_path), remedy)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images)} images but {labels_path} holds {len(labels)} labels: "
            f"expected as many of one as of the other; {remedy}"
        )
    if not found.chosen_by:
        _check_sum(FILES[split][0], images_bytes, str(images_path), remedy)
        _check_sum(FILES[split][1], labels_bytes, str(labels_path), remedy)
    return images, labels


def parse_images(content: bytes, source: str, remedy: str) -> np.ndarray:
    """Images uint8 (N, 28, 28) from the bytes of an IDX file; errors name `source` and end with `remedy`."""
    sizes, payload = _parse_idx(content, IMAGES_MAGIC, source, remedy)
    if sizes[1:] != (28, 28):
        raise DataError(f"{source} holds images of {sizes[1]}x{sizes[2]} pixels, expected 28x28: {remedy}")
    return payload.reshape(sizes)


def parse_labels(content: bytes, source: str, remedy: str) -> np.ndarray:
    """Labels uint8 (N,), 0..9, from the bytes of an IDX file; errors name `source` and end with `remedy`."""
    _, labels = _parse_idx(content, LABELS_MAGIC, source, remedy)
    if labels.max() > 9:
        first = int(np.argmax(labels > 9))
        raise DataError(f"{source}: label {first} is {labels[first]}, expected 0..9; {remedy}")
    return labels


def _parse_idx(content: bytes, magic: int, source: str, remedy: str) -> tuple[tuple[int, ...], np.ndarray]:
    kinds = {IMAGES_MAGIC: "an images file", LABELS_MAGIC: "a labels file"}
    found = int.from_bytes(content[:4], "big")
    if len(content) < 4 or found not in kinds:
        raise DataError(
            f"{source} begins with {content[:4]!r}, expected {kinds[magic]} in IDX format (magic {magic}): {remedy}"
        )
    if found != magic:
        raise DataError(
            f"{source} is {kinds[found]} (magic {found}) where {kinds[magic]} (magic {magic}) was expected: "
            "are the two files swapped?"
        )
    dimensions = magic % 256
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{source} is truncated: its header needs {header} bytes, found {len(content)}; {remedy}")
    sizes = struct.unpack_from(f">{dimensions}I", content, 4)
    expected = header + int(np.prod(sizes, dtype=object))  # sizes from a bad header may exceed 64 bits
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has bytes left over"
        raise DataError(
            f"{source} {fault}: its header announces {' x '.join(map(str, sizes))}, "
            f"{expected} bytes with the header, found {len(content)}; {remedy}"
        )
    if sizes[0] == 0:
        raise DataError(f"{source} announces 0 items, expected at least one: {remedy}")
    return sizes, np.frombuffer(content, np.uint8, offset=header)


def _files_in(folder: Path) -> dict[str, Path]:
    """The files among the four that `folder` holds. A plain file comes before a gzipped one."""
    found = {}
    try:
        for name in SHA256:
            # Some archives unpack with a dot for the second hyphen.
            names = (name, f"{name}.gz", name.replace("-idx", ".idx"))
            existing = [path for path in (folder / each for each in names) if path.exists()]
            if existing:
                found[name] = min(existing, key=Path.is_dir)  # a folder only where no file has such a name
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): check its permissions") from error
    return found


def _read(path: Path, remedy: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        wrong = f"cannot be read ({error.strerror}): make it readable, or"
        if path.is_dir():
            wrong = "is a folder, expected a file:"
        raise DataError(f"{path} {wrong} {remedy}") from error
    return _decompress(content, str(path), remedy)


def _decompress(content: bytes, source: str, remedy: str) -> bytes:
    """Unpack if the content is gzipped. The name does not tell: browsers unpack downloads and keep their names."""
    if not content:
        raise DataError(f"{source} is empty, expected a file in IDX format: {remedy}")
    if content[:2] != b"\x1f\x8b":
        if content.lstrip()[:1] == b"<":
            beginning = content.lstrip()[:14].decode("ascii", "replace")
            raise DataError(
                f"{source} begins with {beginning!r}: it is a web page, not the file in IDX format that was "
                f"expected; {remedy}"
            )
        return content
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise DataError(
            f"{source} is a truncated gzip file: expected the compressed data to end within it, but they go "
            f"on after its {len(content)} bytes; {remedy}"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{source} is a damaged gzip file ({error}): {remedy}") from error


def _check_sum(name: str, content: bytes, source: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise DataError(
            f"{source} is not MNIST's {name}: the SHA-256 of its content begins with {found[:12]}, "
            f"expected {SHA256[name][:12]}; {remedy}"
        )


def is_offline() -> bool:
    """Whether TINYFCN_OFFLINE forbids the network."""
    return os.environ.get("TINYFCN_OFFLINE", "0") not in ("", "0")


def _download(name: str, folder: Path, notice: Callable[[str], None]) -> Path:
    """Fetch one file into `folder` from the first mirror that gives its official content."""
    if is_offline():
        raise MnistUnavailable(
            f"MNIST's {name} is not in {folder} and TINYFCN_OFFLINE forbids downloading it: "
            "unset TINYFCN_OFFLINE, or give --data-dir a folder that holds the four files"
        )
    make_folder(folder, CACHE_WAY_OUT)
    reasons = []
    for mirror in MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            content = _fetch(url, notice)
            unpacked = _decompress(content, "the answer", "trying elsewhere")
            _check_sum(name, unpacked, "the answer", "trying elsewhere")
        except (OSError, http.client.HTTPException, DataError) as error:
            reasons.append(f"{url}: {str(error).removeprefix('<urlopen error ').removesuffix('>')}")
            continue
        # At most 10 MB, so checked in memory. Errors of the disk stay apart from errors of the network.
        path = folder / f"{name}.gz"
        with new_file(path, CACHE_WAY_OUT) as file:
            file.write(content)
        return path
    raise MnistUnavailable(
        f"MNIST could not be downloaded ({'; '.join(reasons)}): "
        "check the network, or give --data-dir a folder that holds the four files"
    )


def _fetch(url: str, notice: Callable[[str], None]) -> bytes:
    received = bytearray()
    with _progress(url, notice) as report, urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        size = response.length
        while part := response.read(1 << 16):
            received += part
            report(completed=len(received), total=size)
    if size is not None and len(received) != size:
        raise OSError(f"the answer is truncated, {len(received)} of {size} bytes came")
    return bytes(received)


@contextlib.contextmanager
def _progress(url: str, notice: Callable[[str], None]) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, one line elsewhere; yields the function that moves the bar."""
    if not sys.stderr.isatty():
        notice(f"Downloading {url}")
        yield lambda **progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield functools.partial(bar.update, bar.add_task(f"Downloading {url.rsplit('/', 1)[-1]}", total=None))
