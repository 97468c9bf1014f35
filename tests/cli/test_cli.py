"""The command line as a user meets it: what it prints and writes, and one clear line for every error."""

import fcntl
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.planting import line_of, plant
from helpers.tiny_digits import write_tiny_digits
from helpers.tiny_runs import CLASSIFIER, FCN, train_tiny
from PIL import Image

import tinyfcn
from tinyfcn.cli import main, tables
from tinyfcn.cli.status import status
from tinyfcn.data import read_m2nist
from tinyfcn.data.builtin_digits import draw_digits
from tinyfcn.devices.emulator import Emulator, build
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.operations import DEVICES
from tinyfcn.reference.relu import relu_backward
from tinyfcn.runs import STATE, Run
from tinyfcn.training.classifier import ClassifierTrainer
from tinyfcn.training.fcn import FcnTrainer

COMMANDS = [
    "train-cnn",
    "train-fcn",
    "evaluate",
    "predict",
    "make-m2nist",
    "check",
    "gradcheck",
    "sanitize",
    "profile",
    "kernels",
    "ladder",
    "exercise",
    "trace",
    "page",
    "sweep",
    "bench",
    "info",
]
FIGURES = {"digit_miou", "miou", "pixel_accuracy", "article_iou", "ink_iou", "iou_per_class", "loss"}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with tiny digits."""
    return write_tiny_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """A folder with runs/cnn-1 and runs/fcn-1, finished, and what the commands printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, *train_tiny(folder, data)


def too_slow(*arguments):
    raise AssertionError("no test draws the built-in digits or downloads anything")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A folder of its own for each test, few test images, no figures, no network, no 20,000 built-in digits.

    Its cache is its own too, but for the kernels that were compiled before.
    """
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "emulator").symlink_to(build.cache_folder())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinyfcn.training.sources.TEST_COUNT", 20)
    monkeypatch.setenv("TINYFCN_OFFLINE", "1")
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYFCN_DATA", raising=False)
    for slow in ("tinyfcn.data.builtin_digits.draw_digits", "tinyfcn.data.mnist._fetch"):
        monkeypatch.setattr(slow, too_slow)
    for trainer in (ClassifierTrainer, FcnTrainer):
        monkeypatch.setattr(trainer, "draw", lambda trainer, run: None)


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the finished runs in the test's folder."""
    shutil.copytree(trained[0] / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=True)


def evaluate(*arguments):
    """On the cpu, where the runs were trained: there the figures are the same to the last digit."""
    return run("evaluate", *arguments, "--device", "cpu")


def assert_refused(result, code, *words):
    """One line for the user and the right exit code; not an exception that would be a traceback."""
    assert isinstance(result.exception, SystemExit), f"{result.exception!r}, {result.output}"
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    if code == 1:
        assert len(lines) == 1, result.stderr
    assert lines[-1].startswith("Error: ")
    for word in words:
        assert re.search(word, lines[-1]), f"{word!r} is not in {lines[-1]!r}"


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    for flag in ("--help", "-h"):
        result = run(command, flag)
        assert result.exit_code == 0
        assert re.search(rf"^  tinyfcn {command}", result.stdout, re.MULTILINE), "no example"
        assert "Options:" in result.stdout


def test_a_command_is_imported_without_the_others():
    """Together they would take longer to import than many commands to run."""
    script = (
        "import sys; from tinyfcn.cli import main; main.commands['info']; "
        "print(*(name for name in sys.modules if name.startswith('tinyfcn.cli.')))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert {*process.stdout.split()} == {"tinyfcn.cli.info", "tinyfcn.cli.options"}


def test_help_of_all_lists_every_command():
    result = run("--help")
    assert result.exit_code == 0
    listed = result.stdout[result.stdout.index("Commands:") :]
    assert re.findall(r"^  ([a-z0-9-]+)  ", listed, re.MULTILINE) == COMMANDS
    assert "tinyfcn train-cnn" in result.stdout


def test_every_example_in_the_help_is_accepted():
    """Every option and argument of an example exists: parsed, but not run."""
    for command in COMMANDS:
        examples = re.findall(rf"^  tinyfcn ({command}.*)$", run(command, "--help").stdout, re.MULTILINE)
        for example in examples:
            words = re.split(r"\s{3,}", example)[0].split()[1:]
            main.commands[command].make_context(command, words).close()


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert re.match(r"tinyfcn \d+\.\d+", result.stdout)


# Training


@pytest.mark.slow
def test_what_training_prints_when_piped(trained):
    _, classifier, fcn = trained
    lines = classifier.stdout.splitlines()
    assert lines[0].startswith("runs/cnn-1: 7,554 parameters on cpu (NumPy, 1 threads), 20 steps of 20 images")
    evaluations = [line for line in lines if line.startswith("step ")]
    assert len(evaluations) == 2  # one line an epoch
    for number, line in zip((10, 20), evaluations, strict=True):
        losses = r"loss \d\.\d{4}  test loss \d\.\d{4}"
        assert re.fullmatch(rf"step +{number}  {losses}  test accuracy 0\.\d{{4}}  [\d,]+ images/s  \d+ s", line)
    assert lines[-2].startswith("test accuracy 0.")
    assert "learning-curves.png" in lines[-1]
    assert "weights of runs/cnn-1" in fcn.stdout
    assert re.search(r"^step 3 .*digit mIoU 0\.", fcn.stdout, re.MULTILINE)
    assert classifier.stderr == fcn.stderr == ""
    assert "\r" not in classifier.stdout + fcn.stdout
    assert "\x1b" not in classifier.stdout + fcn.stdout


def test_what_training_writes(trained):
    runs = trained[0] / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["cnn-1", "fcn-1"]
    files = {"config.json", "metrics.jsonl", "result.json", STATE, "learning-curves.png"}
    for name, steps in (("cnn-1", 20), ("fcn-1", 3)):
        assert files <= {path.name for path in (runs / name).iterdir()}
        assert Run(runs / name).result()["steps"] == steps
    assert Run(runs / "fcn-1").config()["cnn"] == str(runs / "cnn-1")


def test_the_sizes_of_skip_reach_the_training(data, runs):
    given = [
        "--steps",
        "1",
        "--evaluations",
        "1",
        "--from-scratch",
        "--up1-kernel",
        "8",
        "--up2-kernel",
        "8",
        "--width",
        "4",
    ]
    result = run("train-fcn", *given, "--data-dir", data, "--device", "cpu", "--out", "sizes")
    assert result.exit_code == 0, result.output
    config = Run(Path("sizes")).config()
    assert {name: config["design"][name] for name in ("up1_kernel", "up2_kernel", "width")} == {
        "up1_kernel": 8,
        "up2_kernel": 8,
        "width": 4,
    }
    assert run("train-fcn", "--up1-kernel", "5").exit_code == 2


def test_options_reach_the_training(data, runs):
    options = {
        "--batch": ("batch", 3),
        "--learning-rate": ("learning_rate", 0.004),
        "--warmup": ("warmup", 7),
        "--seed": ("seed", 11),
        "--threads": ("threads", 2),
        "--steps": ("steps", 1),
        "--evaluations": ("evaluations", 1),
        "--unlabelled": ("unlabelled", "zero"),
        "--l2": ("l2", 0.25),
        "--fixed": ("fixed", 5),
    }
    given = [word for option, (_, value) in options.items() for word in (option, value)]
    design = ["--design", "early", "--reduce", "last", "--article-skip", "--finetune-encoder"]
    result = run("train-fcn", *given, *design, "--data-dir", data, "--device", "cpu", "--out", "mine")
    assert result.exit_code == 0, result.output
    config = Run(Path("mine")).config()
    for name, value in options.values():
        assert config[name] == value
    assert config["design"] == {
        "name": "early",
        "reduce": "last",
        "upsample": "staged",
        "article_skip": True,
        "decoder_relu": False,
        "labels": "digits",
        "freeze": False,
        "ink_start": True,
        "up1_kernel": 4,
        "up2_kernel": 6,
        "width": 16,
    }
    assert config["data_dir"] == str(data)


@pytest.mark.parametrize(
    ("options", "freeze"),
    [
        (["--design", "skip"], False),
        (["--design", "early"], True),
        (["--design", "corrected", "--upsample", "once", "--labels", "binary"], True),
        (["--design", "skip", "--freeze-encoder"], True),
        (["--design", "early", "--finetune-encoder"], False),
        (["--design", "early", "--from-scratch"], False),
    ],
)
def test_which_designs_freeze_the_encoder(data, runs, options, freeze):
    result = run(*FCN, "--steps", 1, *options, "--data-dir", data)
    assert result.exit_code == 0, result.output
    config = Run(runs / "fcn-2").config()
    assert config["design"]["freeze"] is freeze
    assert (config["cnn"] is None) == ("--from-scratch" in options)


def test_the_classifier_can_be_named(data, runs, tmp_path):
    shutil.move(runs / "cnn-1", tmp_path / "elsewhere")
    for path in ("elsewhere", f"elsewhere/{STATE}"):
        result = run(*FCN, "--steps", 1, "--cnn", path, "--data-dir", data)
        assert result.exit_code == 0, result.output


def test_resume_goes_on_with_the_runs_own_settings(data, trained, monkeypatch):
    step = ClassifierTrainer.step

    def stopped(trainer, number):
        if number == 4:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, number)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "step", stopped)
        result = run(*CLASSIFIER, "--data-dir", data)
    assert result.exit_code == 130
    way_on = "to resume: tinyfcn train-cnn --resume runs/cnn-1"
    assert result.stderr == f"stopped after step 5 of 20, saved in runs/cnn-1; {way_on}\n"
    result = run("train-cnn", "--resume", "runs/cnn-1")
    assert result.exit_code == 0, result.output
    assert "resumed after step 5" in result.stdout
    whole, resumed = Run(trained[0] / "runs" / "cnn-1"), Run(Path("runs/cnn-1"))
    for name, value in whole.load()[0].items():
        np.testing.assert_array_equal(resumed.load()[0][name], value)
    assert_refused(run("train-cnn", "--resume", "runs/cnn-1"), 1, "runs/cnn-1 is finished")


