"""`tinyfcn bench`, the command: both sides compared before they are timed, results kept, failures in one line."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tinyfcn import on
from tinyfcn.bench import pytorch, report, run, steps
from tinyfcn.bench.steps import Step, Task
from tinyfcn.bench.timing import wall_clock
from tinyfcn.cli import main


class OtherStep:
    """In PyTorch's place: a step of ours, with a loss that is wrong by a factor."""

    factor = 1.0

    def __init__(self, task, batches, initial, mode, device):
        if mode.channels_last:
            raise RuntimeError("no such thing here\nfor reasons")
        self.step = Step(task, batches, on("cpu"), "given")

    def __call__(self):
        self.step()

    def trace(self):
        trace = self.step.trace()
        return replace(trace, losses=trace.losses * self.factor)


@pytest.fixture
def other_step(monkeypatch):
    monkeypatch.setattr(pytorch, "torch", SimpleNamespace(__version__="0.0"))
    monkeypatch.setattr(pytorch, "switched", lambda mode, threads: nullcontext())
    monkeypatch.setattr(pytorch, "TorchStep", OtherStep)


@pytest.fixture
def alone(monkeypatch):
    """Without PyTorch, and without a compiler's seconds."""
    monkeypatch.setattr(pytorch, "torch", None)
    monkeypatch.setattr(run, "kernel_resources", lambda parts, architecture: [])


def bench(**changes):
    return run.Bench(on("cpu"), lambda text: None, replace(run.QUICK, **changes))


