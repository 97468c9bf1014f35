"""Every exercise fails as it is given, passes as it is solved, and knows the mistakes that people make."""

import os
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tinyfcn.devices import nvrtc
from tinyfcn.devices.emulator import Emulator, build
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import DataError, DeviceError, KernelError
from tinyfcn.study import exercise_check
from tinyfcn.study.exercise_cases import CASES, COUNTED, calls
from tinyfcn.study.exercise_check import (
    DOUBLE,
    STAGES,
    Behaviour,
    Verdict,
    check,
    first_error,
    is_close,
    observe,
)
from tinyfcn.study.exercise_training import ACCURACY, OTHERS, STEPS, replace_kernels
from tinyfcn.study.exercises import EXERCISES, OPEN_HOLE, Exercise, Folder, count, exercise, exercises
from tinyfcn.study.ladder import LADDER, rungs

ROOT = Path(__file__).parents[2]
ALL = exercises()
QUICK = [exercise(number) for number in (1, 10)]
every_exercise = pytest.mark.parametrize("each", ALL, ids=lambda each: f"{each.number}-{each.name}")
every_mistake = pytest.mark.parametrize(
    ("each", "number"),
    [(each, number) for each in ALL for number in range(len(each.mistakes))],
    ids=lambda value: value.name if isinstance(value, Exercise) else str(value + 1),
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "mine")


def verdict(folder: Folder, each: Exercise, text: str, device: str = "emulator") -> Verdict:
    """The verdict on a text."""
    folder.start(each)
    folder.file(each).write_text(text, encoding="utf-8")
    return check(each, folder, device, lambda line: None)


# --- The texts ---


def test_the_exercises_are_numbered_and_each_has_its_cases() -> None:
    assert [each.number for each in ALL] == [*range(1, count() + 1)] == [*range(1, 15)]
    assert [each.name for each in ALL] == [*CASES]
    assert {*COUNTED} | {*OTHERS} <= {*CASES}
    for number in (0, 15):
        with pytest.raises(DataError, match=f"there is no exercise {number}: they are numbered from 1 to 14"):
            exercise(number)


@every_exercise
def test_the_texts_are_complete(each: Exercise) -> None:
    assert 2 <= len(each.hints) <= 3 and 2 <= len(each.mistakes) <= 5
    assert 5 <= each.minutes <= 30 and each.read
    texts = [each.question, each.taught, *each.hints, *(mistake.says for mistake in each.mistakes)]
    assert all(texts)
    for text in (each.start, each.solution, *(each.filled(mistake.fill) for mistake in each.mistakes)):
        assert max(map(len, text.splitlines())) <= 120
        assert "// hole" not in text and "// end of hole" not in text and "// keep" not in text
    for name in each.read:
        ladder = re.fullmatch(r"tinyfcn ladder (\w+) ?(\d*)", name)
        if ladder:
            assert ladder[1] in LADDER and (not ladder[2] or int(ladder[2]) <= len(rungs(ladder[1]))), name
        else:
            assert (ROOT / name).is_file(), name


@every_exercise
def test_the_hole_is_as_large_as_it_says(each: Exercise) -> None:
    solved, given = each.solution.splitlines(), each.start.splitlines()
    wanted = len([line for line in solved if line not in given])
    said = int(re.findall(r"\d+", each.hole)[0])
    assert abs(wanted - said) <= 1, (wanted, each.hole)
    assert each.start.count(f"/* HERE: {each.hole} */") == 1
    assert len(OPEN_HOLE.findall(each.start)) == 1 and not OPEN_HOLE.search(each.solution)
    assert [line for line in given if line not in solved] == [line for line in given if "HERE" in line]


@every_exercise
def test_the_difference_leads_to_the_solution(each: Exercise) -> None:
    lines = each.difference.splitlines()
    assert lines[0] == f"--- {each.file_name}"
    removed = [line[1:] for line in lines[2:] if line[0] == "-"]
    added = [line[1:] for line in lines[2:] if line[0] == "+"]
    assert all(line in each.start for line in removed) and all(line in each.solution for line in added)
    assert added


