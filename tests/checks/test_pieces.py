"""The files of an operation: one interface, the same signatures everywhere, and what is missing is named."""

import importlib
import inspect
import shutil
from pathlib import Path
from types import FunctionType

import pytest

import tinyfcn
from tinyfcn.checks import pieces
from tinyfcn.checks.pieces import EXPORT, LACKS, NOT_EXPORTED, PIECES, cases_of, missing, operations
from tinyfcn.devices import kernel_source
from tinyfcn.errors import KernelError
from tinyfcn.operations import ReferenceOperations, operation_names, reference_function

each_operation = pytest.mark.parametrize(("name", "module"), operation_names().items())


@each_operation
def test_interface_launcher_and_reference_have_one_signature(name: str, module: str) -> None:
    """Names, order, kinds and defaults of all parameters; their types where these are not arrays."""
    method = getattr(tinyfcn.Operations, name)
    assert isinstance(method, FunctionType) and method.__module__ == f"tinyfcn.ops.{module}", "an editor finds it"
    reference = getattr(importlib.import_module(f"tinyfcn.reference.{module}"), name)
    assert getattr(ReferenceOperations, name) is reference
    ours = list(inspect.signature(method).parameters.values())[1:]
    theirs = list(inspect.signature(reference).parameters.values())
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]
    for p, q in zip(ours, theirs, strict=True):
        assert p.annotation is not p.empty and q.annotation is not q.empty, f"{name}: {p.name} has no type"
        if p.annotation in (int, float, bool, str, int | None):
            assert p.annotation == q.annotation, f"{name}: {p.name}"
    for function in (method, reference):
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@each_operation
def test_every_operation_says_what_it_does_and_what_it_raises(name: str, module: str) -> None:
    method = getattr(tinyfcn.Operations, name)
    doc = inspect.getdoc(method) or ""
    assert doc, f"{name} has no docstring"
    raises = "expect_" in inspect.getsource(method) or "raise " in inspect.getsource(method)
    assert ("Raises:" in doc) or not raises, f"{name} does not say what it raises"


def test_nothing_is_missing() -> None:
    assert {*kernel_source.operations()} | {*operation_names().values()} == {*operations()}
    for operation in operations():
        assert not missing(operation), operation
        assert callable(cases_of(operation).gradcheck_cases) and callable(cases_of(operation).sanitize_cases)


def test_the_exceptions_are_three_and_needed() -> None:
    assert {*LACKS, *NOT_EXPORTED} == {"conv2d_pool", "fast_conv", "peak"}
    for operation, piece in LACKS.items():
        folder, _ = PIECES[piece]
        assert not (folder / piece.rpartition("/")[2].format(operation)).exists(), f"{operation} needs no exception"
    assert not {*NOT_EXPORTED} & {*operation_names().values()}


def test_whoever_adds_an_operation_is_told_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Piece by piece: each one that is written is no longer asked for."""
    folders = {}
    for piece, (folder, content) in PIECES.items():
        copy = tmp_path / piece.rpartition("/")[0]
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        folders[piece] = copy, content
    monkeypatch.setattr(pieces, "PIECES", folders)
    with pytest.raises(KernelError, match="no operation named leaky_relu; there are adam, add, compose_m2nist,"):
        cases_of("leaky_relu")
    left = [*folders]
    for piece in [*left]:
        (folders[piece][0] / piece.rpartition("/")[2].format("leaky_relu")).touch()
        left.remove(piece)
        with pytest.raises(KernelError) as caught:
            cases_of("leaky_relu")
        first, *lines = str(caught.value).split("\n    ")
        assert first == "leaky_relu is incomplete; still missing:"
        assert [line.partition(": ")[0] for line in lines] == [each.format("leaky_relu") for each in left] + [
            "tinyfcn/ops/__init__.py"
        ]
        assert all(line.partition(": ")[2] for line in lines)
    assert lines == [EXPORT]


def test_an_operation_without_a_reference_says_so() -> None:
    with pytest.raises(KernelError, match=r"leaky_relu has no reference: write it in tinyfcn/reference/relu\.py"):
        reference_function("leaky_relu", "relu")(1, stride=2)
    with pytest.raises(KernelError, match=r"write it in tinyfcn/reference/leaky_relu\.py, in NumPy"):
        reference_function("leaky_relu", "leaky_relu")()
