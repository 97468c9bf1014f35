"""The exercises: kernels with a hole, which a person fills in a folder of their own.

exercises/NN_name/ holds name.cu, the solution, in which two comment lines mark the hole, and exercise.toml: the texts,
and the mistakes that people make. The file that a person gets is made from the solution, so the two cannot differ
elsewhere. Within the hole, a line that ends in "// keep" stays.
"""

import difflib
import json
import os
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count as numbers
from pathlib import Path
from time import sleep
from typing import Any

import tinyfcn.exercises
from tinyfcn.errors import DataError
from tinyfcn.files import make_folder, new_file

EXERCISES = Path(tinyfcn.exercises.__file__).parent
FOLDER = Path("my_exercises")  # a person's own, unless they name another
PROGRESS = "progress.json"
WAY_OUT = "choose another folder with --folder"
POLL = 0.5  # seconds between two looks at a watched file
WIDTH = 100  # of the question in a file
OPEN_HOLE = re.compile(r"/\* HERE: .*? \*/", re.DOTALL)
_HOLE = re.compile(r"^( *)// hole: ([^\n]*)\n(.*?)^ *// end of hole\n", re.DOTALL | re.MULTILINE)
_KEPT = re.compile(r"^(.*?) *// keep$", re.MULTILINE)


@dataclass(frozen=True)
class Mistake:
    """A mistake that people make: the text that fills the hole, and what the person is told."""

    fill: str
    says: str


@dataclass(frozen=True)
class Exercise:
    """An exercise. number: counted from 1. hints: from vague to nearly there. read: files and commands that say more.

    source: the solution with its marks.
    """

    number: int
    name: str
    title: str
    minutes: int
    question: str
    taught: str
    hints: tuple[str, ...]
    read: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    source: str

    @property
    def file_name(self) -> str:
        """The name of the person's file."""
        return f"{self.number:02}_{self.name}.cu"

    @property
    def hole(self) -> str:
        """What is to be written, such as "about 2 lines"."""
        return self._match[2]

    @property
    def solution(self) -> str:
        """The file as it should become."""
        return self._with(_KEPT.sub(r"\1", self._match[3]))

    @property
    def start(self) -> str:
        """The file that a person gets."""
        kept = (match[1] + "\n" for match in _KEPT.finditer(self._match[3]))
        return self._with(f"{self._match[1]}/* HERE: {self.hole} */\n{''.join(kept)}")

    def filled(self, fill: str) -> str:
        """The file with a text in the hole, which is brought to the hole's indentation."""
        return self._with(textwrap.indent(fill.strip("\n") + "\n", self._match[1]) if fill else "")

    @property
    def given_lines(self) -> set[str]:
        """The lines that a person finds in the file, stripped."""
        return {line.strip() for line in self.start.splitlines()}

    @property
    def difference(self) -> str:
        """A unified diff from the file that a person gets to the solution."""
        old, new = self.start.splitlines(), self.solution.splitlines()
        return "\n".join(difflib.unified_diff(old, new, self.file_name, f"solution of {self.number}", lineterm=""))

    @property
    def _match(self) -> re.Match[str]:
        match = _HOLE.search(self.source)
        assert match, f"{self.name}.cu marks its hole"
        return match

    def _with(self, text: str) -> str:
        header = [f"Exercise {self.number}: {self.title} ({self.minutes} minutes)", ""]
        header += [*textwrap.wrap(self.question, WIDTH - len("// ")), "", f"tinyfcn exercise check {self.number}"]
        comment = "\n".join(f"// {line}".rstrip() for line in header)
        filled = self.source[: self._match.start()] + text + self.source[self._match.end() :]
        return f"{comment}\n\n{filled}"


def count() -> int:
    """How many exercises there are."""
    return len(_folders())


@cache
def exercises() -> tuple[Exercise, ...]:
    """All exercises, in order."""
    return tuple(map(_read, _folders()))


def exercise(number: int) -> Exercise:
    """The exercise of a number. Raises DataError for a number that none has."""
    if not 1 <= number <= count():
        raise DataError(f"there is no exercise {number}: they are numbered from 1 to {count()}")
    return exercises()[number - 1]