def test_the_question_says_what_the_training_asks_for() -> None:
    question = exercise(14).question
    assert f"{STEPS} steps" in question and f"above {ACCURACY}" in question
    assert "exercises 3 and 6" in question and OTHERS["trains"] == (3, 6)
    assert [exercise(number).name for number in (3, 6)] == ["padding", "dx"]


# --- As given, solved, and wrong ---


@every_exercise
def test_an_exercise_fails_as_it_is_given(each: Exercise, folder: Folder) -> None:
    found = verdict(folder, each, each.start)
    line = each.start.splitlines().index(next(line for line in each.start.splitlines() if "HERE" in line)) + 1
    assert (found.stage, found.passed, found.mistake) == ("hole", False, None)
    hole = f"/* HERE: {each.hole} */"
    text = f"{each.file_name}:{line}: the hole is still there: replace {hole} by lines of your own"
    assert found.message == text


def right(folder: Folder, each: Exercise) -> Verdict:
    """The verdict on the solution."""
    for number in OTHERS.get(each.name, ()):
        folder.start(exercise(number))
        folder.file(exercise(number)).write_text(exercise(number).solution, encoding="utf-8")
    found = verdict(folder, each, each.solution)
    assert found.passed, found.message
    assert found.mistake is None and found.message == ""
    return found


def wrong(folder: Folder, each: Exercise, number: int) -> Verdict:
    """The verdict on a mistake."""
    mistake = each.mistakes[number]
    found = verdict(folder, each, each.filled(mistake.fill))
    assert not found.passed and found.stage in STAGES[2:-1]
    assert found.mistake == mistake.says, found.message
    assert re.search(rf"{re.escape(each.file_name)}:\d+", found.message) or found.stage == "counters", found.message
    return found


@pytest.mark.parametrize("each", QUICK, ids=lambda each: each.name)
def test_a_solution_passes_and_a_mistake_draws_its_sentence(each: Exercise, folder: Folder) -> None:
    right(folder, each)
    wrong(folder, each, 2)


@pytest.mark.slow
@every_exercise
def test_every_solution_passes(each: Exercise, folder: Folder) -> None:
    found = right(folder, each)
    assert found.seconds < 60
    assert bool(found.counts) == (each.name in COUNTED)
    assert all(count.found <= count.most and count.before >= count.found for count in found.counts)
    if each.name == "tile":  # its text says so
        assert found.counts[0].before / found.counts[0].found > 7


@pytest.mark.slow
@every_exercise
def test_an_empty_hole_never_passes(each: Exercise, folder: Folder) -> None:
    found = verdict(folder, each, each.filled(""))
    assert found.stage in ("compile", "memory", "results")


@pytest.mark.slow
@every_mistake
def test_every_mistake_draws_its_own_sentence(each: Exercise, number: int, folder: Folder) -> None:
    found = wrong(folder, each, number)
    if found.stage == "counters":
        assert found.counts and any(count.found > count.most for count in found.counts)


@pytest.mark.slow
@every_exercise
def test_no_two_mistakes_do_the_same(each: Exercise, tmp_path: Path) -> None:
    """Nor does one do what the solution does, but for the counters."""
    behaviours = []
    for number, text in enumerate([each.solution, *(each.filled(mistake.fill) for mistake in each.mistakes)]):
        file = tmp_path / f"{number}" / each.file_name
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
        behaviours.append(Behaviour(file, observe(file, calls(each.name))))
    for mine, its in combinations(behaviours, 2):
        if mine.same_runs(its, each.given_lines):
            one, other = exercise_check._profiles([mine.file, its.file], each)
            assert exercise_check._accesses(one) != exercise_check._accesses(other), (mine.file, its.file)


