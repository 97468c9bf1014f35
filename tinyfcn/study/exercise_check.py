"""Checks a person's solution of an exercise, up to the first thing that is wrong.

What is wrong has a stage: STAGES in their order. If what the person's file does is what one of the exercise's known
mistakes does, the verdict says that mistake's sentence.
"""

import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.checks.gradcheck import relative_error
from tinyfcn.checks.own_file import Call, launch_calls
from tinyfcn.checks.profile import Profiled, what_is_wrong
from tinyfcn.checks.sanitize import compare
from tinyfcn.checks.watched import Found, Watched
from tinyfcn.devices import cuda, kernel_source, nvrtc
from tinyfcn.devices.cuda import Cuda
from tinyfcn.devices.emulator import Emulator, build
from tinyfcn.devices.emulator.emulator import ORDERS
from tinyfcn.devices.emulator.profile import EVERY_BLOCK
from tinyfcn.errors import DataError, DeviceError, KernelError
from tinyfcn.study.exercise_cases import COUNTED, calls
from tinyfcn.study.exercise_training import ACCURACY, OTHERS, STEPS, train
from tinyfcn.study.exercises import OPEN_HOLE, Exercise, Folder, Mistake, exercise

STAGES = ("file", "hole", "compile", "memory", "order", "results", "counters", "gpu", "training", "passed")
DEVICES = ("auto", "cuda", "emulator")
ARCHITECTURE = nvrtc.ARCHITECTURES[0]
DOUBLE, SINGLE = 1e-10, 1e-4  # the largest relative error of right results, on the emulator and on a GPU
LIMIT = 10  # seconds for all launches in check mode, which take less than one
SAME = 1e-9  # the largest one between the numbers of a person and those of a mistake
_PLACE = re.compile(r"[\w.-]+\.cu:(\d+)")


@dataclass(frozen=True)
class Count:
    """A count of memory accesses: of the form to improve on, of the person's file, and the most that passes."""

    what: str
    before: float
    found: float
    most: float


@dataclass
class Verdict:
    """What a check says. stage: where it stopped, one of STAGES. mistake: what the file does wrong, if that is known.

    asked: what was checked, or why it was not, a line each. other: an exercise whose file is wrong instead; the last
    one trains on those of others.
    """

    exercise: Exercise
    stage: str = "passed"
    message: str = ""
    mistake: str | None = None
    seconds: float = 0.0
    counts: list[Count] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    other: Exercise | None = None

    @property
    def passed(self) -> bool:
        return self.stage == "passed"

    def as_json(self) -> dict[str, Any]:
        """For graders.

        exercise (number), name, passed (true or false), stage (one of STAGES), message (text, "" if it passed), mistake
        (the sentence of a known mistake, or null), seconds (of the check).
        """
        return {
            "exercise": self.exercise.number,
            "name": self.exercise.name,
            "passed": self.passed,
            "stage": self.stage,
            "message": self.message,
            "mistake": self.mistake,
            "seconds": round(self.seconds, 2),
        }


class Wrong(Exception):
    """The first thing that is wrong. actual: what the file does, if it can be compared with the mistakes."""

    def __init__(self, stage: str, message: str, actual: "Behaviour | None" = None) -> None:
        super().__init__(message)
        self.stage, self.actual = stage, actual


@dataclass
class Run:
    """One launch in check mode: its arrays, and what was found. A text is "" where nothing was."""

    order: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    finding: str = ""
    disorder: str = ""
    wrong: str = ""


@dataclass
class Behaviour:
    """What a file does: its runs, in each order of threads, and the profile of its counted launch, if one was made."""

    file: Path
    runs: list[Run]
    profiled: Profiled | None = None

    def same_runs(self, other: "Behaviour", given: set[str]) -> bool:
        """Whether another file's runs give the same. given: lines that both have: findings are compared by them."""
        pairs = zip(self.runs, other.runs, strict=True)
        return any(run.disorder for run in self.runs) == any(run.disorder for run in other.runs) and all(
            _without_places(mine.finding, self.file, given) == _without_places(its.finding, other.file, given)
            and mine.arrays.keys() == its.arrays.keys()
            and all(is_close(mine.arrays[name], its.arrays[name], SAME) for name in mine.arrays)
            for mine, its in pairs
        )


