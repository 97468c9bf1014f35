"""The Markdown pages: their fenced blocks, their commands with what these print, and their quotations of files.

A block `console` holds commands after "$ " and the output that they print. In it, a line "..." stands for any lines,
and "..." in a line for any text. A block `sh` holds commands alone, and `python` is executed. A block whose fence is
followed by a file's name, such as "cuda kernels/relu.cu", quotes that file; "cuda ./mine.cu" is a file of the reader's.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.package_copy import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w+)?(?: +([^\n]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:tinyfcn|python -m tinyfcn) [^`]+)`")
PROGRAM = """from tinyfcn.cli import main
from tinyfcn.training import sources
sources.TEST_COUNT = 20
main()
"""
NUMBER = re.compile(r"\d+(?:[,.:]\d+)*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block. kind: the word after its fence, or "". about: the rest of that line. line: its number."""

    kind: str
    about: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command, and the lines that the page shows of its output; None if the page shows none."""

    text: str
    output: list[str] | None
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1] or "", (match[2] or "").strip(), match[3], text[: match.start()].count("\n") + 1)
        for match in FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block `console` or `sh`. A command ends with its line, but for a backslash at the end of it."""
    if block.kind == "sh":
        text = ""
        for number, line in enumerate(block.text.splitlines(), block.line + 1):
            text += line
            if is_whole(text) and text and not text.startswith("#"):
                yield Command(re.sub(r"\s+# .*", "", text), None, number)
            text = "" if is_whole(text) else text + "\n"
        return
    assert block.text.startswith("$ "), f"line {block.line}: a block `console` begins with a command, $ tinyfcn ..."
    number = block.line + 1
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        text, _, output = re.sub(r"\\\n\s*", "", part, count=part.split("\n")[0].count("\\")).partition("\n")
        yield Command(text, output.rstrip("\n").split("\n"), number)
        number += part.count("\n")


def is_whole(text: str) -> bool:
    """Whether all quotes of a command are closed: else it goes on in the next line."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def masked(line: str) -> str:
    """A line with its numbers replaced, and runs of spaces, which depend on the numbers' widths."""
    return " ".join(NUMBER.sub("#", line).split())


def missing_line(shown: list[str], printed: list[str], mask: bool = False) -> str | None:
    """The first line that a page shows and a command does not print at its place, or None if the page is right.

    mask: numbers may differ, any lines may be missing on the page, and lines that differ by numbers alone count once.
    """
    position, free = 0, mask
    if mask:
        lines = [line for line in shown if line.strip() != "..."]
        shown = [line for k, line in enumerate(lines) if k == 0 or masked(line) != masked(lines[k - 1])]
    for line in shown:
        if line.strip() == "...":
            free = True
            continue
        wanted = masked(line) if mask else line.rstrip()
        pattern = re.compile(".*".join(map(re.escape, wanted.split("..."))))
        candidates = range(position, len(printed)) if free else range(position, min(position + 1, len(printed)))
        found = next(
            (k for k in candidates if pattern.fullmatch(masked(printed[k]) if mask else printed[k].rstrip())), None
        )
        if found is None:
            return line
        position, free = found + 1, mask
    rest = [line for line in printed[position:] if line.strip()]
    return None if free or not rest else f"nothing where the command prints {rest[0]!r}"


def write_program(folder: Path) -> None:
    """Makes the folder, with a program `tinyfcn` that tests an FCN on few images."""
    folder.mkdir()
    program = folder / "tinyfcn"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(0o755)