@pytest.mark.slow
@pytest.mark.cupy
@every_exercise
def test_a_solution_compiles_for_gpus(each: Exercise, folder: Folder) -> None:
    folder.start(each)
    folder.file(each).write_text(each.solution, encoding="utf-8")
    for architecture in nvrtc.ARCHITECTURES:
        (resources,) = nvrtc.compile_for(folder.file(each).stem, architecture, folder.file(each))
        assert resources.spilled_bytes == 0


# --- A mistake is recognised by what it does, not by its text ---


def test_a_mistake_in_other_words_is_recognised(folder: Folder) -> None:
    each = exercise(10)
    other = """
    __syncthreads();
    if (threadIdx.x == 0) {
        mean[0] = 0.0f;
    }
    __syncthreads();
    atomicAdd(&mean[0], mine / static_cast<float>(count));
    """
    found = verdict(folder, each, each.filled(other))
    assert (found.stage, found.mistake) == ("order", each.mistakes[0].says)


def test_another_mistake_draws_no_sentence(folder: Folder) -> None:
    each = exercise(10)
    other = each.solution.replace("total += sums[k]", "total += 2 * sums[k]")
    found = verdict(folder, each, other)
    assert (found.stage, found.mistake) == ("results", None)
    assert re.match(r"mean\[0\] is \S+, should be \S+: stored by mean_of at 10_order\.cu:\d+", found.message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "right", "wrong", "stage"),
    [
        (2, "(OW * OH * O);", "(OW * OH * O) % C;", "results"),
        (4, "int best = i * stride * W + j * stride;\n    float largest = plane[best];",
         "int best = 0;\n    float largest = -3.4e38f;", "results"),
        (4, "(i * stride + u) * W + j * stride + v", "(i * stride + u) * W + j * 2 + v", "results"),
        (14, "i = position / OW % OH", "i = position * OW % OH", "results"),
        (11, "for (int v = (w + padding) % stride; v < KW; v += stride) {",
         "for (int v = 0; v < KW; ++v) {\n                if ((w + padding - v) % stride != 0) continue;", "counters"),
        (14, "n = position / (OW * OH);", "n = position / (OW * OH) % O;", "results"),
    ],
    ids=["images modulo channels", "infinity wins no window", "one stride", "another permutation", "half of the loops",
         "images modulo outputs"],
)  # fmt: skip
def test_what_is_nearly_right_does_not_pass(number: int, right: str, wrong: str, stage: str, folder: Folder) -> None:
    each = exercise(number)
    assert right in each.solution
    found = verdict(folder, each, each.solution.replace(right, wrong))
    assert (found.stage, found.mistake) == (stage, None), found.message


def test_a_tree_is_one_that_shares_the_work(folder: Folder) -> None:
    """In whichever order; but one thread that adds up all is right, and no tree."""
    each = exercise(8)
    alone = "__syncthreads();\nif (t == 0)\n    for (int k = 1; k < blockDim.x; ++k) sums[0] += sums[k];\n"
    found = verdict(folder, each, each.filled(alone))
    assert (found.stage, found.mistake) == ("counters", None)
    assert re.fullmatch(r"the results are right; requests to shared memory: \S+, expected at most \S+", found.message)
    neighbours_first = """
for (int step = 1; step < blockDim.x; step *= 2) {
    __syncthreads();
    if (t % (2 * step) == 0 && t + step < blockDim.x) sums[t] += sums[t + step];
}"""
    assert verdict(folder, each, each.filled(neighbours_first)).passed


@pytest.mark.slow
def test_another_waste_draws_no_sentence(folder: Folder) -> None:
    """Some of the mistakes that it is compared with cannot be counted: they read out of bounds."""
    each = exercise(11)
    other = each.solution.replace(
        "int i = (h", "if (bias[o] == bias[o + 0]) sum += 0 * x[0];\n                int i = (h"
    )
    found = verdict(folder, each, other.replace("0 * x[0]", "0 * (x[0] + x[1] + x[2] + x[3])"))
    assert (found.stage, found.mistake) == ("counters", None)
    assert found.message.startswith("the results are right; requests to global memory: ")


