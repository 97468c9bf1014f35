"""MNIST's four IDX files: found on this machine, or downloaded once, and checked when they are read.

Format and data: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
"""

import contextlib
import functools
import gzip
import hashlib
import http.client
import io
import math
import os
import re
import struct
import sys
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinyfcn.environment import CACHE_WAY_OUT, cache_folders, expand_home, is_offline, is_terminal, writable_cache
from tinyfcn.errors import DataError
from tinyfcn.files import new_file

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
MAX_BYTES = 1 << 28  # of a file's content: 342,392 images; EMNIST has 240,000 of digits
MAX_DOWNLOAD = 1 << 24  # bytes of a compressed file: MNIST's largest has 9,912,422
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
        roots, chosen_by = [expand_home(data_dir, "--data-dir")], "--data-dir"
    elif from_environment:
        roots, chosen_by = [expand_home(from_environment, "TINYFCN_DATA")], "TINYFCN_DATA"
    else:
        roots, chosen_by = cache_folders(), ""
    root = roots[0]
    folders = [root / layout for root in roots for layout in LAYOUTS]
    found = [MnistFolder(folder, chosen_by, _files_in(folder)) for folder in folders]
    fullest = max(found, key=lambda folder: len(folder.files))  # the first of them, if several are
    if fullest.files:
        return fullest
    if not chosen_by:
        return MnistFolder(root / "mnist", "", {})
    wrong = "holds none of the MNIST files" if root.is_dir() else "is not a folder"
    raise DataError(
        f"{root} (from {chosen_by}) {wrong}: "
        f"searched for {', '.join(SHA256)}, each also with .gz or as train-images.idx3-ubyte, "
        f"in {', '.join(map(str, folders))}; "
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
    images_bytes = _read(images_path, IMAGES_MAGIC, remedy)
    labels_bytes = _read(labels_path, LABELS_MAGIC, remedy)
    images = np.frombuffer(images_bytes, np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(labels_bytes, np.uint8, offset=8)
    if labels.max() > 9:
        first = int(np.argmax(labels > 9))
        raise DataError(f"{labels_path}: label {first} is {labels[first]}, expected 0..9; {remedy}")
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images)} images but {labels_path} holds {len(labels)} labels: "
            f"expected as many of one as of the other; {remedy}"
        )
    if not found.chosen_by:
        _check_sum(FILES[split][0], images_bytes, str(images_path), remedy)
        _check_sum(FILES[split][1], labels_bytes, str(labels_path), remedy)
    return images, labels


def _files_in(folder: Path) -> dict[str, Path]:
    """The files among the four that `folder` holds. A plain file comes before a gzipped one."""
    found = {}
    try:
        for name in SHA256:
            # Some servers write a dot for the second hyphen, and some archives put each file into a folder of its name.
            spelled = re.compile(name.replace("-idx", "[-.]idx") + r"(\.gz)?", re.IGNORECASE)
            paths = _spelled_so(folder, spelled)
            inside = [path for each in paths if each.is_dir() for path in _spelled_so(each, spelled)]
            if paths:
                found[name] = min([*paths, *inside], key=Path.is_dir)  # a folder only where there is no file
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): check its permissions") from error
    return found


def _spelled_so(folder: Path, spelled: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if spelled.fullmatch(path.name)) if folder.is_dir() else []


def _read(path: Path, magic: int, remedy: str) -> bytes:
    """The content of an IDX file, see `read_idx`."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'a device or pipe'}, expected a file: {remedy}")
    try:
        with open(path, "rb") as file:
            return read_idx(file, magic, str(path), remedy)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it readable, or {remedy}") from error


def read_idx(file: BinaryIO, magic: int, source: str, remedy: str) -> bytes:
    """The content of an IDX file of images 28x28 or of labels, unpacked if it is gzipped: its header and all bytes.

    Reads no more than the header announces and one byte, however much a gzipped file would unpack to. Raises DataError
    that names `source` and ends with `remedy`.
    """
    # The name does not tell whether it is gzipped: browsers unpack downloads and keep their names.
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    try:
        stream = gzip.GzipFile(fileobj=file) if packed else file
        sizes = _announced(stream.read(16), magic, source, remedy)
        header = 4 + 4 * len(sizes)
        expected = header + math.prod(sizes)
        if expected > MAX_BYTES:
            limit = f"the limit is {MAX_BYTES} bytes"
            raise DataError(f"{source} announces {sizes[0]} items, {expected} bytes, and {limit}: {remedy}")
        stream.seek(0)
        content = stream.read(expected + 1)
    except EOFError as error:
        raise DataError(
            f"{source} is a truncated gzip file: expected the compressed data to end within it, but they go on after "
            f"its {file.tell()} bytes; {remedy}"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{source} is a damaged gzip file ({error}): {remedy}") from error
    if len(content) != expected:
        fault, found = ("is truncated", len(content)) if len(content) < expected else ("has bytes left over", "more")
        raise DataError(
            f"{source} {fault}: its header announces {' x '.join(map(str, sizes))}, "
            f"{expected} bytes with the header, found {found}; {remedy}"
        )
    return content


def _announced(content: bytes, magic: int, source: str, remedy: str) -> tuple[int, ...]:
    """The sizes in the header with which the content of a file begins: (N, 28, 28) or (N,)."""
    kinds = {IMAGES_MAGIC: "an images file", LABELS_MAGIC: "a labels file"}
    if not content:
        raise DataError(f"{source} is empty, expected a file in IDX format: {remedy}")
    if (text := content.removeprefix(b"\xef\xbb\xbf").lstrip()).startswith(b"<"):
        raise DataError(
            f"{source} begins with {text[:14].decode('ascii', 'replace')!r}: it is a web page, not the file in IDX "
            f"format that was expected; {remedy}"
        )
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
    if sizes[1:] not in ((), (28, 28)):
        raise DataError(f"{source} holds images of {sizes[1]}x{sizes[2]} pixels, expected 28x28: {remedy}")
    if sizes[0] == 0:
        raise DataError(f"{source} announces 0 items, expected at least one: {remedy}")
    return sizes


def _check_sum(name: str, content: bytes, source: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise DataError(
            f"{source} is not MNIST's {name}: the SHA-256 of its content begins with {found[:12]}, "
            f"expected {SHA256[name][:12]}; {remedy}"
        )


def _download(name: str, folder: Path, notice: Callable[[str], None]) -> Path:
    """Fetch one file into `folder` from the first mirror that gives its official content."""
    if is_offline():
        raise MnistUnavailable(
            f"MNIST's {name} is not in {folder} and TINYFCN_OFFLINE forbids downloading it: "
            "unset TINYFCN_OFFLINE, or give --data-dir a folder that holds the four files"
        )
    folder = writable_cache(folder)
    magic = IMAGES_MAGIC if "images" in name else LABELS_MAGIC
    reasons = []
    for mirror in MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            content = _fetch(url, notice)
            unpacked = read_idx(io.BytesIO(content), magic, "the answer", "trying elsewhere")
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
            if len(received) > MAX_DOWNLOAD:
                raise OSError(f"the answer is longer than {MAX_DOWNLOAD} bytes")
    if size is not None and len(received) != size:
        raise OSError(f"the answer is truncated, {len(received)} of {size} bytes came")
    return bytes(received)


@contextlib.contextmanager
def _progress(url: str, notice: Callable[[str], None]) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, one line elsewhere; yields the function that moves the bar."""
    if not is_terminal(sys.stderr):
        notice(f"Downloading {url}")
        yield lambda **progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield functools.partial(bar.update, bar.add_task(f"Downloading {url.rsplit('/', 1)[-1]}", total=None))
