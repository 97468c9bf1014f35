"""tinyfcn kernels on the command line."""

import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers.planting import line_of, plant

from tinyfcn.cli import main
from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import DeviceError
from tinyfcn.study.element import outputs
from tinyfcn.study.examples import EXAMPLES
from tinyfcn.study.formulas import FORMULAS
from tinyfcn.study.kernels import sentence
from tinyfcn.study.ladder import LADDER, rungs
from tinyfcn.training.step import Task, launches_of_step


def kernels(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["kernels", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise DeviceError("NVRTC is not installed")

    monkeypatch.setattr(nvrtc, "load_nvrtc", missing)
    nvrtc._compiled.cache_clear()


@pytest.mark.usefixtures("without_nvrtc")
def test_all_kernels_are_listed_with_their_launches_and_rungs() -> None:
    result = kernels()
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if ".cu:" in line}
    launched = [launch.kernel.name for launch in launches_of_step(Task("skip", 16))]
    assert {*rows} == {*kernel_source.kernels()}
    for name, kernel in kernel_source.kernels().items():
        place, form, launches = rows[name][1:4]
        assert place == f"{kernel.operation}.cu:{kernel.line}"
        assert int(launches) == launched.count(name)
        assert form == "plain" or not name.endswith("_naive")
    last = {name: f"{len(rungs(name))}" for name in LADDER}
    assert rows["fast_conv_forward"][4:] == ["conv2d", last["conv2d"]]
    assert rows["fast_conv_backward_weight"][4:] == ["weight_gradient", last["weight_gradient"]]
    assert rows["compose_m2nist"][2] == "fast" and rows["relu_forward"][2] == "plain"
    assert "NVRTC's, which is not installed" in result.output


@pytest.mark.parametrize(
    ("operation", "begins", "ends"),
    [
        ("relu", "The rectified linear unit,", "backward."),
        ("linear_cross_entropy", "The last layer", "in one kernel."),
        ("compose_m2nist", "Composes M2NIST images:", "do not overlap."),
    ],
)
def test_the_sentence_of_a_file_is_the_first_of_its_header(operation: str, begins: str, ends: str) -> None:
    assert sentence(operation).startswith(begins) and sentence(operation).endswith(ends)


@pytest.mark.cupy
def test_registers_are_those_of_nvrtc() -> None:
    result = kernels("softmax_cross_entropy_mean_naive")
    (row,) = (line.split() for line in result.output.splitlines() if "softmax_cross_entropy.cu:" in line)
    (used,) = (
        each
        for each in nvrtc.compile_for("softmax_cross_entropy", "sm_90")
        if each.kernel == "softmax_cross_entropy_mean_naive"
    )
    assert [int(each) for each in row[4:7]] == [used.registers, used.shared_bytes, used.spilled_bytes]
    assert "by NVRTC for sm_90" in result.output


@pytest.mark.usefixtures("without_nvrtc")
def test_an_operation_shows_its_arrays_and_its_launches() -> None:
    result = kernels("conv2d")
    assert "conv2d_forward_naive: in the example, grid 3, block 256\n" in result.output
    assert re.search(r"^weight +4, 3, 3, 3 +float +in *$", result.output, re.MULTILINE)
    assert re.search(r"^y +2, 4, 8, 9 +float +out *$", result.output, re.MULTILINE)
    only = kernels("conv2d_backward_bias_naive").output
    assert "conv2d_backward_bias_naive: in the example, grid 4, block 64" in only and "conv2d_forward" not in only
    assert "conv2d_pool has no kernel file" in kernels("conv2d_pool").output


def test_an_element_is_told_in_80_columns() -> None:
    result = kernels("conv2d", "--element", "1,3,2,4")
    place = line_of("    y[element] = sum;", "conv2d", KERNELS)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert f"is written by thread 14 of block 2, lane 14 of warp 0, at {place}, in conv2d_forward_naive." in text
    assert "No other thread writes it." in text
    assert "x[1,0,1,3] -1 * weight[3,0,0,0] -1 = 1" in text
    assert "... 7 more lines, --all shows them" in text
    assert "Lane 15 stores y[1,3,2,5]. Beside lane 14, it reads x 1 element further, neighbours in memory" in text
    stored = re.search(r"y\[1,3,2,4\] = (\S+) is", text)
    assert stored and f"stored: {stored[1]} " in text and f": {stored[1]} stored" in text
    assert max(map(len, result.output.splitlines())) <= 80


def test_all_products_add_up_as_printed() -> None:
    output = kernels("conv2d", "--element", "3,0,1,2", "--output", "dweight", "--all").output
    lines = [line for line in output.splitlines() if line.startswith("  thread ") and " * " in line]
    products = [float(line.rpartition("=")[2]) for line in lines]
    assert "--all" not in output and "128 products, 16 skipped" in output and len(products) == 128
    assert f"stored: {sum(products):g}\n" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ("conv2d", "--element", "0,1,0,0", "--fast"),
        ("conv2d", "--element", "0,2,0,4", "--output", "dx", "--stride", "2"),
        ("conv_transpose2d", "--element", "1,3,7,9"),
        ("conv_transpose2d", "--element", "3", "--output", "dbias", "--fast"),
        ("max_pool2d", "--element", "0,0,0,0", "--output", "dx"),
        ("softmax_cross_entropy", "--element", "0,1,2,3", "--output", "dlogits"),
        ("linear_cross_entropy", "--element", "1,2,3,4", "--output", "dx"),
        ("compose_m2nist", "--element", "1,0,40,30"),
        ("gather_batch", "--element", "2,0,3,4"),
        ("adam", "--element", "257"),
        ("segmentation_counts", "--element", "1,0", "--output", "overlap"),
    ],
)
def test_other_elements_are_told_in_80_columns(arguments: tuple[str, ...]) -> None:
    result = kernels(*arguments)
    assert result.exit_code == 0, result.output
    assert "WRONG" not in result.output and "stored: " in result.output
    assert max(map(len, result.output.splitlines())) <= 80, result.output