def test_a_fault_beside_a_nan_is_a_finding(folder: Folder) -> None:
    each = exercise(4)
    first = "if (planes == 1) max_index[element + (1 << 20)] = 0;\n    int best"
    found = verdict(folder, each, each.solution.replace("int best", first))
    assert found.stage == "memory" and re.match(r"max_pool2d in 04_pooling\.cu: thread .* max_index\[", found.message)


def test_a_fault_with_the_counted_sizes_is_told(folder: Folder) -> None:
    each = exercise(13)
    first = "if (H == 64) y[H * W + tx] = 0.0f;\n    __shared__"
    found = verdict(folder, each, each.solution.replace("__shared__", first))
    assert found.stage == "counters" and re.match(r"transpose in 13_banks\.cu: thread .* y\[6144\]", found.message)


@pytest.mark.slow
def test_a_kernel_that_does_not_end_is_stopped(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise_check, "LIMIT", 1)
    each = exercise(8)
    found = verdict(folder, each, each.solution.replace("active > 1", "active > 0"))
    assert found.stage == "memory"
    assert found.message.startswith("block_sums in 08_tree.cu: it has not ended after 1 s: stopped")


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        (lambda text: text.replace("count) return;", "count) return"), "compile", r"01_guard\.cu:\d+:.*error"),
        (lambda text: text.replace("relu(", "rely("), "compile", "no kernel named relu in .*: leave|no kernel named"),
        (lambda text: text.replace("int count", "int count, int more"), "compile", "relu.*leave the kernel's name"),
        (lambda text: "", "file", r"01_guard\.cu is empty: tinyfcn exercise reset 1 --folder .*mine begins anew"),
    ],
    ids=["syntax", "renamed", "parameters", "empty"],
)
def test_a_file_that_cannot_run_is_told(change: Callable[[str], str], stage: str, message: str, folder: Folder) -> None:
    each = exercise(1)
    found = verdict(folder, each, change(each.solution))
    assert found.stage == stage and found.mistake is None
    assert re.search(message, found.message), found.message


def test_a_file_of_another_encoding_is_told(folder: Folder) -> None:
    each = exercise(1)
    folder.start(each)
    folder.file(each).write_bytes(each.solution.encode() + b"// caf\xe9\n")
    found = check(each, folder, "emulator")
    assert found.stage == "file" and "the byte 0xe9 is not UTF-8: save the file as UTF-8" in found.message
    folder.file(each).unlink()
    found = check(each, folder, "emulator")
    assert found.stage == "file" and f"is not there: tinyfcn exercise start 1 --folder {folder.path}" in found.message


def test_only_the_first_error_of_a_compiler_is_shown() -> None:
    text = (
        "a.cu does not compile:\na.cu: In function 'f':\na.cu:1:2: error: one\n  1 | x\na.cu:3:4: error: two\n  3 | y"
    )
    assert first_error(text) == "a.cu does not compile:\na.cu:1:2: error: one\n  1 | x\nand 1 more"
    assert first_error("a.cu:1: odd") == "a.cu:1: odd"


def test_numbers_are_compared_with_nans_and_infinities() -> None:
    values = np.array([1.0, np.nan, np.inf])
    assert is_close(values, values, DOUBLE) and is_close(values * (1 + 1e-12), values, DOUBLE)
    for other in ([1.1, np.nan, np.inf], [1.0, 2.0, np.inf], [1.0, np.nan, -np.inf], [1.0, np.nan, 5.0]):
        assert not is_close(np.array(other), values, DOUBLE) and not is_close(values, np.array(other), DOUBLE)
    assert not is_close(values[:2], values, DOUBLE)
    assert not is_close(np.array([1, 2]), np.array([1, 3]), DOUBLE)


# --- Devices ---


class PlainGpu(Emulator):
    """Stands in for a GPU: kernels in single precision, without checks."""


def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise_check, "Cuda", PlainGpu)
    monkeypatch.setattr(exercise_check.cuda, "why_not", lambda: None)


