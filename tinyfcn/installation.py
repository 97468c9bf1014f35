"""Is tinyfcn installed, with the packages that it needs? If not, one line says what to run."""

import sys
from importlib.util import find_spec
from pathlib import Path

# The folders of a checkout that are part of the package only when it is installed.
PARTS = ("cli", "exercises", "kernels")
# Module -> the package that pip installs, for all dependencies in pyproject.toml but CuPy's, which have a CPU to fall
# back on.
NEEDED = {
    "numpy": "numpy",
    "click": "click",
    "threadpoolctl": "threadpoolctl",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "platformdirs": "platformdirs",
    "rich": "rich",
    "safetensors": "safetensors",
    "elftools": "pyelftools",
}


def expect_installed() -> None:
    """Raises an ImportError that says what to run, unless the package is complete. `python -m tinyfcn` exits with it.

    Without this, the error would name one missing module, such as tinyfcn.kernels, and no remedy.
    """
    problem = _problem()
    if problem is None:
        return
    if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module to run: the user is at a shell
        sys.exit(problem)
    raise ImportError(problem)


def _problem() -> str | None:
    folder = Path(__file__).resolve().parents[1]
    if any(find_spec(f"tinyfcn.{part}") is None for part in PARTS):
        return f"tinyfcn is not installed: run `pip install -e .` in {folder}"
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        return f"tinyfcn needs packages that are not installed: run `pip install {' '.join(missing)}`"
    return None