def test_resume_finds_moved_data_on_another_device(data, tmp_path, monkeypatch):
    step = ClassifierTrainer.step
    moving = shutil.copytree(data, tmp_path / "moving")
    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "step", lambda *given: (signal.raise_signal(signal.SIGTERM), step(*given)))
        assert run(*CLASSIFIER, "--data-dir", moving).exit_code == 143
    moving.rename(tmp_path / "moved")
    config = Run(Path("runs/cnn-1")).config()
    Run(Path("runs/cnn-1")).write_json("config.json", {**config, "device": "emulator"})
    assert_refused(run("train-cnn", "--resume", "runs/cnn-1"), 1, "moving.*--data-dir")
    result = run("train-cnn", "--resume", "runs/cnn-1", "--data-dir", "moved", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stderr == "runs/cnn-1 began on emulator, now on cpu: equal bits need one device throughout\n"
    assert Run(Path("runs/cnn-1")).config()["data_dir"] == str(tmp_path / "moved")


# Evaluation


def test_evaluate_a_classifier(data, runs):
    result = evaluate("runs/cnn-1", "--json", "--data-dir", data)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found.keys() == {"accuracy", "loss"}
    expected = Run(runs / "cnn-1").result()
    assert found == {name: expected[name] for name in found}
    table = evaluate("runs/cnn-1", "--data-dir", data).stdout
    assert re.search(rf"^accuracy +{found['accuracy']:.4f}$", table, re.MULTILINE)


def test_evaluate_an_fcn(data, runs):
    result = evaluate("runs/fcn-1", "--json", "--data-dir", data)
    assert result.exit_code == 0
    found = json.loads(result.stdout)  # and so nothing but one JSON value was printed
    assert found.keys() == FIGURES
    expected = Run(runs / "fcn-1").result()
    assert found == {name: expected[name] for name in found}
    assert len(found["iou_per_class"]) == 11
    assert all(0 <= found[name] <= 1 for name in FIGURES - {"iou_per_class", "loss"})
    table = evaluate("runs/fcn-1", "--data-dir", data).stdout
    for name in FIGURES - {"iou_per_class"}:
        assert re.search(rf"^{name} +{found[name]:.4f}$", table, re.MULTILINE)
    for digit in range(10):
        assert re.search(rf"^IoU of {digit} +{found['iou_per_class'][digit]:.4f}$", table, re.MULTILINE)
    assert "IoU of background" in table


@pytest.mark.parametrize(
    ("options", "none"), [(["--design", "early"], {"miou", "ink_iou"}), (["--labels", "binary"], {"digit_miou"})]
)
def test_evaluate_has_the_same_names_for_every_design(data, runs, options, none):
    run(*FCN, "--steps", 1, *options, "--data-dir", data, "--out", "other")
    found = json.loads(evaluate("other", "--json", "--data-dir", data).stdout)
    assert found.keys() == FIGURES
    assert {name for name, value in found.items() if value is None} == none
    table = evaluate("other", "--data-dir", data)
    assert table.exit_code == 0
    assert re.search(rf"^{none.pop()} +-$", table.stdout, re.MULTILINE)


def test_evaluate_without_data_uses_the_runs_own(runs):
    found = json.loads(evaluate("runs/cnn-1", "--json").stdout)
    assert found["accuracy"] == Run(runs / "cnn-1").result()["accuracy"]


@pytest.mark.parametrize("path", [STATE, "config.json", "learning-curves.png", "result.json", ".", ""])
def test_a_run_may_be_named_by_its_state_or_another_file_in_it(data, runs, path):
    result = evaluate(f"runs/cnn-1/{path}", "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout == evaluate("runs/cnn-1", "--json").stdout
    Image.new("L", (84, 64)).save("black.png")
    assert run("predict", f"runs/fcn-1/{path}", "black.png", "--device", "cpu").exit_code == 0
    assert run(*FCN, "--steps", 1, "--cnn", f"runs/cnn-1/{path}", "--data-dir", data).exit_code == 0


def test_weights_alone_do_not_tell_what_they_are_tested_on(data, runs):
    shutil.copy(runs / "cnn-1" / STATE, "alone.safetensors")
    words = "alone.safetensors has no config.json beside it", "name them by --dataset"
    assert_refused(evaluate("alone.safetensors"), 1, *words)
    shown = evaluate("alone.safetensors", "--data-dir", data)
    assert shown.exit_code == 0 and shown.stdout == evaluate("runs/cnn-1").stdout


# Prediction


def test_predict_writes_masks_and_overlay(runs, tmp_path):
    image = np.zeros((40, 50), np.uint8)
    image[10:30, 20:24] = 255
    for name in ("one.png", "two.png"):
        Image.fromarray(image).save(name)
    result = run("predict", "runs/fcn-1", "one.png", "two.png", "--device", "cpu")
    assert result.exit_code == 0, result.output
    expected = ["mask.png", "overlay.png", *(f"digit-{k}.png" for k in range(10))]
    labels, masks = tinyfcn.load("runs/fcn-1", "cpu").predict(image)
    for name in ("one", "two"):
        folder = tmp_path / "predictions" / name
        assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "mask.png")), labels)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "digit-3.png")), masks[3])
        assert Image.open(folder / "overlay.png").size == (50, 40)
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("two.png: ")
    assert lines[1].endswith("written to predictions/two")
    again = run("predict", "runs/fcn-1", "one.png", "--device", "cpu")
    assert again.stdout.endswith("written to predictions/one-2\n")  # nothing is overwritten


