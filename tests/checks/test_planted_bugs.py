"""Tests that the tests of the kernels can fail: they must detect every bug planted in a copy of the kernels.

A bug is a text of a kernel and its replacement. The check is one that the kernel's own tests make, run on the emulator.
It has to fail on the bug, and to pass on an unchanged copy of the kernels. tests/kernels/test_X.py lists both, as
PLANTED.
"""

from pathlib import Path

import pytest
from helpers.bugs import Planted, collected, modules
from helpers.forms import FAST, NAIVE, expect_form, launched_names
from helpers.planting import COMMON_FUNCTIONS, DEVICE_FUNCTIONS, operation_of, plant

from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import Emulator, build
from tinyfcn.ops import Operations

pytestmark = pytest.mark.slow

PLANTED: dict[str, Planted] = {**collected("PLANTED")}


@pytest.fixture(autouse=True)
def unoptimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bug runs once, on small inputs. Compiling takes most of the time, and less without optimisation."""
    monkeypatch.setattr(build, "FLAGS", ["-O0" if flag == "-O2" else flag for flag in build.FLAGS])


def run_check(name: str, kernels: Path) -> None:
    """Runs the check of a kernel on the emulator. It must launch the kernel, and no kernel of the other form."""
    planted = PLANTED[name]
    if name == "philox":
        modules()["common"].add_kernel(kernels)
    ops = Operations(Emulator(kernels, naive=planted.naive))
    try:
        with launched_names(ops.device) as names:
            planted.check(ops)
    finally:
        expect_form(names, planted.naive)
        assert name in (*names, *COMMON_FUNCTIONS, *DEVICE_FUNCTIONS), f"{name} was not launched by its check"


@pytest.mark.parametrize(
    ("name", "text", "replacement"),
    [
        pytest.param(name, *bug, id=f"{name}: {description}")
        for name, planted in PLANTED.items()
        for description, *bug in planted.bugs
    ],
)
def test_a_bug_is_detected(name: str, text: str, replacement: str, tmp_path: Path) -> None:
    kernels = plant(name, {text: replacement}, tmp_path / "kernels")
    with pytest.raises(AssertionError) as caught:
        run_check(name, kernels)
    assert "kernels launched" not in str(caught.value) and "was not launched" not in str(caught.value)


@pytest.mark.parametrize("name", PLANTED)
def test_unchanged_kernels_pass(name: str, tmp_path: Path) -> None:
    _, text, _ = PLANTED[name].bugs[0]
    run_check(name, plant(name, {text: text}, tmp_path / "kernels"))


def test_every_kernel_has_bugs_planted_in_its_own_test_file() -> None:
    for kernel in kernel_source.kernels().values():
        planted = getattr(modules()[kernel.operation], "PLANTED", {})
        file = f"tests/kernels/test_{kernel.operation}.py"
        assert kernel.name in planted, f"{file}: PLANTED lacks bugs of {kernel.name}, and a check that detects them"
        assert len(planted[kernel.name].bugs) >= 2, f"{file}: {kernel.name} has fewer than two bugs planted"
    assert {operation_of(name) for name in PLANTED} <= {*kernel_source.operations()}


def test_the_names_of_kernels_tell_their_form() -> None:
    for operation in ("compose_m2nist", "fast_conv", "linear_cross_entropy", "softmax_cross_entropy"):
        kernels = {kernel.name for kernel in kernel_source.kernels().values() if kernel.operation == operation}
        assert kernels - {"softmax", "linear_cross_entropy"} <= FAST | NAIVE, operation
    assert {name for name, planted in PLANTED.items() if planted.naive} == {*NAIVE, "block_sum"}
