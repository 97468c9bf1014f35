"""A copy of the package that a test may change, and commands in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tinyfcn.installation import PARTS

ROOT = Path(__file__).parents[2]


def copy_package(folder: Path) -> Path:
    """The package in `folder`, as it is when installed: cli, exercises and kernels are parts of tinyfcn."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tinyfcn", folder / "tinyfcn", ignore=ignored)
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / "tinyfcn" / name, ignore=ignored)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the copied package, in its folder."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def tinyfcn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line of the copied package."""
    return run(folder, "-m", "tinyfcn", *arguments)
