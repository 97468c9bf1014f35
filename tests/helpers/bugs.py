"""How tests/kernels/test_X.py writes down the bugs that can be planted in its kernels.

    PLANTED   kernel or device function -> Planted: a check of that file, and bugs that it must notice
    ZOO       kernel or device function -> bugs that a mode of the emulator must find, with the line named

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
    """A check that passes on the right kernel, and (what is wrong, the kernel's text, the text instead) for each bug.

    naive: the form of the kernels that the check is to run; None where the file has one form.
    """

    check: Callable[[Operations], None]
    bugs: list[tuple[str, str, str]]
    naive: bool = False


@dataclass(frozen=True)
class Bug:
    """What is wrong, how it is written, the mode that finds it, words of its message, and the lines that it names.

    changes: texts of the function, with " ... " for anything between two texts, and their replacements.
    lines: for each line a text that stands on it alone, in the edited file or in common.cuh.
    tool: the tool of compute-sanitizer that finds it on a GPU. None where none can: they see no race in global memory,
        no wrong number, nothing that is never written and never read, no index of a local array, no division by 0.
    """

    what: str
    changes: dict[str, str]
    mode: str
    says: str
    lines: tuple[str, ...]
    tool: str | None = None


RACE = "a race"
UNWRITTEN = "which no thread has written"
NOBODY = "no kernel wrote element"
OUTSIDE = " elements) at "  # x[64] (x has 64 elements) at
NAN = "computes a NaN"
ORDER = "depends on the order of threads"
WRONG = "should be"


@cache
def modules() -> dict[str, ModuleType]:
    """The test files of tests/kernels by operation."""
    found = {}
    for path in sorted(KERNEL_TESTS.glob("test_*.py")):
        name = f"bugs_of_{path.stem}"
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification and specification.loader
        module = sys.modules[name] = importlib.util.module_from_spec(specification)  # dataclasses look it up
        specification.loader.exec_module(module)
        found[path.stem.removeprefix("test_")] = module
    return found


def collected(name: str) -> Mapping[str, Any]:
    """PLANTED or ZOO of all test files in one."""
    return {kernel: bugs for module in modules().values() for kernel, bugs in getattr(module, name, {}).items()}