def check(exercise: Exercise, folder: Folder, device: str = "auto", notice: Callable[[str], None] = print) -> Verdict:
    """Checks a person's file. The verdict names the first thing that is wrong.

    Args:
        device: "emulator"; "cuda", a GPU alone; "auto", the emulator where there is a C++ compiler, and a GPU where
            there is one.
        notice: is told what takes longer than a moment.

    Raises:
        DeviceError: the machine lacks the device.
    """
    begin = time.perf_counter()
    on_emulator, on_gpu = _devices(device)
    verdict = Verdict(exercise)
    try:
        _check(folder, verdict, on_emulator, on_gpu)
        if exercise.name in OTHERS:
            _check_training(exercise, folder, verdict, on_emulator, on_gpu, notice)
    except Wrong as wrong:
        verdict.stage, verdict.message = wrong.stage, str(wrong)
        if wrong.actual:
            mistake = recognised(exercise, wrong.actual)
            verdict.mistake = mistake.says if mistake else None
    verdict.seconds = time.perf_counter() - begin
    return verdict


def _devices(device: str) -> tuple[bool, bool]:
    """Whether to check on the emulator, and whether on a GPU."""
    why_not = cuda.why_not() if device != "emulator" else "not asked for"
    if device == "cuda":
        if why_not:
            raise DeviceError(f"no GPU can be used: {why_not}")
        return False, True
    try:
        build.compiler()
    except DeviceError:
        if why_not:
            raise
        return False, True
    return True, not why_not


def _check(folder: Folder, verdict: Verdict, on_emulator: bool, on_gpu: bool) -> None:
    """All stages but training. Raises Wrong."""
    exercise = verdict.exercise
    file = _filled_file(folder, exercise)
    launches = calls(exercise.name)
    if on_emulator:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(_ask_nvrtc, file)  # beside the emulator's compiler
            _compile(file, launches)
            verdict.asked.append(asked.result())
        actual = _expect_right(file, launches)
        if exercise.name in COUNTED:
            _expect_counts(exercise, actual, verdict)
        verdict.asked.append(f"emulator: {len(actual.runs)} launches in check mode, in double precision")
    if on_gpu:
        _expect_right_on_gpu(file, launches)
        verdict.asked.append(f"GPU: {len(launches)} launches")
    if not on_emulator:
        verdict.asked.append("not checked without the emulator: memory accesses and the order of threads")
        if exercise.name in COUNTED:
            raise DeviceError(f"the counters of exercise {exercise.number} need the emulator: leave out --device cuda")


def _filled_file(folder: Folder, exercise: Exercise) -> Path:
    """The person's file. Raises Wrong unless it can be read and its hole is filled."""
    file = folder.file(exercise)
    if not file.is_file():
        raise Wrong("file", f"{file} is not there: {folder.command(f'start {exercise.number}')}")
    try:
        text = kernel_source.text_of(file)
    except KernelError as error:
        raise Wrong("file", str(error)) from None
    if not text.strip():
        raise Wrong("file", f"{file} is empty: {folder.command(f'reset {exercise.number}')} begins anew")
    hole = OPEN_HOLE.search(text)
    if hole:
        line = text.count("\n", 0, hole.start()) + 1
        raise Wrong("hole", f"{file.name}:{line}: the hole is still there: replace {hole[0]} by lines of your own")
    return file


def _ask_nvrtc(file: Path) -> str:
    """What NVRTC says of a file that it compiles, or why it was not asked. Raises Wrong if it refuses the file."""
    try:
        nvrtc.compile_for(file.stem, ARCHITECTURE, file)
    except KernelError as error:  # a kind of DeviceError
        raise Wrong("compile", f"NVRTC refuses it: {error}") from None
    except DeviceError as error:
        return f"NVRTC: not asked: {error}"
    return f"NVRTC: compiles {file.name} for {ARCHITECTURE}"


def _compile(file: Path, launches: Sequence[Call]) -> None:
    """Compiles a file for check mode. Raises Wrong if that fails, or if the kernel is not there."""
    try:
        device = Watched(file, precision="double")
        device.compile([device.declared(launches[0].kernel)])
    except KernelError as error:
        raise Wrong("compile", first_error(str(error))) from None


def first_error(text: str) -> str:
    """A compiler's text up to the second error that it reports, without the lines that name a function."""
    lines = [line for line in text.splitlines() if ": In " not in line]
    errors = [number for number, line in enumerate(lines) if re.search(r"\.cu:\d+.*\berror\b", line)]
    more = f"\nand {len(errors) - 1} more" if len(errors) > 1 else ""
    return "\n".join(lines[: errors[1]] if more else lines) + more


