"""Bugs planted in devices/cuda.py, one at a time. The tests of test_device.py, run on it, must fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
TESTS = ["test_device.py", "test_failures.py"]
# Of test_failures.py a part: every planted bug runs the tests until one fails.
CHOSEN = "test_device or memory or while_it_runs or GraphInstantiate or (cuLaunchKernel and call)"

NEW_STREAM = "self.cupy.cuda.Stream(non_blocking=True)"
LAUNCH = "                        self._launch(launch)\n                join()"
DATACLASSES = "__import__('dataclasses')"
# What is wrong, the text of cuda.py, and what stands there instead.
BUGS = [
    ("a side stream does not wait for the main one", "wait(stream, main if first else side)", "pass"),
    ("only the first side stream waits for the main one", "first = launch.stream not in begun", "first = not begun"),
    ("a side stream's second launch does not wait for its first", "main if first else side", "main"),
    ("work at the end does not wait for what is before it", "if first or stream is tail:", "if stream is not last:"),
    ("nothing waits for the work at the end", "for stream in (side, tail, last):", "for stream in (side, tail):"),
    ("joins are left out", "if launch.joins:", "if False:"),
    ("the end joins nothing", "                join()\n            except", "            except"),
    (
        "a join makes the wrong stream wait",
        "                    wait(main, stream)",
        "                    wait(stream, main)",
    ),
    ("a join waits for a stream that was not forked", "                if stream in used:", "                if True:"),
    (
        "the capture ends in the other stream",
        "            return main.end_capture()",
        "            return side.end_capture()",
    ),
    ("main launches go past the capture", "return main\n", "return self.cupy.cuda.Stream.null\n"),
    (
        "the capture waits for the work before it",
        "            main.begin_capture()\n",
        "            before = cuda.get_current_stream().record()\n            main.begin_capture()\n"
        "            main.wait_event(before)\n",
    ),
    (
        "the capture synchronises",
        LAUNCH,
        LAUNCH.replace("\n", "\n                        main.synchronize()\n", 1),
    ),
    (
        "the graph launches copies of the arrays",
        LAUNCH,
        LAUNCH.replace(
            "(launch)",
            f"({DATACLASSES}.replace(launch, arguments=[a.copy() if a is not None else a for a in launch.arguments]))",
        ),
    ),
    (
        "the recording's arrays are freed while the graph holds them",
        "            self.graph = self.device.capture(self.launches)\n",
        "            self.graph = self.device.capture(self.launches)\n            self.launches = []\n",
    ),
    ("the first replay runs nothing", "        super().replay()\n", ""),
    (
        "the graph is launched in a stream that nothing waits for",
        "self.graph.launch()",
        f"self.graph.launch({NEW_STREAM.replace('self', 'self.device')})",
    ),
    (
        "an upload in a stream that nothing waits for",
        "            return self.cupy.array(np.ascontiguousarray(array))",
        f"            with {NEW_STREAM}:\n                return self.cupy.array(np.ascontiguousarray(array))",
    ),
    (
        "a write in a stream that nothing waits for",
        "array.set(np.ascontiguousarray(values))",
        f"array.set(np.ascontiguousarray(values), {NEW_STREAM})",
    ),
    ("a download that waits for no kernel", "self.cupy.asnumpy(array)", f"self.cupy.asnumpy(array, {NEW_STREAM})"),
    ("a transposed array stays transposed", "self.cupy.array(np.ascontiguousarray(array))", "self.cupy.array(array)"),
    (
        "numbers are passed as Python's",
        "tuple(launch.arguments)",
        "tuple(a.item() if isinstance(a, np.generic) else a for a in launch.arguments)",
    ),
    ("grid and block are exchanged", "function(launch.grid, launch.block,", "function(launch.block, launch.grid,"),
    ("only the grid's x is passed", "function(launch.grid,", "function(launch.grid[:1],"),
    (
        "one function for all instances of a template",
        "        return self._functions[name]",
        "        return next(f for n, f in self._functions.items() if n.split('<')[0] == kernel.name)",
    ),
    ("the instances of templates are not named", '{} if kernel.is_c else {"name_expressions": [name]}', "{}"),
    (
        "a failed capture goes on",
        "                    main.end_capture()\n                raise",
        "                    pass\n                raise",
    ),
    (
        "running out of memory is a raw error",
        "except cuda.memory.OutOfMemoryError as error",
        "except ZeroDivisionError as error",
    ),
    (
        "errors of a launch are raw",
        '        with self.errors(f"{kernel.expression} in {kernel.operation}.cu"):',
        "        if True:",
    ),
    ("a capture that failed is tried at every replay", "            self.cannot_be_captured = True\n", ""),
]


def plant(old: str, new: str) -> subprocess.CompletedProcess:
    """Runs the tests in a process of their own, on cuda.py with `new` in the place of `old`."""
    command = ["pytest", "-p", "standin.plugin", "-p", "no:cacheprovider", "-n0", "-x", "-q", "-k", CHOSEN]
    return subprocess.run(
        [sys.executable, "-m", *command, *(str(FOLDER / test) for test in TESTS)],
        env=os.environ | {"STANDIN_REPLACE": f"{old}\x1f{new}"},
        capture_output=True,
        text=True,
        cwd=FOLDER.parent.parent,
    )


def test_nothing_planted() -> None:
    done = plant("class GraphRecording", "class GraphRecording")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("old", "new"), [bug[1:] for bug in BUGS], ids=[bug[0] for bug in BUGS])
def test_a_planted_bug_is_caught(old: str, new: str) -> None:
    done = plant(old, new)
    assert done.returncode == 1, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    print(done.stdout[-600:])
