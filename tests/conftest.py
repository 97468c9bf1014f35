"""Where the kernels run in these tests. Every kernel test runs on the emulator, and on a GPU too where there is one."""

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Before NumPy loads it: on small arrays its threads only get in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# No test downloads anything; those of the download itself take this back and use a mirror on loopback.
os.environ["TINYFCN_OFFLINE"] = "1"
# Where it is set, each of the hundreds of processes that tests start would compile the program's modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import numpy as np
import pytest
from helpers.forms import NAIVE, expect_form, launched_names
from helpers.planting import why_no_compute_sanitizer
from hypothesis import HealthCheck, settings

import tinyfcn
from tinyfcn.data import Digits
from tinyfcn.devices import cuda
from tinyfcn.training import step

# A shell runs background jobs with Ctrl-C ignored, and nohup ignores the end of the terminal; the tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

WHY_NO_GPU = cuda.why_not()
KERNEL_DEVICES = ["emulator"] if WHY_NO_GPU else ["emulator", "cuda"]

# Set by tests/standin/run.py, where a program stands in for a GPU. The tests of that folder need it.
HAS_STANDIN = "STANDIN_MODULE" in os.environ
collect_ignore = [] if HAS_STANDIN else ["standin"]

# The same examples in every run, and no verdict by the clock. The fixtures below hold nothing that an example changes.
settings.register_profile(
    "tinyfcn",
    derandomize=True,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("tinyfcn")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """All cores, up to 8; but one process for single test files of kernels, as it starts sooner."""
    files = [Path(argument.partition("::")[0]) for argument in config.args]
    if all(file.suffix == ".py" and file.parent.name == "kernels" for file in files):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@cache
def operations(device: str, naive: bool) -> tinyfcn.Operations:
    """The kernels on a device, made once. Without a C++ compiler this fails: a skipped test proves nothing."""
    return tinyfcn.on(device, naive=naive)


def in_form(request: pytest.FixtureRequest, device: str, naive: bool) -> Iterator[tinyfcn.Operations]:
    """The operations for one test; afterwards fails if the test launched a kernel of the other form.

    A test marked `falls_back` launches naive kernels where no fast one fits.
    """
    ops = operations(device, naive)
    assert (ops.device_name, ops.device.naive) == (device, naive)
    with launched_names(ops.device) as names:
        yield ops
    if naive or not request.node.get_closest_marker("falls_back"):
        expect_form(names, naive)
    else:
        assert {*names} & NAIVE, "a test marked falls_back launched no naive kernel"


@pytest.fixture(params=KERNEL_DEVICES)
def kernel_device(request: pytest.FixtureRequest) -> str:
    """Each device of this machine on which kernels run."""
    return request.param


@pytest.fixture
def ops(request: pytest.FixtureRequest, kernel_device: str) -> Iterator[tinyfcn.Operations]:
    """The fast kernels on each device of this machine."""
    yield from in_form(request, kernel_device, naive=False)


@pytest.fixture
def naive_ops(request: pytest.FixtureRequest, kernel_device: str) -> Iterator[tinyfcn.Operations]:
    """The naive kernels, which take any size as they are compiled, and so are quick to try on many."""
    yield from in_form(request, kernel_device, naive=True)


@pytest.fixture(params=["fast", "naive"])
def either(request: pytest.FixtureRequest, kernel_device: str) -> Iterator[tinyfcn.Operations]:
    """Both forms of the kernels on each device."""
    for ops in in_form(request, kernel_device, naive=request.param == "naive"):
        assert ops.device.naive == (request.param == "naive"), "the test's name says another form"
        yield ops


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """Training steps get digits of noise instead of drawn ones, and few images."""
    random = np.random.default_rng(0)
    digits = Digits(random.integers(0, 256, (30, 28, 28)).astype(np.uint8), (np.arange(30) % 10).astype(np.uint8), "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "drawn_digits", lambda: digits)
        patch.setattr(step, "MIN_IMAGES", 8)
        step.images_of.cache_clear()
        yield
    step.images_of.cache_clear()


# Markers of tests that need more than the test extra installs: left out, unless -m speaks of them.
NEEDS_MORE = {
    "browser": "the page in node and Chromium (tests/page)",
    "postgres": "studies on a PostgreSQL of their own (tests/sweep)",
}


def left_out(config: pytest.Config) -> list[str]:
    """The markers of the tests that are left out."""
    return [marker for marker in NEEDS_MORE if marker not in (config.option.markexpr or "")]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that need more, unless they are asked for."""
    out = [item for item in items if any(item.get_closest_marker(marker) for marker in left_out(config))]
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says where the kernels ran and what watched them, so that nobody takes a run without a GPU for one with it."""
    reason = f" (no GPU: {WHY_NO_GPU})" if WHY_NO_GPU else ""
    terminalreporter.write_line(f"kernels run on: {', '.join(KERNEL_DEVICES)}{reason}")
    if WHY_NO_GPU and not HAS_STANDIN:
        terminalreporter.write_line("tests/standin, real CuPy without a GPU: not run; python tests/standin/run.py does")
    for marker in left_out(terminalreporter.config):
        terminalreporter.write_line(f"{NEEDS_MORE[marker]}: not run; pytest -m {marker} does")
    reason = why_no_compute_sanitizer()
    verdict = f"not run ({reason})" if reason else "at hand, and asked by test_bug_zoo.py"
    terminalreporter.write_line(f"compute-sanitizer: {verdict}")
