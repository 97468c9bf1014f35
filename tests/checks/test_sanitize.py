"""Tests sanitize: it has no findings on correct kernels over many shapes, and reports planted bugs with their lines."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.planting import line_of, plant

from tinyfcn.checks import sanitize
from tinyfcn.checks.case import COUNTS, Case
from tinyfcn.checks.pieces import cases_of
from tinyfcn.checks.sanitize import Finding, Report, check
from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import THREADS
from tinyfcn.errors import KernelError
from tinyfcn.operations import on
from tinyfcn.ops.launcher import SUM_THREADS

DECLARED = kernel_source.kernels()
OPERATIONS = kernel_source.operations()
SHAPES = 60  # random inputs of each operation that its kernels run on; `tinyfcn sanitize --seeds 200` tries more
DRAWN = 200


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_false_alarms(operation: str) -> None:
    """Runs every shape in three orders of threads. All kernels of the file are launched, and access memory."""
    report = check(operation, range(SHAPES))
    assert not report.findings
    for kernel in DECLARED.values():
        if kernel.operation == operation:
            assert report.verdict(kernel) == "no finding"
            statistics = report.statistics[kernel.name]
            assert statistics.launches >= 2 * SHAPES and statistics.accesses > statistics.launches


def drawn(operation: str, seeds: int = DRAWN) -> list[Case]:
    return [case for seed in range(seeds) for case in cases_of(operation).sanitize_cases(np.random.default_rng(seed))]


@pytest.mark.slow
def test_a_seed_always_draws_the_same_cases() -> None:
    for operation in OPERATIONS:
        for a, b in zip(drawn(operation, 5), drawn(operation, 5), strict=True):
            np.testing.assert_equal(a.inputs, b.inputs)


@pytest.mark.parametrize("operation", ["conv2d", "conv_transpose2d"])
def test_cases_of_convolutions_cover_the_corner_cases(operation: str) -> None:
    cases = drawn(operation)
    assert all(case.naive for case in cases)
    outputs = [case.forward(on("cpu"), **case.inputs)["y"] for case in cases]
    for sizes in ([y.size for y in outputs], [case.inputs["x"].size for case in cases]):
        assert any(size % THREADS == 0 for size in sizes) and any(THREADS < size < 2 * THREADS for size in sizes)
        assert any(size < THREADS for size in sizes) and any(size > 2 * THREADS for size in sizes)
    assert {y[:, 0].size % SUM_THREADS == 0 for y in outputs} == {True, False}
    assert {(case.inputs["stride"], case.inputs["padding"]) for case in cases} == {*product((1, 2, 3), (0, 1, 2))}
    assert {case.inputs["weight"].shape[2:] for case in cases} == {*product((1, 2, 3, 4), (1, 2, 3, 4))}


@pytest.mark.slow
def test_cases_of_fast_convolutions_cover_the_corner_cases() -> None:
    epilogue = {"bias", "add", "relu_mask"}
    for kind, names in (("forward", epilogue), ("data gradient", {*epilogue, "max_index"})):
        cases = [case for case in drawn("fast_conv") if case.detail.startswith(kind)]
        for name in names:
            assert 10 < sum(name in case.inputs for case in cases) < DRAWN - 10, name
        (first,) = {*cases[0].inputs} & {"x", "dout"}
        assert {case.inputs[first].shape[0] for case in cases} == {1, 2, 3}
        assert len({case.detail for case in cases}) >= 4
    outputs = [{*case.forward(on("cpu"), **case.inputs)} for case in drawn("fast_conv") if "forward" in case.detail]
    assert {"max_index" in names for names in outputs} == {True, False}
    gradients = [case for case in drawn("fast_conv") if case.detail.startswith("weight gradient")]
    assert {"max_index" in case.inputs for case in gradients} == {True, False}
    for bias in ("bias of dout", "bias of x", "no bias"):
        assert any(bias in case.detail for case in gradients), bias


@pytest.mark.slow
def test_other_cases_cover_the_corner_cases() -> None:
    pools = drawn("max_pool2d")
    assert {case.inputs["size"] - case.inputs["stride"] > 0 for case in pools} == {True, False}
    assert any(np.unique(case.inputs["x"]).size == 1 < case.inputs["x"].size for case in pools), "ties everywhere"
    assert any(np.unique(case.inputs["x"]).size == case.inputs["x"].size > 1 for case in pools), "no ties"
    assert any((case.inputs["x"] == 0).any() for case in drawn("relu"))
    assert {case.inputs["scale"] == 1 for case in drawn("add")} == {True, False}
    losses = [case for case in drawn("softmax_cross_entropy") if {"logits", "labels"} <= case.inputs.keys()]
    assert max(np.abs(case.inputs["logits"]).max() for case in losses) > 1e4
    assert {case.inputs.get("unlabelled") for case in losses} == {None, "zero", "softmax"}
    assert {case.inputs["logits"].ndim for case in losses} == {2, 4}
    assert {case.inputs["logits"].shape[1] for case in losses} == {1, 7}
    adams = drawn("adam")
    for name in ("steps", "warmup"):
        assert {case.inputs[name] for case in adams} == {0, 1, 2, 3}
    assert {case.inputs["count"] for case in drawn("compose_m2nist")} > {1, 2, THREADS, THREADS + 1}
    for operation, name in (("relu", "x"), ("add", "a"), ("adam", "parameters")):
        assert {case.inputs[name].size for case in drawn(operation)} == {*COUNTS}


# More bugs are in test_bug_zoo.py.
# (kernel or function, its text, the replacement), (reported kernel, message with {} for a line), text on that line.
BUGS = {
    "a missing barrier": (
        ("block_sum", "__syncthreads();", ""),
        ("conv2d_backward_weight_naive", r"a race: .* partial\[\d+\] at .* at {}; no .*__syncthreads\(\) stands"),
        "total += partial",
    ),
    "a sum in the order of threads": (
        ("conv2d_backward_bias_naive", "dbias[o] = total;", "dbias[o]=0; __syncthreads(); atomicAdd(&dbias[o], sum);"),
        ("conv2d_backward_bias_naive", r"dbias depends on the order of threads: \S+ or \S+ at \[\d\], stored by .*{}$"),
        "atomicAdd",
    ),
    "two blocks that write the same element": (
        ("relu_backward", "dx[element] = y[element] > 0.0f", "dx[element % 256] = y[element] > 0.0f"),
        ("relu_backward", r"a race: .* writes dx\[\d+\] at {}, .* wrote .* at {}; nothing orders blocks"),
        "dx[element % 256]",
    ),
    "an element left out": (
        ("gather_normalise", "element >= N * S", "element >= N * S - 1"),
        ("gather_normalise", r"batch: no kernel wrote element \d+ of an array"),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_bug_is_reported_with_its_line(bug: tuple, tmp_path: Path) -> None:
    (name, text, replacement), (reported, message), on_line = bug
    kernels = plant(name, {text: replacement}, tmp_path / "kernels")
    operation = DECLARED[reported].operation
    report = check(operation, range(20), kernels)
    assert {finding.kernel for finding in report.findings.values()} == {reported}
    found = [finding.text for finding in report.findings.values()]
    message = message.replace("{}", re.escape(line_of(on_line, operation, kernels))) if on_line else message
    assert any(re.search(message, text) for text in found), found
    assert re.fullmatch(r"\d+ findings?", report.verdict(DECLARED[reported]))


def test_a_finding_names_the_inputs_that_reproduce_it(tmp_path: Path) -> None:
    name, text, replacement = BUGS["a sum in the order of threads"][0]
    kernels = plant(name, {text: replacement}, tmp_path / "kernels")
    (finding,) = check("conv2d", range(20), kernels).findings.values()
    assert finding.order in ("reverse", "random")
    inputs = cases_of("conv2d").sanitize_cases(np.random.default_rng(finding.seed))[0].inputs
    assert f"x {inputs['x'].shape}, weight {inputs['weight'].shape}, bias " in finding.inputs
    assert finding.inputs.endswith(f", stride {inputs['stride']}, padding {inputs['padding']}")
    (again,) = check("conv2d", [finding.seed], kernels).findings.values()
    assert again == finding


def test_kernels_after_a_finding_are_not_reached(tmp_path: Path) -> None:
    kernels = plant("relu_forward", {"y[element] =": "y[0] ="}, tmp_path / "kernels")
    report = check("relu", range(3), kernels)
    assert report.verdict(DECLARED["relu_forward"]).endswith("finding")
    assert report.verdict(DECLARED["relu_backward"]) == "not reached: a finding came first"


def test_a_kernel_without_a_case_is_never_launched(tmp_path: Path) -> None:
    kernels = plant("relu_forward", {}, tmp_path / "kernels")
    with open(kernels / "relu.cu", "a") as file:
        file.write('extern "C" __global__ void lonely(int* x) { x[0] = 0; }\n')
    declared = kernel_source.kernels(kernels)
    assert check("relu", range(2), kernels).verdict(declared["lonely"]) == "never launched"


def test_a_compile_error_is_not_a_finding(tmp_path: Path) -> None:
    kernels = plant("relu_forward", {"y[element] =": "z[element] ="}, tmp_path / "kernels")
    line = line_of("z[element] =", "relu", kernels)
    with pytest.raises(KernelError, match=rf"(?s)relu\.cu does not compile.*{re.escape(line)}:"):
        check("relu", range(2), kernels)


def test_findings_that_differ_only_in_numbers_count_as_one() -> None:
    finding = Finding("relu", "relu_forward", "thread (3,0,0) reads x[48] at relu.cu:25: -1.5e-05", "", 0, "forward")
    assert finding.key == replace(finding, text="thread (17,0,0) reads x[4] at relu.cu:25: 3.25", seed=9).key
    for other in ("thread (3,0,0) reads x[48] at relu.cu:26: 1", "thread (3,0,0) writes x[48] at relu.cu:25: 1"):
        assert finding.key != replace(finding, text=other).key


def test_reports_add_up() -> None:
    one, other = check("conv2d", range(1)), check("conv_transpose2d", range(2))
    both = Report()
    for report in (one, other):
        both.add(report)
    assert both.statistics["conv2d_backward_bias_naive"].launches == 3 + 6
    assert both.statistics["conv2d_forward_naive"] == one.statistics["conv2d_forward_naive"]
    for report in (one, other):
        part, whole = (each.statistics["conv2d_backward_bias_naive"].accesses for each in (report, both))
        assert whole > part > 0


def test_launches_that_may_overlap_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(sanitize.conflicts_in_steps().values())
    monkeypatch.setattr(sanitize.Operations, "join", lambda ops: None)  # skip then adds maps too early
    found = sanitize.conflicts_in_steps()
    assert any("'add'" in line for line in found["skip"]) and not found["classifier"]
