"""The messages that README.md and docs/emulator.md quote are those of today's kernels: each bug is planted again."""

from pathlib import Path

import pytest
from helpers.bugs import collected
from helpers.package_copy import ROOT
from helpers.planting import operation_of, plant, run_cases

from tinyfcn.checks import gradcheck, sanitize
from tinyfcn.devices.emulator import Emulator
from tinyfcn.ops import Operations

pytestmark = pytest.mark.slow

ZOO = collected("ZOO")
QUOTED = [  # kernel or function, number of its bug in ZOO, page
    ("block_sum", 0, "README.md"),
    ("block_sum", 0, "docs/emulator.md"),
    ("block_sum", 1, "docs/emulator.md"),
    ("block_sum", 2, "docs/emulator.md"),
    ("block_sum", 5, "docs/emulator.md"),
    ("relu_forward", 0, "docs/emulator.md"),
    ("relu_forward", 1, "docs/emulator.md"),
    ("softmax", 0, "docs/emulator.md"),
    ("conv2d_forward_naive", 1, "docs/emulator.md"),
]


def messages(name: str, mode: str, kernels: Path) -> list[str]:
    """The messages of a mode on the kernels of a folder."""
    operation = operation_of(name)
    if mode == "trap":
        return [run_cases(operation, Emulator(kernels))]
    if mode in ("check", "order"):
        return [finding.text for finding in sanitize.check(operation, range(8), kernels).findings.values()]
    verdicts = gradcheck.check_all(operation, Operations(Emulator(kernels, precision="double")))
    return [f"{verdict.operation} {verdict.detail}: {verdict.where}" for verdict in verdicts if verdict.where]


@pytest.mark.parametrize(("name", "number", "page"), QUOTED, ids=lambda value: str(value))
def test_a_quoted_message_is_what_the_bug_gives(name: str, number: int, page: str, tmp_path: Path) -> None:
    bug = ZOO[name][number]
    found = messages(name, bug.mode, plant(name, bug.changes, tmp_path / "kernels"))
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert any(message and message in text for message in found), found
