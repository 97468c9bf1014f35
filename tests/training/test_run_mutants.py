"""Damaged run folders are refused in one line that names the file, or read; see helpers/run_mutants.py."""

from pathlib import Path

import pytest
from helpers.run_mutants import mutants, outcome, whole_runs
from helpers.tiny_digits import write_tiny_digits

MUTANTS = 150  # of each of two runs


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A classifier's run and an FCN's."""
    monkeypatch.setattr("tinyfcn.training.sources.TEST_COUNT", 2)
    (tmp_path / "data").mkdir()
    return whole_runs(write_tiny_digits(tmp_path / "data"), tmp_path)


@pytest.mark.slow
def test_a_damaged_run_is_refused_in_one_line(runs: list[Path], tmp_path: Path) -> None:
    assert [outcome(run) for run in runs] == ["read", "read"]
    for seed, run in enumerate(runs):
        folder = tmp_path / f"mutant-{seed}"
        folder.mkdir()
        verdicts = [
            (outcome(folder), fault) for _, fault in zip(range(MUTANTS), mutants(run, folder, seed), strict=False)
        ]
        assert [verdict for verdict in verdicts if verdict[0] not in ("read", "refused")] == []
        assert sum(verdict == "refused" for verdict, _ in verdicts) > MUTANTS / 2