def observe(file: Path, launches: Sequence[Call]) -> list[Run]:
    """Runs the launches in check mode and double precision, in each order of threads.

    Check mode takes a comparison with a NaN for an error, so a launch that is given one runs without it.

    Raises:
        Wrong: the kernel does not take the arguments.
    """
    first: dict[int, dict[str, np.ndarray]] = {}
    runs = []
    for order in ORDERS:
        device = Watched(file, precision="double", order=order)
        for number, call in enumerate(launches):
            run = Run(order)
            runs.append(run)
            try:
                if any(isinstance(each, np.ndarray) and np.isnan(each).any() for each in call.arguments):
                    _run_with_nan(Emulator(file, precision="double", order=order), call, run)
                else:
                    _run_watched(device, call, run, first.get(number))
            except Found as found:
                run.finding = str(found)
            except (DataError, KernelError) as error:
                raise Wrong("compile", f"{error}: leave the kernel's name and its parameters as they were") from None
            first.setdefault(number, run.arrays)
    return runs


def _run_watched(device: Watched, call: Call, run: Run, first: dict[str, np.ndarray] | None) -> None:
    """Fills in a run. first: the arrays in the first order of threads. Raises Found for a finding."""
    [(_, _, written)] = launch_calls(device, [call])
    run.arrays = device.copies(written)
    for name, expected in call.expected.items():
        if not is_close(run.arrays[name], expected, DOUBLE):
            run.wrong = run.wrong or device.wrong(name, written[name], expected)
    try:
        for name, expected in (first or {}).items():
            compare(name, device, written[name], expected)
    except Found as found:
        run.disorder = str(found)


def _run_with_nan(device: Emulator, call: Call, run: Run) -> None:
    """Fills in the run of a launch that is given a NaN."""
    try:
        [(_, kernel, written)] = launch_calls(device, [call])
    except KernelError as error:
        run.finding = str(error)
        return
    run.arrays = {name: device.to_numpy(array) for name, array in written.items()}
    for name, expected in call.expected.items():
        if not is_close(run.arrays[name], expected, DOUBLE):
            place = f"{kernel.name} at {kernel.operation}.cu:{kernel.line}"
            run.wrong = run.wrong or f"{name} is wrong where an input is NaN: stored by {place}"


def _expect_right(file: Path, launches: Sequence[Call]) -> Behaviour:
    """What a file does. Raises Wrong unless its accesses are clean, its results right and the same in each order."""
    with _ending():
        actual = Behaviour(file, observe(file, launches))
    for stage, what in (("memory", "finding"), ("order", "disorder"), ("results", "wrong")):
        for run in actual.runs:
            text = getattr(run, what)
            if text:
                order = f"; threads in {run.order} order" if run.order != ORDERS[0] else ""
                raise Wrong(stage, f"{text}{order}", actual)
    return actual


def _expect_counts(exercise: Exercise, actual: Behaviour, verdict: Verdict) -> None:
    """Counts a launch, of the file and of the form that the exercise improves on. Raises Wrong if it asks for more than
    it may."""
    try:
        with _ending(), _files(exercise, exercise.mistakes[:1]) as (plain,):
            before, actual.profiled = _profiles([plain, actual.file], exercise)
    except KernelError as error:  # with the sizes that are counted
        raise Wrong("counters", str(error)) from None
    for each in COUNTED[exercise.name].counters:
        value = each.value(before)
        verdict.counts.append(Count(each.what, value, each.value(actual.profiled), each.most(actual.profiled, value)))
    for count in verdict.counts:
        if count.found > count.most:
            is_of_parts = count.what.startswith(("wavefronts", "sectors"))  # of which a line may waste some
            lines = actual.profiled.wasteful()[:1] if is_of_parts else []
            wasteful = [f"; {line.place}: {what_is_wrong(line)}" for line in lines]
            text = f"{count.what}: {count.found:,.0f}, expected at most {count.most:,.0f}"
            raise Wrong("counters", f"the results are right; {text}{''.join(wasteful)}", actual)


def _profiles(files: Sequence[Path], exercise: Exercise) -> list[Profiled]:
    """The counted launch of an exercise, by each file."""
    call = COUNTED[exercise.name].call(np.random.default_rng(0))
    devices = [Emulator(file, mode="profile", sample=EVERY_BLOCK) for file in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda device: device.compile([device.declared(call.kernel)]), devices))
    for device in devices:
        list(launch_calls(device, [call]))
    return [Profiled(exercise.name, device.profiles[0]) for device in devices]


