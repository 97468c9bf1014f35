"""Builds the wheel and the sdist, installs each into a fresh environment outside the checkout, and runs it there.

    python scripts/check_package.py

The check fails if a file of the package is missing from the wheel (a kernel, a header of the emulator, py.typed, a new
subpackage), if tests or docs are missing from the sdist, or if `tinyfcn` does not run. The fresh environments take the
dependencies from the environment of this script, which needs the extra `test`; tinyfcn itself never comes from there.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path, PurePosixPath

from tinyfcn.installation import PARTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"tinyfcn": "tinyfcn", **{part: f"tinyfcn/{part}" for part in PARTS}}  # folder: where it installs
IGNORED = shutil.ignore_patterns("__pycache__", "node_modules", ".*")
FOLDERS = (*PACKAGES, "docs", "experiments", "notebooks", "scripts", "tests")  # what the sdist holds entire
COMMANDS = (("--version",), ("--help",), ("info",), ("gradcheck", "relu"), ("exercise", "start", "1"))
MODULES = ("tinyfcn", *(f"tinyfcn.{part}" for part in PARTS))
WHERE = f"import {', '.join(MODULES)}; print({', '.join(f'{module}.__file__' for module in MODULES)})"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The output of a command. The script exits with the command and its output if the command fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(map(str, command))}")
    return done.stdout


def copy_checkout(target: Path) -> None:
    """Copies the files that packaging reads. setuptools would add the leftovers of earlier builds in the checkout."""
    target.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=IGNORED)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, target)


def expect_files(archive: Path, expected: set[str], found: set[str]) -> None:
    """Exits if a file is missing from the archive, or if one is there that the checkout does not have."""
    for problem, files in (("lacks", expected - found), ("should not hold", found - expected)):
        if files:
            sys.exit(f"{archive.name} {problem} {', '.join(sorted(files))}: see pyproject.toml and MANIFEST.in")


def check_wheel(wheel: Path, source: Path) -> None:
    """The wheel holds the files of the package, all of them, and its own metadata."""
    expected = {
        str(PurePosixPath(installed, path.relative_to(source / folder).as_posix()))
        for folder, installed in PACKAGES.items()
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        expect_files(wheel, expected, {name for name in archive.namelist() if ".dist-info/" not in name})


def check_sdist(sdist: Path, source: Path) -> None:
    """The sdist holds all files of the copied checkout, and the metadata that setuptools adds."""
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    added = {name for name in found if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    expect_files(sdist, expected, found - added)


def try_out(package: Path, work: Path) -> None:
    """Installs a wheel or an sdist into a fresh environment and runs it there."""
    home = work / package.name.replace(".", "-")
    venv.create(home)
    folders = {name: Path(sysconfig.get_path(name, "venv", {"base": str(home)})) for name in ("scripts", "purelib")}
    python = folders["scripts"] / ("python.exe" if os.name == "nt" else "python")
    # An import hook of an editable install is not followed: Python reads .pth files only in its own site-packages.
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (folders["purelib"] / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", package, cwd=work)

    for path in run(python, "-I", "-c", WHERE, cwd=home).split():
        if not Path(path).resolve().is_relative_to(home.resolve()):
            sys.exit(f"{package.name}: not the installed package was imported, but {path}")
    for arguments in COMMANDS:
        run(
            folders["scripts"] / "tinyfcn", *arguments, cwd=home, TINYFCN_CACHE=str(home / "cache"), TINYFCN_OFFLINE="1"
        )


def main() -> None:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source, dist = work / "checkout", work / "dist"
        copy_checkout(source)
        expected = work / "expected"
        shutil.copytree(source, expected)  # building leaves files of its own in `source`
        run(sys.executable, "-m", "build", "--sdist", "--outdir", dist, source, cwd=work)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", dist, source, cwd=work)
        (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
        check_wheel(wheel, expected)
        check_sdist(sdist, expected)
        for package in (wheel, sdist):
            try_out(package, work)
            print(f"{package.name}: installed into a fresh environment, and runs there")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
