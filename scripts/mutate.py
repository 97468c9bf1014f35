"""Changes kernels and launchers at random, and asks `tinyfcn check` about each change: does it notice?

    python scripts/mutate.py [--kernels 160] [--launchers 40] [--seed 0] [--workers 2] [--json mutants.json]

Each mutant is one change of one line: an operator, a number, a name, a statement, a guard or a barrier left out. The
command that a person is told to run after an edit runs on a copy of the package that holds it. Prints the mutants that
survive. Some of those are no faults: they compute the same, or take longer. docs/mutants.md explains those of the last
campaign one by one.
"""

import argparse
import ast
import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from rich.progress import track

import tinyfcn
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.devices.tokens import Token, tokenise
from tinyfcn.installation import PARTS

SECONDS = 120  # a check that takes longer has noticed that something is wrong
PACKAGE = Path(*tinyfcn.__path__)
COMMAND = [sys.executable, "-c", "from tinyfcn.cli import main; main()", "check"]

OPERATORS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "/", "//": "*",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "&&": "||", "||": "&&", "&": "|", "|": "&", "^": "&", "<<": "+",
    "and": "or", "or": "and", "min": "max", "max": "min", "fminf": "fmaxf", "fmaxf": "fminf",
}  # fmt: skip
KEYWORDS = {*keyword.kwlist, "template", "typename", "using", "struct", "extern", "static", "inline", "const"}
KEYWORDS |= {"constexpr", "int", "float", "unsigned", "char", "void", "bool", "self"}


@dataclass
class Mutant:
    """One change: the file, the line, the kind of change, the line before and after, and what the check said."""

    file: str
    name: str  # what the check is asked about
    line: int
    kind: str
    before: str
    after: str
    verdict: str = ""
    seconds: float = 0.0


@dataclass
class Edit:
    """text[start:end] of a file is replaced."""

    kind: str
    start: int
    end: int
    new: str


def edits(text: str, code: list[Token]) -> Iterator[Edit]:
    """All changes of a text, given the tokens of its code."""
    names = [token for token in code if token.kind == "word" and token.text not in KEYWORDS | {*OPERATORS}]
    previous = ""
    for token in code:
        if token.text in OPERATORS and not (token.text in "*&-<>" and previous in ("", "(", ",", "=", "template")):
            yield Edit("operator", token.start, token.end, OPERATORS[token.text])
        elif token.kind == "number":
            yield Edit("number", token.start, token.end, changed(token.text))
        elif token in names:
            # Another name of the neighbourhood: what a slip of the hand would write.
            near = sorted({each.text for each in names if abs(each.start - token.start) < 400} - {token.text})
            alike = [each for each in near if each.isupper() == token.text.isupper()]
            if alike:
                yield Edit("name", token.start, token.end, alike[token.start % len(alike)])
        previous = token.text


def changed(number: str) -> str:
    """An integer plus or minus 1, or a number of another size."""
    if re.fullmatch(r"\d+[uU]?", number):
        value = int(number.rstrip("uU"))
        return f"{value - 1 if value > 1 else value + 1}{number[len(str(value)) :]}"
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(.*)", number)
    return f"{float(match[1]) * 1.01 + (float(match[1]) == 0)}{match[2]}" if match else f"({number} + 1)"


def statements(text: str) -> Iterator[Edit]:
    """Changes that leave something out of a kernel file: a statement, a guard, a barrier, an alignment, +=."""
    text = re.sub(r"//[^\n]*", lambda comment: " " * len(comment[0]), text)
    for match in re.finditer(r"(?m)^[ \t]+((?:if \([^\n{}]*\) )?[^\n{};/]+;)[^\n]*$", text):
        statement = match[1]
        if not re.match(
            r"(const|constexpr|int|float|unsigned|__shared__|extern|using|template|for|static)\b", statement
        ):
            yield Edit("statement", match.start(1), match.end(1), ";")
        guard = re.match(r"if \((.*)\) (?!return)(.+;)$", statement)
        if guard and guard[1].count("(") == guard[1].count(")"):
            yield Edit("guard", match.start(1), match.end(1), guard[2])
    for pattern, kind, new in (
        (r"__align__\(16\) ", "alignment", ""),
        (r" (\+=)", "accumulation", "="),
        (r"__syncthreads\(\);", "barrier", ";"),
        (r"(?<=for \(int \w = )0", "first round", "1"),
    ):
        for match in re.finditer(pattern, text):
            yield Edit(kind, match.start(match.lastindex or 0), match.end(match.lastindex or 0), new)


def of_kernels(file: Path) -> list[Edit]:
    """All changes of a kernel file."""
    text = file.read_text(encoding="utf-8")
    tokens = [each for each in tokenise(text).written if each.kind != "literal"]
    directives = {number for number, line in enumerate(text.split("\n")) if line.lstrip().startswith("#")}
    tokens = [each for each in tokens if text.count("\n", 0, each.start) not in directives]
    return [*edits(text, tokens), *statements(text)]


