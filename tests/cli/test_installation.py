"""A checkout that is not installed, and a package that is missing: one line says what to run."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.package_copy import ROOT, copy_package

from tinyfcn.installation import NEEDED


def bare_python(*arguments: str, path: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python without any installed package, which finds modules in `path` only."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)


def stubs(folder: Path, *missing: str) -> Path:
    """A folder with an empty module for each package that tinyfcn needs, but for those that are missing."""
    folder.mkdir()
    for module in NEEDED.keys() - {*missing}:
        (folder / f"{module}.py").touch()
    return folder


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """The package with its parts, as it is installed."""
    return copy_package(tmp_path / "installed")


def test_a_bare_checkout_says_how_to_install_it(tmp_path: Path) -> None:
    """With the packages and without them: installing the checkout installs them too."""
    for path in ([], [stubs(tmp_path / "stubs")]):
        says = f"tinyfcn is not installed: run `pip install -e .` in {ROOT}"
        command = bare_python("-m", "tinyfcn", "--version", path=path, cwd=ROOT)
        assert (command.returncode, command.stderr) == (1, f"{says}\n")
        imported = bare_python("-c", "import tinyfcn", path=path, cwd=ROOT)
        assert (imported.returncode, imported.stderr.splitlines()[-1]) == (1, f"ImportError: {says}")


@pytest.mark.parametrize(
    ("missing", "packages"), [(["numpy"], "numpy"), (["click"], "click"), (["PIL", "rich"], "pillow rich")], ids=str
)
def test_a_missing_package_is_named(complete: Path, tmp_path: Path, missing: list[str], packages: str) -> None:
    path = [complete, stubs(tmp_path / "stubs", *missing)]
    says = f"tinyfcn needs packages that are not installed: run `pip install {packages}`"
    command = bare_python("-m", "tinyfcn", "info", path=path, cwd=tmp_path)
    assert (command.returncode, command.stderr) == (1, f"{says}\n")
    imported = bare_python("-c", "import tinyfcn", path=path, cwd=tmp_path)
    assert (imported.returncode, imported.stderr.splitlines()[-1]) == (1, f"ImportError: {says}")


def test_the_packages_are_those_of_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {line.partition(">=")[0] for line in declared if ";" not in line}  # those with a condition need a GPU
    assert names == {*NEEDED.values()}
