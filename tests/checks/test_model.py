"""The model of a launch's time against what was measured on an H200."""

import csv
import json
import re
from math import prod
from pathlib import Path

import numpy as np
import pytest

from tinyfcn.checks import model
from tinyfcn.checks.model import Counts, Prediction, counts_of, predict, predict_step, step_seconds
from tinyfcn.checks.profile import Profiled, profile_part
from tinyfcn.devices.cards import CARDS
from tinyfcn.devices.device import MULTIPROCESSORS
from tinyfcn.devices.emulator.profile import LANES, SAMPLE
from tinyfcn.devices.launch import ceil_div
from tinyfcn.operations import on
from tinyfcn.training.step import Task, launches_of_step, parts_of

MEASURED = Path(__file__).parents[2] / "docs" / "measured" / "h200-step.csv"
STEP_MICROSECONDS = 161.5  # of skip at batch 16, as a graph: docs/speed.md
SKIP = Task("skip", 16)


@pytest.fixture(scope="module")
def profiled() -> list[Profiled]:
    """The launches of a step."""
    return [each for part in parts_of(SKIP, on("cpu")) for each in profile_part(part, naive=False, sample=SAMPLE)]


def test_a_launch_takes_about_as_long_as_the_model_says() -> None:
    """The launches that it was fitted to, from what was counted of them then."""
    with open(MEASURED, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39
    errors, sums = [], np.zeros(2)
    for row in rows:
        blocks, threads = (prod(json.loads(f"[{row[name][1:-1]}]")) for name in ("grid", "block"))
        given = {name.removeprefix("counted_"): float(row[name]) for name in row if name.startswith("counted_")}
        del given["sectors"]
        counts = Counts(blocks, blocks * ceil_div(threads, LANES), **given)
        pair = np.array([1e6 * predict(counts, CARDS["h200"]).seconds, float(row["microseconds"])])
        errors.append(pair[0] / pair[1] - 1)
        sums += pair
    assert np.sqrt(np.mean(np.square(errors))) < 0.22
    assert max(np.abs(errors)) < 0.5
    assert sums[0] == pytest.approx(sums[1], rel=0.06)


@pytest.mark.slow
def test_a_step_takes_as_long_as_its_longest_chain(profiled: list[Profiled]) -> None:
    same = {name: card for name, card in CARDS.items() if card.multiprocessors == MULTIPROCESSORS}
    seconds = {name: step_seconds(launches_of_step(SKIP), profiled, card) for name, card in same.items()}
    assert 1e6 * seconds["h200"] == pytest.approx(STEP_MICROSECONDS, rel=0.15)
    page = (MEASURED.parents[1] / "speed.md").read_text(encoding="utf-8")
    for name, card in same.items():
        row = re.search(rf"\n\| {re.escape(card.name)} \| (\d+) µs \|", page)
        assert row and int(row[1]) == pytest.approx(1e6 * seconds[name], abs=1), name
    assert seconds["h200"] == seconds["h100"]
    of_launches = sum(predict(counts_of(each), CARDS["h200"]).seconds for each in profiled)
    assert seconds["h200"] < 0.7 * of_launches  # what runs beside the chain takes no time of its own


@pytest.mark.slow
def test_each_part_and_the_step_are_predicted() -> None:
    """As the page says of the card with the fewest multiprocessors, for which other tiles are chosen."""
    card = CARDS["rtx4060-laptop"]
    of_parts, of_step = predict_step(
        parts_of(SKIP, on("cpu"), card.multiprocessors), launches_of_step(SKIP, card.multiprocessors), card
    )
    assert len(of_parts) == len(parts_of(SKIP, on("cpu")))
    assert max(of_parts) < of_step < sum(of_parts)
    page = (MEASURED.parents[1] / "speed.md").read_text(encoding="utf-8")
    row = re.search(rf"\n\| {re.escape(card.name)} \| (\d+) µs \|", page)
    assert row and int(row[1]) == pytest.approx(1e6 * of_step, abs=1)


def test_the_longest_term_is_named() -> None:
    assert Prediction(1e-6, 5e-6, 2e-6, 1e-6).bound == "shared"
    assert Prediction(1e-6, 5e-6, 2e-6, 1e-6).seconds == pytest.approx(model.START + 6e-6)
    assert Prediction(0, 0, 0, 0).bound == "start"
    assert Prediction(0, 0, 0, 9e-6).bound == "waiting"


def test_every_card_has_the_clock_of_a_gpu() -> None:
    assert all(1.3e9 < card.clock < 2.6e9 for card in CARDS.values())
