"""The format in which tests/kernels/test_X.py lists the bugs that can be planted in its kernels.

    PLANTED   kernel or device function -> Planted: a check of that file, and bugs that it must detect
    ZOO       kernel or device function -> bugs that a mode of the emulator must find and report with the line

tests/checks/test_planted_bugs.py and tests/checks/test_bug_zoo.py run them.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tinyfcn.ops import Operations

KERNEL_TESTS = Path(__file__).parents[1] / "kernels"


@dataclass(frozen=True)
class Planted:
    """A check that passes on the correct kernel, and (description, text of the kernel, replacement) for each bug.

    naive: whether the check runs the naive kernels.
    """

    check: Callable[[Operations], None]
    bugs: list[tuple[str, str, str]]
    naive: bool = False


@dataclass(frozen=True)
class Bug:
    """A bug: its description, its edits, the mode that finds it, a part of the message, and the lines in the message.

    changes: texts of the function and their replacements. " ... " in a text matches anything between two texts.
    lines: for each line a text that no other line of the edited file and of common.cuh contains.
    tool: the tool of compute-sanitizer that finds it on a GPU, or None. The tools do not detect races in global memory,
        wrong numbers, elements that are never written and never read, indices of local arrays, or divisions by 0. On an
        H200 they did not report threads that return before a barrier or a ballot for which others wait, or an initial
        value that is stored while others add to it atomically.
    """

    description: str
    changes: dict[str, str]
    mode: str
    message: str
    lines: tuple[str, ...]
    tool: str | None = None


RACE = "a race"
UNWRITTEN = "which no thread has written"
NEVER_WRITTEN = "no kernel wrote element"
OUTSIDE = " elements) at "  # as in "x[64] (x has 64 elements) at"
NAN = "computes a NaN"
ORDER = "depends on the order of threads"
WRONG = "should be"


@cache
def modules() -> dict[str, ModuleType]:
    """The test modules of tests/kernels by operation."""
    found = {}
    for path in sorted(KERNEL_TESTS.glob("test_*.py")):
        name = f"bugs_of_{path.stem}"
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification and specification.loader
        module = sys.modules[name] = importlib.util.module_from_spec(specification)  # dataclasses need it there
        specification.loader.exec_module(module)
        found[path.stem.removeprefix("test_")] = module
    return found


def collected(name: str) -> Mapping[str, Any]:
    """PLANTED or ZOO of all test files, merged."""
    return {kernel: bugs for module in modules().values() for kernel, bugs in getattr(module, name, {}).items()}
