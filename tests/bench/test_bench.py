"""`tinyfcn bench`, the command: both sides compared before they are timed, results kept, failures in one line."""

import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from tinyfcn import on
from tinyfcn.bench import agreement, pytorch, report, run
from tinyfcn.bench.timing import wall_clock
from tinyfcn.checks.parts import Part
from tinyfcn.cli import main
from tinyfcn.errors import DeviceError
from tinyfcn.training.step import Task

USED = {"kernel": "relu<3>", "for": ["a dx", "b", "c"], "blocks": 1234, "threads": 256, "registers": 40}
USED |= {"shared_bytes": 2048, "spilled_bytes": 8, "occupancy": 0.75}


class OtherStep:
    """In PyTorch's place: our step, with a loss that is wrong by a factor."""

    factor = 1.0

    def __init__(self, ours, mode):
        if mode.channels_last:
            raise RuntimeError("no such thing here\nfor reasons")
        self.ours = ours

    def __call__(self):
        self.ours()

    def trace(self):
        trace = agreement.trace(self.ours)
        return trace | {"losses": [trace["losses"][0] * self.factor]}


@pytest.fixture
def other_step(monkeypatch):
    monkeypatch.setattr(pytorch, "torch", SimpleNamespace(__version__="0.0"))
    monkeypatch.setattr(pytorch, "switch", lambda mode, threads: None)
    monkeypatch.setattr(pytorch, "TorchStep", OtherStep)


def without_pytorch(patch):
    """Nor with a compiler's seconds."""
    patch.setattr(pytorch, "torch", None)
    patch.setattr(run, "kernel_resources", lambda launches, architecture: [USED])
    patch.setattr(run, "predict_step", lambda parts, launches, card: ([1e-6] * 99, 2e-5))


@pytest.fixture
def alone(monkeypatch):
    without_pytorch(monkeypatch)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run of everything: its result, and its folder."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "README.md").write_text(f"before\n{report.BEGIN}\n{report.END}\n", encoding="utf-8")
    files = ("--json", folder / "made/bench.json", "--update-readme", folder / "README.md", "--out", folder / "made")
    with pytest.MonkeyPatch.context() as patch:
        without_pytorch(patch)
        return command("--quick", "--growth", "--device", "cpu", *files), folder


def bench(**changes):
    return run.Bench(on("cpu"), lambda text: None, replace(run.QUICK, **changes))