def test_predict_tells_what_it_converted_and_can_be_overruled(runs):
    image = np.full((50, 60, 3), 255, np.uint8)
    image[10:30, 20:24] = 0
    Image.fromarray(image).save("paper.png")
    result = run("predict", "runs/fcn-1", "paper.png", "--out", "a", "--device", "cpu")
    assert "dark on white" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    overruled = run("predict", "runs/fcn-1", "paper.png", "--no-invert", "--out", "b", "--device", "cpu")
    assert "dark on white" not in overruled.stderr
    first, second = (np.asarray(Image.open(f"{out}/paper/overlay.png")) for out in "ab")
    assert first[0, 0].max() < second[0, 0].max()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train-cnn", "--lr", "-1"), "Error: --learning-rate must be a number from "),
        (("train-fcn", "--fixed", "3", "--m2nist", "x"), "Error: --fixed and --m2nist are two sources of images"),
    ],
)
def test_a_setting_is_called_by_its_option(arguments, says):
    result = run(*arguments)
    assert result.exit_code == 2 and says in result.stderr


def test_predict_says_that_digits_are_too_large(runs):
    digit = draw_digits(1, seed=0)[0][0]
    for scale in (1, 8):
        Image.fromarray(np.kron(digit, np.ones((scale, scale), np.uint8))).save("digit.png")
        result = run("predict", "runs/fcn-1", "digit.png", "--out", "c", "--device", "cpu")
        assert result.exit_code == 0
        found = re.search(r"digit.png: its strokes are about (\d+) pixels wide, .*: scale it to (\d+)%", result.stderr)
        assert bool(found) == (scale == 8)
    assert found and 12 <= int(found[1]) <= 40 and 6 <= int(found[2]) <= 22


def test_predict_says_that_it_pads_an_image_smaller_than_its_reach(runs):
    Image.fromarray(np.zeros((28, 60), np.uint8)).save("small.png")
    result = run("predict", "runs/fcn-1", "small.png", "--out", "c", "--device", "cpu")
    assert result.exit_code == 0
    assert "smaller than the 44x44 pixels that a label depends on, so padded with black" in result.stderr


def test_predict_does_the_good_images_and_then_reports_the_bad_ones(runs):
    Image.effect_noise((84, 64), 50).save("good.png")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:300])
    Image.new("L", (5, 9)).save("small.png")
    shutil.copy("good.png", "last.png")
    result = run("predict", "runs/fcn-1", "cut.png", "good.png", "none.png", "small.png", "last.png", "--device", "cpu")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["good.png", "last.png"]
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert [line.split()[1] for line in errors] == ["cut.png", "none.png", "small.png"]
    assert result.stderr.splitlines()[-3:] == errors
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["good", "last"]


def test_predict_reports_bad_images_also_where_the_disk_is_full(runs):
    Image.new("L", (84, 64)).save("good.png")
    Path("file").touch()
    result = run("predict", "runs/fcn-1", "none.png", "good.png", "--out", "file/below", "--device", "cpu")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and "none.png does not exist" in lines[0] and "file/below cannot be written" in lines[1]


def test_predict_goes_on_where_one_image_takes_too_much_memory(runs, monkeypatch):
    for name, size in (("large.png", 200), ("good.png", 84)):
        Image.new("L", (size, size)).save(name)
    predict = tinyfcn.model.Model.predict

    def limited(model, image, name):
        if len(image) > 100:
            raise MemoryError("Unable to allocate 5 TiB")
        return predict(model, image, name)

    monkeypatch.setattr("tinyfcn.model.Model.predict", limited)
    result = run("predict", "runs/fcn-1", "large.png", "good.png", "--device", "cpu")
    assert_refused(result, 1, r"large.png: not enough memory \(Unable to allocate 5 TiB\)")
    assert result.stdout.startswith("good.png: ")


def test_a_damaged_tiff_gets_one_line_also_from_libtiff(runs):
    Image.effect_noise((84, 64), 50).save("cut.tiff", compression="tiff_lzw")
    content = bytearray(Path("cut.tiff").read_bytes())
    content[200:500] = b"\xff" * 300
    Path("cut.tiff").write_bytes(content)
    process = start("predict", "runs/fcn-1", "cut.tiff", "--device", "cpu")
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1 and errors.startswith("Error: cut.tiff is damaged")


@pytest.mark.parametrize(
    ("encoding", "name", "shown"),
    [
        ("cp1252", "数字.png", r"\u6570\u5b57.png"),
        ("utf-8:strict", "caf\udce9.png", r"caf\udce9.png"),
        ("ascii", "caf\udce9.png", r"caf\udce9.png"),
    ],
)
def test_a_name_that_the_output_cannot_encode_is_escaped(runs, monkeypatch, encoding, name, shown):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    Image.new("L", (84, 64)).save(name)
    process = start("predict", "runs/fcn-1", name, f"no-{name}", "--device", "cpu")
    output, errors = process.communicate()
    assert process.returncode == 1
    assert output.startswith(f"{shown}: ") and f"Error: no-{shown} does not exist" in errors
    assert (Path("predictions") / Path(name).stem / "mask.png").exists()


def test_predict_reads_standard_input(runs):
    Image.new("L", (84, 64)).save("black.png")
    with open("black.png", "rb") as file:
        process = start("predict", "runs/fcn-1", "-", "--device", "cpu", stdin=file)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output == "/dev/stdin: nothing but background; written to predictions/stdin\n"


def closed(*numbers):
    def close():
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2), (0,)])
def test_closed_streams(runs, numbers):
    Image.new("L", (84, 64)).save("small.png")
    process = start("predict", "runs/fcn-1", "small.png", "none.png", "--device", "cpu", preexec_fn=closed(*numbers))
    output, errors = process.communicate()
    assert process.returncode == 1
    assert ("small.png" in output) == (1 not in numbers) and ("none.png" in errors) == (2 not in numbers)
    assert Path("predictions/small/mask.png").exists()


