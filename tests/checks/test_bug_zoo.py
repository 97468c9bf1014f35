"""The bug zoo: mistakes that people make in kernels. The mode of the emulator made for each must find it, and its line.

Each bug is planted in a copy of the kernels, which the tools then judge on their own inputs:

    trap     runs the cases of `tinyfcn sanitize` as everything runs on the emulator unless told otherwise
    check    `tinyfcn sanitize`, findings that one order of threads shows
    order    `tinyfcn sanitize`, results that differ between orders of threads
    double   `tinyfcn gradcheck --precision double`

The bugs of a kernel stand in tests/kernels/test_X.py, as ZOO.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.bugs import ORDER, Bug, collected, modules
from helpers.instances import Dry
from helpers.planting import (
    COMMON_FUNCTIONS,
    DETECTED,
    DEVICE_FUNCTIONS,
    SEEDS,
    compute_sanitizer,
    line_of,
    operation_of,
    plant,
    run_cases,
    why_no_compute_sanitizer,
)

from tinyfcn.checks import gradcheck, sanitize
from tinyfcn.checks.case import Case
from tinyfcn.checks.pieces import cases_of
from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.ops import Operations

pytestmark = pytest.mark.slow

ZOO: dict[str, list[Bug]] = {**collected("ZOO")}
SUM, WARPS = modules()["common"].SUM, modules()["common"].WARPS

# What looks like a bug of the zoo and is right.
TWINS: dict[str, tuple[str, dict[str, str]]] = {
    "four floats from where memory is aligned, then the left-over ones": (
        "relu_forward",
        {
            "int element ... 0.0f : x[element];": """int first = 4 * thread_number();
    if (first + 3 >= count) {
        for (int element = first; element < count; ++element) y[element] = fmaxf(x[element], 0.0f);
        return;
    }
    float4 four = *reinterpret_cast<const float4*>(x + first);
    *reinterpret_cast<float4*>(y + first) =
        make_float4(fmaxf(four.x, 0.0f), fmaxf(four.y, 0.0f), fmaxf(four.z, 0.0f), fmaxf(four.w, 0.0f));"""
        },
    ),
    "lanes that wait for each other": (
        "block_sum",
        {
            "float total = 0.0f; ... return total;": """if (threadIdx.x >= 32) return 0.0f;
    for (int half = SUM_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncwarp();
    }
    return partial[0];"""
        },
    ),
    "two lanes shuffle, and the mask names two": (
        "block_sum",
        {SUM: WARPS.replace("xor_sync(0xffffffff", "xor_sync(0x3")},
    ),
}


Draw = sanitize.Draw


def trap(operation: str, kernels: Path, draw: Draw) -> list[str]:
    return [text for text in (run_cases(operation, Emulator(kernels), draw),) if text]


def findings(operation: str, kernels: Path, draw: Draw) -> list[str]:
    return [finding.text for finding in sanitize.check(operation, SEEDS, kernels, draw=draw).findings.values()]


def check(operation: str, kernels: Path, draw: Draw) -> list[str]:
    return [text for text in findings(operation, kernels, draw) if ORDER not in text]


def order(operation: str, kernels: Path, draw: Draw) -> list[str]:
    found = findings(operation, kernels, draw)
    assert all(ORDER in text for text in found), "one order alone shows something"
    return found


def double(operation: str, kernels: Path, draw: Draw) -> list[str]:
    ops = Operations(Emulator(kernels, precision="double"))
    verdicts = (gradcheck.check_kernel(case, ops) for case in draw(np.random.default_rng(0)))
    return [verdict.where for each in verdicts for verdict in each if not verdict.passed]


MODES = {"trap": trap, "check": check, "order": order, "double": double}
BUGS = [(name, bug) for name, bugs in ZOO.items() for bug in bugs]


def each_of(bugs: list[tuple[str, Bug]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "bug"), [pytest.param(name, bug, id=f"{name}: {bug.what}") for name, bug in bugs]
    )


def draw_of(operation: str, mode: str) -> Draw:
    """The cases on which a mode judges an operation."""
    cases = cases_of(operation)
    return cases.gradcheck_cases if mode == "double" else cases.sanitize_cases


def launched(case: Case) -> set[str]:
    """The names of the kernels that a case launches."""
    dry = Dry(KERNELS)
    case.run(Operations(dry))
    return {kernel.name for kernel in dry.launched}


def draw_for(name: str, mode: str) -> Draw:
    """Of the operation's cases those that launch a kernel, or one that calls a function: only those are compiled."""
    draw = draw_of(operation_of(name), mode)
    if name in COMMON_FUNCTIONS:
        return draw
    kernels = {"fast_conv_forward", "fast_conv_backward_input"} if name in DEVICE_FUNCTIONS else {name}
    return lambda random: [case for case in draw(random) if kernels & launched(case)]


