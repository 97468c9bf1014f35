"""The five files of an operation: what is there is found by name, and what is missing is named."""

import importlib
from pathlib import Path
from types import ModuleType

from tinyfcn import checks, ops, reference
from tinyfcn.devices import kernel_source
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import KernelError
from tinyfcn.operations import operation_names

TESTS = KERNELS.parent / "tests" / "kernels"  # in a checkout; an installed package has no tests

# Where an operation's files lie, and what belongs in each.
PIECES: dict[str, tuple[Path, str]] = {
    "kernels/{}.cu": (KERNELS, "the kernels, forward and backward, under a header such as kernels/relu.cu has"),
    "tinyfcn/ops/{}.py": (
        Path(*ops.__path__),
        "a class whose methods check shapes, allocate outputs and launch the kernels",
    ),
    "tinyfcn/reference/{}.py": (Path(*reference.__path__), "the same names and signatures as functions in NumPy"),
    "tinyfcn/checks/cases/{}.py": (
        Path(*checks.__path__) / "cases",
        "gradcheck_cases(random) and sanitize_cases(random): the inputs that the kernels are run on",
    ),
    "tests/kernels/test_{}.py": (TESTS, "tests against the reference, and bugs to plant: PLANTED and ZOO"),
}
EXPORT = "tinyfcn/ops/__init__.py: an import of its class, and the class as a base of Operations"

# The three that are told apart: a file each lacks, or that they are not methods of Operations, and why.
LACKS = {
    "conv2d_pool": "kernels/{}.cu",  # the epilogue of fast_conv.cu pools
    "fast_conv": "tinyfcn/reference/{}.py",  # conv2d's and conv_transpose2d's, which share reference/im2col.py
}
NOT_EXPORTED = ("fast_conv", "peak")  # other operations launch the one; `tinyfcn bench` launches the other


def operations() -> list[str]:
    """Everything that has kernels or cases, sorted: "adam", "add", "conv2d", ..."""
    folder, _ = PIECES["tinyfcn/checks/cases/{}.py"]
    cases = {path.stem for path in folder.glob("*.py") if path.stem != "__init__"}
    return sorted({*kernel_source.operations(), *cases, *operation_names().values()})


def missing(operation: str) -> list[str]:
    """What an operation lacks, a line each: the file to write and what belongs in it."""
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
        KernelError: some of its files are missing, with each one's name; or there is no such operation. The tests may
            come last.
    """
    lines = missing(operation)
    if not is_begun(operation):
        raise KernelError(f"no operation named {operation}; there are {', '.join(operations())}")
    if any(not line.startswith("tests/") for line in lines):
        raise KernelError(f"{operation} is not complete; {to_be_written(lines)}")
    return importlib.import_module(f"tinyfcn.checks.cases.{operation}")


def to_be_written(lines: list[str]) -> str:
    """The lines of `missing` in words."""
    return "\n    ".join(["still to be written:", *lines])