def test_a_kernel_that_another_array_of_the_operation_calls_by_another_name() -> None:
    output = kernels("conv_transpose2d", "--element", "0,1,2,3", "--output", "dx", "--fast").output
    assert "fast_conv_forward calls this array y." in output
    assert "The owner's block reads all of these elements." in output


def test_a_wrong_kernel_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plant(
        "conv2d_forward_naive", {"float sum = bias[o];": "float sum = 2.0f * bias[o];"}, tmp_path / "kernels"
    )
    monkeypatch.setattr(import_module("tinyfcn.cli.kernels"), "outputs", partial(outputs, kernels=folder))
    result = kernels("conv2d", "--element", "1,3,2,4")
    assert result.exit_code == 1
    assert "WRONG, the kernel and the formula differ" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("conv2", "--element", "0,0,0,0"), "no operation or kernel named 'conv2'; did you mean conv2d"),
        (("conv2",), "no operation or kernel named 'conv2'"),
        (("conv2d", "--element", "1,3,2"), "y has the shape (2, 4, 8, 9): no element 1,3,2; the last is 1,3,7,8"),
        (("conv2d", "--element", "1,3,2,9"), "y has the shape (2, 4, 8, 9): no element 1,3,2,9"),
        (("conv2d", "--element", "1,-3,2,4"), "'1,-3,2,4' is no list of whole numbers from 0, such as 1,3,2,4."),
        (("conv2d", "--element", "1,3,2,4", "--output", "z"), "conv2d has no output 'z'; there are y (2, 4, 8, 9), dx"),
        (("relu", "--element", "0,0,0,0", "--fast"), "relu has no fast form: leave out --fast"),
        (("conv2d_forward_naive", "--element", "0,0,0,0", "--fast"), "conv2d_forward_naive has no fast form"),
        (("relu", "--element", "0,0,0,0", "--stride", "2"), "relu has no stride: leave out --stride"),
        (("conv2d", "--stride", "2"), "--stride belongs to --element"),
        (("conv2d", "--output", "dx"), "--output belongs to --element"),
        (("--element", "0,0,0,0"), "--element wants an operation"),
    ],
)
def test_wrong_usage_is_told_in_a_line(arguments: tuple[str, ...], message: str) -> None:
    result = kernels(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_an_operation_without_example_and_formula_still_shows_owner_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(EXAMPLES, "relu")
    monkeypatch.delitem(FORMULAS, ("relu_forward", "y"))
    result = kernels("relu", "--element", "0")
    assert result.exit_code == 0, result.output
    assert "y[0] = " in result.output and "is written by thread 0 of block 0" in result.output
    assert re.search(r"^  x\[0\] .* relu\.cu:\d+$", result.output, re.MULTILINE)
    assert "No formula is known" in result.output


def test_an_element_without_a_writer_is_told_in_a_line() -> None:
    result = kernels("adam", "--element", "5", "--output", "losses")
    assert result.exit_code == 1
    assert "Error: adam_step writes losses[1] alone, and not losses[5]" in result.output
