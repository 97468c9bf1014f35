"""Runs a short form of scripts/kill_campaign.py: a killed command loses nothing, and leaves nothing half-written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_campaign.py"
KILLS = 6


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing() -> None:
    process = subprocess.run([sys.executable, SCRIPT, "--kills", str(KILLS)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    kills = re.search(r"^(\d+) kills, 0 wrong$", process.stdout, re.MULTILINE)
    assert kills and int(kills[1]) >= KILLS