@each_of(BUGS)
def test_a_bug_is_found_and_its_line_named(name: str, bug: Bug, tmp_path: Path) -> None:
    operation, kernels = operation_of(name), plant(name, bug.changes, tmp_path / "kernels")
    found = MODES[bug.mode](operation, kernels, draw_for(name, bug.mode))
    lines = {line_of(text, operation, kernels) for text in bug.lines}
    assert lines
    assert any(bug.says in text and lines <= {*re.findall(r"\w+\.cuh?:\d+", text)} for text in found), (lines, found)


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        (operation, mode)
        for operation in kernel_source.operations()
        for mode in MODES
        if mode != "double" or operation in gradcheck.operations()
    ],
)
def test_right_kernels_pass(operation: str, mode: str) -> None:
    assert not MODES[mode](operation, KERNELS, draw_of(operation, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "changes"), TWINS.values(), ids=TWINS)
def test_what_only_looks_wrong_passes(name: str, changes: dict[str, str], mode: str, tmp_path: Path) -> None:
    operation, kernels = operation_of(name), plant(name, changes, tmp_path / "kernels")
    assert not MODES[mode](operation, kernels, draw_of(operation, mode))


def test_the_zoo_is_large_and_every_kernel_has_its_bugs_in_its_own_test_file() -> None:
    for kernel in kernel_source.kernels().values():
        zoo = getattr(modules()[kernel.operation], "ZOO", {})
        assert zoo.get(kernel.name), f"tests/kernels/test_{kernel.operation}.py: ZOO lacks bugs of {kernel.name}"
    assert {*ZOO} == {*kernel_source.kernels(), *COMMON_FUNCTIONS, *DEVICE_FUNCTIONS}
    for mode in MODES:
        assert sum(bug.mode == mode for _, bug in BUGS) >= 3, mode


# On a machine with both a GPU and compute-sanitizer; conftest.py says at the end of a run where there is not.
if not why_no_compute_sanitizer():

    @each_of([(name, bug) for name, bug in BUGS if bug.tool])
    def test_compute_sanitizer_finds_it_too(name: str, bug: Bug, tmp_path: Path) -> None:
        watched = compute_sanitizer(bug.tool, operation_of(name), plant(name, bug.changes, tmp_path / "kernels"))
        assert watched.returncode == DETECTED, watched.stdout

    @pytest.mark.parametrize("tool", sorted({bug.tool for _, bug in BUGS if bug.tool}))
    def test_compute_sanitizer_passes_right_kernels(tool: str) -> None:
        watched = compute_sanitizer(tool, "conv2d", KERNELS)
        assert watched.returncode == 0, watched.stdout


FAKE = """#!/bin/sh
echo "$1 $2 $3 $4" > "$0.asked"
shift 4
said=$("$@") || exit 1
test -z "$said" || exit 77
"""


def test_how_compute_sanitizer_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake one, which finds fault where the program that it watches does; and that runs on the emulator."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    kernels = plant("relu_forward", {"if (element >= count) return;": ""}, tmp_path / "kernels")
    found = compute_sanitizer("memcheck", "relu", kernels, "emulator")
    assert found.returncode == DETECTED, found.stdout
    assert compute_sanitizer("memcheck", "relu", KERNELS, "emulator").returncode == 0
    assert compute_sanitizer("memcheck", "no operation", KERNELS, "emulator").returncode == 1
    assert Path(f"{fake}.asked").read_text() == f"--tool memcheck --error-exitcode {DETECTED}\n"
