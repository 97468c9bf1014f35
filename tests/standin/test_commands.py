"""The commands of a training, from end to end, on the device "cuda": the numbers are those of the kernels on it."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers.tiny_digits import draw, write_tiny_digits
from PIL import Image
from standin import bridge

from tinyfcn.cli import main
from tinyfcn.devices.cuda import Cuda
from tinyfcn.devices.device import Launch
from tinyfcn.runs import Run

CNN = ["train-cnn", "--epochs", "1", "--batch", "40", "--device", "cuda"]
FCN = ["train-fcn", "--steps", "4", "--evaluations", "2", "--batch", "2", "--device", "cuda"]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


prepared: list[tuple[Cuda, set[str]]] = []  # devices, and what they had compiled after the first step


def noting(capture: Callable[..., Any]) -> Callable[..., Any]:
    def note_and_capture(device: Cuda, launches: list[Launch]) -> Any:
        prepared.append((device, {*device._functions}))
        return capture(device, launches)

    return note_and_capture


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where both networks are trained: few images, whole runs, figures too."""
    folder = tmp_path_factory.mktemp("runs")
    write_tiny_digits(folder / "digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tinyfcn.training.sources.TEST_COUNT", 12)
        patch.setattr(Cuda, "capture", noting(Cuda.capture))
        for command in (CNN, FCN):
            printed = run(*command, "--data-dir", "digits")
            assert "parameters on cuda" in printed.stdout and "one by one" not in printed.stderr
        yield folder


def test_both_trainings_are_whole(folder: Path) -> None:
    for name, figure in (("cnn-1", "score-map.png"), ("fcn-1", "labels.png")):
        assert Run(folder / "runs" / name).is_finished and (folder / "runs" / name / figure).is_file()
        losses = [line["train_loss"] for line in Run(folder / "runs" / name).metrics()]
        assert np.isfinite(losses).all()
    assert any(name.startswith("compose") for name in bridge.launched)
    assert len(bridge.launched) > 20


def test_no_kernel_is_compiled_after_the_first_step() -> None:
    assert len(prepared) >= 2
    for device, before in prepared:
        assert {*device._functions} == before


def test_a_second_training_gives_the_same_bits(folder: Path) -> None:
    run(*FCN, "--data-dir", "digits", "--out", "again")
    first, again = (Run(path).load()[0] for path in (folder / "runs" / "fcn-1", folder / "again"))
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value, name)


def test_evaluate(folder: Path) -> None:
    for name in ("cnn-1", "fcn-1"):
        found = json.loads(run("evaluate", f"runs/{name}", "--device", "cuda", "--json").stdout)
        expected = Run(folder / "runs" / name).result()
        for figure in {"loss", "accuracy", "digit_miou"} & found.keys() & expected.keys():
            assert found[figure] == pytest.approx(expected[figure], rel=1e-6), figure


def test_predict(folder: Path) -> None:
    (image,), _ = draw(1, 5, odd=False)
    Image.fromarray(np.tile(image, (3, 4))).save(folder / "photo.png")
    for device in ("cuda", "cpu"):
        run("predict", "runs/fcn-1", "photo.png", "--device", device, "--out", device)
    files = sorted(path.relative_to(folder / "cuda") for path in (folder / "cuda").rglob("*.png"))
    assert files
    for file in files:
        ours, theirs = (np.asarray(Image.open(folder / device / file), np.int16) for device in ("cuda", "cpu"))
        assert (abs(ours - theirs) > 1).mean() < 0.01, file


def test_ctrl_c_and_resume(folder: Path) -> None:
    """A process of its own is stopped, and goes on to the bits of a run that was not."""
    command = ["train-cnn", "--epochs", "4", "--batch", "40", "--device", "cuda", "--data-dir", "digits", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tinyfcn", *command, "stopped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(line.startswith("step ") for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, errors
    assert re.fullmatch(r"stopped after step \d+ of 20, saved in stopped; to resume: .*\n", errors), errors
    assert "resumed after step" in run("train-cnn", "--resume", "stopped").stdout
    run(*command, "whole")
    for name, value in Run(folder / "whole").load()[0].items():
        np.testing.assert_array_equal(Run(folder / "stopped").load()[0][name], value, name)


@pytest.mark.usefixtures("few_digits")
def test_bench(folder: Path) -> None:
    result = run("bench", "--quick", "--device", "cuda", "--only", "steps", "--json", "bench.json")
    found = json.loads((folder / "bench.json").read_text())
    assert [step["equal_bits"] for step in found["steps"]] == [True, True], result.output
    assert found["machine"]["name"].startswith("a stand-in")


def test_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rung is timed, as a launch graph."""
    monkeypatch.setattr("tinyfcn.bench.pytorch.torch", None)
    text = run("ladder", "mean_loss").stdout
    assert "median times of a launch graph on" in text
    assert re.findall(r"^ +(\d) +[\d.]+ .?s$", text, re.MULTILINE) == ["1", "2", "3", "4"]