def command(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.mark.slow
def test_a_step_beside_another(other_step):
    found = bench().step(Task("classifier", 2))
    assert found["best"] == "eager" and found["best_ratio"] == found["eager_ratio"]
    assert found["best_ratio"] == found["torch"]["eager"]["seconds"] / found["ours"]["seconds"]
    assert found["failed"] == {"channels_last": "no such thing here"} and found["tf32"] is None
    assert max(found["differences"]["eager"].values()) == 0


@pytest.mark.slow
def test_what_differs_is_not_timed(other_step, monkeypatch):
    monkeypatch.setattr(OtherStep, "factor", 1.001)
    monkeypatch.setattr(OtherStep, "__call__", lambda self: pytest.fail("timed"))
    measure = bench()
    found = measure.step(Task("classifier", 2))
    assert found["torch"] == {} and found["best_ratio"] is None and found["ours"]["seconds"] > 0
    [why] = measure.disagreeing
    assert re.match(r"classifier, batch 2: PyTorch \(eager\) .* not do the same", why)
    assert found["failed"]["eager"] == why and found["differences"] == {}
    by_batch, _ = measure.growth()
    assert {*by_batch["series"]} == {"ours"} and "not do the same" in by_batch["stopped"]["eager"]
    result = command("--quick", "--only", "steps", "--device", "cpu")
    assert result.exit_code == 1 and "PyTorch, eager, not timed: classifier, batch 4: PyTorch (eager)" in result.stdout


@pytest.mark.slow
def test_tf32_is_timed_beside_and_may_differ(other_step, monkeypatch):
    measure, switched = bench(), []
    measure.on_gpu, measure.free_memory, measure.clock = True, lambda: None, wall_clock
    measure.modes = (pytorch.EAGER,)
    monkeypatch.setattr(pytorch, "switch", lambda mode, threads: switched.append(mode.tf32))
    assert measure.step(Task("classifier", 2))["tf32"]["seconds"] > 0
    assert switched == [False, False, True, True]  # prepared, timed; prepared, timed
    monkeypatch.setattr(agreement, "TF32_TOLERANCES", {"losses": -1})
    found = measure.step(Task("classifier", 2))
    assert found["tf32"] is None and "not do the same" in found["failed"]["TF32"] and found["best"] == "eager"
    assert measure.disagreeing == []


@pytest.mark.slow
def test_the_growth_ends_where_steps_take_too_long_or_too_much_memory(alone, monkeypatch):
    slow = bench(max_seconds=0.0).growth()[0]
    assert slow["series"]["ours"]["sizes"] == [1] and slow["stopped"] == {"ours": "skip, batch 1: slow enough"}
    built = run.Step

    def too_large(task, *rest, **named):
        if task.batch > 1:
            raise MemoryError("Unable to allocate 5 TiB")
        return built(task, *rest, **named)

    monkeypatch.setattr(run, "Step", too_large)
    by_batch, by_size = bench(max_seconds=99).growth()
    assert by_batch["series"]["ours"]["sizes"] == [1] and "slope" not in by_batch["series"]["ours"]
    assert by_batch["stopped"] == {"ours": "skip, batch 2: Unable to allocate 5 TiB"}
    assert by_size["series"]["ours"]["sizes"] == [5376, 4 * 5376] and by_size["series"]["ours"]["slope"] >= 0


@pytest.mark.slow
@pytest.mark.skipif(pytorch.torch is None, reason="PyTorch is not installed")
def test_operations_beside_pytorchs(monkeypatch):
    """All of a step's results agree, and all but images and rates have a time on both sides."""
    monkeypatch.setattr(run, "kernel_resources", lambda launches, architecture: [])
    for part in bench().kernels("h200")["parts"]:
        has_torch = part["numpy"] and part["operation"] not in ("compose_m2nist", "adam_schedule")
        assert (part["torch"] is not None) == bool(has_torch) == ("ratio" in part)
        if has_torch:
            assert part["ratio"] == part["torch"]["seconds"] / part["numpy"]["seconds"]


def test_kernels_on_a_gpu(alone, monkeypatch):
    """Which the emulator stands for, with two kernels that compile quickly."""
    measure, ops, x = bench(), on("emulator"), np.ones(300, np.float32)
    measure.ops, measure.device, measure.on_gpu, measure.free_memory = ops, "emulator", True, lambda: None
    arguments = {"a": ops.asarray(x), "b": ops.asarray(x)}
    monkeypatch.setattr(run, "parts_of", lambda task, ops: [Part("add", "", "", arguments, ops.add(**arguments))])
    monkeypatch.setattr(run, "gpu", lambda: ("NVIDIA Card", "sm_90"))
    monkeypatch.setattr(run, "measure_peaks", lambda *given: (1e12, 1e13))
    found = measure.kernels("t4")
    [part] = found["parts"]
    assert found["peaks"]["name"] == "NVIDIA Card" and found["peaks"]["source"] == "measured in this run"
    assert part["bytes"] == 3 * 1200 and part["roofline"] == 3600 / 1e12 and part["numpy"] is None
    assert part["of_bandwidth"] == pytest.approx(3600 / part["fast"]["seconds"] / 1e12) and part["naive"]["seconds"] > 0
    assert [*report.part_rows(found)[0]][3:] == ["roofline>", "fast>", "naive>", "PyTorch>", "bandwidth>", "FMA>"]


@pytest.mark.slow
def test_what_a_quick_run_prints(quick):
    result, folder = quick
    assert result.exit_code == 0, result.output
    for words in (
        "PyTorch is not installed, or not for this device: ours alone",
        "on an NVIDIA H200 SXM: 4.80 TB/s",
        "A bound, not a measurement",
        "skip, batch 1: two runs with one seed: equal bits",
        "what they use, compiled for sm_90",
        "model: the time to expect on an NVIDIA H200 SXM, from counts; the step: 20.0 µs",
        "time of a step of skip against the batch\n  ours: ",
        f"drawn: {folder}",
    ):
        assert words in result.stdout
    assert re.search(r"\nrelu +a dx \+2 +1,234 +256 +40 +2,048 +8 +75 %\n", result.stdout)
    assert result.stderr.splitlines()[0] == "looking for PyTorch"
    assert sorted(path.name for path in (folder / "made").iterdir()) == ["bench.json", "step-times.png"]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "| skip, batch 1 | " in readme and "--quick: too hasty to be quoted, by `tinyfcn bench`" in readme


@pytest.mark.slow
def test_what_a_quick_run_writes(quick):
    found = json.loads((quick[1] / "made/bench.json").read_text())
    assert {*found} == {"machine", "steps", "kernels", "growth"}
    assert found["machine"]["device"] == "cpu" and found["machine"]["torch"] is None
    assert [(step["design"], step["batch"]) for step in found["steps"]] == [("classifier", 4), ("skip", 1)]
    for timing in (step[name] for step in found["steps"] for name in ("ours", "trained")):
        assert {*timing} == {"seconds", "low", "high", "turns", "runs"} and timing["seconds"] > 0
    assert found["kernels"]["threads"] == 1 and found["kernels"]["peaks"]["source"] == "H200 datasheet"
    for part in found["kernels"]["parts"]:
        assert part["roofline"] >= 0 and part["kernels"] and part["fast"] is None and part["torch"] is None
        with_dx = part["what"] == "dweight" and part["layer"] not in ("conv1", "skip0", "score")
        assert part["numpy"] is None if with_dx else part["numpy"]["seconds"] > 0
    assert found["growth"][1]["series"]["ours"]["sizes"] == [5376, 4 * 5376]


@pytest.mark.slow
def test_only_a_part(alone):
    result = command("--quick", "--only", "kernels", "--card", "a100", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "A100 datasheet" in result.stdout and "training step" not in result.stdout
    assert "naive" not in result.stdout  # no kernel was timed, so there is no column of their times
    assert "NumPy  PyTorch  ratio" in result.stdout and "on one thread each" in result.stdout
    assert re.search(r"conv2d dweight +context .*with dx +- +-\n", result.stdout)
    assert "4 of 22: conv2d_pool conv1" in result.stderr and "22 of 22: adam_step" in result.stderr
    assert not [*Path().iterdir()]


@pytest.mark.slow
def test_without_nvrtc_all_else_is_measured(alone, monkeypatch):
    def missing(launches, architecture):
        raise DeviceError("NVRTC cannot be loaded: pip install it")

    monkeypatch.setattr(run, "kernel_resources", missing)
    result = command("--quick", "--only", "kernels", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "all of them" in result.stdout
    assert "what they use of a GPU is NVRTC's to say: NVRTC cannot be loaded: pip install it\n" in result.stdout


@pytest.mark.slow
def test_what_was_measured_is_kept_and_different_bits_are_a_failure(alone, monkeypatch):
    monkeypatch.setattr(agreement, "same_bits", lambda make: False)
    steps_alone = command("--quick", "--only", "steps", "--device", "cpu")
    assert steps_alone.exit_code == 1 and "skip, batch 1: two runs with one seed: DIFFERENT BITS" in steps_alone.stdout
    monkeypatch.setattr(run.Bench, "kernels", lambda self, card: 1 / 0)
    command("--quick", "--device", "cpu", "--json", "bench.json")
    assert len(json.loads(Path("bench.json").read_text())["steps"]) == 2


@pytest.mark.slow
def test_all_numbers_go_to_a_pipe_once(alone, monkeypatch):
    """A file also keeps what is measured so far; who reads a pipe wants one object."""
    os.mkfifo("pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()), daemon=True)
    reader.start()
    assert command("--quick", "--device", "cpu", "--only", "steps", "--json", "pipe").exit_code == 0
    reader.join(10)
    assert len(json.loads(read[0])["steps"]) == 2 and Path("pipe").is_fifo()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--batches", "16,x"], 2, "'16,x' is not a list of numbers"),
        (["--batches", "0"], 2, "not a list of numbers from 1"),
        (["--batches", ""], 2, "not a list of numbers"),
        (["--card", "voodoo"], 2, "voodoo"),
        (["--only", "kernels", "--update-readme"], 2, "leave out --only kernels"),
        (["--update-readme"], 1, "README.md has no place for the table"),
        (["--update-readme", "missing.md"], 1, "missing.md cannot be read"),
        (["--batches", "16,8193"], 2, "from 1 to 8,192"),
        (["--json", "file/bench.json"], 1, "name another file with --json"),
        (["--growth", "--out", "file/below"], 1, "name another folder with --out"),
        (["--device", "cuda"], 1, "'cuda' cannot be used: no NVIDIA GPU"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(monkeypatch, arguments, code, words):
    monkeypatch.setattr(run, "Bench", lambda *given: pytest.fail("measured"))
    monkeypatch.setattr("tinyfcn.devices.cuda.why_not", lambda: "no NVIDIA GPU with a working driver was found")
    Path("file").touch()
    Path("README.md").write_text("no markers")
    result = command(*arguments)
    *usage, last = [line for line in result.stderr.splitlines() if line != "looking for PyTorch"]
    assert result.exit_code == code and words in last and bool(usage) == (code == 2)
