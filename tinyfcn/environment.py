"""What the environment decides: the cache folder, what a ~ stands for, whether there is a network or a terminal."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TextIO

import platformdirs

from tinyfcn.errors import DataError
from tinyfcn.files import make_folder

CACHE_WAY_OUT = "set TINYFCN_CACHE to a folder that you can write to, with 50 MB free"
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")

_temporary: list[Path] = []  # the folder that replaces a cache folder which cannot be written to, once there is one


def print_notice(text: str) -> None:
    """Print to stderr, so that stdout holds only what other programs may read."""
    if sys.stderr is not None:  # it is None where the caller closed it, and print would take stdout instead
        print(text, file=sys.stderr, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether bars can move on a stream. FORCE_COLOR, which makes rich say yes, does not make a log a terminal."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def is_offline() -> bool:
    """Whether TINYFCN_OFFLINE forbids the network; DataError if it says neither yes nor no."""
    value = os.environ.get("TINYFCN_OFFLINE", "").strip().lower()
    if value not in YES + NO:
        raise DataError(f"TINYFCN_OFFLINE is {value!r}, expected {', '.join(YES)}, or {', '.join(NO[1:])}: change it")
    return value in YES


def expand_home(path: str | Path, named_by: str) -> Path:
    """The path with the home folder in place of a leading ~ or ~user; DataError where there is none.

    A file may be called ~name, as editors call their copies, where no user is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        if os.path.lexists(path):
            return Path(path)
        user = Path(path).parts[0]
        raise DataError(f"{path} (from {named_by}): {user} has no home folder here; write the whole path") from None


def can_be_written(folder: Path) -> bool:
    """Whether files can be written into a folder, which may not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    # Where no home is known, the path still begins with its ~.
    return folder.parts[:1] != ("~",) and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def cache_folder() -> Path:
    """The folder for files that can be made again: TINYFCN_CACHE, or the platform's own. It may not exist yet.

    Where no home folder is known: a temporary folder.
    """
    if chosen := os.environ.get("TINYFCN_CACHE"):
        return expand_home(chosen, "TINYFCN_CACHE").absolute()
    try:
        folder = Path(platformdirs.user_cache_dir("tinyfcn", appauthor=False))
    except RuntimeError:  # newer releases refuse where older ones answer ~/.cache
        folder = Path("~")
    return folder if folder.is_absolute() else temporary_cache(f"there is no home folder: {CACHE_WAY_OUT}")


def cache_folders() -> list[Path]:
    """Where cached files may be: the cache folder, and the temporary one if there is one."""
    return [cache_folder(), *_temporary]


def writable_cache(folder: Path) -> Path:
    """A folder in the cache folder, made if need be; in a temporary folder if the platform's cannot be written to.

    Raises:
        DataError: TINYFCN_CACHE names a folder that cannot be written to.
    """
    try:
        make_folder(folder, CACHE_WAY_OUT)
    except DataError as error:
        if os.environ.get("TINYFCN_CACHE"):
            raise
        folder = temporary_cache(str(error)) / folder.relative_to(cache_folder())
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_cache(reason: str) -> Path:
    """A cache folder that is removed when the program ends, made at the first call, which gives notice of it."""
    if not _temporary:
        _temporary.append(Path(tempfile.mkdtemp(prefix="tinyfcn-")))
        atexit.register(shutil.rmtree, _temporary[0], ignore_errors=True)
        print_notice(f"{reason}; {_temporary[0]} is used, and removed at the end")
    return _temporary[0]