@pytest.mark.slow
def test_force_color_does_not_make_a_log_a_terminal(data, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    process = start(*CLASSIFIER, "--data-dir", data)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(output.splitlines()) == 6 and "\x1b" not in output + errors


# Tables


WIDE = {"operation": "softmax_cross_entropy", "detail": "", "against": "finite differences", "error>": "6.7e-09"}


@pytest.mark.parametrize("columns", [None, 140, 80, 58, 57, 51, 50, 40, 0])
def test_a_table_is_never_cut(monkeypatch, capsys, columns):
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("tinyfcn.cli.tables.is_terminal", lambda stream: True)
    table = tables.table(*WIDE)
    for _ in range(2):
        table.add_row(*WIDE.values())
    tables.show(table)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    if columns is None or columns >= 58:
        row = "softmax_cross_entropy          finite differences  6.7e-09"
        assert lines == ["operation              detail  against               error", row, row]
    elif columns > 50:  # its lines are broken between words
        row = [["softmax_cross_entropy", "finite", "6.7e-09"], ["differences"]]
        assert [line.split() for line in lines] == [["operation", "detail", "against", "error"], *row, *row]
    else:
        figures = "  against finite differences; error"
        wrapped = [f"{figures} 6.7e-09"] if columns == 50 else [figures, "  6.7e-09"]
        assert lines == ["softmax_cross_entropy", *wrapped] * 2


def test_a_status_is_for_a_terminal_alone(monkeypatch, capsys):
    with status("at work"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("tinyfcn.cli.status.is_terminal", lambda stream: True)
    with status("at work"):
        pass
    printed = capsys.readouterr()
    assert "at work" in printed.err and not printed.out


# Home folders


@pytest.mark.parametrize(
    "arguments",
    [
        ["train-cnn", "--out", "~nouser/x"],
        ["train-cnn", "--data-dir", "~nouser/x"],
        ["train-fcn", "--cnn", "~nouser/x"],
        ["evaluate", "~nouser/x"],
        ["predict", "~nouser/x", "image.png"],
        ["make-m2nist", "~nouser/x"],
        ["bench", "--json", "~nouser/x"],
        ["info", "--data-dir", "~nouser/x"],
    ],
    ids=" ".join,
)
def test_a_home_that_is_not_there(arguments):
    assert_refused(run(*arguments), 2, "~nouser has no home folder here")
    assert not Path("~nouser").exists()


def test_a_home_folder_that_the_shell_left_to_us(data, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(data, tmp_path / "home" / "digits")
    result = run("make-m2nist", "~/out", "--count", 1, "--data-dir", "~/digits")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "home" / "out" / "combined.npy").exists() and not Path("~").exists()


@pytest.mark.parametrize("variable", ["TINYFCN_DATA", "TINYFCN_CACHE"])
def test_a_home_that_a_variable_names_in_vain(monkeypatch, variable):
    monkeypatch.setenv(variable, "~nouser/x")
    assert_refused(run("train-cnn"), 1, rf"~nouser/x \(from {variable}\): ~nouser has no home folder here")
    assert run("info").exit_code == 0


# M2NIST files


@pytest.mark.parametrize("truth", ["one-hot", "labels"])
def test_make_m2nist_writes_what_read_m2nist_reads(data, truth):
    result = run("make-m2nist", "out", "--count", 12, "--truth", truth, "--data-dir", data, "--split", "test")
    assert result.exit_code == 0, result.output
    assert "12 images of mnist test digits in out" in result.stdout
    files = read_m2nist(Path("out"))
    assert files.images.shape == files.labels.shape == (12, 64, 84)
    np.testing.assert_array_equal(files.labels == 10, files.images == 0)
    assert set((files.images[files.images > 0] % 2).tolist()) == {1}  # test digits are odd
    shape = np.load("out/segmented.npy", mmap_mode="r").shape
    assert shape == ((12, 64, 84, 11) if truth == "one-hot" else (12, 64, 84))
    assert_refused(run("make-m2nist", "out", "--data-dir", data), 1, "combined.npy is there already")


def test_make_m2nist_is_a_function_of_its_seed(data):
    images = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("make-m2nist", name, "--count", 3, "--seed", seed, "--data-dir", data)
        images.append(np.load(f"{name}/combined.npy"))
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()


def test_training_and_evaluation_on_m2nist_files(data, runs):
    run("make-m2nist", "files", "--count", 20, "--data-dir", data)
    result = run(*FCN, "--m2nist", "files")
    assert result.exit_code == 0, result.output
    found = evaluate("runs/fcn-2", "--m2nist", "files", "--json")
    expected = Run(runs / "fcn-2").result()
    assert json.loads(found.stdout) == {name: expected[name] for name in FIGURES}


@pytest.mark.parametrize("design", ["skip", "early"])
def test_files_without_any_ink(runs, design):
    """Images without a digit have no IoU. Training on them is pointless, but it does not crash."""
    Path("blank").mkdir()
    np.save("blank/combined.npy", np.zeros((5, 64, 84), np.uint8))
    np.save("blank/segmented.npy", np.full((5, 64, 84), 10, np.uint8))
    result = run(*FCN, "--m2nist", "blank", "--design", design)
    assert result.exit_code == 0, repr(result.exception)
    assert json.loads(evaluate("runs/fcn-2", "--m2nist", "blank", "--json").stdout)["digit_miou"] is None


# Gradient check


@pytest.mark.slow
def test_gradcheck_of_one_operation(ops):
    result = run("gradcheck", "relu", "--device", ops.device_name)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["operation", "result", "against", "device", "relative", "error", "verdict"]
    assert sum("finite differences" in line for line in lines) == 1
    assert sum(ops.device_name in line and "right" in line for line in lines) == 2  # the output and its gradient
    assert lines[-1] == "3 checks, 0 wrong"


def test_gradcheck_with_nothing_to_check():
    """Adam has no gradient, and the cpu has no kernel. No check at all must not count as success."""
    assert_refused(run("gradcheck", "adam", "--device", "cpu"), 2, "adam")


def test_gradcheck_finds_a_wrong_reference(monkeypatch):
    wrong = staticmethod(lambda dout, y: 1.001 * relu_backward(dout, y))
    monkeypatch.setattr("tinyfcn.operations.ReferenceOperations.relu_backward", wrong)
    result = run("gradcheck", "relu", "--device", "cpu")
    assert result.exit_code == 1
    assert "WRONG" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 checks, 1 wrong"


@pytest.mark.slow
def test_gradcheck_finds_a_wrong_kernel_and_its_line(monkeypatch, tmp_path):
    kernels = plant("relu_backward", {"> 0.0f": "> 0.5f"}, tmp_path / "kernels")
    monkeypatch.setitem(DEVICES, "emulator", partial(Emulator, kernels))
    result = run("gradcheck", "relu")
    assert result.exit_code == 1
    assert "WRONG" in result.stdout
    (where,) = (line for line in result.stdout.splitlines() if "stored" in line)
    line = re.escape(line_of("dx[element] =", "relu", kernels))
    assert re.fullmatch(rf"relu: dx\[.*\] is 0\.0, should be \S+: stored by relu_backward at {line}", where)


@pytest.mark.slow
def test_gradcheck_in_double():
    result = run("gradcheck", "relu", "--precision", "double")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sum("finite differences" in line and "cpu reference" in line for line in lines) == 1
    assert sum("finite differences" in line and "emulator, double" in line for line in lines) == 1
    assert sum("  reference  " in line and "emulator, double" in line for line in lines) == 2
    assert lines[-1] == "4 checks, 0 wrong"


@pytest.mark.slow
def test_gradcheck_in_double_finds_a_wrong_kernel(monkeypatch, tmp_path):
    kernels = plant("relu_backward", {"> 0.0f": "> 0.5f"}, tmp_path / "kernels")
    monkeypatch.setattr(import_module("tinyfcn.cli.gradcheck"), "Emulator", partial(Emulator, kernels))
    result = run("gradcheck", "relu", "--precision", "double")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "4 checks, 2 wrong"
    assert "stored by relu_backward at relu.cu:" in result.stdout


@pytest.mark.parametrize("device", ["cpu", "cuda", "auto"])
def test_gradcheck_in_double_is_the_emulators(device):
    words = "double", "only the emulator", f"not {device}: leave out --device"
    assert_refused(run("gradcheck", "--precision", "double", "--device", device), 2, *words)


@pytest.mark.slow
def test_gradcheck_of_a_kernel_that_does_not_compile_names_its_line(monkeypatch, tmp_path):
    shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "kernels" / "relu.cu", "a") as file:
        file.write("int nonsense = ;\n")
    line = len((tmp_path / "kernels" / "relu.cu").read_text().splitlines())
    monkeypatch.setitem(DEVICES, "emulator", partial(Emulator, tmp_path / "kernels"))
    result = run("gradcheck", "relu")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: relu.cu does not compile")
    assert f"relu.cu:{line}:" in result.stderr


# Sanitizer


def sanitize(monkeypatch, kernels, *arguments):
    """The command with kernels from another folder."""
    monkeypatch.setattr(import_module("tinyfcn.cli.sanitize"), "KERNELS", kernels)
    return run("sanitize", *arguments)


@pytest.mark.slow
def test_sanitize_of_an_operation():
    result = run("sanitize", "relu", "--seeds", "2")
    assert result.exit_code == 0, result.output
    header, *rows, _, last = result.stdout.splitlines()
    assert header.split() == ["kernel", "file", "launches", "threads", "accesses", "checked", "verdict"]
    for row, kernel in zip(rows, ("relu_forward", "relu_backward"), strict=True):
        assert re.fullmatch(rf"{kernel} +relu\.cu +6 +[\d,]+ +[\d,]+ +no finding *", row)
    assert last == "2 kernels, 0 findings"
    assert result.stderr == ""


@pytest.mark.slow
def test_sanitize_of_a_kernel():
    result = run("sanitize", "relu_backward", "--seeds", "1")
    assert result.exit_code == 0, result.output
    assert "relu_forward" not in result.stdout
    assert re.search(r"^relu_backward +relu.cu +3 ", result.stdout, re.MULTILINE)
    assert result.stdout.splitlines()[-1] == "1 kernel, 0 findings"


@pytest.mark.slow
def test_sanitize_finds_a_bug(monkeypatch, tmp_path):
    kernels = plant("relu_forward", {"y[element] =": "y[0] ="}, tmp_path / "kernels")
    result = sanitize(monkeypatch, kernels, "relu_backward", "--seeds", "5")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert re.match(r"relu_forward +relu\.cu .* [12] findings?", lines[1])
    assert re.match(r"relu_backward +relu\.cu .* not reached: a finding came first", lines[2])
    line = line_of("y[0] =", "relu", kernels)
    assert lines[4].startswith("relu_forward in relu.cu: a race: ") and lines[4].count(line) == 2
    assert re.fullmatch(r"  with x \(\d+,\); seed \d, threads in forward order", lines[5])
    assert re.fullmatch(r"2 kernels, [12] findings?", lines[-1])


@pytest.mark.slow
def test_sanitize_says_which_kernel_it_does_not_know_how_to_launch(monkeypatch, tmp_path):
    kernels = plant("relu_forward", {}, tmp_path / "kernels")
    with open(kernels / "relu.cu", "a") as file:
        file.write('extern "C" __global__ void lonely(int* x) { x[0] = 0; }\n')
    result = sanitize(monkeypatch, kernels, "relu", "--seeds", "1")
    assert result.exit_code == 1
    assert re.search(r"^lonely +relu\.cu +0 +0 +0 +never launched", result.stdout, re.MULTILINE)
    says = "lonely was never launched: add a case that does to sanitize_cases in tinyfcn/checks/cases/relu.py"
    assert result.stdout.splitlines()[-3:] == [says, "", "3 kernels, 0 findings"]


@pytest.mark.slow
def test_sanitize_of_a_kernel_that_does_not_compile_names_its_line(monkeypatch, tmp_path):
    kernels = plant("relu_forward", {"y[element] =": "nonsense ="}, tmp_path / "kernels")
    result = sanitize(monkeypatch, kernels, "relu")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: relu.cu does not compile")
    assert f"{line_of('nonsense', 'relu', kernels)}:" in result.stderr


@pytest.mark.parametrize(("name", "exit_code"), [("add", 0), ("relu", 1), ("relu_forward", 1)])
def test_sanitize_names_the_line_of_a_file_that_cannot_be_read_and_checks_the_others(
    monkeypatch, tmp_path, name, exit_code
):
    kernels = plant("relu_forward", {}, tmp_path / "kernels")
    with open(kernels / "relu.cu", "ab") as file:
        file.write(b"// caf\xe9\n")
    (kernels / "._relu.cu").write_bytes(b"\0\xff")
    result = sanitize(monkeypatch, kernels, name, "--seeds", "1")
    assert result.exit_code == exit_code
    lines = (kernels / "relu.cu").read_bytes().count(b"\n")
    assert (f"relu.cu:{lines}: the byte 0xe9 is not UTF-8" in result.stderr) == bool(exit_code)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv3d", "no operation or kernel named 'conv3d'; did you mean conv2d"),
        ("relu_foward", "did you mean relu_forward"),
        ("zzz", "there are adam, add, compose_m2nist, conv2d, .*softmax_cross_entropy"),
        ("conv2d_pool", "conv2d_pool has no kernels of its own: try tinyfcn sanitize fast_conv"),
    ],
)
def test_sanitize_of_an_unknown_name_says_what_it_may_mean(name, message):
    result = run("sanitize", name)
    assert result.exit_code == 2
    assert re.search(f"^Error: .*{message}", result.stderr, re.MULTILINE), result.stderr