def test_a_gpu_runs_it_too(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch)
    each = exercise(1)
    both = verdict(folder, each, each.solution, "auto")
    assert both.passed and both.asked[-1] == "GPU: 3 launches"
    alone = verdict(folder, each, each.solution, "cuda")
    assert alone.passed and alone.asked[-1].startswith("not checked without the emulator: memory accesses")
    bad = verdict(folder, each, each.solution.replace("? 0.0f", "? 1.0f"), "cuda")
    assert bad.stage == "gpu" and re.match(r"on the GPU y of relu is wrong: relative error \d", bad.message)
    with pytest.raises(DeviceError, match="the counters of exercise 13 need the emulator: leave out --device cuda"):
        verdict(folder, exercise(13), exercise(13).solution, "cuda")


def test_it_trains_on_a_gpu_alone(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch)
    monkeypatch.setattr(exercise_check, "observe", lambda *_: pytest.fail("the emulator was asked"))
    for number in (3, 6):
        folder.start(exercise(number))
        folder.file(exercise(number)).write_text(exercise(number).solution, encoding="utf-8")
    devices: list[object] = []

    def learn(files: list[Path], device: object, notice: object) -> float:
        devices.append(device)
        return 0.7

    monkeypatch.setattr(exercise_check, "train", learn)
    found = verdict(folder, exercise(14), exercise(14).solution, "cuda")
    assert found.passed and devices == [PlainGpu]
    assert found.asked[-1] == "the classifier names 70% of 500 digits that it has not seen"


