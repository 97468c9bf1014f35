"""The five files of an operation. Existing files are found by name, and missing ones are listed."""

import importlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from tinyfcn import checks, files, ops, reference
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import KernelError
from tinyfcn.operations import operation_names

TESTS = KERNELS.parent / "tests" / "kernels"  # in a checkout; an installed package has no tests

# For each file of an operation: its folder, and its contents.
PIECES: dict[str, tuple[Path, str]] = {
    "kernels/{}.cu": (KERNELS, "the kernels, forward and backward, with a header as in kernels/relu.cu"),
    "tinyfcn/ops/{}.py": (
        Path(*ops.__path__),
        "a class whose methods check shapes, allocate outputs and launch the kernels",
    ),
    "tinyfcn/reference/{}.py": (Path(*reference.__path__), "the same names and signatures as functions in NumPy"),
    "tinyfcn/checks/cases/{}.py": (
        Path(*checks.__path__) / "cases",
        "gradcheck_cases(random) and sanitize_cases(random): the inputs on which the kernels run",
    ),
    "tests/kernels/test_{}.py": (TESTS, "tests against the reference, and bugs to plant: PLANTED and ZOO"),
}
EXPORT = "tinyfcn/ops/__init__.py: an import of its class, and the class as a base of Operations"

# The exceptions. LACKS: the file that an operation does not have. NOT_EXPORTED: not methods of Operations.
LACKS = {
    "conv2d_pool": "kernels/{}.cu",  # its kernel is fast_conv_forward
    "fast_conv": "tinyfcn/reference/{}.py",  # conv2d and conv_transpose2d have references, which share im2col.py
}
NOT_EXPORTED = ("fast_conv", "peak")  # other operations launch fast_conv, `tinyfcn bench` launches peak
# The operations whose launchers launch the kernels of another one, and choose the instances of its templates.
LAUNCHERS = {
    "fast_conv": ["conv2d", "conv2d_pool", "conv_transpose2d", "linear_cross_entropy"],
    "softmax_cross_entropy": ["linear_cross_entropy"],
}
# Files in these folders that belong to no single operation.
SHARED = {"__init__", "checks", "common", "im2col", "launcher", "nvrtc", "philox", "tiles"}


def operations() -> list[str]:
    """Everything of which a file exists, sorted: "adam", "add", "conv2d", ..."""
    found = set(operation_names().values())
    for piece, (folder, _) in PIECES.items():
        before, after = piece.rpartition("/")[2].split("{}")
        found |= {path.name[len(before) : -len(after)] for path in files.visible(folder, f"{before}*{after}")}
    return sorted(found - SHARED)


def affected(name: str) -> list[str]:
    """The operations that an edit can change, if it is in the files of an operation or in a file that they share."""
    return operations() if name in SHARED else [name, *LAUNCHERS.get(name, [])]


def missing(operation: str) -> list[str]:
    """One line for each missing file of an operation: its path and its contents."""
    lines = [
        f"{piece.format(operation)}: {content}"
        for piece, (folder, content) in PIECES.items()
        if LACKS.get(operation) != piece
        and folder.is_dir()
        and not (folder / piece.rpartition("/")[2].format(operation)).exists()
    ]
    return lines if operation in (*operation_names().values(), *NOT_EXPORTED) else [*lines, EXPORT]


def cases_of(operation: str) -> ModuleType:
    """The operation's module of cases.

    Raises:
        KernelError: some of its files are missing, and the message lists them; or there is no such operation. The tests
            may come last.
    """
    lines = missing(operation)
    if operation not in operations():
        raise KernelError(unknown(operation))
    if any(not line.startswith("tests/") for line in lines):
        raise KernelError(f"{operation} is incomplete; {still_missing(lines)}")
    return importlib.import_module(f"tinyfcn.checks.cases.{operation}")


def still_missing(lines: list[str]) -> str:
    """The lines of `missing` as part of a message."""
    return "\n    ".join(["still missing:", *lines])


def unknown(name: str, kernels: Sequence[str] = ()) -> str:
    """The message for a name that no operation (and none of the kernels) has: similar names, and how to add it."""
    close = get_close_matches(name, [*operations(), *kernels], n=3)
    text = f"no operation{' or kernel' * bool(kernels)} named {name!r}; "
    text += f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(operations())}"
    if not name.isidentifier():
        return text
    return "\n    ".join([text, "a new operation needs", *missing(name)])