def test_gradcheck_of_a_new_name_says_how_an_operation_is_added():
    result = run("gradcheck", "softplus")
    assert result.exit_code == 2
    error, *lines = result.stderr.splitlines()[3:]
    assert error.startswith("Error: no operation named 'softplus'; there are adam, add, ")
    assert [line.split(":")[0].strip() for line in lines] == [
        "a new operation needs",
        "kernels/softplus.cu",
        "tinyfcn/ops/softplus.py",
        "tinyfcn/reference/softplus.py",
        "tinyfcn/checks/cases/softplus.py",
        "tests/kernels/test_softplus.py",
        "tinyfcn/ops/__init__.py",
    ]


# Info


def test_info_mentions_everything(data):
    result = run("info", "--data-dir", data)
    assert result.exit_code == 0
    for item in ("GPU", "driver", "NVRTC", "C++ compiler", "threads", str(data), "cache", "tinyfcn train-cnn"):
        assert item in result.stdout, item


def test_info_says_how_to_supply_what_is_missing(monkeypatch):
    def missing():
        raise tinyfcn.errors.DeviceError("NVRTC cannot be loaded")

    monkeypatch.setattr("tinyfcn.devices.cuda.load_nvrtc", missing)
    result = run("info")
    assert result.exit_code == 0
    assert "pip install cupy-cuda12x 'cuda-toolkit[nvrtc,cudart]==12.*'" in result.stdout


