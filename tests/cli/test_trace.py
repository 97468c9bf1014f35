"""tinyfcn trace as a user meets it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers.tiny_digits import write_tiny_digits
from PIL import Image

from tinyfcn.cli import main


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/cnn-1 and runs/fcn-1, trained for a moment on tiny digits, and photo.png."""
    folder = tmp_path_factory.mktemp("traced")
    data = write_tiny_digits(tmp_path_factory.mktemp("digits"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tinyfcn.training.sources.TEST_COUNT", 20)
        common = ["--threads", 1, "--device", "cpu", "--data-dir", data]
        assert run("train-cnn", "--epochs", 1, "--batch", 20, *common).exit_code == 0
        assert run("train-fcn", "--steps", 2, "--evaluations", 1, "--batch", 2, *common).exit_code == 0
    photo = np.zeros((70, 90), np.uint8)
    photo[20:44, 30:36] = 255
    Image.fromarray(photo).save(folder / "photo.png")
    return folder


@pytest.fixture(autouse=True)
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_all_of_it(tmp_path: Path) -> None:
    result = run(
        "trace",
        "runs/fcn-1",
        "--at",
        "24,70",
        "--gradients",
        "--maps",
        tmp_path / "maps",
        "--json",
        tmp_path / "t.json",
    )
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "the first test image, composed of" in result.output and "pixel 24,70 depends on" in result.output
    found = json.loads((tmp_path / "t.json").read_text())
    names = [layer["name"] for layer in found["layers"]]
    assert names[0] == "x" and names[-1] == "score" and found["layers"][-1]["field"] == [[44, 44], [44, 44]]
    assert found["at"]["boxes"]["score"]["rows"] == [24, 24] and found["at"]["boxes"]["x"]["columns"] == [48, 83]
    assert np.shape(found["at"]["gradient"]) == (64, 84)
    assert {*found["gradients"]["layers"]} == {*names} and found["gradients"]["labels"] == "true"
    drawn = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert len(drawn) == len(names) + 1 and drawn[0] == "00-x.png" and drawn[-1] == "gradient-24-70.png"
    assert all(Image.open(tmp_path / "maps" / name).size[0] > 500 for name in drawn)
    again = run("trace", "runs/fcn-1", "--maps", tmp_path / "maps")
    assert again.exit_code == 0, "its own figures are drawn again"


def test_the_classifier_and_its_windows() -> None:
    digit = run("trace", "runs/cnn-1", "--at", "0,0")
    assert digit.exit_code == 0 and "window 0,0" in digit.output and "reads" in digit.output
    slid = run("trace", "runs/cnn-1", "photo.png", "--at", "2,3", "--no-invert")
    assert slid.exit_code == 0 and "windows" in slid.output, slid.output


def test_an_image_of_one_s_own_gets_a_border_and_predicted_labels() -> None:
    result = run("trace", "runs/fcn-1", "photo.png", "--gradients")
    assert result.exit_code == 0, result.output
    assert "padded with black to 72x92" in result.output and "against the predicted labels" in result.output


def test_the_emulator_sees_the_same_network() -> None:
    rows = [
        [line for line in run("trace", "runs/cnn-1", "--device", device).stdout.splitlines() if line.startswith("conv")]
        for device in ("cpu", "emulator")
    ]
    assert len(rows[0]) == 2 and rows[0] == rows[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["runs/fcn-1", "--at", "64,0"], 2, "--at 64,0 lies outside: the image has rows 0..63 and columns 0..83"),
        (["runs/fcn-1", "--at", "1"], 2, "'1' is not a row and a column"),
        (["runs/fcn-1", "--at", "a,b"], 2, "'a,b' is not a row and a column"),
        (["runs/cnn-1", "--at", "1,1"], 2, "--at 1,1 lies outside: a classifier's map of windows, 1x1 of this image"),
        (["runs/none"], 1, "runs/none"),
        (["runs/fcn-1", "nothing.png"], 1, "nothing.png"),
        (["runs/fcn-1", "--invert"], 2, "--invert and --no-invert are for an IMAGE"),
        (["runs/fcn-1", "--maps", "photo.png"], 2, "photo.png"),
        (["runs/fcn-1", "--json", "nowhere/t.json"], 1, "nowhere/t.json cannot be written"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], code: int, message: str) -> None:
    result = run("trace", *arguments)
    assert result.exit_code == code and message in result.output, result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_no_figure_is_kept(tmp_path: Path) -> None:
    (tmp_path / "00-x.png").write_text("mine")
    result = run("trace", "runs/fcn-1", "--maps", tmp_path)
    assert result.exit_code == 1 and "00-x.png" in result.output and (tmp_path / "00-x.png").read_text() == "mine"