def _expect_right_on_gpu(file: Path, launches: Sequence[Call]) -> None:
    """Raises Wrong unless a GPU computes the results."""
    try:
        device = Cuda(file)
        for call in launches:
            for _, _, written in launch_calls(device, [call]):
                for name, expected in call.expected.items():
                    found = device.to_numpy(written[name])
                    if not is_close(found, expected, SINGLE):
                        raise Wrong(
                            "gpu",
                            f"on the GPU {name} of {call.kernel} is wrong: relative error "
                            f"{relative_error(found, expected):.1e}",
                        )
    except (DataError, KernelError) as error:
        raise Wrong("gpu", str(error)) from None


def _check_training(
    exercise_: Exercise,
    folder: Folder,
    verdict: Verdict,
    on_emulator: bool,
    on_gpu: bool,
    notice: Callable[[str], None],
) -> None:
    """Trains on the person's kernels. Raises Wrong if one of them is not right, or if the network learns too little."""
    others = [exercise(number) for number in OTHERS[exercise_.name]]
    for other in others:
        try:
            expect_right = _expect_right if on_emulator else _expect_right_on_gpu
            expect_right(_filled_file(folder, other), calls(other.name))
        except Wrong as wrong:
            verdict.other = other
            raise Wrong(
                "training", f"it trains on your exercise {other.number} too, which is not right yet: {wrong}"
            ) from None
    notice(f"training the classifier on your three kernels: {STEPS} steps")
    try:
        files = [folder.file(each) for each in (*others, exercise_)]
        accuracy = train(files, Cuda if on_gpu else Emulator, notice)
    except KernelError as error:
        raise Wrong("training", str(error)) from None
    if not accuracy > ACCURACY:
        raise Wrong("training", f"the classifier names {accuracy:.1%} of the digits, expected more than {ACCURACY:.0%}")
    verdict.asked.append(f"the classifier names {accuracy:.0%} of 500 digits that it has not seen")


def recognised(exercise: Exercise, actual: Behaviour) -> Mistake | None:
    """The mistake of the exercise that does what a person's file does; None if none does."""
    launches = calls(exercise.name)
    with _files(exercise, exercise.mistakes) as files:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_compile, files, [launches] * len(files)))
        for mistake, file in zip(exercise.mistakes, files, strict=True):
            its = Behaviour(file, observe(file, launches))
            if actual.same_runs(its, exercise.given_lines) and (
                actual.profiled is None or _accesses(actual.profiled) == _accesses(*_profiles([file], exercise))
            ):
                return mistake
    return None


@contextmanager
def _ending() -> Iterator[None]:
    """Stops a kernel that does not end, as Ctrl-C does. Raises Wrong if it had to."""
    if threading.current_thread() is not threading.main_thread():  # to which Ctrl-C goes
        yield
        return
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(LIMIT, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt as stopped:
        if not late.is_set():
            raise
        text = str(stopped).replace("stopped by Ctrl-C", f"it has not ended after {LIMIT} s: stopped")
        raise Wrong("memory", text) from None
    finally:
        timer.cancel()


@contextmanager
def _files(exercise: Exercise, mistakes: Sequence[Mistake]) -> Iterator[list[Path]]:
    """A file for each mistake, named as the person's."""
    with tempfile.TemporaryDirectory(prefix="tinyfcn-") as name:
        files = [Path(name) / f"{number}" / exercise.file_name for number, _ in enumerate(mistakes)]
        for file, mistake in zip(files, mistakes, strict=True):
            file.parent.mkdir()
            file.write_text(exercise.filled(mistake.fill), encoding="utf-8")
        yield files


def is_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Whether the relative error is within the tolerance, and NaNs and infinite numbers stand in the same places."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return False
    finite = np.isfinite(expected)
    return (
        np.array_equal(found[~finite], expected[~finite], equal_nan=True)
        and relative_error(found[finite], expected[finite]) <= tolerance
    )


def _without_places(finding: str, file: Path, given: set[str]) -> str:
    """A finding with the text of each line that it names, or nothing for a line of the person's own."""
    lines = kernel_source.text_of(file).splitlines()

    def text(place: re.Match[str]) -> str:
        line = lines[int(place[1]) - 1].strip() if 0 < int(place[1]) <= len(lines) else ""
        return line if line in given else ""

    return _PLACE.sub(text, finding)


def _accesses(profiled: Profiled) -> list[tuple[Any, ...]]:
    """The accesses of a launch and their costs, whatever their lines and arrays are called."""
    return sorted((each.is_shared, each.kind, each.requests, each.parts) for each in profiled.profile.requests)