# Wrong usage: exit code 2


HUGE = (str(10**400), str(10**30), "9" * 5000)  # int() refuses the last one

USAGE = [
    (["train-cnn", "--batch", "0"], "batch"),
    (["train-cnn", "--batch", "many"], "batch"),
    (["train-cnn", "--epochs", "-1"], "epochs"),
    (["train-cnn", "--epochs", "0"], "epochs"),
    *((["train-cnn", "--lr", rate], "learning.rate") for rate in ("nan", "inf", "-inf", "-0.1", "0")),
    (["train-cnn", "--learning-rate", "quick"], "learning-rate"),
    (["train-cnn", "--seed", "-1"], "seed"),
    (["train-cnn", "--seed", str(1 << 32)], "seed"),
    (["train-cnn", "--threads", "0"], "threads"),
    (["train-cnn", "--warmup", "-1"], "warmup"),
    (["train-cnn", "--device", "tpu"], "device"),
    (["train-cnn", "--dataset", "cifar"], "dataset"),
    *(
        (["train-cnn", option, value], f"{option}.*is not a whole number from [01] to [0-9,]+")
        for option in ("--epochs", "--batch", "--threads", "--warmup", "--seed")
        for value in HUGE
    ),
    *((["train-fcn", option, HUGE[0]], option) for option in ("--steps", "--evaluations", "--fixed", "--batch")),
    (["train-cnn", "--threads", "100000"], "threads.*from 1 to 1,024"),
    (["train-cnn", "--lr", "1e400"], "learning-rate"),
    (["train-cnn", "--lr", "1e31"], "learning-rate"),
    (["train-fcn", "--l2", "1e400"], "l2"),
    (["train-fcn", "--batch", "8193"], "batch"),
    (["sanitize", "--seeds", HUGE[0]], "seeds"),
    (["make-m2nist", "out", "--count", HUGE[0]], "count"),
    (["make-m2nist", "out", "--seed", HUGE[0]], "seed"),
    (["bench", "--batches", f"16,{HUGE[0]}"], "batches"),
    (["train-cnn", "--steps", "5"], "--steps"),
    (["train-fcn", "--batch", "0"], "batch"),
    (["train-fcn", "--steps", "-5"], "steps"),
    (["train-fcn", "--evaluations", "0"], "evaluations"),
    (["train-fcn", "--fixed", "0"], "fixed"),
    *((["train-fcn", "--lr", rate], "learning.rate") for rate in ("nan", "inf", "-0.1", "0")),
    *((["train-fcn", "--l2", l2], "l2") for l2 in ("nan", "inf", "-1")),
    (["train-fcn", "--fixed", "5", "--m2nist", "."], "fixed.*m2nist"),
    (["train-fcn", "--design", "unet"], "design"),
    (["train-fcn", "--design", "early", "--labels", "binary"], "binary.*early"),
    (["train-fcn", "--reduce", "last"], "reduce.*early and corrected"),
    (["train-fcn", "--upsample", "once"], "upsample.*early and corrected"),
    (["train-fcn", "--article-skip"], "article-skip.*early and corrected"),
    (["train-fcn", "--design", "early", "--article-skip", "--upsample", "once"], "article-skip.*once"),
    (["train-fcn", "--unlabelled", "ignore"], "unlabelled"),
    *(
        (["train-fcn", "--design", name, *option], f"{option[0]}.*; {name} does not take it")
        for name, options in {
            "skip": (
                ["--reduce", "first"],  # a default, but given
                ["--upsample", "staged"],
                ["--article-skip"],
                ["--unlabelled", "softmax"],
            ),
            "corrected": (["--ink-start"], ["--plain-start"], ["--unlabelled", "zero"]),
            "early": (["--labels", "digits"], ["--ink-start"]),
        }.items()
        for option in options
    ),
    (["train-fcn", "--from-scratch", "--cnn", "runs/cnn-1"], "from-scratch.*--cnn"),
    (["train-fcn", "--from-scratch", "--freeze-encoder"], "from-scratch.*--freeze-encoder"),
    (["gradcheck", "soft plus"], "soft plus"),
    (["gradcheck", "--device", "tpu"], "device"),
    (["gradcheck", "--precision", "half"], "precision"),
    (["sanitize", "--seeds", "0"], "seeds"),
    (["make-m2nist", "out", "--count", "0"], "count"),
    (["make-m2nist"], "OUT"),
    (["make-m2nist", "out", "--split", "validation"], "split"),
    (["evaluate"], "RUN"),
    (["evaluate", "runs/cnn-1", "--dataset", "cifar"], "dataset"),
    (["predict", "runs/fcn-1"], "IMAGE"),
    (["teach"], "teach"),
    (["--loud"], "--loud"),
]


@pytest.mark.parametrize(
    ("arguments", "word"), USAGE, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_wrong_usage(arguments, word):
    result = run(*arguments)
    assert_refused(result, 2, word)
    assert len(result.stderr.splitlines()[-1]) < 400
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--batch", "4"],
        ["--lr", "0.1"],
        ["--out", "elsewhere"],
        ["--dataset", "mnist"],
        ["--cnn", "runs/cnn-1"],
        ["--design", "early"],
        ["--freeze-encoder"],
        ["--from-scratch"],
        ["--plain-start"],
        ["--seed", "0"],  # the default, but given
    ],
    ids=" ".join,
)
def test_resume_takes_no_other_option(runs, option):
    names = [option[0], {"--lr": "--learning-rate"}.get(option[0], option[0])]
    assert_refused(run("train-fcn", "--resume", "runs/fcn-1", *option), 2, "leave out .*(" + "|".join(names) + ")")


# Missing or damaged files: exit code 1, one line


def test_no_classifier(data):
    assert_refused(
        run("train-fcn", "--data-dir", data), 1, "no finished classifier in runs/", "tinyfcn train-cnn", "--cnn"
    )
    Path("runs/cnn-1").mkdir(parents=True)  # not finished
    assert_refused(run("train-fcn", "--data-dir", data), 1, "no finished classifier")
    assert_refused(run(*FCN, "--cnn", "runs/cnn-1", "--data-dir", data), 1, "runs/cnn-1")
    assert_refused(run(*FCN, "--cnn", "nowhere", "--data-dir", data), 1, "nowhere does not exist")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["cnn-1"]