def of_launcher(file: Path) -> list[Edit]:
    """All changes of a launcher's statements. Docstrings, annotations, imports and messages stay."""
    text = file.read_text(encoding="utf-8")
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    encoded = [len(line) == len(line.encode()) for line in text.split("\n")]
    code: list[tuple[int, int]] = []
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                is_doc = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                if not (is_doc or isinstance(statement, ast.Raise)) and all(encoded):
                    start = starts[statement.lineno - 1] + statement.col_offset
                    code.append((start, starts[(statement.end_lineno or 1) - 1] + (statement.end_col_offset or 0)))
    blanked = re.sub(r"#[^\n]*|f?\"[^\"\n]*\"", lambda match: " " * len(match[0]), text)
    tokens = [
        Token(match.lastgroup or "mark", match[0], match.start(), match.end())
        for match in re.finditer(r"(?P<word>[A-Za-z_]\w*)|(?P<number>\d[\w.]*)|//|<=|>=|==|!=|->|\*\*|[^\s]", blanked)
        if any(start <= match.start() < end for start, end in code)
    ]
    return list(edits(text, tokens))


def draw(files: list[Path], changes: list[list[Edit]], count: int, random: np.random.Generator) -> Iterator[tuple]:
    """Random changes: a file by its number of changes, a kind, then one of its changes; none twice."""
    sizes = np.array([len(each) for each in changes], float)
    seen: set[tuple] = set()
    while len(seen) < count:
        number = int(random.choice(len(files), p=sizes / sizes.sum()))
        kinds = sorted({each.kind for each in changes[number]})
        kind = kinds[int(random.integers(len(kinds)))]
        of_kind = [each for each in changes[number] if each.kind == kind]
        edit = of_kind[int(random.integers(len(of_kind)))]
        key = (number, edit.start, edit.new)
        if key not in seen:
            seen.add(key)
            yield files[number], edit


def package_with(edit: Edit, file: Path, folder: Path) -> Mutant:
    """Copies the package into `folder`, as a wheel holds it, with one change."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(PACKAGE, folder / "tinyfcn", ignore=ignore)
    for part in PARTS:
        source = Path(*import_module(f"tinyfcn.{part}").__path__)
        shutil.copytree(source, folder / "tinyfcn" / part, ignore=ignore, dirs_exist_ok=True)
    inside = Path("kernels" if file.suffix in (".cu", ".cuh") else "ops") / file.name
    text = file.read_text(encoding="utf-8")
    new = text[: edit.start] + edit.new + text[edit.end :]
    (folder / "tinyfcn" / inside).write_text(new, encoding="utf-8")
    line = text.count("\n", 0, edit.start)
    lines = (each.split("\n")[line].strip() for each in (text, new))
    return Mutant(str(inside), file.stem, line + 1, edit.kind, *lines)


def ask(file: Path, edit: Edit) -> Mutant:
    """The verdict of `tinyfcn check` on one change."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        mutant = package_with(edit, file, Path(folder))
        started = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            process = subprocess.run(
                [*COMMAND, mutant.name], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            mutant.verdict = "takes too long"
        else:
            lines = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
            signs = ("should be", "does not compile", "Error", "refuses", ".cu", ".py", "WRONG")
            said = next((line.strip() for sign in signs for line in lines if sign in line), "exit code")
            mutant.verdict = said[:300] if process.returncode else "survived"
        mutant.seconds = round(time.perf_counter() - started, 1)
    return mutant


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernels", type=int, default=160, help="how many mutants of kernels")
    parser.add_argument("--launchers", type=int, default=40, help="how many mutants of launchers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write all mutants and verdicts to a file")
    options = parser.parse_args()

    random = np.random.default_rng(options.seed)
    kernels = sorted(KERNELS.glob("*.cu*"))
    launchers = [file for file in sorted((PACKAGE / "ops").glob("*.py")) if file.stem not in ("__init__", "checks")]
    drawn = [
        *draw(kernels, [of_kernels(file) for file in kernels], options.kernels, random),
        *draw(launchers, [of_launcher(file) for file in launchers], options.launchers, random),
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        asked = pool.map(lambda each: ask(*each), drawn)
        mutants = list(track(asked, "mutants", total=len(drawn)))
    if options.json:
        options.json.write_text(json.dumps([asdict(mutant) for mutant in mutants], indent=1), encoding="utf-8")
    for mutant in mutants:
        if mutant.verdict == "survived":
            print(f"{mutant.file}:{mutant.line}, {mutant.kind}\n  - {mutant.before}\n  + {mutant.after}")
    for what, part in ("kernels", mutants[: options.kernels]), ("launchers", mutants[options.kernels :]):
        survived = sum(mutant.verdict == "survived" for mutant in part)
        print(f"{len(part)} mutants of {what}, {survived} survived")


if __name__ == "__main__":
    main()
