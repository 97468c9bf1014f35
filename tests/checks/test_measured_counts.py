"""The counts of profile mode against those of Nsight Compute on an NVIDIA H200, in docs/measured."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tinyfcn.checks.profile import profile_part, wavefronts
from tinyfcn.devices.emulator.profile import EVERY_BLOCK, LANES, Requests
from tinyfcn.operations import on
from tinyfcn.training.step import Task, parts_of

MEASURED = Path(__file__).parents[2] / "docs" / "measured"

# NVRTC keeps in registers, joins or narrows what the source asks of shared memory, such as a float4 of which two
# numbers are used. The largest differences of a launch's wavefronts, and of a step's.
OF_A_LAUNCH, OF_THE_STEP = 0.4, 0.03
UNCHANGED = ("adam_schedule", "adam_step", "compose_m2nist")  # kernels that are as they were when they were measured


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


def launches() -> list[dict[str, str]]:
    """The launches of a step of skip at batch 16: what Nsight Compute counted, and what profile mode did then."""
    with open(MEASURED / "h200-step.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_requests_and_sectors_of_a_step_were_those_of_the_gpu() -> None:
    """NVRTC loads a few numbers twice or not at all."""
    assert len(launches()) == 39
    for row in launches():
        requests = int(row["global_load_requests"]) + int(row["global_store_requests"])
        assert int(row["counted_global_requests"]) == pytest.approx(requests, rel=0.02, abs=2), row["kernel"]
        assert int(row["counted_sectors"]) == pytest.approx(int(row["sectors"]), rel=0.005, abs=2), row["kernel"]


def test_wavefronts_of_a_step_were_nearly_those_of_the_gpu() -> None:
    found, expected = (
        [int(row[name]) for row in launches()] for name in ("counted_shared_wavefronts", "shared_wavefronts")
    )
    for here, on_gpu, row in zip(found, expected, launches(), strict=True):
        assert here == pytest.approx(on_gpu, rel=OF_A_LAUNCH, abs=3000), row["kernel"]
    assert sum(found) == pytest.approx(sum(expected), rel=OF_THE_STEP)


def test_what_is_counted_today_is_what_was_counted_then() -> None:
    """Of the kernels that have not changed since."""
    parts = [part for part in parts_of(Task("skip", 16), on("cpu")) if part.operation in UNCHANGED]
    found = {each.launch.kernel.name: each for part in parts for each in profile_part(part, False, EVERY_BLOCK)}
    assert {*found} == {*UNCHANGED}
    for row in launches():
        if row["kernel"] in UNCHANGED:
            counted = found[row["kernel"]]
            assert counted.sum("requests", shared=False) == int(row["counted_global_requests"]), row["kernel"]
            assert counted.totals()["sectors"] == int(row["counted_sectors"]), row["kernel"]
