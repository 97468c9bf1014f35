"""Unwritten elements and NaNs, and what check mode knows of the elements that were written."""

from pathlib import Path

import numpy as np
import pytest
from helpers.small_kernels import Fault, check_fault, kernel_names, launch, wrong_folder

from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError

# `// here` marks the line that a message must name.
WRONG = r"""
extern "C" __global__ void nothing_compared(float* y, const float* x, int n) {
    __shared__ float tile[64];
    float value = tile[threadIdx.x];  // here
    y[threadIdx.x] = value > n ? value : 0;
}
extern "C" __global__ void shared_not_filled(float* y, const float* x, int n) {
    __shared__ float tile[64];
    if (threadIdx.x < n) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];  // here
}
extern "C" __global__ void filled_by_another_block(float* y, const float* x, int n) {
    __shared__ float tile[64];
    if (blockIdx.x == 0) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = tile[threadIdx.x];  // here
}
extern "C" __global__ void added_to_nothing(float* y, const float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] += x[i];  // here
}
extern "C" __global__ void infinity_over_infinity(float* y, const float* x, int n) {
    float e = expf(1000.0f * x[0]);
    y[threadIdx.x] = e / (e + n);  // here
}
extern "C" __global__ void logarithm_of_a_negative(float* y, const float* x, int n) {
    y[threadIdx.x] = logf(x[0] - n);  // here
}
extern "C" __global__ void int_of_a_large_number(float* y, const float* x, int n) {
    y[threadIdx.x] = (int)(x[0] * 1e12f);  // here
}
"""


# fmt: off
FAULTS: dict[str, Fault] = {
    "nothing_compared": Fault(1, 1, None, r"thread \(0,0,0\) reads tile\[0\] at \S+, which no thread has written"),
    "shared_not_filled": Fault(63, 1, None, r"thread \(63,0,0\) reads tile\[63\] at \S+, which no thread has written"),
    "filled_by_another_block": Fault(0, 2, None,
        r"reads tile\[0\] at \S+, which no thread has written; in block \(1,0,0\)"),
    "added_to_nothing": Fault(0, 1, None, r"reads y\[0\] at \S+, which no thread has written"),
    "infinity_over_infinity": Fault(1, 1, None, r"thread \(0,0,0\) computes a NaN"),
    "logarithm_of_a_negative": Fault(2, 1, None, r"thread \(0,0,0\) computes a NaN"),
    "int_of_a_large_number": Fault(1, 1, None, "makes an int of a number that none holds, at"),
}
# fmt: on


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wrong_folder(tmp_path_factory.mktemp("wrong"), WRONG)


@pytest.mark.parametrize("mode", ["trap", "check"])
@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_is_reported_with_its_line(wrong: Path, kernel: str, mode: str) -> None:
    check_fault(wrong, WRONG, kernel, FAULTS[kernel], mode)


def test_every_kernel_has_its_fault_listed() -> None:
    assert kernel_names(WRONG) == {*FAULTS}


def test_check_mode_does_not_bring_unwritten_elements_to_the_host(wrong: Path) -> None:
    device = Emulator(wrong, "check")
    y = launch(device, "sound", 3)  # writes 64 of 256 elements
    line = 1 + WRONG.count("\n")
    with pytest.raises(KernelError, match=rf"element 64 .*\(256,\); sound at wrong\.cu:{line} was the last"):
        device.to_numpy(y)
    assert device.to_numpy(y[:64]).size == 64
    y[64:] = 0  # by NumPy
    device.to_numpy(y)
    with pytest.raises(KernelError, match="no kernel wrote element 0"):
        device.to_numpy(device.empty((2, 3), np.int32))
    device.to_numpy(device.empty((9,), np.uint8))  # a byte may have any value
    assert np.isnan(Emulator(wrong).to_numpy(device.empty((3,)))).all()


def test_check_mode_knows_where_an_element_was_last_written(wrong: Path) -> None:
    device = Emulator(wrong, "check")
    y = launch(device, "sound", 3)
    assert device.written_at(y, 63) == f"sound at wrong.cu:{1 + WRONG.count(chr(10))}"
    assert device.written_at(y, 64) is None
    assert device.written_at(device.asarray(np.ones(3)), 0) is None


def test_check_mode_counts_the_accesses_that_it_examined(wrong: Path) -> None:
    for mode, accesses in ("check", 64), ("trap", 0):
        device = Emulator(wrong, mode)
        launch(device, "sound", 3)
        statistics = device.statistics["sound"]
        assert (statistics.launches, statistics.threads, statistics.accesses) == (1, 64, accesses)


def test_the_kernel_that_should_have_written_an_element_is_named(tmp_path: Path) -> None:
    text = """__global__ void first(float* y, const float* x, int n) { if (threadIdx.x < n) y[threadIdx.x] = 1; }
    __global__ void second(float* z, const float* y) { z[threadIdx.x] = y[threadIdx.x]; }"""
    device = Emulator(wrong_folder(tmp_path, text), "check")
    x, y, z = device.asarray(np.ones(64, np.float32)), device.empty((64,)), device.empty((64,))
    device.launch("first", 1, 64, [y, x, 40])
    message = (
        r"second in wrong\.cu: .* reads y\[40\] .*, which no thread has written; .*; first at wrong\.cu:1 was given it"
    )
    with pytest.raises(KernelError, match=message):
        device.launch("second", 1, 64, [z, y])
