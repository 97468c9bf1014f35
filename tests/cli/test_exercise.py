"""tinyfcn exercise on the command line."""

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tinyfcn.cli import main
from tinyfcn.study import exercises
from tinyfcn.study.exercise_check import STAGES, Verdict
from tinyfcn.study.exercises import Folder, count, exercise

GUARD = exercise(1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a person works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["exercise", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


def edit(text: str, number: int = 1) -> None:
    """A person's edit of a file."""
    Folder().file(exercise(number)).write_text(text, encoding="utf-8")


def test_from_the_start_to_the_next_exercise() -> None:
    """As a person goes: every command as the one before prints it."""
    listed = run("list").stdout
    assert re.search(r"^ 1  The guard +5 *$", listed, re.MULTILINE) and "0 of 14 passed" in listed
    assert listed.endswith("next: tinyfcn exercise start 1\n")
    begun = run("start").stdout
    assert begun.startswith("Exercise 1: The guard (5 minutes)\n\ny = max(x, 0)")
    assert "my_exercises/01_guard.cu\ntinyfcn exercise check 1 " in begun
    given = run("check", 1, code=1).stdout
    assert "not yet (hole, " in given and "01_guard.cu:10: the hole is still there: replace" in given
    edit(GUARD.filled(GUARD.mistakes[1].fill))
    wrong = run("check", code=1).stdout
    assert "not yet (memory, " in wrong and "reads x[600] (x has 600 elements)" in wrong
    assert "Thread number `count` passes this guard" in wrong
    assert wrong.endswith("tinyfcn exercise hint 1\n")
    assert run("hint").stdout == "hint 1 of 3: The threads are numbered 0 .. 767, and the elements 0 .. 599.\n"
    edit(GUARD.solution)
    right = run("check").stdout
    assert right.startswith("1 The guard: my_exercises/01_guard.cu\n\npassed (")
    assert "a kernel begins with a guard" in right and "read next: kernels/relu.cu" in right
    assert right.endswith("next: tinyfcn exercise start 2\n")
    assert re.search(r"^ 1  The guard +5  passed$", run("list").stdout, re.MULTILINE)
    assert "Exercise 2: " in run("start").stdout
    assert run("list").stdout.endswith("next: tinyfcn exercise check 2\n")
    assert re.search(r"^ 2  From .* 10  started$", run("list").stdout, re.MULTILINE)


def test_lines_fit_a_narrow_terminal() -> None:
    for number in range(1, count() + 1):
        assert max(map(len, run("start", number).stdout.splitlines())) <= 80
        for _ in range(2):
            assert max(map(len, run("hint", number).stdout.splitlines())) <= 80
    assert max(map(len, run("list").stdout.splitlines())) <= 80


def test_hints_come_one_by_one() -> None:
    run("start", 1)
    assert [run("hint").stdout[:11] for _ in range(3)] == ["hint 1 of 3", "hint 2 of 3", "hint 3 of 3"]
    again = run("hint", 1).stdout
    assert again.startswith("there are no more hints; tinyfcn exercise solution 1 shows the solution\nhint 3 of 3")
    assert run("hint", 1, "--number", 1).stdout.startswith("hint 1 of 3")
    assert run("hint", 2).stdout.startswith("hint 1 of 3")
    assert "exercise 1 has 3 hints, and 4 is none of them" in run("hint", 1, "--number", 4, code=2).output


def test_a_file_that_is_there_stays() -> None:
    run("start", 1)
    edit("mine")
    again = run("start", 1).stdout
    assert "my_exercises/01_guard.cu is there already, and stays as it is\ntinyfcn exercise reset 1 " in again
    assert Path("my_exercises/01_guard.cu").read_text() == "mine"
    reset = run("reset", 1).stdout
    assert reset == "my_exercises/01_guard.cu is as it was at the start; yours is now my_exercises/01_guard.1.cu\n"
    assert Path("my_exercises/01_guard.1.cu").read_text() == "mine"
    assert Path("my_exercises/01_guard.cu").read_text() == GUARD.start


def test_the_solution_is_a_difference() -> None:
    shown = run("solution", 1).stdout
    assert "-    /* HERE: about 1 line */\n+    if (element >= count) return;\n" in shown
    run("start", 2)
    assert "solution of 2" in run("solution").stdout


def test_another_folder_is_named_in_the_commands(tmp_path: Path) -> None:
    for number, words in ((1, ("start", 1)), (2, ("start", 2))):
        shown = run(*words, "--folder", tmp_path / "my own").stdout
        assert f"tinyfcn exercise check {number} --folder '{tmp_path}/my own'" in shown
    assert (
        f"next: tinyfcn exercise check 1 --folder '{tmp_path}/my own'"
        in run("list", "--folder", tmp_path / "my own").stdout
    )
    assert not Path("my_exercises").exists()


def test_json_for_graders() -> None:
    run("start", 1)
    edit(GUARD.solution)
    run("start", 2)
    one = json.loads(run("check", 1, "--json").stdout)
    assert {**one, "seconds": 0} == {
        "exercise": 1,
        "name": "guard",
        "passed": True,
        "stage": "passed",
        "message": "",
        "mistake": None,
        "seconds": 0,
    }
    assert not Path("my_exercises/progress.json").exists()  # a grader leaves the folder as it is
    both = json.loads(run("check", "--all", "--json", code=1).stdout)
    assert [(each["exercise"], each["stage"]) for each in both] == [(1, "passed"), (2, "hole")]
    edit(GUARD.filled(GUARD.mistakes[0].fill))
    several = json.loads(run("check", 1, 3, "--json", code=1).stdout)
    assert several[0]["mistake"] == GUARD.mistakes[0].says and several[0]["stage"] == "memory"
    assert several[1]["stage"] == "file" and "03_padding.cu is not there" in several[1]["message"]
    documented = " ".join(str(Verdict.as_json.__doc__).split()) + run("check", "--help").stdout
    assert all(name in documented for name in one) and all(stage in documented for stage in STAGES)


def test_a_progress_that_cannot_be_kept_hides_no_verdict() -> None:
    run("start", 1)
    edit(GUARD.solution)
    Path("my_exercises/progress.json").write_text("{")
    result = run("check", 1)
    assert "passed (" in result.stdout and "this is not kept: my_exercises/progress.json is damaged" in result.stderr


def test_watching_checks_again_when_the_file_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    run("start", 1)
    looks = 0

    def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            edit(GUARD.solution)
        if looks == 4:
            Path("my_exercises/01_guard.cu").unlink()
        if looks == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(exercises, "sleep", look)
    shown = run("check", "--watch", code=130)
    verdicts = re.findall(r"^(not yet \(\w+|passed)", shown.stdout, re.MULTILINE)
    assert verdicts == ["not yet (hole", "passed", "not yet (file"]
    assert shown.stdout.count("watching my_exercises/01_guard.cu; Ctrl-C ends it") == 3
    assert Folder().started() == []  # it goes on to no other exercise


def test_a_watch_sees_a_change_of_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.cu"
    file.write_text("1")
    os.utime(file, (1, 1))
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            file.write_text("2")
        assert len(looks) < 5, "the change was not seen"

    monkeypatch.setattr(exercises, "sleep", look)
    seen = exercises.changes(file)
    next(seen)
    next(seen)
    assert looks == [exercises.POLL] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "99"], 2, "'99' is not a whole number from 1 to 14"),
        (["start", "0"], 2, "'0' is not a whole number from 1 to 14"),
        (["hint", "x"], 2, "'x' is not a whole number from 1 to 14"),
        (["check"], 1, "no exercise was started in my_exercises: tinyfcn exercise start"),
        (["hint"], 1, "no exercise was started in my_exercises: tinyfcn exercise start"),
        (["reset", "1"], 1, "my_exercises/01_guard.cu is not there: tinyfcn exercise start 1"),
        (["check", "1"], 1, "my_exercises/01_guard.cu is not there: tinyfcn exercise start 1"),
        (["start", "--folder", "file"], 2, "Directory 'file' is a file."),
        (["start", "--folder", "file/in"], 1, "the folder file/in cannot be written to (Not a directory)"),
        (["start", "--folder", "/proc/nix"], 1, "the folder /proc/nix cannot be written to"),
        (["list", "--folder", "file/in"], 0, "0 of 14 passed"),
        (["check", "1", "--all"], 2, "--all checks every exercise that was started: leave out the numbers"),
        (["check", "1", "2", "--watch"], 2, "--watch shows one exercise, and no JSON"),
        (["check", "1", "--watch", "--json"], 2, "--watch shows one exercise, and no JSON"),
        (["check", "1", "--device", "cpu"], 2, "'cpu' is not one of 'auto', 'cuda', 'emulator'"),
    ],
)
def test_bad_usage_is_one_clear_line(arguments: list[str], code: int, message: str) -> None:
    Path("file").touch()
    shown = run(*arguments, code=code)
    assert message in shown.output
    assert "Traceback" not in shown.output
