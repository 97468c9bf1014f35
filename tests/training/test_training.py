"""Training: the same bits from the same seed, however often it is stopped; what is frozen stays as it is."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.idx_files import write_idx
from helpers.tiny_digits import TEST, TRAIN, draw, write_tiny_digits

import tinyfcn
from tinyfcn.adam_state import RING
from tinyfcn.checks.conflicts import conflicts
from tinyfcn.data import Digits, read_m2nist, split_indices, write_m2nist
from tinyfcn.errors import CheckpointError, DataError, DeviceError, TinyfcnError
from tinyfcn.networks import Design
from tinyfcn.operations import DEVICES
from tinyfcn.reference.adam import adam_schedule, adam_step
from tinyfcn.reference.philox import permutation
from tinyfcn.runs import RESULT, STATE, Run, load_tensors
from tinyfcn.training import (
    ClassifierSettings,
    FcnSettings,
    Interrupted,
    ParallelNetwork,
    Reporter,
    Trainer,
    available_threads,
    composed_chunks,
    evaluate_run,
    loop,
    parallel,
    resume,
    start,
    trainer_of,
)
from tinyfcn.training.classifier import ClassifierTrainer
from tinyfcn.training.fcn import FcnTrainer, pretrained_weights
from tinyfcn.training.sources import ORDERED_STEPS, Composed, Stored, as_bytes, digits_digest, evaluation_images

TEST_IMAGES = 20
FROZEN = Design("early", freeze=True)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with tiny digits."""
    return write_tiny_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def m2nist(tmp_path_factory):
    """A folder with 30 images in the published format."""
    folder = tmp_path_factory.mktemp("m2nist")
    write_m2nist(folder, composed_chunks(digits("train"), seed=5, count=30), 30)
    return folder


@pytest.fixture(scope="session")
def cnn(data, tmp_path_factory):
    """A finished classifier's run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierTrainer, "draw", lambda trainer, run: None)
        return start(classifier(data), tmp_path_factory.mktemp("classifier") / "run")[0].folder


def too_slow(*arguments):
    raise AssertionError("no test draws the built-in digits")


@pytest.fixture(autouse=True)
def small(monkeypatch, request):
    """Few test images, no 20,000 built-in digits, and figures only where a test asks for them."""
    monkeypatch.setattr("tinyfcn.data.builtin_digits.draw_digits", too_slow)
    monkeypatch.setattr("tinyfcn.training.sources.TEST_COUNT", TEST_IMAGES)
    if "figures" not in request.keywords.get("usefixtures", pytest.mark.usefixtures()).args:
        for trainer in (ClassifierTrainer, FcnTrainer):
            monkeypatch.setattr(trainer, "draw", lambda trainer, run: None)


@pytest.fixture
def figures():
    """Asks `small` to let figures be drawn."""


def digits(split):
    """The tiny digits without files."""
    return Digits(*(draw(TRAIN, 0, odd=False) if split == "train" else draw(TEST, 1, odd=True)), "mnist")


def classifier(data, **changes):
    """20 steps, evaluated after 10 and 20."""
    return ClassifierSettings(
        **{"data_dir": str(data), "batch": 20, "epochs": 2, "threads": 1, "device": "cpu", **changes}
    )


def fcn(data, cnn, **changes):
    """6 steps, evaluated after 3 and 6."""
    chosen = {"data_dir": str(data), "cnn": str(cnn) if cnn else None, "batch": 2, "steps": 6, "evaluations": 2}
    return FcnSettings(**{**chosen, "warmup": 2, "threads": 1, "device": "cpu", **changes})


def state(run):
    """The tensors of a run's state as bytes, by name."""
    return {name: (str(value.dtype), value.tobytes()) for name, value in run.load()[0].items()}


