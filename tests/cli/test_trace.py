"""tinyfcn trace as a user meets it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers.tiny_digits import write_tiny_digits
from helpers.tiny_runs import train_tiny
from PIL import Image

from tinyfcn.cli import main
from tinyfcn.cli.trace import _range
from tinyfcn.data import Digits, load_digits
from tinyfcn.data.mnist import MnistUnavailable
from tinyfcn.model import load
from tinyfcn.networks import Design
from tinyfcn.operations import on
from tinyfcn.runs import Run, load_tensors
from tinyfcn.training import first_test_image
from tinyfcn.training.settings import settings_of
from tinyfcn.training.sources import as_bytes, composed_test, digits_test

CPU = on("cpu")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/cnn-1 and runs/fcn-1, trained for a moment on tiny digits, and photo.png."""
    folder = tmp_path_factory.mktemp("traced")
    train_tiny(folder, write_tiny_digits(tmp_path_factory.mktemp("digits")))
    photo = np.zeros((70, 90), np.uint8)
    photo[20:44, 30:36] = 255
    for name, image in (("photo", photo), ("small", photo[:9, :9]), ("large", np.zeros((600, 600), np.uint8))):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


@pytest.fixture(autouse=True)
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.slow
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
    assert max(len(line.rstrip()) for line in result.stdout.splitlines() if str(tmp_path) not in line) <= 80
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


@pytest.mark.slow
def test_the_classifier_and_its_windows() -> None:
    digit = run("trace", "runs/cnn-1", "--at", "0,0")
    assert digit.exit_code == 0 and "window 0,0" in digit.output and "reads" in digit.output
    slid = run("trace", "runs/cnn-1", "photo.png", "--at", "2,3", "--no-invert")
    assert slid.exit_code == 0 and "windows" in slid.output, slid.output


def test_an_image_of_one_s_own_gets_a_border_and_predicted_labels() -> None:
    result = run("trace", "runs/fcn-1", "photo.png", "--gradients")
    assert result.exit_code == 0, result.output
    assert "padded with black to 72x92" in result.output and "against the predicted labels" in result.output


def test_a_pixel_of_a_padded_image_is_told_in_both_ways(tmp_path: Path) -> None:
    result = run("trace", "runs/fcn-1", "photo.png", "--at", "24,33", "--json", tmp_path / "t.json")
    assert result.exit_code == 0, result.output
    assert "pixel 25,34 of the padded image, 24,33 of the file: " in result.output
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["border"] == {"top": 1, "left": 1}
    assert (found["at"]["given"], found["at"]["position"]) == ([24, 33], [25, 34])
    assert (
        "--at 70,0 lies outside: the image has rows 0..69"
        in run("trace", "runs/fcn-1", "photo.png", "--at", "70,0").output
    )


@pytest.mark.parametrize("name", ["fcn-1", "cnn-1"])
def test_the_image_is_the_first_of_those_that_evaluate_tests_on(name: str) -> None:
    run_folder = Path("runs") / name
    design, settings = load(run_folder).design, settings_of(Run(run_folder))
    digits = load_digits("test", settings.dataset, Path(str(settings.data_dir)))
    inputs, labels = composed_test(CPU, design, digits) if name == "fcn-1" else digits_test(CPU, digits)
    found = first_test_image(run_folder, design, print)
    assert np.array_equal(found.image, as_bytes(inputs[:1])[0])
    assert np.array_equal(found.labels.ravel(), labels[0].ravel())


def test_builtin_digits_stand_in_where_mnist_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(split: str, dataset: str, *_: Any) -> Digits:
        if dataset != "builtin":
            raise MnistUnavailable("no network")
        return Digits(np.full((1, 28, 28), 200, np.uint8), np.array([3], np.uint8), "builtin")

    monkeypatch.setattr("tinyfcn.training.load_digits", load)
    result = run("trace", "runs/fcn-1")
    assert result.exit_code == 0, result.output
    assert "built-in digits stand in for MNIST" in result.stderr
    assert "the first test image, composed of built-in test digits" in result.stdout


def saved(folder: Path, design: Design) -> Path:
    """A state.safetensors of an untrained network, without the rest of a run."""
    parameters = design.build(CPU).numpy_parameters()
    Run(folder).save(parameters, {"design": json.dumps(design.as_dict())})
    return folder / "state.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "rows"),
    [
        (Design("early", article_skip=True), ["skip1", "conv2d", "0.5 (up1 + skip1"]),
        (Design("corrected", reduce="last", upsample="once"), ["12x12/4", "reduce"]),
        (Design("skip", labels="binary", up2_kernel=8), ["8x8/2 + skip0,"]),
    ],
    ids=["article's skip", "once", "larger kernel"],
)
def test_other_designs_from_their_weights_alone(tmp_path: Path, design: Design, rows: list[str]) -> None:
    state = saved(tmp_path, design)
    result = run("trace", state, "photo.png", "--at", "0,0", "--gradients", "--maps", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    assert all(row in result.stdout for row in rows), result.stdout
    assert max(len(line.rstrip()) for line in result.stdout.splitlines() if str(tmp_path) not in line) <= 82
    without = run("trace", state)
    assert without.exit_code == 1
    assert "has no config.json beside it, which names its test images: name an IMAGE" in without.output


@pytest.mark.slow
def test_a_network_whose_relus_are_closed_has_no_gradient(tmp_path: Path) -> None:
    design = Design("corrected")
    state = saved(tmp_path, design)
    tensors, metadata = load_tensors(state)
    tensors["hidden.bias"] -= 1000
    Run(tmp_path).save(tensors, metadata)
    result = run("trace", state, "photo.png", "--at", "30,30", "--maps", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    assert "it is 0 everywhere: no ReLU on the way lets a change through" in result.stdout
    assert re.search(r"hidden .* 0\.\.0 +100% +32 ", result.stdout), result.stdout


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-1127.4, 1033, "-1127..1033"),
        (0, 0, "0..0"),
        (-5.784, 3.891, "-5.78..3.89"),
        (-0.01234, 0.05678, "-0.012..0.057"),
        (-2.345e-5, 1.2e7, "-2.3e-05..1.2e+07"),
    ],
)
def test_ranges_are_short(low: float, high: float, text: str) -> None:
    assert _range(low, high) == text


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
        (["runs/fcn-1", "--at", "-1,0"], 2, "'-1,0' is not a row and a column"),
        (["runs/fcn-1", "nothing.png"], 1, "nothing.png does not exist; expected an image file"),
        (["runs/fcn-1", "small.png"], 1, "small.png is 9x9 pixels, too small to hold a digit"),
        (["runs/fcn-1", "large.png"], 1, "large.png is 600x600 pixels; trace keeps every map, so it takes at most"),
        (["runs/fcn-1/metrics.jsonl", "--at", "0"], 2, "'0' is not a row and a column"),
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
