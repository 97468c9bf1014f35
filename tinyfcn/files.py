"""Files that appear completely or not at all: downloads, weights, figures, masks."""

import contextlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tinyfcn.errors import DataError

if sys.platform != "win32":
    import fcntl

TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")  # the names that `_temporary_name` gives


def visible(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match, sorted. Hidden files belong to editors and systems: .#relu.cu, ._relu.cu."""
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))


def make_folder(folder: Path, way_out: str) -> None:
    """Create `folder` and its parents, and write a file there to be sure; DataError ends with `way_out`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = _temporary_name(folder / "trial")
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be written to ({_reason(error)}): {way_out}") from error


@contextlib.contextmanager
def new_file(path: Path, way_out: str) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; it is renamed to `path` when the block ends, and deleted if the block fails.

    So nobody reads half a file. If two processes write the same file, the last one to finish wins. A file that is there
    already gives the new one its mode and, where that is permitted, its owner. Of a link the target is replaced. A
    device or a pipe is written to directly.
    An OSError in the block (a full disk) becomes a DataError that ends with `way_out`. What killed processes left in
    the folder is deleted.
    """
    temporary = lock = None
    try:
        before = _status(path)
        if before is not None and not stat.S_ISREG(before.st_mode):
            with open(path, "wb") as file:
                yield file
            return
        target = Path(os.path.realpath(path))
        _delete_leftovers(target.parent)
        temporary = _temporary_name(target)
        with open(temporary, "xb") as file:
            lock = _locked(temporary)
            yield file
        if before is not None:
            with contextlib.suppress(OSError, AttributeError):  # only root gives files away, and Windows has no chown
                os.chown(temporary, before.st_uid, before.st_gid)
            with contextlib.suppress(OSError):  # some file systems have no modes
                os.chmod(temporary, stat.S_IMODE(before.st_mode))
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({_reason(error)}): {way_out}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if lock is not None:
            os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that keeps a file locked until it is closed or its process ends; None on Windows."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some file systems have no locks, and then no leftovers are deleted
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _delete_leftovers(folder: Path) -> None:
    """Deletes the temporary files that nobody holds locked: their writers were killed."""
    if sys.platform == "win32":
        return
    for path in folder.glob(".*.tmp"):
        # An empty file may have a writer that has not locked it yet.
        if TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def is_stream(path: Path) -> bool:
    """Whether `path` is a device or a pipe: what is written there cannot be replaced."""
    try:
        status = _status(path)
    except OSError:
        return False  # whoever writes there is told why it fails
    return status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _temporary_name(path: Path) -> Path:
    # Not by tempfile, whose files only their owner may read: caches are shared.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
