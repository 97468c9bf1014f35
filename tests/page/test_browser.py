"""The page in headless Chromium, driven by mouse, finger and keys (browser.mjs), against Python."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from helpers.page import CPU, array, as_input, assert_same_maps, chromium, random_model, run_node
from PIL import Image, ImageDraw

from tinyfcn.model import Model
from tinyfcn.study.layers import boxes, record
from tinyfcn.study.page import DIGIT, page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ANSWER, INK = 100, 16  # milliseconds: of the whole answer, median; of the ink, median
RADIUS = 1.25  # pixels, of the medium pen
# The strokes of browser.mjs: a seven, and a one.
STROKES = [[((12, 18), (12, 36)), ((12, 36), (36, 28))], [((22, 60), (44, 60))]]
KERNELS, STRIDES = range(2, 8), range(1, 5)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """The networks of the pages: untrained, so that every layer answers to everything."""
    return {
        "skip": random_model("skip"),
        "early": random_model("early", reduce="last", article_skip=True),
        "binary": random_model("skip", labels="binary"),
        "classifier": random_model("classifier"),
    }


@pytest.fixture(scope="module")
def found(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What browser.mjs finds, all in one run of Chromium."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {"skip": ["skip"], "compare": ["early", "skip"], "binary": ["binary"], "classifier": ["classifier"]}
    pages = {}
    for name, names in runs.items():
        pages[name] = str(folder / f"{name}.html")
        Path(pages[name]).write_bytes(page({each: models[each] for each in names}))
    job = {"pages": pages, "browser": chromium(), "images": {path.name: str(path) for path in images(folder)}}
    return run_node("browser.mjs", job, folder, timeout=600)


def images(folder: Path) -> Iterator[Path]:
    """A dark ring on white paper, larger than the canvas; the same in white on black, transparent; and a text."""
    paper = Image.new("RGB", (840, 640), "#f4f1e8")
    ImageDraw.Draw(paper).ellipse((300, 200, 500, 440), outline="#1b2a4a", width=40)
    paper.save(folder / "paper.png")
    ring = Image.new("RGBA", (84, 64), "#00000000")
    ImageDraw.Draw(ring).ellipse((30, 20, 50, 44), outline="#000000ff", width=4)
    ring.save(folder / "transparent.png")
    (folder / "notes.txt").write_text("no image")
    return iter([folder / "paper.png", folder / "transparent.png", folder / "notes.txt"])


def scenario(found: dict[str, Any], name: str) -> Any:
    """What one scenario found; fails with its error where it failed."""
    assert "failed" not in found[name], found[name]["failed"]
    return found[name]


def drawing(state: dict[str, Any]) -> np.ndarray:
    """The bytes on the canvas."""
    return array(state["drawing"], "u1").reshape(state["size"])


Segment = tuple[tuple[int, int], tuple[int, int]]  # from and to, each (row, column)


def staircase(stroke: list[Segment]) -> list[Segment]:
    """The steps by which keys draw the segments: a column, a row, a column, ..."""
    steps: list[Segment] = []
    for (row, column), (to_row, to_column) in stroke:
        steps.append(((row, column), (row, column)))
        while (row, column) != (to_row, to_column):
            for step in ((0, np.sign(to_column - column)), (np.sign(to_row - row), 0)):
                before = row, column
                row, column = row + int(step[0]), column + int(step[1])
                steps.append((before, (row, column)))
    return steps


def ink_of(segments: list[Segment]) -> np.ndarray:
    """What the medium pen leaves of straight lines: full ink within its radius, falling to 0 over one pixel."""
    pixels = np.stack(np.mgrid[:64, :84], axis=-1).astype(float)
    ink = np.zeros((64, 84))
    for start, end in segments:
        line = np.subtract(end, start).astype(float)
        along = np.clip((pixels - start) @ line / max(line @ line, 1), 0, 1)
        distance = np.hypot(*np.moveaxis(pixels - start - along[..., None] * line, -1, 0))
        ink = np.maximum(ink, np.clip(RADIUS + 0.5 - distance, 0, 1))
    return np.rint(255 * ink)


def assert_as_python(state: dict[str, Any], *models: Model) -> None:
    """Every layer of every network for what is on the canvas."""
    for model, answer in zip(models, state["answers"], strict=True):
        layers = record(model.network, CPU.asarray(as_input(drawing(state))))
        assert_same_maps(answer["maps"], {name: layer.output[0] for name, layer in layers.items()})


def test_the_console_is_silent_and_nothing_is_requested(found: dict[str, Any]) -> None:
    assert found["noise"] == []


@pytest.mark.parametrize("way", ["byPointer", "byFinger", "byKeys"])
def test_layers_equal_pythons_for_what_is_drawn(found: dict[str, Any], models: dict[str, Model], way: str) -> None:
    state = scenario(found, way)
    ink = drawing(state)
    expected = ink_of([each for stroke in STROKES for each in (staircase(stroke) if way == "byKeys" else stroke)])
    assert expected.shape == ink.shape and np.abs(ink - expected).max() <= 3  # a pointer's place is rounded
    assert_as_python(state, models["skip"])


def test_a_finger_draws_without_scrolling_the_page(found: dict[str, Any]) -> None:
    assert scenario(found, "byFinger")["scrolled"] == 0


def test_boxes_equal_pythons(found: dict[str, Any], models: dict[str, Model]) -> None:
    state = scenario(found, "byPointer")
    layers = record(models["skip"].network, CPU.asarray(as_input(drawing(state))))
    for (row, column), each in zip(state["positions"], state["boxes"], strict=True):
        assert each == {
            name: [box.rows[0], box.columns[0], box.rows[-1], box.columns[-1]]
            for name, box in boxes(layers, "score", row, column).items()
        }


def test_the_answer_is_read_out(found: dict[str, Any]) -> None:
    state = scenario(found, "byPointer")
    assert state["status"] == state["words"] != ""


def test_two_runs_answer_the_same_drawing(found: dict[str, Any], models: dict[str, Model]) -> None:
    state = scenario(found, "comparing")
    assert_as_python(state, models["early"], models["skip"])
    labels = [array(answer["labels"], "u1") for answer in state["answers"]]
    count = int((labels[0] != labels[1]).sum())
    assert state["figures"] == 2 and state["differs"] == f"They differ at {count:,} pixels."


def test_a_classifier_reads_one_digit_and_slides(found: dict[str, Any], models: dict[str, Model]) -> None:
    state = scenario(found, "slidClassifier")
    assert state["one"]["size"] == [*DIGIT] and state["slid"]["size"] == [64, 84]
    for each in (state["one"], state["slid"]):
        assert_as_python(each, models["classifier"])
    assert [box["x"] for box in state["slid"]["boxes"]] == [[0, 0, 27, 27], [20, 36, 47, 63]]
    assert not state["toy"]  # it has no transposed convolution


@pytest.mark.parametrize("way", ["missing", "refused", "broken"])
def test_without_a_worker_the_page_answers_all_the_same(
    found: dict[str, Any], models: dict[str, Model], way: str
) -> None:
    state = scenario(found, "withoutWorker")[way]
    assert "on the page's own thread" in state["time"]
    assert_as_python(state, models["skip"])


def test_stale_drawings_are_dropped(found: dict[str, Any]) -> None:
    assert 1 <= scenario(found, "staleDrawings")["computed"] <= 2


def test_ink_and_answer_are_within_their_budgets(found: dict[str, Any]) -> None:
    times = scenario(found, "times")
    assert len(times["answers"]) == 60
    assert median(times["ink"]) <= INK
    assert median(times["answers"]) <= ANSWER


def test_axe_finds_nothing(found: dict[str, Any]) -> None:
    checked = scenario(found, "accessibility")
    assert len(checked) == 16 and min(each["rules"] for each in checked) > 20
    assert [each for each in checked if each["violations"]] == []


def test_nothing_overflows(found: dict[str, Any]) -> None:
    checked = scenario(found, "overflow")
    assert len(checked) == 16
    assert [each for each in checked if each["beyond"] or each["scrolls"] or each["clipped"]] == []


def test_the_policy_stops_every_way_out(found: dict[str, Any]) -> None:
    state = scenario(found, "policy")
    ways = state["attempts"]
    assert ways.pop("beacon") in (True, "sent", False)  # it is accepted, and not sent
    assert set(ways.values()) == {"refused"} and state["requests"] == 0, state


def test_tools_and_keys(found: dict[str, Any]) -> None:
    state = scenario(found, "tools")
    assert state["example"] > 0 and state["cleared"] == 0 and state["undone"] == state["example"]
    assert state["nothing"] == "There is nothing to undo."
    drawn, erased = state["erased"]
    assert 0 == erased < drawn and state["next"] not in (0, state["example"])
    assert state["tabs"] == ["score", "up2", "skip0", "x", "x", "score"]
    assert state["chosen"].startswith("score[") and state["chosen"].endswith("] at 6, 1")
    assert state["said"].startswith(f"{state['chosen']}: ") and "products" in state["said"]
    assert state["heat"] == [False, True, True, True]  # the canvas changes, and changes back
    assert state["followed"].startswith("up2[") and state["followed"].endswith("] at 6, 1")
    assert state["back"] == state["chosen"] and not state["done"]


def test_images_of_ones_own(found: dict[str, Any], models: dict[str, Model]) -> None:
    state = scenario(found, "images")
    ring = drawing(state["transparent.png"])
    assert ring[32, 31] == 255 and ring[32, 40] == ring[5, 5] == 0
    from_paper = drawing(state["paper.png"])
    assert from_paper[32, 31] > 250 and from_paper[32, 40] == from_paper[5, 5] == 0
    assert_as_python(state["paper.png"], models["skip"])
    assert (drawing(state["dropped"]) == from_paper).all()
    assert state["notes.txt"]["status"] == "notes.txt is not an image that this browser reads: choose a PNG or a JPEG."
    assert (drawing(state["notes.txt"]) == ring).all()  # the drawing before it stays


def test_the_toy_counts_what_each_output_reads(found: dict[str, Any]) -> None:
    """Against a transposed convolution of ones."""
    state = scenario(found, "overlap")
    assert [(each["kernel"], each["stride"]) for each in state["found"]] == [(k, s) for k in KERNELS for s in STRIDES]
    for each in state["found"]:
        kernel, stride = each["kernel"], each["stride"]
        ones = np.ones((1, 1, 1, 8), np.float32), np.ones((1, 1, 1, kernel), np.float32), np.zeros(1, np.float32)
        counts = np.rint(CPU.conv_transpose2d(*ones, stride=stride)[0, 0, 0]).astype(int)
        assert [*map(int, each["counts"])] == counts.tolist(), each
        middle = counts[len(counts) // 2 - stride : len(counts) // 2 + stride]
        assert each["words"].startswith("Even:" if len({*middle.tolist()}) == 1 else "A checkerboard:"), each
        assert f" {middle.max() ** 2} inputs" in each["words"]
    assert state["preset"].startswith("Even: 6 is a multiple of 2")


def test_reduced_motion_moves_nothing(found: dict[str, Any]) -> None:
    assert set(scenario(found, "reducedMotion")) <= {"0s"}
