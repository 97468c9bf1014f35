"""The five files of an operation. Existing files are found by name, and missing ones are listed."""

import importlib
from pathlib import Path
from types import ModuleType

from tinyfcn import checks, ops, reference
from tinyfcn.devices import kernel_source
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

# The three exceptions: a file that the operation does not need, or that it is not a method of Operations.
LACKS = {
    "conv2d_pool": "kernels/{}.cu",  # its kernel is fast_conv_forward
    "fast_conv": "tinyfcn/reference/{}.py",  # conv2d and conv_transpose2d have references, which share im2col.py
}
NOT_EXPORTED = ("fast_conv", "peak")  # other operations launch fast_conv, `tinyfcn bench` launches peak


def operations() -> list[str]:
    """Everything that has kernels or cases, sorted: "adam", "add", "conv2d", ..."""
    folder, _ = PIECES["tinyfcn/checks/cases/{}.py"]
    cases = {path.stem for path in folder.glob("*.py") if path.stem != "__init__"}
    return sorted({*kernel_source.operations(), *cases, *operation_names().values()})


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


def is_begun(operation: str) -> bool:
    """Whether any piece of the operation is there."""
    return len(missing(operation)) <= len(PIECES)


def cases_of(operation: str) -> ModuleType:
    """The operation's module of cases.

    Raises:
        KernelError: some of its files are missing, and the message lists them; or there is no such operation. The tests
            may come last.
    """
    lines = missing(operation)
    if not is_begun(operation):
        raise KernelError(f"no operation named {operation}; there are {', '.join(operations())}")
    if any(not line.startswith("tests/") for line in lines):
        raise KernelError(f"{operation} is incomplete; {still_missing(lines)}")
    return importlib.import_module(f"tinyfcn.checks.cases.{operation}")


def still_missing(lines: list[str]) -> str:
    """The lines of `missing` as part of a message."""
    return "\n    ".join(["still missing:", *lines])
