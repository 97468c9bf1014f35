"""Each rung of each ladder is right, clean and small; and the counts say what its header promises."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from helpers.closeness import assert_close

from tinyfcn.cli import main
from tinyfcn.devices import nvrtc
from tinyfcn.devices.cuda import Cuda
from tinyfcn.devices.device import Device
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.emulator import ORDERS
from tinyfcn.devices.emulator.profile import SAMPLE
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import KernelError
from tinyfcn.operations import on
from tinyfcn.study.ladder import LADDER, LADDERS, Rung, counts, rungs

RUNGS = [rung for ladder in LADDER for rung in rungs(ladder)]
OWN = [rung for rung in RUNGS if rung.file]
KINDS = [(1, 1), (3, 1), (2, 2), (4, 2), (5, 3)]  # kernel, stride: each is an instance of its own of a template
SHAPES = 20
FAST_SHAPES = 5  # of the kernels that train: each shape is compiled, and tests/kernels/test_fast_conv.py tries many
every_rung = pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: f"{rung.ladder}-{rung.number}-{rung.name}")
own_rungs = pytest.mark.parametrize("rung", OWN, ids=lambda rung: f"{rung.ladder}-{rung.number}-{rung.name}")


@cache
def examples(ladder: str) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Random inputs, and the reference's result."""
    random = np.random.default_rng(7)
    found = []
    for number in range(SHAPES):
        if ladder == "mean_loss":
            sizes = dict(zip("nkhw", random.integers(1, 18, 4).tolist(), strict=True))
        else:
            kernel, stride = KINDS[number % len(KINDS)]
            n, c, o = random.integers(1, (4, 11, 20)).tolist()
            h, w = random.integers(kernel, 25, 2).tolist()
            padding = int(random.integers(0, min(kernel, 1 + (min(h, w) - 1) * stride // 2)))
            sizes = {"n": n, "c": c, "h": h, "w": w, "o": o, "kernel": kernel, "stride": stride, "padding": padding}
        inputs = LADDER[ladder].inputs(random, **sizes)
        found.append((inputs, np.asarray(LADDER[ladder].trained(on("cpu"), **inputs))))
    return found


def device_of(name: str, **settings: Any) -> Callable[[Path], Device]:
    """Makes devices, one for each folder of kernels."""
    return cache(lambda kernels: Cuda(kernels) if name == "cuda" else Emulator(kernels, **settings))


def result(rung: Rung, make: Callable[[Path], Device], inputs: dict[str, Any]) -> np.ndarray:
    found = rung.run(make, inputs)
    return make(rung.file.parent if rung.file else KERNELS).to_numpy(found)


@pytest.mark.slow
@every_rung
def test_a_rung_gives_the_results_of_the_reference(rung: Rung, kernel_device: str):
    make = device_of(kernel_device)
    for inputs, expected in examples(rung.ladder)[: None if rung.file else FAST_SHAPES]:
        assert_close(
            result(rung, make, inputs), expected, "one kernel", str([np.shape(each) for each in inputs.values()])
        )
    if rung.file and kernel_device == "emulator":
        launched = {name for name, each in make(rung.file.parent).statistics.items() if each.launches}
        own = {kernel for kernel in launched if rung.name in kernel}
        assert own, f"of {launched} none is the rung's"


@pytest.mark.slow
@own_rungs
def test_a_rung_is_clean_and_exact_in_double(rung: Rung):
    """In check mode no access is wrong, and the order of the threads makes no difference, but for atomics."""
    same = True
    for order in ORDERS:
        make = device_of("emulator", mode="check", precision="double", order=order)
        for number, (inputs, expected) in enumerate(examples(rung.ladder)[:10]):
            found = result(rung, make, inputs)
            assert np.allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max()), number
            if order == "forward":
                examples_of(rung)[number] = found.tobytes()
            same &= examples_of(rung)[number] == found.tobytes()
    assert same == (rung.name != "scatter")


@cache
def examples_of(rung: Rung) -> dict[int, bytes]:
    """The results in forward order."""
    return {}


@own_rungs
def test_a_file_is_one_idea_on_one_page(rung: Rung):
    assert rung.file is not None
    lines = rung.file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    header = [line for line in lines[: next(n for n, line in enumerate(lines) if not line.startswith("//"))]]
    paragraphs = " ".join(line[2:].strip() or "\n" for line in header).split("\n")
    assert len(paragraphs) == 3  # the idea, what the rung before pays, what this one saves
    assert paragraphs[0].strip().endswith(".")
    assert "__global__" in "\n".join(lines)


@pytest.mark.cupy
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@own_rungs
def test_a_rung_compiles_for_gpus_without_spills(rung: Rung, architecture: str):
    assert rung.file is not None
    text = rung.file.read_text(encoding="utf-8")
    template = re.search(r"template <int KH.*\n__global__ void (\w+)", text)
    instances = [f"{template[1]}<{kernel}, {kernel}, {stride}>" for kernel, stride in KINDS] if template else []
    found = nvrtc.compile_for(rung.file.stem, architecture, rung.file.parent, instances)
    assert {each.kernel for each in found} >= {*instances}
    assert [each for each in found if each.spilled_bytes] == []


# For each rung: MB that lanes ask for, MB of sectors, requests and wavefronts for each multiply-add of a warp (for the
# mean loss, for each 32 losses). `tinyfcn ladder` prints them.
COUNTS = {
    "conv2d": [
        (289.5, 227.5, 2.184, 0),
        (289.5, 227.5, 2.184, 0),
        (181.4, 89.0, 1.368, 0),
        (194.8, 54.4, 1.361, 0.705),
        (7.2, 9.5, 0.066, 1.382),
        (3.5, 6.5, 0.031, 0.660),
        (3.6, 6.1, 0.030, 0.623),
        (5.9, 8.4, 0.023, 0.372),
    ],
    "conv_transpose2d": [
        (2134.4, 2497.5, 3.016, 0),
        (1421.3, 1487.7, 5.459, 0),
        (1420.0, 729.4, 2.113, 0),
        (1072.3, 711.7, 1.602, 0),
        (34.5, 50.2, 0.064, 1.084),
        (12.9, 18.6, 0.008, 0.209),
    ],
    "weight_gradient": [
        (288.4, 365.7, 2.185, 0.540),
        (161.6, 206.0, 1.210, 0.540),
        (5.3, 7.2, 0.045, 1.648),
        (6.5, 12.3, 0.053, 1.648),
        (6.5, 12.4, 0.056, 3.615),
        (6.5, 12.4, 0.056, 1.000),
        (6.5, 7.5, 0.053, 0.382),
    ],
    "mean_loss": [
        (8.9, 13.0, 57.0, 0),
        (8.9, 10.6, 26.0, 0.017),
        (8.9, 10.6, 26.0, 0.003),
        (7.9, 7.9, 23.129, 2.0),
    ],
}


def test_the_page_has_the_numbers_of_the_table():
    page = (Path(__file__).parents[2] / "docs" / "profile.md").read_text(encoding="utf-8")
    for rung, (lanes, l1, requests, wavefronts) in zip(rungs("conv2d"), COUNTS["conv2d"], strict=True):
        shared = f"{wavefronts:.3f}" if wavefronts else ""
        row = f"| {rung.number} | {rung.idea} | {lanes:.1f} | {l1:.1f} | {requests:.3f} | {shared} |"
        assert row.replace("  |", " |") in page


@pytest.mark.slow
@every_rung
def test_the_counts_of_the_table(rung: Rung):
    found = counts(rung, architecture="sm_90", sample=SAMPLE)
    expected = COUNTS[rung.ladder][rung.number - 1]
    values = found.bytes_by_lanes / 1e6, found.l1_bytes / 1e6, found.requests, found.wavefronts
    assert values[:2] == pytest.approx(expected[:2], rel=0.005, abs=0.05)
    assert values[2:] == pytest.approx(expected[2:], rel=0.005, abs=0.0006)


@pytest.mark.cupy
def test_a_rung_that_nvrtc_refuses_is_an_error():
    """It has no such architecture. Without NVRTC the columns stay empty."""
    with pytest.raises(KernelError, match="does not compile for sm_1"):
        counts(rungs("mean_loss")[1], architecture="sm_1")


def test_the_ladders_and_their_rungs_are_those_of_the_files():
    assert {path.name for path in LADDERS.iterdir() if path.is_dir()} == {*LADDER}
    for ladder in LADDER:
        names = [rung.name for rung in rungs(ladder) if rung.file]
        assert names == [*LADDER[ladder].rungs]
        assert [rung.number for rung in rungs(ladder)] == [*range(1, len(names) + 2)]
    with pytest.raises(KernelError, match="no ladder named 'nix'; there are conv2d, conv_transpose2d"):
        rungs("nix")


def test_the_command_lists_and_shows_a_difference():
    listed = CliRunner().invoke(main, ["ladder"])
    assert listed.exit_code == 0, listed.output
    assert "  5  The weights in shared memory too, output channel last" in listed.output
    shown = CliRunner().invoke(main, ["ladder", "mean_loss", "2"])
    assert shown.exit_code == 0, shown.output
    assert "--- 1_one_thread.cu\n+++ 2_tree.cu" in shown.output
    assert re.search(r"^ +2  A tree .* 0\.017", shown.output, re.MULTILINE)
    first = CliRunner().invoke(main, ["ladder", "mean_loss", "1"])
    assert first.output.startswith("// One thread adds up all.")
    assert not shown.stderr


def test_on_a_terminal_no_line_of_the_code_is_cut_and_a_line_moves(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for name in ("ladder", "tables", "status"):
        monkeypatch.setattr(f"tinyfcn.cli.{name}.is_terminal", lambda stream: True)
    shown = CliRunner().invoke(main, ["ladder", "mean_loss", "1"])
    plain = click.unstyle(shown.stdout)
    assert plain.startswith((LADDERS / "mean_loss" / "1_one_thread.cu").read_text(encoding="utf-8"))
    assert "rung 1 is compiled and counted" in click.unstyle(shown.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nix"], "'nix' is not one of 'conv2d', 'conv_transpose2d', 'weight_gradient', 'mean_loss'"),
        (["conv2d", "9"], "conv2d has 8 rungs, and 9 is none of them"),
        (["conv2d", "0"], "'0' is not a whole number"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str):
    result = CliRunner().invoke(main, ["ladder", *arguments])
    assert result.exit_code == 2
    assert message in result.output