@pytest.mark.parametrize(
    "arguments",
    [["train-cnn"], ["train-fcn", "--from-scratch"], ["evaluate", "runs/cnn-1"], ["predict", "runs/fcn-1", "x"]],
)
def test_no_gpu(data, runs, monkeypatch, arguments):
    monkeypatch.setattr("tinyfcn.devices.cuda.why_not", lambda: "no NVIDIA GPU with a working driver was found")
    given = [*arguments, "--device", "cuda"] + ([] if arguments[0] == "predict" else ["--data-dir", data])
    assert_refused(run(*given), 1, "'cuda' cannot be used: no NVIDIA GPU", "--device cpu")
    assert_refused(run("gradcheck", "--device", "cuda"), 1, "'cuda' cannot be used")


def test_no_compiler(data, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert_refused(run("gradcheck"), 1, r"needs a C\+\+ compiler", "apt install")
    assert_refused(run("gradcheck", "--precision", "double"), 1, r"needs a C\+\+ compiler", "apt install")
    assert_refused(run("sanitize"), 1, r"needs a C\+\+ compiler", "apt install")
    assert_refused(run("train-cnn", "--device", "emulator", "--data-dir", data), 1, r"needs a C\+\+ compiler")


def test_a_folder_that_is_not_a_run(data):
    Path("empty").mkdir()
    Path("text").write_text("x")
    for command in (["evaluate"], ["train-cnn", "--resume"], ["train-fcn", "--resume"]):
        for folder in ("empty", "missing"):
            assert_refused(run(*command, folder), 1, f"{folder}.* (is not a run of tinyfcn|does not exist)")
        assert_refused(run(*command, "text"), 1 if command == ["evaluate"] else 2, "text")
    Image.new("L", (84, 64)).save("black.png")
    for folder in ("empty", "missing", "text"):
        assert_refused(run("predict", folder, "black.png"), 1, folder)


def test_predict_with_a_classifier(runs):
    Image.new("L", (84, 64)).save("black.png")
    assert_refused(run("predict", "runs/cnn-1", "black.png"), 1, "classifier", "FCN")


def test_evaluate_a_classifier_on_m2nist(data, runs):
    assert_refused(run("evaluate", "runs/cnn-1", "--m2nist", "."), 1, "runs/cnn-1 is a classifier")


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><title>404</title>"), "not a whole safetensors file"),
    "gone": (lambda path: path.unlink(), "has not been saved|does not exist|no state"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), STATE),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights(data, runs, damage):
    spoil, words = DAMAGE[damage]
    Image.new("L", (84, 64)).save("black.png")
    spoil(runs / "fcn-1" / STATE)
    spoil(runs / "cnn-1" / STATE)
    assert_refused(run("evaluate", "runs/fcn-1", "--data-dir", data), 1, "runs/fcn-1", words)
    assert_refused(run("predict", "runs/fcn-1", "black.png"), 1, "runs/fcn-1", words)
    assert_refused(run(*FCN, "--data-dir", data), 1, "runs/cnn-1", words)
    (runs / "cnn-1" / "result.json").unlink()  # so that it is one to be resumed
    assert_refused(run("train-cnn", "--resume", "runs/cnn-1"), 1, "runs/cnn-1", words)


def test_weights_of_another_network_or_with_nan(data, runs):
    Image.new("L", (84, 64)).save("black.png")
    shutil.copy(runs / "cnn-1" / STATE, runs / "fcn-1" / STATE)
    assert_refused(run("predict", "runs/fcn-1", "black.png"), 1, "classifier")
    tensors, metadata = Run(runs / "cnn-1").load()
    tensors["dense32.weight"][0, 0, 0, 0] = np.nan
    Run(runs / "cnn-1").save(tensors, metadata)
    nan = r"dense32\.weight has 1 of 6400 values that are NaN"
    assert_refused(run("evaluate", "runs/cnn-1", "--data-dir", data), 1, "runs/cnn-1", nan)
    assert_refused(run(*FCN, "--data-dir", data), 1, nan)
    tensors["dense32.weight"] = np.zeros((32, 8, 3, 3), np.float32)
    Run(runs / "cnn-1").save(tensors, metadata)
    found = r"dense32\.weight is float32 \(32, 8, 3, 3\), expected float32 \(32, 8, 5, 5\)"
    assert_refused(run(*FCN, "--data-dir", data), 1, found)


def test_an_argument_that_is_not_an_image(runs):
    Path("notes.txt").write_text("not an image")
    Path("empty.png").touch()
    Path("folder").mkdir()
    Image.effect_noise((84, 64), 50).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:300])
    Image.new("L", (5, 9)).save("small.png")
    expected = {
        "notes.txt": "not an image",
        "empty.png": "empty",
        "folder": "is a folder",
        "cut.png": "cut.png",
        "missing.png": "does not exist",
        "small.png": "9x5 pixels, too small",
    }
    for name, words in expected.items():
        assert_refused(run("predict", "runs/fcn-1", name, "--device", "cpu"), 1, name, words)
    assert not Path("predictions").exists()


def test_folders_that_cannot_be_written(data, runs, monkeypatch):
    Path("file").touch()
    Image.new("L", (84, 64)).save("black.png")
    out = ["--out", "file/below"]
    assert_refused(run(*CLASSIFIER, *out, "--data-dir", data), 1, "file/below", "--out")
    assert_refused(run(*FCN, *out, "--data-dir", data), 1, "file/below", "--out")
    assert_refused(
        run("predict", "runs/fcn-1", "black.png", *out, "--device", "cpu"), 1, "file/below", "name another folder"
    )
    assert_refused(
        run("make-m2nist", "file/below", "--count", 1, "--data-dir", data), 1, "file/below", "choose a folder"
    )
    assert_refused(run(*CLASSIFIER, "--out", "n" * 300, "--data-dir", data), 1, "too long", "--out")
    assert_refused(run(*CLASSIFIER, "--out", "runs/cnn-1", "--data-dir", data), 1, "is there already", "--out")
    assert_refused(run(*CLASSIFIER, "--out", "file", "--data-dir", data), 2, "file")
    shutil.rmtree(runs)
    runs.touch()
    assert_refused(run(*CLASSIFIER, "--data-dir", data), 1, "runs", "--out")


def test_a_cache_that_cannot_be_written(monkeypatch):
    Path("file").touch()
    monkeypatch.setenv("TINYFCN_CACHE", "file/cache")
    assert_refused(run("train-cnn", "--dataset", "builtin"), 1, "file/cache", "TINYFCN_CACHE")
    monkeypatch.delenv("TINYFCN_OFFLINE")
    assert_refused(run("train-cnn", "--dataset", "mnist"), 1, "file/cache", "TINYFCN_CACHE")


def test_data_that_are_missing_or_damaged(data, tmp_path):
    Path("empty").mkdir()
    for dataset in ([], ["--dataset", "mnist"]):
        assert_refused(run("train-cnn", "--data-dir", "empty", *dataset), 1, "empty", "--data-dir")
    assert_refused(run("train-cnn", "--data-dir", "nowhere"), 1, "nowhere", "is not a folder")
    for name, spoil, words in (
        ("train-images-idx3-ubyte", lambda path: path.write_bytes(path.read_bytes()[:5000]), "is truncated"),
        ("t10k-labels-idx1-ubyte", lambda path: path.write_text("<html>404"), "is a web page"),
        (
            "train-labels-idx1-ubyte",
            lambda path: shutil.copy(path.with_name("t10k-labels-idx1-ubyte"), path),
            "200 images",
        ),
        ("train-labels-idx1-ubyte", lambda path: path.unlink(), "lacks train-labels-idx1-ubyte"),
        (
            "t10k-labels-idx1-ubyte",
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x0b"),
            "is 11, expected 0..9",
        ),
    ):
        folder = tmp_path / "damaged"
        shutil.copytree(data, folder)
        spoil(folder / name)
        assert_refused(run(*CLASSIFIER, "--data-dir", folder), 1, name, words)
        shutil.rmtree(folder)
    assert not Path("runs").exists()


