"""Every command and every Python example of the pages runs, and prints what the page shows; quotations are exact."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from helpers.package_copy import ROOT
from helpers.pages import INLINE, PAGES, blocks, commands, missing_line, write_program
from helpers.tiny_digits import write_tiny_digits
from PIL import Image

from tinyfcn.cli import main
from tinyfcn.data.builtin_digits import draw_digits

# Commands that a test does not run, each with the reason.
NOT_RUN = {
    "pip install": "installs; .ci/run does so in a fresh environment",
    "python -m venv": "a fresh environment: .ci/run makes one",
    "apt install": "the system's packages",
    "git clone": "the network",
    "(cd tests/page && npm ci)": "the network; a job of its own in CI",
    "pytest": "these are the tests",
    "pre-commit": "a habit of the reader's own",
    "tinyfcn check leaky_relu": "test_contributing.py adds the operation and runs this",
    "tinyfcn gradcheck leaky_relu": "test_contributing.py adds the operation and runs this",
    "python scripts/measure.py": "all figures, for half an hour",
    "python scripts/operations_table.py": "test_docs.py runs it",
    "python scripts/mutate.py": "a campaign of an hour",
    "python tests/standin/run.py": "a job of its own in .ci/run",
    "tinyfcn sweep": "many trainings; tests/sweep runs short ones",
    "sed ": "shortens a study",
    "python scripts/measure_sweep.py": "many trainings",
    "tinyfcn bench": "minutes; tests/bench/test_bench.py runs it in short",
    "tinyfcn exercise check --watch": "ends with Ctrl-C",
}
# Options that shorten a command. Then the numbers that the page shows are not compared.
SHORTENED = {
    "tinyfcn train-cnn": "--epochs 1",
    "tinyfcn train-fcn": "--steps 2 --evaluations 1",
    "tinyfcn evaluate": "",
    "tinyfcn predict": "",
    "tinyfcn trace": "",
    "tinyfcn info": "",
}
OPTIONS_THAT_SHORTEN = re.compile(r"--(steps|epochs|evaluations|dataset) \S+")
FILES = "CONTRIBUTING.md"  # its Python blocks are the files of a new operation: test_contributing.py writes them
EXITS = re.compile(r"# exits with (\d)")


def with_blocks(*kinds: str) -> list[Path]:
    """The pages that have such blocks. Those in Chinese have the blocks of the English ones: test_translation.py."""
    return [page for page in PAGES if "zh-CN" not in str(page) and any(block.kind in kinds for block in blocks(page))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def why_not_run(text: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if text.startswith(start)), None)


def shortened(text: str) -> tuple[str, bool]:
    """The command as the test runs it, and whether numbers may differ."""
    parts = [part.strip() for part in text.split("&&")]
    for start, options in SHORTENED.items():
        for k, part in enumerate(parts):
            if part.startswith(start):
                if options:
                    part = OPTIONS_THAT_SHORTEN.sub("", part)
                parts[k] = f"{part} {options}".strip()
    return " && ".join(parts), any(part.startswith(tuple(SHORTENED)) for part in parts)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/cnn-1 and runs/fcn-1, and photo.png: what a reader has after the README's first commands."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_digits(folder)
    write_program(folder / "bin")
    for command in ("tinyfcn train-cnn", "tinyfcn train-fcn"):
        done = shell(folder, shortened(command)[0])
        assert done.returncode == 0, done.stdout
    images, _ = draw_digits(2, seed=0)
    photo = np.zeros((64, 84), np.uint8)
    photo[5:33, 4:32], photo[30:58, 44:72] = images
    Image.fromarray(photo).save(folder / "photo.png")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


def shell(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Runs a command line as a reader does, in a folder of its own, and without a GPU: so the pages show it."""
    path = folder / "bin", Path(sys.executable).parent, os.environ["PATH"]
    environment = os.environ | {"PATH": os.pathsep.join(map(str, path))}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TINYFCN_DATA": str(folder)}
    environment.pop("COLUMNS", None)
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`, for one page."""
    return Path(shutil.copytree(trained, tmp_path / "page", symlinks=True))


def run_commands(page: Path, folder: Path) -> list[str]:
    """Runs the commands of a page one after another, and returns what is wrong."""
    wrong = []
    for block in blocks(page):
        if block.about.startswith("./"):
            (folder / block.about).write_text(block.text, encoding="utf-8")
    for command in (each for block in blocks(page) if block.kind in ("console", "sh") for each in commands(block)):
        if why_not_run(command.text):
            continue
        text, masks = shortened(command.text)
        done = shell(folder, text)
        code = int(match[1]) if (match := EXITS.search(command.text)) else 0
        if done.returncode != code:
            wrong.append(f"line {command.line}: {text!r} exits with {done.returncode}:\n{done.stdout[-2000:]}")
        elif command.output is not None:
            line = missing_line(command.output, done.stdout.splitlines(), masks)
            if line is not None:
                wrong.append(f"line {command.line}: {text!r} does not print {line!r}, but\n{done.stdout[:6000]}")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("console", "sh"), ids=name)
def test_commands_run_and_print_what_the_page_shows(page: Path, folder: Path) -> None:
    wrong = run_commands(page, folder)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in with_blocks("python", "pycon") if page.name not in FILES], ids=name)
def test_python_examples_run_and_print_what_the_page_shows(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page run one after another. A block named for a file, or quoted from one, does not."""
    monkeypatch.chdir(folder)
    image = np.asarray(Image.open("photo.png"))
    known = {"image": image, "np": np}
    for block in blocks(page):
        if block.kind == "python" and not block.about:
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), known)
        elif block.kind == "pycon":
            test = doctest.DocTestParser().get_doctest(block.text, known, page.name, str(page), block.line)
            said: list[str] = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(test, out=said.append, clear_globs=False)
            known |= test.globs
            assert not runner.failures, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_the_text_have_options_that_exist(page: Path) -> None:
    """Commands between backquotes, and those that are not run. A word in capitals, or [], stands for something else."""
    texts = INLINE.findall(page.read_text(encoding="utf-8"))
    texts += [each.text for block in blocks(page) if block.kind in ("console", "sh") for each in commands(block)]
    for text in texts:
        for part in re.split(r"&&|\|", re.sub(r"#.*", "", text)):
            words = part.split()
            if words[:1] != ["tinyfcn"] or words[1:2] in ([], ["--help"]) or re.search(r"[\[\]{}<>]|\.\.\.", part):
                continue
            command: click.Command = main
            while isinstance(command, click.Group) and len(words) > 1 and words[1] in command.commands:
                command, words = command.commands[words[1]], words[1:]
            assert command is not main, f"{page.name}: {part!r}: there is no such command"
            every = [command, *getattr(command, "commands", {}).values()]  # `sweep` alone is `sweep run`
            params = [each for one in every for each in one.params]
            known = {option for each in params for option in (*each.opts, *each.secondary_opts)}
            for word in words[1:]:
                option = word.partition("=")[0].partition("|")[0]
                assert not word.startswith("--") or option in known | {"--help"}, f"{page.name}: {part!r}: {option}"


@pytest.mark.parametrize("page", with_blocks("cuda", "python"), ids=name)
def test_quotations_stand_once_in_the_file(page: Path) -> None:
    """A block whose fence names a file holds lines of that file, at any indentation."""
    for block in (each for each in blocks(page) if each.about and not each.about.startswith("./")):
        text = unindented((ROOT / block.about).read_text(encoding="utf-8"))
        for part in block.text.strip("\n").split("\n...\n"):
            assert text.count(unindented(part)) == 1, f"{page.name}:{block.line}: not once in {block.about}:\n{part}"


def unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("shown", "printed", "mask", "expected"),
    [
        (["a 1"], ["a 1"], False, None),
        (["a 1"], ["a 2"], False, "a 1"),
        (["a 1"], ["a 2"], True, None),
        (["a 1"], ["b 1", "a 20.5"], True, None),
        (["a 1"], ["b 1", "a 1"], False, "a 1"),
        (["...", "a 1"], ["b 1", "a 1"], False, None),
        (["a 1"], ["a 1", "b"], False, "nothing where the command prints 'b'"),
        (["a 1", "..."], ["a 1", "b"], False, None),
        (["a ... c"], ["a b c"], False, None),
        (["b", "a"], ["a", "b"], True, "a"),
        (["a 1", "...", "a 2", "b"], ["a 3", "b"], True, None),
    ],
)
def test_the_comparison(shown: list[str], printed: list[str], mask: bool, expected: str | None) -> None:
    assert missing_line(shown, printed, mask) == expected


def test_shortened_commands() -> None:
    assert shortened("tinyfcn train-fcn --steps 12000 --design early")[0].split() == (
        ["tinyfcn", "train-fcn", "--design", "early", "--steps", "2", "--evaluations", "1"]
    )
    assert shortened("tinyfcn check relu") == ("tinyfcn check relu", False)


def test_blocks_and_commands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("x\n```console\n$ one  # exits with 1\nout\n\n$ two\n```\n\n```cuda kernels/relu.cu\nk\n```\n")
    first, second = blocks(page)
    assert (second.kind, second.about) == ("cuda", "kernels/relu.cu")
    assert [(each.text, each.output, each.line) for each in commands(first)] == [
        ("one  # exits with 1", ["out"], 3),
        ("two", [""], 6),
    ]
