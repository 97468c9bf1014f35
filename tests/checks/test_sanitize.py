"""The sanitizer: silent on the kernels as they are, over many shapes; and planted bugs found, with their lines."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.planting import line_of, plant

from tinyfcn.checks import sanitize
from tinyfcn.checks.cases import Case
from tinyfcn.checks.sanitize import EXERCISES, Finding, Report, check
from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import THREADS
from tinyfcn.errors import KernelError
from tinyfcn.ops.conv2d import SUM_THREADS

DECLARED = kernel_source.kernels()
SHAPES = 200


@pytest.mark.parametrize("operation", EXERCISES)
def test_no_false_alarms(operation: str) -> None:
    """Every shape in three orders of threads; all kernels of the file run, and look at memory."""
    report = check(operation, range(SHAPES))
    assert not report.findings
    for kernel in DECLARED.values():
        if kernel.operation == operation:
            assert report.verdict(kernel) == "no finding"
            statistics = report.statistics[kernel.name]
            assert statistics.launches >= 2 * SHAPES and statistics.accesses > statistics.launches


def test_every_operation_has_an_exercise() -> None:
    assert [*EXERCISES] == kernel_source.operations()


def drawn(operation: str) -> list[Case]:
    return [case for seed in range(SHAPES) for case in EXERCISES[operation](np.random.default_rng(seed))]


def test_a_seed_always_draws_the_same() -> None:
    for operation in EXERCISES:
        for a, b in zip(drawn(operation)[:5], drawn(operation)[:5], strict=True):
            np.testing.assert_equal(a.inputs, b.inputs)


@pytest.mark.parametrize("operation", ["conv2d", "conv_transpose2d"])
def test_convolutions_are_awkward(operation: str) -> None:
    cases = [case for case in drawn(operation) if case.naive]
    outputs = [case.forward(sanitize.Operations(), **case.inputs)["y"] for case in cases]
    for sizes in ([y.size for y in outputs], [case.inputs["x"].size for case in cases]):
        assert any(size % THREADS == 0 for size in sizes) and any(THREADS < size < 2 * THREADS for size in sizes)
        assert any(size < THREADS for size in sizes) and any(size > 2 * THREADS for size in sizes)
    assert {y[:, 0].size % SUM_THREADS == 0 for y in outputs} == {True, False}
    assert {(case.inputs["stride"], case.inputs["padding"]) for case in cases} == {*product((1, 2, 3), (0, 1, 2))}
    assert {case.inputs["weight"].shape[2:] for case in cases} == {*product((1, 2, 3, 4), (1, 2, 3, 4))}


def test_fast_convolutions_are_awkward() -> None:
    extras = {"bias", "add", "relu_mask"}
    for operation, gives in (("conv2d", extras), ("conv_transpose2d", {*extras, "max_index"})):
        cases = [case for case in drawn(operation) if "relu" in case.inputs]
        given = [{*case.inputs} for case in cases]
        for name in gives:
            assert 10 < sum(name in names for names in given) < SHAPES - 10, name
        for settings in ("relu", "padding", "stride"):
            assert len({case.inputs[settings] for case in cases}) > 1, settings
        assert {case.inputs["x"].shape[0] for case in cases} == {1, 2, 3}
        assert len({case.detail for case in cases}) >= 4
    assert {case.inputs.get("pool", True) for case in drawn("conv2d")} == {True, False}
    gradients = [case for case in drawn("conv2d") if "weight gradient" in case.detail]
    assert {"max_index" in case.inputs for case in gradients} == {True, False}
    for of in ("bias of coarse", "bias of fine", "bias of None"):
        assert any(of in case.detail for case in gradients), of


def test_other_exercises_are_awkward() -> None:
    pools = drawn("max_pool2d")
    assert {case.inputs["size"] - case.inputs["stride"] > 0 for case in pools} == {True, False}
    assert any(np.unique(case.inputs["x"]).size == 1 < case.inputs["x"].size for case in pools), "ties everywhere"
    assert any(np.unique(case.inputs["x"]).size == case.inputs["x"].size > 1 for case in pools), "no ties"
    assert any((case.inputs["x"] == 0).any() for case in drawn("relu"))
    assert {case.inputs["scale"] == 1 for case in drawn("add")} == {True, False}
    losses = [case for case in drawn("softmax_cross_entropy") if "labels" in case.inputs]
    assert max(np.abs(case.inputs["logits"]).max() for case in losses) > 1e4
    assert {case.inputs.get("unlabelled") for case in losses} == {None, "zero", "softmax"}
    assert {case.inputs["logits"].ndim for case in losses} == {2, 4}
    assert {case.inputs["logits"].shape[1] for case in losses} == {1, 7}
    adams = drawn("adam")
    for name in ("steps", "warmup"):
        assert {case.inputs[name] for case in adams} == {0, 1, 2, 3}
    assert {case.inputs["count"] for case in drawn("compose_m2nist")} > {1, 2, THREADS, THREADS + 1}
    for operation, name in (("relu", "x"), ("add", "a"), ("adam", "parameters")):
        assert {case.inputs[name].size for case in drawn(operation)} == {*sanitize.COUNTS}


# More of them are in test_bug_zoo.py.
# Kernel or function, its text, the text instead; which kernel is blamed, what is said with {} for a line, that line.
BUGS = {
    "no barrier": (
        ("block_sum", "__syncthreads();", ""),
        ("conv2d_backward_weight_naive", r"a race: .* partial\[\d+\] at .* at {}; no .*__syncthreads\(\) stands"),
        "total += partial",
    ),
    "a sum in whatever order": (
        ("conv2d_backward_bias_naive", "dbias[o] = total;", "dbias[o]=0; __syncthreads(); atomicAdd(&dbias[o], sum);"),
        ("conv2d_backward_bias_naive", r"dbias depends on the order of threads: \S+ or \S+ at \[\d\], stored by .*{}$"),
        "atomicAdd",
    ),
    "blocks in each other's way": (
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
def test_a_bug_is_found_with_its_line(bug: tuple, tmp_path: Path) -> None:
    (name, text, instead), (blamed, says), at = bug
    kernels = plant(name, {text: instead}, tmp_path / "kernels")
    operation = DECLARED[blamed].operation
    report = check(operation, range(20), kernels)
    assert {finding.kernel for finding in report.findings.values()} == {blamed}
    found = [finding.text for finding in report.findings.values()]
    says = says.replace("{}", re.escape(line_of(at, operation, kernels))) if at else says
    assert any(re.search(says, text) for text in found), found
    assert re.fullmatch(r"\d+ findings?", report.verdict(DECLARED[blamed]))


def test_a_finding_says_how_it_is_had_again(tmp_path: Path) -> None:
    name, text, instead = BUGS["a sum in whatever order"][0]
    kernels = plant(name, {text: instead}, tmp_path / "kernels")
    (finding,) = check("conv2d", range(20), kernels).findings.values()
    assert finding.order in ("reverse", "random")
    inputs = EXERCISES["conv2d"](np.random.default_rng(finding.seed))[0].inputs
    assert f"x {inputs['x'].shape}, weight {inputs['weight'].shape}, bias " in finding.inputs
    assert finding.inputs.endswith(f", stride {inputs['stride']}, padding {inputs['padding']}")
    (again,) = check("conv2d", [finding.seed], kernels).findings.values()
    assert again == finding


def test_after_a_finding_nothing_is_said_of_what_comes_after(tmp_path: Path) -> None:
    kernels = plant("relu_forward", {"y[element] =": "y[0] ="}, tmp_path / "kernels")
    report = check("relu", range(3), kernels)
    assert report.verdict(DECLARED["relu_forward"]).endswith("finding")
    assert report.verdict(DECLARED["relu_backward"]) == "not reached: a finding came first"


def test_a_kernel_without_an_exercise_is_never_launched(tmp_path: Path) -> None:
    text = 'extern "C" __global__ void lonely(int* x) { x[0] = 0; }\n'
    kernels = plant("relu_forward", {}, tmp_path / "kernels")
    with open(kernels / "relu.cu", "a") as file:
        file.write(text)
    (kernels / "lone.cu").write_text(text.replace("lonely", "lone"))
    declared = kernel_source.kernels(kernels)
    assert check("relu", range(2), kernels).verdict(declared["lonely"]) == "never launched"
    assert check("lone", range(2), kernels).verdict(declared["lone"]) == "never launched"


def test_a_kernel_that_does_not_compile_is_no_finding(tmp_path: Path) -> None:
    kernels = plant("relu_forward", {"y[element] =": "z[element] ="}, tmp_path / "kernels")
    line = line_of("z[element] =", "relu", kernels)
    with pytest.raises(KernelError, match=rf"(?s)relu\.cu does not compile.*{re.escape(line)}:"):
        check("relu", range(2), kernels)


def test_findings_that_differ_in_numbers_only_are_one() -> None:
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


def test_launches_beside_each_other_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(sanitize.conflicts_in_steps().values())
    monkeypatch.setattr(sanitize.Operations, "join", lambda ops: None)  # skip's, before it adds what the encoder saw
    found = sanitize.conflicts_in_steps()
    assert any("'add'" in line for line in found["skip"]) and not found["classifier"]
