"""The counts of profile mode against those of Nsight Compute on an NVIDIA H200, in docs/measured."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tinyfcn.bench.steps import Task, parts_of
from tinyfcn.checks.profile import Profiled, profile_part, wavefronts
from tinyfcn.devices.emulator.profile import EVERY_BLOCK, LANES, Requests
from tinyfcn.operations import on

MEASURED = Path(__file__).parents[2] / "docs" / "measured"

# NVRTC keeps in registers, joins or narrows what the source asks of shared memory, such as a float4 of which two
# numbers are used. The largest differences of a launch's wavefronts, and of a step's.
OF_A_LAUNCH, OF_THE_STEP = 0.4, 0.03


def accesses() -> list[dict[str, Any]]:
    return json.loads((MEASURED / "h200-shared-memory.json").read_text(encoding="utf-8"))["accesses"]


def test_wavefronts_of_shared_memory_are_those_of_the_gpu() -> None:
    """Vectors, strides, broadcasts and random patterns, some of them with inactive lanes."""
    found = accesses()
    assert len(found) > 150
    for each in found:
        at = [None if index is None else index * each["bytes"] for index in each["index"]]
        kind = "read" if each["access"] == "load" else "write"
        line = Requests("", "", "x", True, kind, each["bytes"], worst_at=[*at, *[None] * (LANES - len(at))])
        assert len(wavefronts(line)) == each["wavefronts"], each


@pytest.fixture(scope="module")
def pairs() -> list[tuple[dict[str, str], Profiled]]:
    """The launches of a step of skip at batch 16: measured, and counted here."""
    parts = parts_of(Task("skip", 16), on("cpu"))
    counted = [each for part in parts for each in profile_part(part, naive=False, sample=EVERY_BLOCK)]
    with open(MEASURED / "h200-step.csv", encoding="utf-8") as file:
        measured = list(csv.DictReader(file))
    waiting: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in measured:
        waiting.setdefault((row["kernel"], row["grid"]), []).append(row)
    found = [(waiting[each.launch.kernel.expression, str(each.launch.grid)].pop(0), each) for each in counted]
    assert len(found) == len(measured) == 39
    return found


@pytest.mark.slow
def test_requests_and_sectors_of_a_step_are_those_of_the_gpu(pairs: list[tuple[dict[str, str], Profiled]]) -> None:
    """NVRTC loads a few numbers twice or not at all."""
    for measured, counted in pairs:
        requests = int(measured["global_load_requests"]) + int(measured["global_store_requests"])
        name = f"{counted.name}: {measured['kernel']}"
        assert counted.sum("requests", shared=False) == pytest.approx(requests, rel=0.02, abs=2), name
        assert counted.totals()["sectors"] == pytest.approx(int(measured["sectors"]), rel=0.005, abs=2), name


@pytest.mark.slow
def test_wavefronts_of_a_step_are_nearly_those_of_the_gpu(pairs: list[tuple[dict[str, str], Profiled]]) -> None:
    for measured, counted in pairs:
        found, expected = counted.totals()["shared_wavefronts"], int(measured["shared_wavefronts"])
        assert found == pytest.approx(expected, rel=OF_A_LAUNCH, abs=3000), f"{counted.name}: {measured['kernel']}"
    on_gpu = sum(int(row["shared_wavefronts"]) for row, _ in pairs)
    here = sum(each.totals()["shared_wavefronts"] for _, each in pairs)
    assert here == pytest.approx(on_gpu, rel=OF_THE_STEP)
