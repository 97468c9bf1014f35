"""What the pages say of the files: the table of operations, links, and paths in commands."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
EXAMPLE = "leaky_relu"  # the operation that CONTRIBUTING.md adds
COMMAND_PATH = re.compile(r"(?:pytest|python) ((?:tests|scripts)/\S+?)(?:::\S+)?(?=[`\s])")


@pytest.fixture
def operations_table() -> ModuleType:
    """scripts/operations_table.py as a module."""
    specification = importlib.util.spec_from_file_location("operations_table", ROOT / "scripts" / "operations_table.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def check(operations_table: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Runs the script."""
    monkeypatch.setattr(sys, "argv", ["operations_table.py", *arguments])
    operations_table.main()


def test_the_table_of_operations_is_that_of_the_files(
    operations_table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(operations_table, monkeypatch, "--check")


def test_a_file_that_the_table_lacks_fails_the_check_until_the_table_is_written(
    operations_table: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "relu.cu").write_text("// The rectified linear unit, forward and backward.\n")
    page = tmp_path / "operations.md"
    page.write_text(f"before\n{operations_table.BEGIN}\n{operations_table.END}\nafter\n")
    monkeypatch.setattr(operations_table, "ROOT", tmp_path)
    monkeypatch.setattr(operations_table, "PAGE", page)
    with pytest.raises(SystemExit, match=r"run python scripts/operations_table\.py"):
        check(operations_table, monkeypatch, "--check")
    check(operations_table, monkeypatch)
    check(operations_table, monkeypatch, "--check")
    assert "| The rectified linear unit | [relu.cu](../kernels/relu.cu) |  |" in page.read_text()
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")


def test_a_page_without_markers_is_told_what_to_add(
    operations_table: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "operations.md"
    page.write_text("no markers\n")
    monkeypatch.setattr(operations_table, "PAGE", page)
    with pytest.raises(SystemExit, match="put <!-- operations --> and <!-- /operations --> there"):
        check(operations_table, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_in_commands_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [page.parent / link for link in LINK.findall(text) if "://" not in link]
    targets += [ROOT / path for path in COMMAND_PATH.findall(text) if EXAMPLE not in path]
    assert not [str(target) for target in targets if not target.exists()]
