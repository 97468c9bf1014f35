"""The notebook runs from top to bottom, in short, and brings nothing that a free GPU service would have to replace."""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from helpers.package_copy import ROOT
from helpers.pages import write_program

NOTEBOOK = ROOT / "notebooks" / "tinyfcn.ipynb"
# What Google Colab had installed, read on 2026-08-19.
COLAB = {
    "cupy-cuda12x": "14.0.1",
    "numpy": "2.1",
    "click": "8.4",
    "rich": "13.9",
    "matplotlib": "3.10",
    "pillow": "11.3",
    "platformdirs": "4.11",
    "safetensors": "0.8",
    "threadpoolctl": "3.6",
}
SHORT = {"train-cnn": "--dataset builtin --epochs 1", "train-fcn": "--dataset builtin --steps 2 --evaluations 1"}


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_stores_no_outputs() -> None:
    nbformat.validate(read())
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def shortened(source: str) -> str:
    """The source of a cell as the test runs it: trainings in short, and a command that fails fails the cell."""
    for command, options in SHORT.items():
        source = re.sub(rf"^!tinyfcn {command}$", f"!tinyfcn {command} {options}", source, flags=re.MULTILINE)
    return re.sub(r"^(!.*)$", r"\1\nassert _exit_code == 0", source, flags=re.MULTILINE)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    write_program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = shortened(cell.source)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("digit_miou" in text for text in printed) and (tmp_path / "runs/fcn-1/result.json").exists()


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_colab_s_packages_are_new_enough() -> None:
    """pip then replaces none of them, which takes seconds instead of minutes, and no restart."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = dict(re.match(r"([\w-]+)[^>]*>=([\d.]+)", each).groups() for each in project["dependencies"])
    assert {*COLAB} <= {*wanted}, "a package of this list is not needed any more"
    for name, installed in COLAB.items():
        assert version(wanted[name]) <= version(installed), f"{name}: Colab has {installed}"