def test_m2nist_files_that_are_missing_or_damaged(data, runs):
    training = [*FCN, "--m2nist", "files"]
    assert_refused(run(*training), 1, "files/combined.npy is missing")
    run("make-m2nist", "files", "--count", 4, "--truth", "labels", "--data-dir", data)
    labels = np.load("files/segmented.npy")
    for wrong, words in (
        (np.where(labels == 10, 11, labels), "holds 11 .*expected 0..10"),
        (labels.astype(np.int16) - 11, "holds -1 .*expected 0..10"),
        (labels[:3], "holds 4 images but .*for 3"),
        (labels[:, :60], r"has shape \(4, 60, 84\)"),
        (labels / 2, "float64, expected integers"),
    ):
        np.save("files/segmented.npy", wrong)
        assert_refused(run(*training), 1, "segmented.npy", words)
        assert_refused(run("evaluate", "runs/fcn-1", "--m2nist", "files"), 1, "segmented.npy", words)
    Path("files/segmented.npy").write_text("<html>")
    assert_refused(run(*training), 1, "segmented.npy", "not a whole .npy file")
    assert sorted(path.name for path in runs.iterdir()) == ["cnn-1", "fcn-1"]


def test_too_high_a_learning_rate(data):
    result = run(*CLASSIFIER, "--lr", "1e30", "--data-dir", data)
    assert_refused(result, 1, "loss became", "lower --learning-rate")


@pytest.mark.parametrize("name", ["[red]", "[/]", "a[b]c"])
def test_brackets_in_a_folders_name(data, name):
    result = run(*CLASSIFIER, "--out", name, "--data-dir", data)
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "runs/cnn-1"), "runs/cnn-1: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),  # as of standard output
        (MemoryError("Unable to allocate 5 TiB"), "memory.*5 TiB.*--batch"),
    ],
    ids=repr,
)
def test_errors_of_the_operating_system(runs, monkeypatch, error, words):
    def refuse(*arguments):
        raise error

    monkeypatch.setattr(import_module("tinyfcn.cli.evaluate"), "evaluate_run", refuse)
    assert_refused(run("evaluate", "runs/cnn-1"), 1, words)


# As a process of its own


def start(*arguments, **options):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tinyfcn", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["train-cnn", "--batch", "0"], 2), (["train-cnn", "--data-dir", "nowhere"], 1)],
)
def test_exit_codes(arguments, code):
    process = start(*arguments)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == {0: 0, 1: 1, 2: 4}[code]


def assert_stopped(errors):
    assert re.search(
        r"stopped after step \d+ of 1,000, saved in run; to resume: tinyfcn train-cnn --resume run$", errors
    )
    assert "Traceback" not in errors
    tensors, _ = Run(Path("run")).load()
    assert 0 < tensors["adam.step"][0] < 1000
    assert not Run(Path("run")).is_finished


LONG = ["train-cnn", "--epochs", "100", "--batch", "20", "--threads", "1", "--device", "cpu", "--out", "run"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_run(data, number):
    process = start(*LONG, "--data-dir", data)
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("step ") for line in lines)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert len(errors.splitlines()) == 1
    assert_stopped(errors.strip())


@pytest.mark.slow
def test_nohup(data):
    """Ctrl-C and the end of the terminal, which the shell had ignored, stay ignored."""

    def ignore():
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    process = start(*CLASSIFIER, "--epochs", 20, "--data-dir", data, preexec_fn=ignore)
    assert any(line.startswith("step ") for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert Run(Path("runs/cnn-1")).result()["steps"] == 200


def test_a_second_ctrl_c_or_one_before_training_has_its_exit_code(monkeypatch):
    def pressed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("tinyfcn.cli.evaluate"), "evaluate_run", pressed)
    result = run("evaluate", "runs/cnn-1")
    assert (result.exit_code, result.stderr) == (130, "stopped by Ctrl-C\n")


@pytest.mark.slow
@pytest.mark.parametrize("output", ["a pipe whose reader ends", "a full disk", "closed"])
def test_training_goes_on_where_nobody_listens(data, tmp_path, output):
    command = [sys.executable, "-m", "tinyfcn", *CLASSIFIER, "--data-dir", str(data)]
    to = {"a pipe whose reader ends": "| head -1", "a full disk": "> full", "closed": ">&-"}[output]
    if output == "a full disk":
        if os.geteuid() != 0:
            pytest.skip("only root makes device nodes")
        os.mknod(tmp_path / "full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
    shell = ["bash", "-c", f"set -o pipefail; {shlex.join(command)} {to}"]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert Run(Path("runs/cnn-1")).result()["steps"] == 20


@pytest.mark.slow
def test_a_run_folder_that_vanishes(data):
    process = start(*LONG, "--data-dir", data)
    assert any(line.startswith("step ") for line in iter(process.stdout.readline, ""))
    shutil.rmtree("run")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert re.fullmatch(r"Error: the run folder run is no longer there, so .* start a new run\n", errors)
    assert not Path("run").exists()


@pytest.mark.slow
def test_ctrl_c_on_a_terminal(data):
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"OPENBLAS_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"}
        os.execv(sys.executable, [sys.executable, "-m", "tinyfcn", *LONG, "--data-dir", str(data)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    seen = b""
    pressed = False
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
        if not pressed and seen.count(b"images/s") > 8:
            os.write(terminal, b"\x03")
            pressed = True
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
    assert status == 130
    assert re.search(
        r"[━╸╺─-]+ +\d+/1,000 +loss \d\.\d{4} .*test accuracy 0\.\d{4} +[\d,]+ images/s +\d:\d\d:\d\d", text
    )
    assert_stopped(text.strip().splitlines()[-1])


@pytest.mark.slow
def test_a_file_size_limit_as_a_full_disk(data):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # the weights take 93 kB

    process = start(*CLASSIFIER, "--data-dir", data, preexec_fn=limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1
    assert re.match(rf"Error: runs/cnn-1/{STATE} cannot be written \(File too large\)", errors)
    assert sorted(path.name for path in Path("runs/cnn-1").iterdir()) == ["config.json", "metrics.jsonl"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file_in_another_process(data, runs):
    process = start(*CLASSIFIER, "--data-dir", data, "--out", "another")
    assert process.wait() == 0, process.stderr.read()
    assert (Path("another") / STATE).read_bytes() == (runs / "cnn-1" / STATE).read_bytes()


@pytest.mark.parametrize("words", ["--design skip --unlabelled zero", "--design early --plain-start"])
def test_options_of_another_design_are_wrong_usage(words, data, runs):
    result = run("train-fcn", *words.split(), "--data-dir", data)
    assert result.exit_code == 2
    assert "is for the design" in result.output and "does not take it" in result.output
