"""CONTRIBUTING.md, "Add an operation", followed to the letter in a copy of the package."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.package_copy import ROOT, copy_package, run, tinyfcn

pytestmark = pytest.mark.slow

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Add an operation\n")[1].split("\n## ")[0]
# "**1. `kernels/leaky_relu.cu`: ...", then text, then the file's content.
FILES = re.findall(r"^\*\*\d\. `([^`]+)`.*?^```\w+\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
IMPORT, BASE = re.findall(r"^```text\n([^\n]+)\n```$", SECTION.split("**The two lines**")[1], re.MULTILINE)
INIT = "tinyfcn/ops/__init__.py"


def edited_init(text: str) -> str:
    """tinyfcn/ops/__init__.py with the two lines in their alphabetical places."""
    lines = text.splitlines()
    lines.insert(next(i for i, line in enumerate(lines) if line.startswith("from") and line > IMPORT), IMPORT)
    first = lines.index("class Operations(") + 1
    lines.insert(next(i for i, line in enumerate(lines) if i >= first and line > BASE), BASE)
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its tests, with the operation that the page adds."""
    folder = copy_package(tmp_path_factory.mktemp("followed"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, content in FILES:
        path = folder / name.replace("kernels/", "tinyfcn/kernels/", 1) if name.endswith(".cu") else folder / name
        assert not path.exists()
        path.write_text(content, encoding="utf-8")
    init = folder / INIT
    init.write_text(edited_init(init.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def test_an_operation_is_five_files_and_two_lines() -> None:
    assert [name for name, _ in FILES] == [
        "kernels/leaky_relu.cu",
        "tinyfcn/ops/leaky_relu.py",
        "tinyfcn/reference/leaky_relu.py",
        "tinyfcn/checks/cases/leaky_relu.py",
        "tests/kernels/test_leaky_relu.py",
    ]
    text = (ROOT / INIT).read_text(encoding="utf-8")
    assert len(edited_init(text).splitlines()) == len(text.splitlines()) + 2


@pytest.mark.parametrize("precision", ["single", "double"])
def test_gradcheck_passes_it(followed: Path, precision: str) -> None:
    done = tinyfcn(followed, "gradcheck", "leaky_relu", "--precision", precision)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout and done.stdout.count("leaky_relu") >= 6


def test_sanitize_finds_nothing(followed: Path) -> None:
    done = tinyfcn(followed, "sanitize", "leaky_relu", "--seeds", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kernels, 0 findings" in done.stdout


def test_its_tests_pass_and_its_bugs_are_found(followed: Path) -> None:
    files = "tests/kernels/test_leaky_relu.py", "tests/checks/test_planted_bugs.py", "tests/checks/test_bug_zoo.py"
    pieces = "tests/checks/test_pieces.py"
    done = run(
        followed, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-q", *files, pieces, "-k", "leaky or every_kernel"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 12


def test_the_linter_has_nothing_to_say(followed: Path) -> None:
    files = [name for name, _ in FILES if name.endswith(".py")]
    for command in (["check"], ["format", "--check"]):
        done = run(followed, "-m", "ruff", *command, *files, INIT)
        assert done.returncode == 0, done.stdout + done.stderr