def command(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_a_step_beside_another(other_step):
    found = bench().step(Task("classifier", 2))
    assert found["best"] == "eager" and found["best_ratio"] == found["eager_ratio"]
    assert found["best_ratio"] == found["torch"]["eager"]["seconds"] / found["ours"]["seconds"]
    assert found["failed"] == {"channels_last": "no such thing here"} and found["tf32"] is None
    assert max(found["differences"]["eager"].values()) < 1e-4


def test_what_differs_is_not_timed(other_step, monkeypatch):
    monkeypatch.setattr(OtherStep, "factor", 1.001)
    measure = bench()
    found = measure.step(Task("classifier", 2))
    assert found["torch"] == {} and found["best_ratio"] is None and found["ours"]["seconds"] > 0
    [why] = measure.disagreeing
    assert re.match(r"classifier, batch 2: PyTorch \(eager\) .* not do the same", why)
    assert found["failed"]["eager"] == why and found["differences"] == {}
    by_batch, _ = measure.sweep()
    assert {*by_batch["series"]} == {"ours"} and "not do the same" in by_batch["stopped"]["eager"]
    result = command("--quick", "--only", "steps", "--device", "cpu")
    assert result.exit_code == 1 and "not do the same" in result.stdout


def test_tf32_is_timed_beside_and_may_differ(other_step, monkeypatch):
    measure, switched = bench(), []
    measure.on_gpu, measure.free_memory, measure.clock = True, lambda: None, wall_clock
    measure.modes = (pytorch.EAGER,)
    monkeypatch.setattr(pytorch, "switched", lambda mode, threads: switched.append(mode.tf32) or nullcontext())
    assert measure.step(Task("classifier", 2))["tf32"]["seconds"] > 0
    assert switched == [False, False, True, True]  # prepared, timed; prepared, timed
    monkeypatch.setattr(steps, "TF32_TOLERANCES", {"losses": -1})
    found = measure.step(Task("classifier", 2))
    assert found["tf32"] is None and "not do the same" in found["failed"]["TF32"] and found["best"] == "eager"
    assert measure.disagreeing == []


def test_a_sweep_ends_where_steps_take_too_long_or_too_much_memory(alone, monkeypatch):
    slow = bench(max_seconds=0.0).sweep()[0]
    assert slow["series"]["ours"]["sizes"] == [1] and slow["stopped"] == {"ours": "skip, batch 1: slow enough"}
    built = run.Bench.ours

    def too_large(self, task, source):
        if task.batch > 1:
            raise MemoryError("Unable to allocate 5 TiB")
        return built(self, task, source)

    monkeypatch.setattr(run.Bench, "ours", too_large)
    by_batch, by_size = bench(max_seconds=99).sweep()
    assert by_batch["series"]["ours"]["sizes"] == [1] and "slope" not in by_batch["series"]["ours"]
    assert by_batch["stopped"] == {"ours": "skip, batch 2: Unable to allocate 5 TiB"}
    assert by_size["series"]["ours"]["sizes"] == [5376, 4 * 5376] and by_size["series"]["ours"]["slope"] >= 0


@pytest.mark.skipif(pytorch.torch is None, reason="PyTorch is not installed")
def test_operations_beside_pytorchs(monkeypatch):
    """All of a step's results agree, and all but images and rates have a time on both sides."""
    monkeypatch.setattr(run, "kernel_resources", lambda parts, architecture: [])
    for part in bench().kernels("h200")["parts"]:
        has_torch = part["numpy"] and part["operation"] not in ("compose_m2nist", "adam_schedule")
        assert (part["torch"] is not None) == bool(has_torch) == ("ratio" in part)
        if has_torch:
            assert part["ratio"] == part["torch"]["seconds"] / part["numpy"]["seconds"]


def test_a_quick_run(alone):
    Path("README.md").write_text(f"before\n{report.BEGIN}\n{report.END}\n", encoding="utf-8")
    files = ("--json", "made/bench.json", "--update-readme", "--out", "made")
    result = command("--quick", "--sweep", "--device", "cpu", *files)
    assert result.exit_code == 0, result.output
    assert "PyTorch is not installed, or not for this device: ours alone" in result.stdout
    assert "on an NVIDIA H200 SXM: 4.80 TB/s" in result.stdout and "A bound, not a measurement" in result.stdout
    assert "skip, batch 1: two runs with one seed: equal bits" in result.stdout
    assert result.stderr.splitlines()[0] == "looking for PyTorch"
    assert sorted(path.name for path in Path("made").iterdir()) == ["bench.json", "step-times.png"]
    readme = Path("README.md").read_text(encoding="utf-8")
    assert "| skip, batch 1 | " in readme and "--quick: too hasty to be quoted, by `tinyfcn bench`" in readme

    found = json.loads(Path("made/bench.json").read_text())
    assert {*found} == {"machine", "steps", "kernels", "sweep"}
    assert found["machine"]["device"] == "cpu" and found["machine"]["torch"] is None
    assert [(step["design"], step["batch"]) for step in found["steps"]] == [("classifier", 4), ("skip", 1)]
    for timing in (step[name] for step in found["steps"] for name in ("ours", "trained")):
        assert {*timing} == {"seconds", "low", "high", "turns", "runs"} and timing["seconds"] > 0
    assert found["kernels"]["threads"] == 1 and found["kernels"]["peaks"]["source"] == "H200 datasheet"
    assert found["kernels"]["peaks"]["architecture"] == "sm_90"
    for part in found["kernels"]["parts"]:
        assert part["roofline"] >= 0 and part["kernels"] and part["fast"] is None and part["torch"] is None
        with_dx = part["what"] == "dweight" and part["layer"] not in ("conv1", "skip0")
        assert part["numpy"] is None if with_dx else part["numpy"]["seconds"] > 0
    assert found["sweep"][1]["series"]["ours"]["sizes"][0] == 5376


def test_only_a_part(alone):
    result = command("--quick", "--only", "kernels", "--card", "a100", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "A100 datasheet" in result.stdout and "training step" not in result.stdout
    assert "naive" not in result.stdout  # no kernel was timed, so there is no column of their times
    assert "NumPy  PyTorch  ratio" in result.stdout and "on one thread each" in result.stdout
    assert re.search(r"conv2d dweight +context .*with dx +- +-\n", result.stdout)
    assert "3 of 22: conv2d_pool conv1" in result.stderr and "22 of 22: adam_step" in result.stderr
    assert not [*Path().iterdir()]


def test_what_was_measured_is_kept(alone, monkeypatch):
    monkeypatch.setattr(run.Bench, "kernels", lambda self, card: 1 / 0)
    command("--quick", "--device", "cpu", "--json", "bench.json")
    assert len(json.loads(Path("bench.json").read_text())["steps"]) == 2


def test_different_bits_are_a_failure(alone, monkeypatch):
    monkeypatch.setattr(steps, "same_bits", lambda make: False)
    result = command("--quick", "--only", "steps", "--device", "cpu")
    assert result.exit_code == 1 and "skip, batch 1: two runs with one seed: DIFFERENT BITS" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batches", "16,x"], "'16,x' is not a list of numbers"),
        (["--batches", "0"], "not a list of numbers from 1"),
        (["--batches", ""], "not a list of numbers"),
        (["--card", "voodoo"], "voodoo"),
        (["--only", "kernels", "--update-readme"], "leave out --only kernels"),
    ],
)
def test_wrong_usage(arguments, words):
    result = command(*arguments)
    assert result.exit_code == 2 and words in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--update-readme"], "README.md has no place for the table"),
        (["--update-readme", "missing.md"], "missing.md cannot be read"),
        (["--json", "file/bench.json"], "name another file with --json"),
        (["--sweep", "--out", "file/below"], "name another folder with --out"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_measured(monkeypatch, arguments, words):
    monkeypatch.setattr(run, "Bench", lambda *given: pytest.fail("measured"))
    Path("file").touch()
    Path("README.md").write_text("no markers")
    result = command(*arguments)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and words in result.stderr


def test_no_gpu(monkeypatch):
    monkeypatch.setattr("tinyfcn.devices.cuda.why_not", lambda: "no NVIDIA GPU with a working driver was found")
    result = command("--device", "cuda")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "'cuda' cannot be used: no NVIDIA GPU" in result.stderr
