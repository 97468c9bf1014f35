"""The bug zoo: common mistakes in kernels. For each, one mode of the emulator must find it and report its line.

Each bug is planted in a copy of the kernels, which the tools then check on their own inputs:

    trap     runs the cases of `tinyfcn sanitize` in the emulator's default mode
    check    `tinyfcn sanitize`, findings within one order of threads
    order    `tinyfcn sanitize`, results that differ between orders of threads
    double   `tinyfcn gradcheck --precision double`

The bugs of a kernel are listed in tests/kernels/test_X.py, as ZOO.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.bugs import ORDER, WRONG, Bug, collected, modules
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

# Correct code that resembles a bug of the zoo.
LOOKALIKES: dict[str, tuple[str, dict[str, str]]] = {
    "float4s from an aligned address, then the left-over floats": (
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
    "lanes that synchronise after each addition": (
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
    "two lanes shuffle, with two lanes in the mask": (
        "block_sum",
        {SUM: WARPS.replace("xor_sync(0xffffffff", "xor_sync(0x3")},
    ),
}


Draw = sanitize.Draw


def trap(operation: str, kernels: Path, draw: Draw) -> Iterator[str]:
    error = run_cases(operation, Emulator(kernels), draw)
    if error:
        yield error


def findings(operation: str, kernels: Path, draw: Draw) -> Iterator[str]:
    """Seed by seed: where the first one finds a bug, the kernels that only later ones launch are not compiled."""
    for seed in SEEDS:
        for finding in sanitize.check(operation, [seed], kernels, draw=draw).findings.values():
            yield finding.text


def check(operation: str, kernels: Path, draw: Draw) -> Iterator[str]:
    return (text for text in findings(operation, kernels, draw) if ORDER not in text)


def order(operation: str, kernels: Path, draw: Draw) -> Iterator[str]:
    for text in findings(operation, kernels, draw):
        assert ORDER in text or WRONG in text, f"a finding of memory within one order: {text}"
        if ORDER in text:
            yield text


def double(operation: str, kernels: Path, draw: Draw) -> Iterator[str]:
    ops = Operations(Emulator(kernels, precision="double"))
    for case in draw(np.random.default_rng(0)):
        yield from (verdict.where for verdict in gradcheck.check_kernel(case, ops) if not verdict.passed)


MODES = {"trap": trap, "check": check, "order": order, "double": double}
BUGS = [(name, bug) for name, bugs in ZOO.items() for bug in bugs]


def each_of(bugs: list[tuple[str, Bug]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "bug"), [pytest.param(name, bug, id=f"{name}: {bug.description}") for name, bug in bugs]
    )


def draw_of(operation: str, mode: str) -> Draw:
    """The cases on which a mode checks an operation."""
    cases = cases_of(operation)
    return cases.gradcheck_cases if mode == "double" else cases.sanitize_cases


def launched(case: Case) -> set[str]:
    """The names of the kernels that a case launches; none of them runs."""
    dry = Dry(KERNELS)
    case.run(Operations(dry))
    return {kernel.name for kernel in dry.launched}


def draw_for(name: str, mode: str) -> Draw:
    """The cases that launch a kernel, or kernels that call a function: only their instances have to be compiled."""
    draw = draw_of(operation_of(name), mode)
    if name in COMMON_FUNCTIONS:
        return draw
    kernels = DEVICE_FUNCTIONS.get(name, {name})
    return lambda random: [case for case in draw(random) if kernels & launched(case)]


@each_of(BUGS)
def test_a_bug_is_found_and_its_line_reported(name: str, bug: Bug, tmp_path: Path) -> None:
    operation, kernels = operation_of(name), plant(name, bug.changes, tmp_path / "kernels")
    lines = {line_of(text, operation, kernels) for text in bug.lines}
    assert lines
    found = []
    for text in MODES[bug.mode](operation, kernels, draw_for(name, bug.mode)):
        if bug.message in text and lines <= {*re.findall(r"\w+\.cuh?:\d+", text)}:
            return
        found.append(text)
    raise AssertionError((lines, found))


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        (operation, mode)
        for operation in kernel_source.operations()
        for mode in MODES
        if mode != "double" or operation in gradcheck.operations()
    ],
)
def test_correct_kernels_pass(operation: str, mode: str) -> None:
    assert not [*MODES[mode](operation, KERNELS, draw_of(operation, mode))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "changes"), LOOKALIKES.values(), ids=LOOKALIKES)
def test_correct_code_that_resembles_a_bug_passes(
    name: str, changes: dict[str, str], mode: str, tmp_path: Path
) -> None:
    operation, kernels = operation_of(name), plant(name, changes, tmp_path / "kernels")
    assert not [*MODES[mode](operation, kernels, draw_of(operation, mode))]


def test_the_zoo_is_large_and_every_kernel_has_bugs_in_its_own_test_file() -> None:
    for kernel in kernel_source.kernels().values():
        zoo = getattr(modules()[kernel.operation], "ZOO", {})
        assert zoo.get(kernel.name), f"tests/kernels/test_{kernel.operation}.py: ZOO lacks bugs of {kernel.name}"
    assert {*ZOO} == {*kernel_source.kernels(), *COMMON_FUNCTIONS, *DEVICE_FUNCTIONS}
    for mode in MODES:
        assert sum(bug.mode == mode for _, bug in BUGS) >= 3, mode


# These need a GPU and compute-sanitizer. If either is missing, the summary of a run says so: see conftest.py.
if not why_no_compute_sanitizer():

    @each_of([(name, bug) for name, bug in BUGS if bug.tool])
    def test_compute_sanitizer_finds_it_too(name: str, bug: Bug, tmp_path: Path) -> None:
        watched = compute_sanitizer(bug.tool, operation_of(name), plant(name, bug.changes, tmp_path / "kernels"))
        assert watched.returncode == DETECTED, watched.stdout

    @pytest.mark.parametrize("tool", sorted({bug.tool for _, bug in BUGS if bug.tool}))
    def test_compute_sanitizer_passes_correct_kernels(tool: str) -> None:
        watched = compute_sanitizer(tool, "conv2d", KERNELS)
        assert watched.returncode == 0, watched.stdout


FAKE = """#!/bin/sh
echo "$1 $2 $3 $4" > "$0.options"
shift 4
output=$("$@") || exit 1
test -z "$output" || exit 77
"""


def test_the_command_line_of_compute_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake tool reports an error if the program that it runs prints one. The program runs on the emulator."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    kernels = plant("relu_forward", {"if (element >= count) return;": ""}, tmp_path / "kernels")
    found = compute_sanitizer("memcheck", "relu", kernels, "emulator")
    assert found.returncode == DETECTED, found.stdout
    assert compute_sanitizer("memcheck", "relu", KERNELS, "emulator").returncode == 0
    assert compute_sanitizer("memcheck", "no operation", KERNELS, "emulator").returncode == 1
    assert Path(f"{fake}.options").read_text() == f"--tool memcheck --error-exitcode {DETECTED}\n"
