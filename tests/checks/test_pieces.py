"""Tests that every operation has all its files and one signature, and that missing files are reported."""

import importlib
import inspect
import re
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
    """Compares names, order, kinds and defaults of all parameters, and the types of those that are not arrays."""
    method = getattr(tinyfcn.Operations, name)
    assert isinstance(method, FunctionType) and method.__module__ == f"tinyfcn.ops.{module}", (
        "must be found by an editor"
    )
    reference = getattr(importlib.import_module(f"tinyfcn.reference.{module}"), name)
    assert getattr(ReferenceOperations, name).function is reference
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
def test_every_operation_documents_what_it_does_and_raises(name: str, module: str) -> None:
    method = getattr(tinyfcn.Operations, name)
    doc = inspect.getdoc(method) or ""
    assert doc, f"{name} has no docstring"
    assert "Raises:" in doc, f"{name} does not document what it raises"


def test_nothing_is_missing() -> None:
    assert {*kernel_source.operations()} | {*operation_names().values()} == {*operations()}
    for operation in operations():
        assert not missing(operation), operation
        assert callable(cases_of(operation).gradcheck_cases) and callable(cases_of(operation).sanitize_cases)


def test_the_exceptions_are_few_and_each_is_needed() -> None:
    assert {*LACKS, *NOT_EXPORTED} == {"conv2d_pool", "fast_conv", "peak"}
    for operation, piece in LACKS.items():
        folder, _ = PIECES[piece]
        assert not (folder / piece.rpartition("/")[2].format(operation)).exists(), f"{operation} needs no exception"
    assert not {*NOT_EXPORTED} & {*operation_names().values()}


def test_missing_files_of_a_new_operation_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file that is written disappears from the list."""
    folders = {}
    for piece, (folder, content) in PIECES.items():
        copy = tmp_path / piece.rpartition("/")[0]
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        folders[piece] = copy, content
    monkeypatch.setattr(pieces, "PIECES", folders)
    with pytest.raises(
        KernelError, match="no operation named 'leaky_relu'; there are adam, add, compose_m2nist,"
    ) as first:
        cases_of("leaky_relu")
    assert [line.strip() for line in str(first.value).splitlines()[1:]] == [
        "a new operation needs",
        *missing("leaky_relu"),
    ]
    still_missing = [*folders]
    for piece in [*still_missing]:
        (folders[piece][0] / piece.rpartition("/")[2].format("leaky_relu")).touch()
        still_missing.remove(piece)
        assert "leaky_relu" in operations()
        with pytest.raises(KernelError) as caught:
            cases_of("leaky_relu")
        first, *lines = str(caught.value).split("\n    ")
        assert first == "leaky_relu is incomplete; still missing:"
        assert [line.partition(": ")[0] for line in lines] == [each.format("leaky_relu") for each in still_missing] + [
            "tinyfcn/ops/__init__.py"
        ]
        assert all(line.partition(": ")[2] for line in lines)
    assert lines == [EXPORT]


def test_a_missing_reference_is_reported() -> None:
    with pytest.raises(KernelError, match=r"leaky_relu has no reference: write it in tinyfcn/reference/relu\.py"):
        reference_function("leaky_relu", "relu")(1, stride=2)
    with pytest.raises(KernelError, match=r"write it in tinyfcn/reference/leaky_relu\.py, in NumPy"):
        reference_function("leaky_relu", "leaky_relu")()


@pytest.mark.parametrize(("name", "message"), [("convd", "did you mean conv2d"), ("../../x", "there are adam, add")])
def test_a_name_of_no_operation_is_unknown_in_an_installed_package_too(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has no folder of tests."""
    tests = "tests/kernels/test_{}.py"
    monkeypatch.setitem(PIECES, tests, (tmp_path / "nowhere", PIECES[tests][1]))
    with pytest.raises(KernelError, match=f"no operation named '{re.escape(name)}'; {message}"):
        cases_of(name)


def test_a_file_that_nothing_else_knows_of_is_an_operation_to_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, content = PIECES["tinyfcn/ops/{}.py"]
    shutil.copytree(folder, tmp_path / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ops" / "lonely.py").touch()
    (tmp_path / "ops" / "._hidden.py").touch()
    monkeypatch.setitem(PIECES, "tinyfcn/ops/{}.py", (tmp_path / "ops", content))
    assert "lonely" in operations() and len(missing("lonely")) == len(PIECES)
    assert not any("hidden" in operation for operation in operations())


def test_a_reference_that_cannot_be_imported_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise ModuleNotFoundError("No module named 'nosuchmodule'", name="nosuchmodule")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="nosuchmodule"):
        reference_function("add", "add")
