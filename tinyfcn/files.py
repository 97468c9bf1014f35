"""The cache folder, and files that appear completely or not at all: downloads, weights, figures, masks."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

from tinyfcn.errors import DataError

CACHE_WAY_OUT = "set TINYFCN_CACHE to a folder that you can write to, with 50 MB free"


def cache_folder() -> Path:
    """The folder for files that can be made again: TINYFCN_CACHE, or the platform's own. It may not exist yet."""
    chosen = os.environ.get("TINYFCN_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("tinyfcn", appauthor=False))


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

    So nobody reads half a file. If two processes write the same file, the last one to finish wins.
    An OSError in the block (a full disk) becomes a DataError that ends with `way_out`.
    """
    temporary = _temporary_name(path)
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({_reason(error)}): {way_out}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _temporary_name(path: Path) -> Path:
    # Not by tempfile, whose files only their owner may read: caches are shared.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
