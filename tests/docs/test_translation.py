"""The Chinese edition says what the English one does: the same commands and outputs, which test_commands.py runs."""

import re
from pathlib import Path

import pytest
from helpers.package_copy import ROOT
from helpers.pages import blocks

TOUR = sorted((ROOT / "docs" / "tour").glob("*.md"))
PAIRS = [(page, page.parent / "zh-CN" / page.name) for page in TOUR] + [(ROOT / "README.md", ROOT / "README.zh-CN.md")]
each_pair = pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda page: page.name)


def test_every_page_has_its_twin() -> None:
    assert len(TOUR) > 10 and {page.name for page in TOUR} == {
        page.name for page in (ROOT / "docs" / "tour" / "zh-CN").glob("*.md")
    }


@each_pair
def test_the_blocks_are_the_same(english: Path, chinese: Path) -> None:
    """A block `text` may have other words, but as many lines and the same numbers."""
    for a, b in zip(blocks(english), blocks(chinese), strict=True):
        assert (a.kind, a.about) == (b.kind, b.about)
        if a.kind == "text":
            assert re.findall(r"\d+", a.text) == re.findall(r"\d+", b.text)
        else:
            assert a.text == b.text, f"{chinese.name}:{b.line}"


@each_pair
def test_headings_tables_and_links_correspond(english: Path, chinese: Path) -> None:
    def outline(page: Path) -> tuple[list[str], list[int], int]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        links = re.findall(r"\]\(([^)#]+)\)", text)
        targets = [target if "://" in target else Path(target).name for target in links]
        twins = {page.name, "README.md", "README.zh-CN.md"}
        headings = re.findall(r"^#+", text, re.MULTILINE)
        rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        return headings, rows, len([target for target in targets if target not in twins])

    assert outline(english) == outline(chinese)