def without_seconds(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def outcome(run):
    """All that must be equal to the bit when two runs are: state, metrics, result."""
    return state(run), [without_seconds(record) for record in run.metrics()], without_seconds(run.result())


def batch(source, step):
    """Network input and labels of a step, from Stored or Composed, on the cpu."""
    source.prepare(step)
    return source.batch(np.array([step], np.int32))


def at_step(monkeypatch, number, act):
    """Calls `act` before the step `number`, counted from 0, is computed."""
    step = Trainer.step

    def watched(trainer, current):
        if current == number:
            act()
        step(trainer, current)

    monkeypatch.setattr(Trainer, "step", watched)


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Crash(Exception):
    """Ends a training as a power cut would: nothing more is saved."""


def crash():
    raise Crash


# Same seed, same bits


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_classifier(data, tmp_path, threads):
    settings = classifier(data, threads=threads, seed=3)
    first, second = (start(settings, tmp_path / name)[0] for name in "ab")
    assert outcome(first) == outcome(second)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_fcn(data, cnn, tmp_path, threads):
    settings = fcn(data, cnn, threads=threads, seed=3)
    first, second = (start(settings, tmp_path / name)[0] for name in "ab")
    assert outcome(first) == outcome(second)


def test_the_same_seed_gives_the_same_file(data, tmp_path):
    """So that `cmp` and `sha256sum` find two runs equal."""
    first, second = ((start(classifier(data), tmp_path / name)[0].folder / STATE).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("fixed", [None, 5])
def test_another_seed_gives_other_weights_and_images(data, cnn, fixed):
    classifiers = [ClassifierTrainer(classifier(data, seed=seed), Reporter()) for seed in (0, 1)]
    fcns = [FcnTrainer(fcn(data, cnn, seed=seed, fixed=fixed), Reporter()) for seed in (0, 1)]
    for one, other in (classifiers, fcns):
        mine, theirs = one.network.numpy_parameters(), other.network.numpy_parameters()
        assert all((mine[name] != theirs[name]).any() for name in ("conv1.weight", "dense32.weight"))
        assert (batch(one.batches, 0)[0] != batch(other.batches, 0)[0]).any()


@pytest.mark.slow
def test_another_number_of_threads_differs_by_rounding_only(data, cnn, tmp_path):
    for settings in (classifier, lambda data, **threads: fcn(data, cnn, **threads)):
        runs = [start(settings(data, threads=threads), tmp_path / f"{settings}-{threads}")[0] for threads in (1, 2, 3)]
        for other in runs[1:]:
            for mine, theirs in zip(runs[0].metrics(), other.metrics(), strict=True):
                assert theirs["train_loss"] == pytest.approx(mine["train_loss"], rel=1e-4)
                assert theirs["test_loss"] == pytest.approx(mine["test_loss"], rel=1e-3)


# Stopped and resumed


CASES = {
    "classifier": lambda data, cnn, m2nist: classifier(data),
    "classifier on two threads": lambda data, cnn, m2nist: classifier(data, threads=2),
    "skip": lambda data, cnn, m2nist: fcn(data, cnn),
    "skip on two threads": lambda data, cnn, m2nist: fcn(data, cnn, threads=2),
    "early, frozen": lambda data, cnn, m2nist: fcn(data, cnn, design=FROZEN, l2=1e-3),
    "binary, from scratch": lambda data, cnn, m2nist: fcn(data, None, design=Design(labels="binary")),
    "fixed images": lambda data, cnn, m2nist: fcn(data, cnn, fixed=5),
    "M2NIST files": lambda data, cnn, m2nist: fcn(data, cnn, m2nist=str(m2nist), data_dir=None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_ends_in_the_same_bits(data, cnn, m2nist, tmp_path, monkeypatch, name):
    settings = CASES[name](data, cnn, m2nist)
    whole, _ = start(settings, tmp_path / "whole")
    last = whole.metrics()[-1]["step"]
    half = last // 2
    stops = {0, half - 1, half, last - 2}  # after the first step, at an evaluation, just after it, before the end
    for number in stops:
        at_step(monkeypatch, number, press_ctrl_c)
    folder = tmp_path / "stopped"
    stopped_at = []
    with pytest.raises(Interrupted):
        start(settings, folder)
    while not Run(folder).is_finished:
        stopped_at.append(int(load_tensors(folder / STATE)[0]["adam.step"][0]))
        try:
            resume(folder)
        except Interrupted:
            continue
    assert stopped_at == sorted(number + 1 for number in stops)
    assert outcome(Run(folder)) == outcome(whole)


def test_ctrl_c_says_how_to_resume(data, cnn, tmp_path, monkeypatch):
    at_step(monkeypatch, 4, press_ctrl_c)
    folder = tmp_path / "my run"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        start(fcn(data, cnn), folder)
    assert caught.match("stopped after step 5 of 6")
    assert str(caught.value).endswith(f"tinyfcn train-fcn --resume '{folder}'")  # quoted for a shell
    assert signal.getsignal(signal.SIGINT) is before
    assert not Run(folder).is_finished


@pytest.mark.parametrize("number", loop.STOPPING)
def test_a_signal_saves_unless_it_is_ignored(data, tmp_path, monkeypatch, number):
    whole, _ = start(classifier(data), tmp_path / "whole")
    at_step(monkeypatch, 4, lambda: signal.raise_signal(number))
    before = signal.signal(number, signal.SIG_IGN)
    try:
        ignoring, _ = start(classifier(data), tmp_path / "ignoring")
        assert outcome(ignoring) == outcome(whole)
        signal.signal(number, signal.SIG_DFL)
        with pytest.raises(Interrupted) as caught:
            start(classifier(data), tmp_path / "run")
        assert caught.value.signal_number == number
        assert signal.getsignal(number) is signal.SIG_DFL
        assert outcome(resume(tmp_path / "run")[0]) == outcome(whole)
    finally:
        signal.signal(number, before)


def test_a_signal_between_two_looks_loses_no_losses(data, tmp_path, monkeypatch):
    """It comes after the losses would have been read for it."""
    whole, _ = start(classifier(data), tmp_path / "whole")

    class Signals(list):
        asked = 0

        def __bool__(self):
            Signals.asked += 1
            return Signals.asked > 7

    monkeypatch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(Signals([signal.SIGTERM])))
    with pytest.raises(Interrupted):
        start(classifier(data), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(ClassifierTrainer, "draw", lambda trainer, run: None)
    assert outcome(resume(tmp_path / "run")[0]) == outcome(whole)


def test_ctrl_c_at_the_last_step_lets_training_finish(data, tmp_path, monkeypatch):
    at_step(monkeypatch, 19, press_ctrl_c)
    run, _ = start(classifier(data), tmp_path / "run")
    assert run.is_finished


def test_training_in_a_thread_that_gets_no_signals(data, tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(start(classifier(data, epochs=1), tmp_path / "run")))
    thread.start()
    thread.join()
    assert done[0][0].is_finished


def test_a_second_ctrl_c_stops_at_once(data, tmp_path, monkeypatch):
    def twice():
        press_ctrl_c()
        press_ctrl_c()

    at_step(monkeypatch, 12, twice)
    with pytest.raises(KeyboardInterrupt):
        start(classifier(data), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(ClassifierTrainer, "draw", lambda trainer, run: None)
    run, _ = resume(tmp_path / "run")  # from the evaluation after step 10
    assert outcome(run) == outcome(start(classifier(data), tmp_path / "whole")[0])


@pytest.mark.parametrize("name", ["classifier", "skip", "fixed images", "M2NIST files"])
def test_a_crash_loses_no_more_than_the_steps_since_the_last_evaluation(data, cnn, m2nist, tmp_path, monkeypatch, name):
    settings = CASES[name](data, cnn, m2nist)
    whole, _ = start(settings, tmp_path / "whole")
    steps = whole.metrics()[-1]["step"]
    with monkeypatch.context() as patch, pytest.raises(Crash):
        at_step(patch, steps - 1, crash)
        start(settings, tmp_path / "crashed")
    crashed = Run(tmp_path / "crashed")
    assert int(crashed.load()[0]["adam.step"][0]) == steps // 2
    started = []

    class Started(Reporter):
        def started(self, run, trainer, step):
            started.append(step)

    resume(crashed.folder, Started())
    assert started == [steps // 2]
    assert outcome(crashed) == outcome(whole)


KILLED = """
import os, signal, sys
import tinyfcn.files
from tinyfcn.training import ClassifierSettings, Trainer, start

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def second(function, wanted):
    calls = []
    def counted(*arguments):
        if wanted(*arguments):
            calls.append(arguments)
        return die() if len(calls) == 2 else function(*arguments)
    return counted

if sys.argv[1] == "in a step":
    step = Trainer.step
    Trainer.step = lambda trainer, number: die() if number == 13 else step(trainer, number)
if sys.argv[1] == "between metrics and weights":
    Trainer.save = second(Trainer.save, lambda *arguments: True)
if sys.argv[1] == "while writing weights":
    os.replace = second(os.replace, lambda source, target: target.name == "state.safetensors")
from pathlib import Path
start(ClassifierSettings(data_dir=sys.argv[2], batch=20, epochs=2, threads=1, device="cpu"), Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in a step", "between metrics and weights", "while writing weights"])
def test_kill_9_and_resume(data, tmp_path, moment):
    folder = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, moment, str(data), str(folder)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert int(Run(folder).load()[0]["adam.step"][0]) == 10
    resume(folder)
    assert outcome(Run(folder)) == outcome(start(classifier(data), tmp_path / "whole")[0])


def crash_before_the_result(patch):
    write = Run.write_json
    patch.setattr(
        Run, "write_json", lambda run, name, content: crash() if name == RESULT else write(run, name, content)
    )


def test_killed_before_the_result_and_resumed(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_before_the_result(patch)
        start(classifier(data), tmp_path / "run")
    assert not Run(tmp_path / "run").is_finished
    run, result = resume(tmp_path / "run")
    assert run.is_finished
    assert result["steps"] == 20
    assert outcome(run) == outcome(start(classifier(data), tmp_path / "whole")[0])


class Notices(Reporter):
    """Keeps what it is told for the user."""

    def __init__(self):
        self.texts = []

    def notice(self, text):
        self.texts.append(text)


@pytest.mark.parametrize("error", [DataError("masks.png cannot be written"), RuntimeError("two\nlines"), KeyError()])
def test_figures_that_fail_cost_no_run(data, tmp_path, monkeypatch, error):
    def fail(trainer, run):
        assert run.is_finished
        raise error

    monkeypatch.setattr(ClassifierTrainer, "draw", fail)
    notices = Notices()
    run, result = start(classifier(data), tmp_path / "run", notices)
    assert run.result() == result
    reason = str(error).split("\n")[0] or "KeyError"
    assert notices.texts == [f"{run.folder} is trained and saved, but not all of its figures are drawn: {reason}"]


def test_trained_to_the_end_but_without_metrics(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_before_the_result(patch)
        start(classifier(data), tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"run .*metrics"):
        resume(tmp_path / "run")


def test_resuming_continues_the_count_of_seconds(data, tmp_path, monkeypatch):
    at_step(monkeypatch, 14, press_ctrl_c)
    with pytest.raises(Interrupted):
        start(classifier(data), tmp_path / "run")
    run, _ = resume(tmp_path / "run")
    first, second = (record["seconds"] for record in run.metrics())
    assert second >= first > 0
    assert run.result()["seconds"] == second


def test_the_classifier_is_not_needed_to_resume(data, cnn, tmp_path, monkeypatch):
    whole, _ = start(fcn(data, cnn), tmp_path / "whole")
    shutil.copytree(cnn, tmp_path / "classifier")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 2, press_ctrl_c)
        start(fcn(data, tmp_path / "classifier"), tmp_path / "run")
    shutil.rmtree(tmp_path / "classifier")
    run, _ = resume(tmp_path / "run")
    assert outcome(run) == outcome(whole)


def test_built_in_digits_are_the_same_data_on_every_processor():
    """Their bytes may differ by a rounding; those of files may not."""
    train = Digits(np.full((3, 28, 28), 7, np.uint8), np.arange(3, dtype=np.uint8), "builtin")
    rounded = dataclasses.replace(train, images=train.images + np.uint8(1))
    assert digits_digest(train, train) == digits_digest(rounded, rounded)
    relabelled = dataclasses.replace(train, labels=train.labels[::-1])
    assert digits_digest(train, train) != digits_digest(relabelled, train)
    files, changed = dataclasses.replace(train, source="mnist"), dataclasses.replace(rounded, source="mnist")
    assert digits_digest(files, files) != digits_digest(files, changed)


def test_a_run_is_resumed_where_its_data_are_now(data, cnn, m2nist, tmp_path, monkeypatch):
    for name, option, place in (("classifier", "data_dir", data), ("M2NIST files", "m2nist", m2nist)):
        folder, before, now = (tmp_path / f"{name} {which}" for which in ("run", "before", "now"))
        shutil.copytree(place, before)
        settings = dataclasses.replace(CASES[name](data, cnn, m2nist), **{option: str(before)})
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            at_step(patch, 1, press_ctrl_c)
            start(settings, folder)
        before.rename(now)
        flag = option.replace("_", "-")
        with pytest.raises(DataError, match=f"{name} before', where the data of .* is no longer a folder.*--{flag}"):
            resume(folder)
        other = "m2nist" if option == "data_dir" else "data_dir"
        with pytest.raises(CheckpointError, match=f"--{other.replace('_', '-')}"):
            resume(folder, **{other: now})
        run, _ = resume(folder, **{option: now})
        assert run.config()[option] == str(now)
        assert outcome(run) == outcome(start(CASES[name](data, cnn, m2nist), tmp_path / f"{name} whole")[0])


def test_a_run_is_resumed_on_its_own_data_only(data, tmp_path, monkeypatch):
    run = stopped_run(data, tmp_path / "run", monkeypatch)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    labels = other / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(DataError, match=r"run was trained on other data than are found now: .*--data-dir"):
        resume(run.folder, data_dir=other)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    config = run.config()
    del config["data"]  # as version 0.1.0 wrote it
    run.write_json("config.json", config)
    assert resume(run.folder, data_dir=other)[0].is_finished


def test_a_run_is_resumed_on_another_device(data, tmp_path, monkeypatch):
    run = stopped_run(data, tmp_path / "run", monkeypatch)
    run.write_json("config.json", {**run.config(), "device": "cuda"})
    monkeypatch.setattr("tinyfcn.devices.cuda.why_not", lambda: "no NVIDIA GPU with a working driver was found")
    with pytest.raises(DeviceError, match=r"'cuda' cannot be used.*--device cpu"):
        resume(run.folder)
    notices = Notices()
    resume(run.folder, notices, device="cpu")
    assert notices.texts == [f"{run.folder} began on cuda, now on cpu: equal bits need one device throughout"]
    assert run.config()["device"] == "cpu"


def test_runs_that_cannot_be_resumed(data, cnn, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="not a run of tinyfcn"):
        resume(tmp_path)
    with pytest.raises(CheckpointError, match="is finished"):
        resume(cnn)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        at_step(patch, 1, crash)
        start(classifier(data), tmp_path / "unsaved")
    with pytest.raises(CheckpointError, match=r"unsaved.* not been saved"):
        resume(tmp_path / "unsaved")


def stopped_run(data, folder, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 12, press_ctrl_c)
        start(classifier(data), folder)
    return Run(folder)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("conv1.weight", np.full((8, 1, 5, 5), np.nan, np.float32), r"conv1\.weight has 200 of 200 values"),
        ("dense10.bias", np.zeros(11, np.float32), r"dense10\.bias is float32 \(11,\), expected float32 \(10,\)"),
        ("adam.m", np.zeros(3, np.float32), r"adam\.m is float32 \(3,\), expected float32"),
        ("adam.v", None, r"no tensor adam\.v"),
        ("adam.v", "NaN", r"adam\.v has 1 of"),
        ("adam.step", None, r"no training state|adam\.step"),
        ("adam.step", np.array([1.5], np.float32), r"adam\.step"),
        ("adam.step", np.array([-1], np.int32), r"adam\.step"),
        ("loop.losses", None, r"no training state|loop\.losses"),
        ("loop.losses", np.array(0.5), r"loop\.losses is float64 \(\).* losses of the 3 steps"),
        ("loop.losses", np.zeros((3, 1)), r"loop\.losses is float64 \(3, 1\)"),
        ("loop.losses", np.zeros(4), r"loop\.losses is float64 \(4,\)"),
        ("loop.losses", np.zeros(3, np.float32), r"loop\.losses is float32"),
        ("loop.losses", np.array([0.5, np.nan, 0.5]), r"loop\.losses"),
        ("adam.v", np.full(7554, -1, np.float32), r"adam\.v has values below 0"),
        ("seconds", "", r"seconds is '', expected"),
        ("seconds", "nan", r"seconds is 'nan'"),
        ("seconds", "1e400", r"seconds is '1e400'"),
        ("design", "[" * 9999, r"its design is not JSON"),
        ("design", '{"name": "skip"}', r"another design than .*config\.json"),
    ],
)
def test_a_damaged_state_is_not_resumed(data, tmp_path, monkeypatch, name, value, words):
    run = stopped_run(data, tmp_path / "run", monkeypatch)
    tensors, metadata = run.load()
    if value is None:
        del tensors[name]
    elif name in metadata:
        metadata[name] = value
    elif isinstance(value, str):
        tensors[name][3] = np.nan
    else:
        tensors[name] = value
    run.save(tensors, {key: text for key, text in metadata.items() if key != "format"})
    with pytest.raises(CheckpointError, match=words):
        resume(run.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"command": "train-gan"},
        {"command": None},
        {"batch": 0},
        {"batch": "many"},
        {"epochs": -1},
        {"learning_rate": None},
        {"learning_rate": "1"},
        {"beta2": "x"},
        {"beta2": 1.0},
        {"dataset": "cifar"},
        {"dataset": None},
        {"data_dir": 5},
        {"data_dir": "a\0b"},
        {"data": "x"},
        {"parameters": None},
        {"seed": 10**400},
        {"command": ["train-cnn"]},
        {"colour": "red"},
        {"device": "abacus"},
        {"command": "train-fcn", "design": None},
        {"command": "train-fcn", "epochs": None, "design": {"name": "unet"}},
    ],
    ids=str,
)
def test_a_damaged_config_is_not_resumed(data, tmp_path, monkeypatch, change):
    run = stopped_run(data, tmp_path / "run", monkeypatch)
    config = {name: value for name, value in {**run.config(), **change}.items() if name != "epochs" or value}
    run.write_json("config.json", config)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        resume(run.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"name": "unet"}, {"reduce": "never"}, {"upsample": "twice"}, {"labels": "words"}])
def test_an_unknown_value_of_an_option_is_refused(option):
    with pytest.raises(ValueError, match=next(iter(option.values()))):
        Design(**{"name": "corrected", **option})


# What is trained


def weights(run):
    return {
        name: value
        for name, value in run.load()[0].items()
        if "." in name and name.split(".")[0] not in ("adam", "loop")
    }


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("early", ("conv1", "conv2")),
        ("corrected", ("conv1", "conv2")),
        ("skip", ("conv1", "conv2", "dense32")),
    ],
)
def test_frozen_weights_stay_to_the_bit(data, cnn, tmp_path, name, kept):
    frozen, _ = start(fcn(data, cnn, design=Design(name, freeze=True), l2=0.1), tmp_path / "frozen")
    tuned, _ = start(fcn(data, cnn, design=Design(name, freeze=False)), tmp_path / "tuned")
    given = weights(Run(cnn))
    initial = trainer_of(frozen, Reporter()).network.numpy_parameters()
    for layer in kept:
        for part in ("weight", "bias"):
            tensor = f"{layer}.{part}"
            assert weights(frozen)[tensor].tobytes() == given[tensor].tobytes()
            assert weights(tuned)[tensor].tobytes() != given[tensor].tobytes()
    for tensor, value in weights(frozen).items():
        if tensor.split(".")[0] not in kept:
            assert value.tobytes() != initial[tensor].tobytes(), f"{tensor} was not trained"
    size = sum(value.size for tensor, value in initial.items() if tensor.split(".")[0] not in kept)
    assert frozen.load()[0]["adam.m"].shape == (size,)


@pytest.mark.parametrize("reduce", ["first", "last"])
@pytest.mark.parametrize("upsample", ["staged", "once"])
def test_every_weight_of_early_is_trained(data, cnn, tmp_path, reduce, upsample):
    design = Design("early", reduce, upsample, article_skip=upsample == "staged")
    run, _ = start(fcn(data, cnn, design=design, batch=4), tmp_path / "run")
    initial = trainer_of(run, Reporter()).network.numpy_parameters()
    for tensor, value in weights(run).items():
        assert not np.array_equal(value, initial[tensor]), f"{tensor} was not trained"


def test_an_fcn_begins_with_the_classifiers_weights(data, cnn):
    given = weights(Run(cnn))
    for name, taken in (("skip", ("conv1", "conv2", "dense32")), ("early", ("conv1", "conv2"))):
        trainer = FcnTrainer(fcn(data, cnn, design=Design(name)), Reporter())
        trainer.begin()
        for tensor, value in trainer.network.numpy_parameters().items():
            same = tensor in given and value.tobytes() == given[tensor].tobytes()
            assert same == (tensor.split(".")[0] in taken), tensor


def test_from_scratch_begins_with_the_seeds_weights(data, cnn, tmp_path):
    trainer = FcnTrainer(fcn(data, None, seed=4), Reporter())
    trainer.begin()
    fresh = Design().build(tinyfcn.on("cpu"), 4).numpy_parameters()
    for tensor, value in trainer.network.numpy_parameters().items():
        assert value.tobytes() == fresh[tensor].tobytes()
    assert fresh["conv1.weight"].tobytes() != weights(Run(cnn))["conv1.weight"].tobytes()
    run, result = start(fcn(data, None), tmp_path / "scratch")
    assert run.config()["cnn"] is None
    assert result["steps"] == 6


def test_l2_shrinks_the_kernels_of_the_transposed_convolutions(data, cnn, tmp_path):
    plain, heavy = (
        weights(start(fcn(data, cnn, l2=l2, steps=12, warmup=0), tmp_path / str(l2))[0]) for l2 in (0.0, 100.0)
    )
    for layer in ("up1", "up2"):
        assert np.linalg.norm(heavy[f"{layer}.weight"]) < 0.8 * np.linalg.norm(plain[f"{layer}.weight"])
    for tensor in ("conv1.weight", "context.weight"):
        assert np.linalg.norm(heavy[tensor]) == pytest.approx(np.linalg.norm(plain[tensor]), rel=0.1)


@pytest.mark.parametrize(
    ("design", "penalised"),
    [
        (Design("skip"), {"up1.weight", "up2.weight"}),
        (Design("early", article_skip=True), {"up1.weight", "up2.weight"}),
        (Design("corrected", upsample="once"), {"up1.weight"}),
    ],
)
def test_l2_is_of_the_transposed_convolutions_kernels_alone(design, penalised):
    network = design.build(tinyfcn.on("cpu"))
    coefficients = network.l2_coefficients(0.25)
    start = 0
    for name, value in network.numpy_parameters().items():
        part = coefficients[start : start + value.size]
        assert (part == (0.25 if name in penalised else 0)).all(), name
        start += value.size
    assert start == len(coefficients)


@pytest.mark.parametrize("labels", ["digits", "binary"])
def test_ink_start_finds_ink_sooner(data, cnn, tmp_path, labels):
    ink = {}
    for ink_start in (True, False):
        design = Design(labels=labels, ink_start=ink_start)
        run, result = start(fcn(data, cnn, design=design), tmp_path / str(ink_start))
        assert run.config()["design"]["ink_start"] is ink_start
        ink[ink_start] = result["ink_iou"]
    assert ink[True] > 0.9
    assert ink[False] < 0.8


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_learning_rate_climbs_then_falls_to_0(data, tmp_path, monkeypatch, warmup):
    rates, trainers = [], []
    step = Trainer.step

    def watched(trainer, number):
        step(trainer, number)
        rates.append(float(trainer.state.rates[0]))
        trainers.append(trainer)

    monkeypatch.setattr(Trainer, "step", watched)
    start(classifier(data, warmup=warmup, learning_rate=0.01), tmp_path / "run")
    expected = [
        0.01 * (min((n + 1) / warmup, 1) if warmup else 1) * (1 + math.cos(math.pi * n / 20)) / 2 for n in range(20)
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert rates[-1] < 0.01 * max(rates)
    trainer = trainers[-1]
    network, state = trainer.network, trainer.state
    before = network.parameters.copy()
    adam_schedule(state)
    adam_step(network.parameters, network.gradients, state, state.losses[:1])
    assert state.rates[0] == 0 and (network.parameters == before).all(), "one more does nothing"


def test_the_classifier_learns(data, tmp_path):
    run, result = start(classifier(data, epochs=8, learning_rate=0.01), tmp_path / "run")
    records = run.metrics()
    assert [record["step"] for record in records] == [10 * n for n in range(1, 9)]
    assert records[-1]["train_loss"] < 0.2 * records[0]["train_loss"]
    assert result["accuracy"] == records[-1]["test_accuracy"] > 0.9
    assert result["loss"] == records[-1]["test_loss"]


LEARNERS = {
    "skip": Design(),
    "corrected": Design("corrected", freeze=True),
    "binary": Design(labels="binary", ink_start=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("design", LEARNERS.values(), ids=LEARNERS)
def test_an_fcn_learns(data, cnn, tmp_path, design):
    changes = {"design": design, "steps": 40, "evaluations": 4, "batch": 4, "learning_rate": 0.02, "warmup": 5}
    run, result = start(fcn(data, cnn, **changes), tmp_path / "run")
    records = run.metrics()
    assert [record["step"] for record in records] == [10, 20, 30, 40]
    assert records[-1]["train_loss"] < 0.8 * records[0]["train_loss"]
    assert records[-1]["test_loss"] < 0.8 * records[0]["test_loss"]
    assert result["pixel_accuracy"] > 0.9
    last = {name: value for name, value in records[-1].items() if name not in ("step", "train_loss", "test_loss")}
    assert result == last | {"loss": records[-1]["test_loss"], "steps": 40}


def test_unlabelled_pixels_of_early_are_pushed_down_or_left_alone(data, cnn, tmp_path):
    means = {}
    for unlabelled in ("softmax", "zero"):
        run, _ = start(
            fcn(data, cnn, design=Design("early"), unlabelled=unlabelled, steps=20, learning_rate=0.05),
            tmp_path / unlabelled,
        )
        means[unlabelled] = float(np.mean(weights(run)["up2.bias"]))
    assert means["softmax"] < means["zero"] - 0.1


def test_a_reporter_is_told_of_every_event(data, tmp_path):
    events = []

    class Listener(Reporter):
        def started(self, run, trainer, step):
            events.append(("started", step))

        def stepped(self, step, loss):
            events.append(("stepped", step))
            assert 0 < loss < 10

        def evaluated(self, record):
            events.append(("evaluated", record["step"]))

    start(classifier(data, batch=13), tmp_path / "run", Listener())  # 200 / 13: epochs end within batches
    steps = [("stepped", n) for n in (10, 16, 26, 31)]
    assert events == [("started", 0), *steps[:2], ("evaluated", 16), *steps[2:], ("evaluated", 31)]


# Errors


def test_a_loss_of_nan_ends_training_and_keeps_the_last_checkpoint(data, tmp_path, monkeypatch):
    batch = Stored.batch

    def poisoned(stored, step):
        x, labels = batch(stored, step)
        return (x * np.float32(np.nan) if step[0] == 13 else x), labels

    monkeypatch.setattr(Stored, "batch", poisoned)
    with pytest.raises(TinyfcnError, match=r"loss became nan near step .*--learning-rate"):
        start(classifier(data), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert int(run.load()[0]["adam.step"][0]) == 10
    assert all(np.isfinite(value).all() for value in run.load()[0].values())
    monkeypatch.setattr(Stored, "batch", batch)
    resume(run.folder)
    assert outcome(run) == outcome(start(classifier(data), tmp_path / "whole")[0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [1, 4])
def test_a_far_too_high_learning_rate_is_an_error_and_nothing_bad_is_saved(data, tmp_path, steps):
    with pytest.raises(TinyfcnError, match=r"loss became (nan|inf) .*lower --learning-rate than 1e\+30"):
        start(fcn(data, None, learning_rate=1e30, warmup=0, steps=steps, evaluations=steps), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert not run.is_finished
    assert "NaN" not in (tmp_path / "run" / "config.json").read_text()
    for record in run.metrics():
        json.dumps(record, allow_nan=False)
    if (run.folder / STATE).exists():
        assert all(np.isfinite(value).all() for value in run.load()[0].values())


def test_a_training_that_cannot_begin_makes_no_folder(data, cnn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for settings, error in (
        (classifier(tmp_path), DataError),
        (fcn(data, tmp_path / "no-classifier"), CheckpointError),
        (fcn(data, cnn, m2nist=str(tmp_path)), DataError),
    ):
        with pytest.raises(error):
            start(settings)
    assert list(tmp_path.iterdir()) == []


def test_out_is_not_overwritten(data, cnn):
    before = (cnn / STATE).read_bytes()
    with pytest.raises(CheckpointError, match="is there already"):
        start(classifier(data), cnn)
    assert (cnn / STATE).read_bytes() == before


@pytest.mark.parametrize("full", ["metrics.jsonl", STATE, RESULT])
def test_a_disk_that_fills_up_ends_training_with_what_was_saved_before(data, tmp_path, monkeypatch, full):
    replace = os.replace

    def refuse(source, target):
        if target.name == full and Run(tmp_path / "run").metrics():
            raise OSError(28, os.strerror(28))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match=rf"{full} cannot be written \(No space left on device\)"):
        start(classifier(data), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(ClassifierTrainer, "draw", lambda trainer, run: None)
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]
    if full == STATE:  # nothing was saved yet
        return
    run, _ = resume(tmp_path / "run")
    assert outcome(run) == outcome(start(classifier(data), tmp_path / "whole")[0])


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 0},
        {"batch": -1},
        {"threads": 0},
        {"seed": -1},
        {"seed": 1 << 32},
        {"warmup": -1},
        *({"learning_rate": rate} for rate in (0, -1e-3, math.nan, math.inf, -math.inf)),
    ],
    ids=str,
)
def test_settings_that_no_training_can_use(change):
    for settings in (ClassifierSettings, FcnSettings):
        with pytest.raises(ValueError, match=next(iter(change))):
            settings(**change)


@pytest.mark.parametrize("settings", [ClassifierSettings, FcnSettings])
@pytest.mark.parametrize("value", [[], {}, object(), "no\0such", "half a pair: \ud800", 10**400, -1, math.nan, True])
def test_every_setting_is_checked(settings, value):
    for each in dataclasses.fields(settings):
        with pytest.raises(ValueError, match=each.name):
            settings(**{each.name: value})


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (ClassifierSettings, {"epochs": 0}),
        (ClassifierSettings, {"epochs": -1}),
        *((FcnSettings, {name: 0}) for name in ("steps", "evaluations", "fixed")),
        *((FcnSettings, {"l2": value}) for value in (-1.0, math.nan, math.inf)),
        (FcnSettings, {"fixed": 3, "m2nist": "x"}),
        (FcnSettings, {"design": FROZEN, "cnn": None}),
    ],
    ids=str,
)
def test_settings_of_one_training(settings, change):
    with pytest.raises(ValueError):
        settings(**change)


def test_more_evaluations_than_steps_evaluates_every_step(data, cnn, tmp_path):
    run, _ = start(fcn(data, cnn, steps=2, evaluations=100), tmp_path / "run")
    assert [record["step"] for record in run.metrics()] == [1, 2]


# The classifier's weights


def test_pretrained_weights_come_from_a_run_or_a_file(cnn):
    network = Design().build(tinyfcn.on("cpu"))
    from_run, from_file = pretrained_weights(network, cnn), pretrained_weights(network, cnn / STATE)
    assert from_run.keys() == {
        f"{name}.{part}" for name in ("conv1", "conv2", "dense32") for part in ("weight", "bias")
    }
    for name, value in from_run.items():
        np.testing.assert_array_equal(value, from_file[name])


def test_weights_of_another_network_than_a_classifier_are_refused(data, cnn, tmp_path):
    network = Design().build(tinyfcn.on("cpu"))
    with pytest.raises(CheckpointError, match=r"nothing.* does not exist"):
        pretrained_weights(network, tmp_path / "nothing")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(CheckpointError, match=r"text\.safetensors is not a whole safetensors file"):
        pretrained_weights(network, tmp_path / "text.safetensors")
    for design in (Design(), FROZEN):
        folder = tmp_path / design.name
        start(fcn(data, cnn, design=design, steps=1, evaluations=1), folder)
        with pytest.raises(CheckpointError, match=f"{design.name}"):
            pretrained_weights(network, folder)
    run = Run(tmp_path / "nan")
    run.folder.mkdir()
    tensors, metadata = Run(cnn).load()
    tensors["dense32.weight"][1, 2, 3, 4] = np.inf
    run.save(tensors, {"design": metadata["design"]})
    with pytest.raises(CheckpointError, match=r"dense32\.weight has 1 of 6400 values that are NaN or infinite"):
        pretrained_weights(network, run.folder)


# Images


def parity(images):
    """Which of even (training digits) and odd (test digits) the ink's bytes are."""
    ink = images[images > 0]
    return set((ink % 2).tolist())


@pytest.mark.parametrize("fixed", [None, 7])
@pytest.mark.parametrize("design", [Design(), FROZEN, Design(labels="binary")], ids=lambda design: design.name)
def test_training_images_hold_training_digits_and_test_images_test_digits(data, cnn, design, fixed):
    trainer = FcnTrainer(fcn(data, cnn, design=design, fixed=fixed, batch=8), Reporter())
    trained_on = [as_bytes(batch(trainer.batches, step)[0]) for step in range(5)]
    assert parity(np.concatenate(trained_on)) == {0}
    assert parity(as_bytes(trainer.test_images)) == {1}
    assert len(trainer.test_images) == TEST_IMAGES
    images, labels = evaluation_images(tinyfcn.on("cpu"), design, "auto", data, None)
    np.testing.assert_array_equal(images, trainer.test_images)
    np.testing.assert_array_equal(labels, trainer.test_labels)
    ink = as_bytes(images) > 0
    np.testing.assert_array_equal(labels == design.background, ~ink)
    assert set(np.unique(labels)) == ({0, 1} if design.labels == "binary" else set(range(11)))


def test_the_classifier_trains_on_the_training_digits_and_is_tested_on_the_others(data):
    trainer = ClassifierTrainer(classifier(data), Reporter())
    assert parity(np.concatenate([as_bytes(batch(trainer.batches, step)[0]) for step in range(10)])) == {0}
    assert parity(trainer.test.images) == {1}
    np.testing.assert_array_equal(as_bytes(trainer.test_images), trainer.test.images)
    np.testing.assert_array_equal(trainer.test_labels, trainer.test.labels)
    assert len(trainer.test) == TEST


def test_the_test_images_do_not_depend_on_the_seed(data, cnn):
    a, b = (FcnTrainer(fcn(data, cnn, seed=seed), Reporter()) for seed in (0, 9))
    np.testing.assert_array_equal(a.test_images, b.test_images)
    np.testing.assert_array_equal(a.test_labels, b.test_labels)


def test_m2nist_files_are_split_into_images_to_train_and_to_test_on(cnn, m2nist):
    trainer = FcnTrainer(fcn(None, cnn, m2nist=str(m2nist), data_dir=None, batch=8), Reporter())
    files = read_m2nist(m2nist)
    train, test = split_indices(30)
    assert (len(train), len(test)) == (24, 6)
    np.testing.assert_array_equal(as_bytes(trainer.test_images), files.images[test])
    np.testing.assert_array_equal(trainer.test_labels, files.labels[test])
    epoch = [batch(trainer.batches, step) for step in range(3)]
    seen = np.concatenate([as_bytes(x) for x, _ in epoch])
    order = trainer.batches.indices(range(3)).ravel()
    np.testing.assert_array_equal(seen, files.images[train][order])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in epoch]), files.labels[train][order])


def stored_numbers(count, size, seed, ops=None):
    """Images that show their own number, which is their label too."""
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    return Stored(ops or tinyfcn.on("cpu"), images, np.arange(count), size, seed)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (7, 7), (5, 12), (6, 1)])
def test_stored_images_come_once_an_epoch_in_a_new_order(count, size):
    stored = stored_numbers(count, size, seed=2)
    epochs = 4
    batches = [batch(stored, step) for step in range(epochs * count // size + 1)]
    assert all(x.shape == (size, 1, 2, 3) and y.shape == (size,) for x, y in batches)
    order = np.concatenate([y for _, y in batches])[: epochs * count].reshape(epochs, count)
    for epoch in order:
        assert sorted(epoch) == list(range(count))
    assert len({tuple(epoch) for epoch in order}) == epochs  # (of 7! orders and more, so no chance)
    for x, y in batches:
        np.testing.assert_array_equal(np.rint(x[:, 0, 0, 0] * 127 + 127), y)  # label and image stay together
    again = stored_numbers(count, size, seed=2)
    for step in reversed(range(len(batches))):  # a function of the step alone, as resuming needs
        np.testing.assert_array_equal(batch(again, step)[1], batches[step][1])
    other = stored_numbers(count, size, seed=3)
    assert any((batch(other, step)[1] != batches[step][1]).any() for step in range(len(batches)))


@pytest.mark.parametrize(("count", "size"), [(10, 4), (1000, 3), (5, 12)])
def test_the_images_of_a_step_do_not_depend_on_the_range_of_steps(count, size):
    stored = stored_numbers(count, size, seed=1)
    whole = stored.indices(range(300))
    assert whole.shape == (300, size) and whole.dtype == np.int32
    for first, last in ((0, 1), (7, 8), (128, 256), (299, 300), (3, 20)):
        np.testing.assert_array_equal(stored.indices(range(first, last)), whole[first:last])
    by_the_book = [permutation(count, 1, at // count)[at % count] for at in range(250 * size, 260 * size)]
    np.testing.assert_array_equal(whole[250:260].ravel(), by_the_book)


def test_the_order_of_images_is_written_to_the_device_every_so_many_steps(ops):
    """Whatever step a training begins with, and though the array that holds the order stays the same."""
    for first in (0, ORDERED_STEPS - 1, ORDERED_STEPS + 5):
        stored = stored_numbers(7, 2, seed=4, ops=ops)
        counter, order = ops.asarray(np.array([first], np.int32)), stored.order
        for step in range(first, 2 * ORDERED_STEPS + 3, 13):
            counter[...] = step
            stored.prepare(step)
            _, labels = stored.batch(counter)
            np.testing.assert_array_equal(ops.to_numpy(labels), stored.indices(range(step, step + 1))[0])
        assert stored.order is order


def test_composed_images_never_come_twice():
    composed = Composed(tinyfcn.on("cpu"), digits("train"), Design(), batch=6, seed=2)
    images = np.concatenate([batch(composed, step)[0] for step in range(6)])
    assert len({image.tobytes() for image in images}) == 36
    np.testing.assert_array_equal(batch(composed, 3)[0], images[18:24])


def test_composed_chunks_add_up():
    chunks = list(composed_chunks(digits("train"), seed=1, count=17, chunk=5))
    assert [len(images) for images, _ in chunks] == [5, 5, 5, 2]
    images = np.concatenate([images for images, _ in chunks])
    assert len({image.tobytes() for image in images}) == 17
    assert images.dtype == np.uint8
    for some, labels in chunks:
        np.testing.assert_array_equal(labels == 10, some == 0)


# Threads


@pytest.fixture(params=["processes", "threads"])
def kind_of_worker(request, monkeypatch):
    """Both kinds of workers on every system that can fork; a system has one of them."""
    if request.param == "processes" and sys.platform != "linux":
        pytest.skip("a fork is not safe here")
    monkeypatch.setattr(parallel, "FORKS", request.param == "processes")
    return parallel.Forked if parallel.FORKS else parallel.Threaded


def a_batch(design):
    """x and labels; the count is no multiple of the threads."""
    random = np.random.default_rng(0)
    count, size = (5, (28, 28)) if design.name == "classifier" else (3, (64, 84))
    x = random.normal(0, 1, (count, 1, *size)).astype(np.float32)
    labels = random.integers(0, design.classes, (count,) if design.name == "classifier" else (count, *size))
    return x, labels.astype(np.int32)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("design", [Design("classifier"), Design(), FROZEN], ids=lambda design: design.name)
def test_threads_give_the_gradients_of_the_whole_batch(design, threads, kind_of_worker):
    ops = tinyfcn.on("cpu")
    x, labels = a_batch(design)
    results = []
    for parallel_network in (ParallelNetwork(design.build(ops), n) for n in (1, threads)):
        loss = parallel_network.gradients(x, labels, 3, "softmax")
        results.append((loss, parallel_network.network.gradients))
    assert {type(worker) for worker in parallel_network.workers} == {kind_of_worker}
    assert len(parallel_network.workers) == min(threads, len(x)) - 1
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    difference = np.linalg.norm(results[1][1] - results[0][1]) / np.linalg.norm(results[0][1])
    assert difference < 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="a fork is not safe here")
def test_processes_and_threads_give_the_same_bits(monkeypatch):
    """Over steps that change the parameters, which processes have to be told."""
    found = []
    for forks in (True, False):
        monkeypatch.setattr(parallel, "FORKS", forks)
        network = ParallelNetwork(Design("classifier").build(tinyfcn.on("cpu")), 2)
        for _ in range(3):
            loss = network.gradients(*a_batch(Design("classifier")), None, "zero")
            network.network.parameters -= 0.1 * network.network.gradients
        found.append((loss.tobytes(), network.network.parameters.tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize(("count", "batch", "threads"), [(10, 3, 1), (10, 3, 2), (10, 3, 8), (0, 3, 2), (4, 4, 3)])
def test_map_gives_results_in_order(count, batch, threads, kind_of_worker):
    network = ParallelNetwork(Design("classifier").build(tinyfcn.on("cpu")), threads)
    parts = network.map(lambda network, part: (part.start, part.stop), count, batch)
    assert parts == [(first, min(first + batch, count)) for first in range(0, count, batch)]


def test_an_error_of_a_worker_is_raised(kind_of_worker):
    def fail(network, part):
        if part.start:
            raise TinyfcnError("the second part")

    with pytest.raises(TinyfcnError, match="the second part"):
        ParallelNetwork(Design("classifier").build(tinyfcn.on("cpu")), 2).map(fail, 2, 1)


def test_an_answer_that_was_not_read_is_not_taken_for_the_next_batch(kind_of_worker):
    network = ParallelNetwork(Design("classifier").build(tinyfcn.on("cpu")), 2)
    x, labels = a_batch(Design("classifier"))
    expected = network.gradients(x, labels, None, "zero").copy()
    refused_by_the_first_part = np.concatenate([np.int32([-9]), labels[1:]])
    with pytest.raises(ValueError):
        network.gradients(2 * x, refused_by_the_first_part, None, "zero")
    np.testing.assert_array_equal(network.gradients(x, labels, None, "zero"), expected)


def test_more_threads_than_the_system_gives(monkeypatch, kind_of_worker):
    def refuse(*given):
        raise OSError(11, "Resource temporarily unavailable") if parallel.FORKS else RuntimeError("can't start more")

    monkeypatch.setattr("os.fork", refuse)
    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", refuse)
    network = ParallelNetwork(Design("classifier").build(tinyfcn.on("cpu")), 3)
    with pytest.raises(DeviceError, match=r"3 threads cannot be started \(.*(unavailable|more)\): choose fewer"):
        network.map(lambda network, part: None, 5, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="a fork is not safe here")
def test_signals_do_not_end_a_worker_and_kill_is_one_line():
    """Ctrl-C, and the end of a terminal or a job, reach all processes: the first one saves the run."""
    network = ParallelNetwork(Design("classifier").build(tinyfcn.on("cpu")), 2)
    given = *a_batch(Design("classifier")), None, "zero"
    network.gradients(*given)
    (worker,) = network.workers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
        network.gradients(*given)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match="a process of this training was ended: is there memory for as many --thr"):
        network.gradients(*given)
    with network.computing():
        pass
    with pytest.raises(ChildProcessError):
        os.waitpid(worker.pid, os.WNOHANG)


WITH_WORKERS = """
import time, numpy as np, tinyfcn
from tinyfcn.networks import Design
from tinyfcn.training import ParallelNetwork
networks = [ParallelNetwork(Design("classifier").build(tinyfcn.on("cpu")), 3) for _ in range(2)]
for network in networks:
    network.gradients(np.zeros((3, 1, 28, 28), np.float32), np.zeros(3, np.int32), None, "zero")
print(*(worker.pid for network in networks for worker in network.workers), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a fork is not safe here")
def test_workers_end_with_the_process_that_is_killed():
    process = subprocess.Popen([sys.executable, "-c", WITH_WORKERS], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 4
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "a worker outlives its training"
        time.sleep(0.02)


def test_available_threads():
    assert 1 <= available_threads() <= 8


# Evaluation


@pytest.mark.slow
def test_evaluating_a_run_gives_its_result_again(data, cnn, m2nist, tmp_path):
    fresh, _ = start(fcn(data, cnn), tmp_path / "fresh")
    early, _ = start(fcn(data, cnn, design=FROZEN), tmp_path / "early")
    for run in (Run(cnn), fresh, early):
        result = {name: value for name, value in run.result().items() if name not in ("steps", "seconds")}
        assert evaluate_run(run.folder, "cpu", data_dir=data) == result
    files, _ = start(fcn(None, cnn, m2nist=str(m2nist), data_dir=None), tmp_path / "files")
    found = evaluate_run(files.folder, "cpu", m2nist=m2nist)
    assert found == {name: value for name, value in files.result().items() if name not in ("steps", "seconds")}
    assert evaluate_run(files.folder, "cpu") == found  # without options, on the images of its training's tests
    assert evaluate_run(files.folder, "cpu", data_dir=data)["loss"] != found["loss"]
    with pytest.raises(CheckpointError, match="is a classifier's run"):
        evaluate_run(cnn, "cpu", m2nist=m2nist)


def test_a_run_is_evaluated_on_its_own_digits_unless_told_otherwise(data, cnn, tmp_path, monkeypatch):
    monkeypatch.delenv("TINYFCN_DATA", raising=False)
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path))
    monkeypatch.setenv("TINYFCN_OFFLINE", "1")
    assert evaluate_run(cnn, "cpu")["accuracy"] == Run(cnn).result()["accuracy"]
    other = write_tiny_digits(tmp_path / "other")
    (other / "t10k-labels-idx1-ubyte").write_bytes((data / "t10k-labels-idx1-ubyte").read_bytes()[:8] + bytes(TEST))
    assert evaluate_run(cnn, "cpu", data_dir=other)["accuracy"] != Run(cnn).result()["accuracy"]


# Devices


@pytest.mark.slow
def test_the_kernels_train_the_classifier_as_numpy_does(ops, data, tmp_path):
    changes = {"batch": 4, "epochs": 1}
    for number, device in enumerate(("cpu", ops.device_name)):
        trainer = ClassifierTrainer(classifier(data, device=device, **changes), Reporter())
        trainer.test_images, trainer.test_labels = trainer.test_images[:10], trainer.test_labels[:10]
        trainer.steps, trainer.evaluate_every = 3, 3
        run = Run(tmp_path / device)
        run.folder.mkdir()
        run.write_json("config.json", trainer.config())
        tinyfcn.training.loop.train(run, trainer, Reporter())
        assert run.config()["device"] == device
        if number == 0:
            expected = run
    assert_alike(run, expected)


@pytest.mark.slow
def test_the_kernels_train_an_fcn_as_numpy_does(ops, data, cnn, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyfcn.training.sources.TEST_COUNT", 2)
    settings = [fcn(data, cnn, device=device, batch=1, steps=2, evaluations=1) for device in ("cpu", ops.device_name)]
    expected, run = (start(each, tmp_path / each.device)[0] for each in settings)
    assert run.config()["device"] == ops.device_name
    assert_alike(run, expected)


REPLAYED = {
    "classifier": (
        5,
        lambda data, cnn, device: ClassifierTrainer(classifier(data, batch=2, device=device), Reporter()),
    ),
    "skip": (3, lambda data, cnn, device: FcnTrainer(fcn(data, cnn, batch=1, device=device), Reporter())),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLAYED)
def test_a_recorded_step_is_the_step_to_the_bit(ops, data, cnn, monkeypatch, name):
    """One training records its step and replays it, the other runs in Python every time."""
    monkeypatch.setattr("tinyfcn.training.sources.TEST_COUNT", 1)
    monkeypatch.setattr("tinyfcn.training.sources.ORDERED_STEPS", 3)  # new orders on the way
    steps, make = REPLAYED[name]
    states = []
    for replays in (True, False):
        trainer = make(data, cnn, ops.device_name)
        trainer.begin()
        worked = []
        work = trainer.work
        monkeypatch.setattr(trainer, "work", lambda work=work, worked=worked: (worked.append(1), work()))
        for step in range(steps):
            if replays:
                trainer.step(step)
            else:
                trainer.batches.prepare(step)
                trainer.work()
        assert len(worked) == (1 if replays else steps)
        assert not conflicts(ops.device.record(work).launches), (
            "launches that may run at the same time do not share arrays"
        )
        losses = trainer.state.last_losses(ops, steps)
        assert len({*losses.tolist()}) == steps
        kept = [trainer.network.parameters, *(getattr(trainer.state, part) for part in ("m", "v", "step", "rates"))]
        states.append([losses.tobytes(), *(ops.to_numpy(array).tobytes() for array in kept)])
    assert states[0] == states[1]


@pytest.mark.slow
def test_a_training_that_replays_may_be_stopped_and_resumed(ops, tmp_path, monkeypatch):
    """To the same bits, although it records anew, and reads the losses at other steps."""
    for prefix, count in (("train", 8), ("t10k", 2)):
        images, labels = draw(count, seed=0, odd=prefix == "t10k")
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", labels)
    settings = classifier(tmp_path, device=ops.device_name, batch=2)  # 8 steps
    whole, _ = start(settings, tmp_path / "whole")
    at_step(monkeypatch, 5, press_ctrl_c)
    with pytest.raises(Interrupted):
        start(settings, tmp_path / "stopped")
    resume(tmp_path / "stopped")
    assert outcome(Run(tmp_path / "stopped")) == outcome(whole)


def test_no_loss_is_overwritten_before_it_is_read():
    assert max(loop.REPORT_EVERY.values()) <= RING
    assert {*loop.REPORT_EVERY} == {*DEVICES}


def test_a_run_remembers_which_device_auto_was(data, cnn, tmp_path):
    for settings in (classifier(data, device="auto"), fcn(data, cnn, device="auto", steps=1)):
        run, _ = start(settings, tmp_path / type(settings).__name__)
        assert run.config()["device"] == tinyfcn.on("auto").device_name


def assert_alike(run, expected):
    for mine, theirs in zip(run.metrics(), expected.metrics(), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert mine["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-3)
    # Adam steps by the sign of a gradient, however small: where one is but rounding, single weights may well differ.
    initial = trainer_of(expected, Reporter()).network.numpy_parameters()
    for name, value in weights(expected).items():
        moved = np.linalg.norm(value - initial[name])
        assert np.linalg.norm(weights(run)[name] - value) <= 0.05 * moved, name


# Figures


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_the_classifiers_figures(data, tmp_path):
    run, _ = start(classifier(data, epochs=1), tmp_path / "run")
    assert pngs(run) == ["learning-curves.png", "mistakes.png", "score-map.png"]


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_an_fcns_figures_and_the_effect_of_pretraining(data, cnn, tmp_path):
    brief = {"steps": 1, "evaluations": 1, "design": Design("early")}
    scratch, _ = start(fcn(data, None, **brief), tmp_path / "runs" / "scratch")
    expected = ["labels.png", "learning-curves.png", "masks-scaled-by-panel.png", "masks.png"]
    assert pngs(scratch) == expected  # there is nothing yet to compare it with
    frozen, _ = start(fcn(data, cnn, **{**brief, "design": FROZEN}), tmp_path / "runs" / "frozen")
    assert pngs(frozen) == [*expected, "pretraining.png"]
    skip, _ = start(fcn(data, cnn, steps=1, evaluations=1), tmp_path / "runs" / "skip")
    assert pngs(skip) == ["labels.png", "learning-curves.png", "masks.png"]  # no other run of this design


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize(
    "config",
    [None, "{", "[]", "{}", '{"command": "train-fcn"}', '{"command": "train-fcn", "design": [], "cnn": 1}'],
)
def test_other_folders_beside_a_run_do_no_harm(data, cnn, tmp_path, monkeypatch, config):
    monkeypatch.setattr("tinyfcn.figures.mask_grid", lambda *arguments, **options: None)
    monkeypatch.setattr("tinyfcn.figures.label_overview", lambda *arguments, **options: None)
    beside = tmp_path / "another program's"
    beside.mkdir()
    (beside / RESULT).write_text("{}")
    if config is not None:
        (beside / "config.json").write_text(config)
    run, _ = start(fcn(data, cnn, steps=1, evaluations=1), tmp_path / "run")
    assert run.is_finished


def pngs(run):
    found = sorted(Path(run.folder).glob("*.png"))
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in found)
    return [path.name for path in found]