def test_without_a_compiler_a_gpu_does_alone(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[str]:
        raise DeviceError("no compiler")

    each = exercise(1)
    monkeypatch.setattr(build, "compiler", none)
    monkeypatch.setattr(exercise_check.cuda, "why_not", lambda: "no GPU")
    for device, message in (
        ("auto", "no compiler"),
        ("emulator", "no compiler"),
        ("cuda", "no GPU can be used: no GPU"),
    ):
        with pytest.raises(DeviceError, match=message):
            verdict(folder, each, each.solution, device)
    monkeypatch.setattr(exercise_check.cuda, "why_not", lambda: None)
    assert exercise_check._devices("auto") == (False, True)


def test_nvrtc_may_refuse_what_the_emulator_takes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    each = exercise(1)

    def refuse(*arguments: object) -> None:
        raise KernelError("01_guard.cu does not compile for sm_75: why")

    def missing(*arguments: object) -> None:
        raise DeviceError("NVRTC cannot be loaded")

    monkeypatch.setattr(nvrtc, "compile_for", refuse)
    found = verdict(folder, each, each.solution)
    assert (found.stage, found.message) == ("compile", "NVRTC refuses it: 01_guard.cu does not compile for sm_75: why")
    monkeypatch.setattr(nvrtc, "compile_for", missing)
    found = verdict(folder, each, each.solution)
    assert found.passed and found.asked[0] == "NVRTC: not asked: NVRTC cannot be loaded"


# --- It trains ---


def test_training_wants_the_other_two(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    each, padding, dx = exercise(14), exercise(3), exercise(6)
    found = verdict(folder, each, each.solution)
    assert found.stage == "training"
    assert re.match(
        "it trains on your exercise 3 too, which is not right yet: .*03_padding.cu is not there", found.message
    )
    assert found.other == padding  # to which the command points, not to a hint of this one
    for other in (padding, dx):
        folder.start(other)
        folder.file(other).write_text(other.solution, encoding="utf-8")
    folder.file(dx).write_text(dx.filled(dx.mistakes[0].fill), encoding="utf-8")
    found = check(each, folder, "emulator", lambda line: None)
    assert found.stage == "training" and "exercise 6 too, which is not right yet: dx[" in found.message
    assert found.other == dx
    folder.file(dx).write_text(dx.solution, encoding="utf-8")
    given: list[Path] = []

    def learn_little(files: list[Path], *_: object) -> float:
        given.extend(files)
        return 0.5

    monkeypatch.setattr(exercise_check, "train", learn_little)
    found = check(each, folder, "emulator", lambda line: None)
    assert found.message == "the classifier names 50.0% of the digits, expected more than 60%"
    assert given == [folder.file(other) for other in (padding, dx, each)]


def test_the_kernels_of_a_person_replace_those_of_tinyfcn(folder: Folder, tmp_path: Path) -> None:
    three = [exercise(number) for number in (3, 6, 14)]
    for each in three:
        folder.start(each)
        folder.file(each).write_text(each.solution, encoding="utf-8")
    replace_kernels([folder.file(each) for each in three], tmp_path / "kernels")
    device = Emulator(tmp_path / "kernels", naive=True)
    for each in three:
        (call,) = {call.kernel for call in calls(each.name)}
        assert device.declared(call).operation == folder.file(each).stem
    assert device.declared("conv2d_backward_bias_naive").operation == "conv2d"
    assert {*device.statistics} >= {*Emulator().statistics}
    folder.file(three[0]).write_text(three[0].solution.replace("conv2d_forward_naive", "nix"), encoding="utf-8")
    with pytest.raises(KernelError, match=r"03_padding\.cu:\d+: tinyfcn has no kernel named nix to replace"):
        replace_kernels([folder.file(three[0])], tmp_path / "more")


# --- The person's folder ---


def test_a_file_is_never_overwritten(folder: Folder) -> None:
    each = exercise(1)
    assert folder.start(each)
    folder.file(each).write_text("mine")
    assert not folder.start(each) and folder.file(each).read_text() == "mine"
    first = folder.reset(each)
    assert (first.name, first.read_text(), folder.file(each).read_text()) == ("01_guard.1.cu", "mine", each.start)
    folder.file(each).write_text("again")
    assert folder.reset(each).name == "01_guard.2.cu"
    assert (first.read_text(), (folder.path / "01_guard.2.cu").read_text()) == ("mine", "again")
    assert folder.started() == [each]
    with pytest.raises(DataError, match=r"02_unravel\.cu is not there: tinyfcn exercise start 2 --folder"):
        folder.reset(exercise(2))


def test_the_next_exercise_and_the_latest(folder: Folder) -> None:
    assert folder.next() == exercise(1) and folder.started() == []
    for number in (1, 2, 3):
        folder.start(exercise(number))
        os.utime(folder.file(exercise(number)), (number, number))
    os.utime(folder.file(exercise(2)), (9, 9))
    assert [each.number for each in folder.started()] == [1, 3, 2]
    progress = folder.progress()
    progress.passed |= {1, 3}
    progress.hints[2] = 1
    folder.keep(progress)
    assert folder.progress() == progress and folder.next() == exercise(2)
    progress.passed |= {*range(1, count() + 1)}
    folder.keep(progress)
    assert folder.next() is None


@pytest.mark.parametrize("text", ["", "[]", '{"passed": 3}', '{"passed": ["x"], "hints": {}}', '{"hints": {}}', "\0"])
def test_damaged_progress_is_one_clear_line(text: str, folder: Folder) -> None:
    folder.path.mkdir()
    (folder.path / "progress.json").write_text(text)
    with pytest.raises(DataError, match=r"progress\.json is damaged: delete it, and your exercises are checked anew"):
        folder.progress()


def test_nothing_of_the_package_is_edited(folder: Folder) -> None:
    before = {path: path.stat().st_mtime_ns for root in (EXERCISES, KERNELS) for path in root.rglob("*.*")}
    each = exercise(1)
    folder.start(each)
    verdict(folder, each, each.filled(""))
    folder.reset(each)
    after = {path: path.stat().st_mtime_ns for root in (EXERCISES, KERNELS) for path in root.rglob("*.*")}
    assert {path for path in after if path.suffix != ".pyc"} == {path for path in before if path.suffix != ".pyc"}
    assert all(after[path] == before[path] for path in before if path.suffix != ".pyc")