def _folders() -> list[Path]:
    return sorted(EXERCISES.glob("[0-9][0-9]_*"))


def _read(folder: Path) -> Exercise:
    number, _, name = folder.name.partition("_")
    texts: dict[str, Any] = tomllib.loads((folder / "exercise.toml").read_text(encoding="utf-8"))
    return Exercise(
        int(number),
        name,
        texts["title"],
        texts["minutes"],
        _one_line(texts["question"]),
        _one_line(texts["taught"]),
        tuple(map(_one_line, texts["hints"])),
        tuple(texts["read"]),
        tuple(Mistake(each["fill"], _one_line(each["says"])) for each in texts["mistakes"]),
        (folder / f"{name}.cu").read_text(encoding="utf-8"),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


@dataclass
class Progress:
    """What a person has done, by the numbers of the exercises: those that passed, and how many hints were shown."""

    passed: set[int] = field(default_factory=set)
    hints: dict[int, int] = field(default_factory=dict)


class Folder:
    """A person's folder. Nothing in it is ever overwritten but the progress."""

    def __init__(self, path: Path = FOLDER) -> None:
        self.path = path

    def file(self, exercise: Exercise) -> Path:
        """The person's file."""
        return self.path / exercise.file_name

    def command(self, words: str) -> str:
        """A command that works in this folder, such as "tinyfcn exercise start 3"."""
        option = "" if self.path == FOLDER else f" --folder {shlex.quote(str(self.path))}"
        return f"tinyfcn exercise {words}{option}"

    def started(self) -> list[Exercise]:
        """The exercises whose files are there, the one that was changed last at the end."""
        there = [each for each in exercises() if self.file(each).is_file()]
        return sorted(there, key=lambda each: self.file(each).stat().st_mtime)

    def next(self) -> Exercise | None:
        """The first exercise that has not passed yet; None if all have."""
        passed = self.progress().passed
        return next((each for each in exercises() if each.number not in passed), None)

    def start(self, exercise: Exercise) -> bool:
        """Writes the file with the hole. False if there is a file of its name already.

        Raises:
            DataError: the folder cannot be written to.
        """
        make_folder(self.path, WAY_OUT)
        try:
            with open(self.file(exercise), "x", encoding="utf-8") as file:
                file.write(exercise.start)
        except FileExistsError:
            return False
        except OSError as error:
            raise DataError(f"{self.file(exercise)} cannot be written ({error.strerror}): {WAY_OUT}") from error
        return True

    def reset(self, exercise: Exercise) -> Path:
        """Begins an exercise anew. Returns what the old file is called now.

        Raises:
            DataError: the exercise was not started, or the folder cannot be written to.
        """
        file = self.file(exercise)
        if not os.path.lexists(file):
            raise DataError(f"{file} is not there: {self.command(f'start {exercise.number}')}")
        make_folder(self.path, WAY_OUT)
        names = (file.with_suffix(f".{number}.cu") for number in numbers(1))
        kept = next(name for name in names if not os.path.lexists(name))
        file.rename(kept)
        self.start(exercise)
        return kept

    def progress(self) -> Progress:
        """What the person has done.

        Raises:
            DataError: the file that keeps it cannot be read.
        """
        file = self.path / PROGRESS
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            hints = {int(number): int(shown) for number, shown in found["hints"].items()}
            return Progress({*map(int, found["passed"])}, hints)
        except (FileNotFoundError, NotADirectoryError):
            return Progress()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{file} is damaged: delete it, and your exercises are checked anew") from error

    def keep(self, progress: Progress) -> None:
        """Writes what the person has done. Raises DataError where that cannot be written."""
        text = json.dumps({"passed": sorted(progress.passed), "hints": dict(sorted(progress.hints.items()))})
        make_folder(self.path, WAY_OUT)
        with new_file(self.path / PROGRESS, WAY_OUT) as file:
            file.write(f"{text}\n".encode())


def changes(file: Path) -> Iterator[None]:
    """Yields at once, and whenever a file was changed, deleted or made."""
    before: object = None
    while True:
        now: object = "not there"
        with suppress(OSError):
            status = file.stat()
            now = status.st_mtime_ns, status.st_size
        if now != before:
            yield
        before = now
        sleep(POLL)
