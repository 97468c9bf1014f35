"""Where the kernels run in these tests. Every kernel test runs on the emulator, and on a GPU too where there is one."""

import os
import signal

# Before NumPy loads it: on small arrays its threads only get in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# No test downloads anything; those of the download itself take this back and use a mirror on loopback.
os.environ["TINYFCN_OFFLINE"] = "1"

import pytest
from helpers import planting
from hypothesis import settings

import tinyfcn
from tinyfcn.devices import cuda

# A shell runs background jobs with Ctrl-C ignored; the tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

WHY_NO_GPU = cuda.why_not()
KERNEL_DEVICES = ["emulator"] if WHY_NO_GPU else ["emulator", "cuda"]

# The same examples in every run, and no verdict by the clock.
settings.register_profile("tinyfcn", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("tinyfcn")


@pytest.fixture(scope="session", params=KERNEL_DEVICES)
def kernel_device(request: pytest.FixtureRequest) -> str:
    """Each device of this machine on which kernels run."""
    return request.param


@pytest.fixture(scope="session")
def ops(kernel_device: str) -> tinyfcn.Operations:
    """The kernels on each device of this machine. Without a C++ compiler this fails: a skipped test proves nothing."""
    return tinyfcn.on(kernel_device)


@pytest.fixture(scope="session")
def naive_ops(kernel_device: str) -> tinyfcn.Operations:
    """The same with the naive kernels, which take any size as they are compiled, and so are quick to try on many."""
    return tinyfcn.on(kernel_device, naive=True)


@pytest.fixture(scope="session", params=[False, True], ids=["fast", "naive"])
def naive(request: pytest.FixtureRequest) -> bool:
    """Which form of the kernels, in tests of both."""
    return request.param


@pytest.fixture(scope="session")
def either(kernel_device: str, naive: bool) -> tinyfcn.Operations:
    """Both forms of the kernels on each device."""
    return tinyfcn.on(kernel_device, naive=naive)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says where the kernels ran and what watched them, so that nobody takes a run without a GPU for one with it."""
    reason = f" (no GPU: {WHY_NO_GPU})" if WHY_NO_GPU else ""
    terminalreporter.write_line(f"kernels run on: {', '.join(KERNEL_DEVICES)}{reason}")
    reason = planting.why_no_compute_sanitizer()
    verdict = f"not run ({reason})" if reason else "at hand, and asked by test_bug_zoo.py"
    terminalreporter.write_line(f"compute-sanitizer: {verdict}")
