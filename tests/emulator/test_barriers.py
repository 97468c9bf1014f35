"""Barriers and warp operations that some threads never reach, and those that wait for part of a warp."""

from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with
from helpers.small_kernels import Fault, both, check_fault, wrong_folder

from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError

DIVERGENT = r"""
extern "C" __global__ void early_return(float* x, int n) {
    if (threadIdx.x >= n) return;
    x[threadIdx.x] = 1;
    __syncthreads();
    x[threadIdx.x] = 2;
}
extern "C" __global__ void two_barriers(float* x) {
    if (threadIdx.x % 4 == 0)
        __syncthreads();
    else
        __syncthreads();
    x[threadIdx.x] = 1;
}
extern "C" __global__ void lanes_missing(float* x) {
    if (threadIdx.x < 20)
        x[threadIdx.x] = __shfl_down_sync(0xffffffff, x[threadIdx.x], 1);
    __syncthreads();
}
extern "C" __global__ void empty_mask(float* x) {
    x[threadIdx.x] = __shfl_sync(0, x[threadIdx.x], 0);
}
extern "C" __global__ void lane_left_out(float* x) {
    if (threadIdx.x < 16)
        x[threadIdx.x] = __shfl_sync(0xffff, x[threadIdx.x], 16);
}
"""


@pytest.fixture(scope="module")
def divergent(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(folder_with(tmp_path_factory.mktemp("divergent"), divergent=DIVERGENT))


@pytest.mark.parametrize(
    ("kernel", "arguments", "expected"),
    [
        (
            "early_return",
            [60],
            "of 64 threads 60 wait at __syncthreads, divergent.cu:5 (the first is thread (0,0,0)); "
            "4 have exited; in block (0,0,0)",
        ),
        (
            "two_barriers",
            [],
            "of 64 threads 16 wait at __syncthreads, divergent.cu:10 (the first is thread (0,0,0)); "
            "48 wait at __syncthreads, divergent.cu:12 (the first is thread (1,0,0)); 0 have exited",
        ),
        (
            "lanes_missing",
            [],
            "20 wait at __shfl_down_sync, divergent.cu:17, for the lanes 0xffffffff of their warp "
            "(the first is thread (0,0,0)); 44 wait at __syncthreads, divergent.cu:18",
        ),
        ("empty_mask", [], "64 wait at __shfl_sync, divergent.cu:21, for the lanes 0x00000000 of their warp"),
        (
            "lane_left_out",
            [],
            "__shfl_sync at divergent.cu:25 reads lane 16, which its mask 0x0000ffff leaves out",
        ),
    ],
)
def test_a_deadlock_is_reported_with_its_lines(divergent, kernel, arguments, expected):
    x = divergent.asarray(np.zeros(64, np.float32))
    with pytest.raises(KernelError) as caught:
        divergent.launch(kernel, 3, 64, [x, *arguments])
    assert str(caught.value).startswith(f"{kernel} in divergent.cu: ")
    assert expected in str(caught.value)
    assert (x != 2).all(), "no thread passed the barrier"


def test_the_next_launch_after_an_error_is_sound(divergent):
    x = divergent.asarray(np.zeros(64, np.float32))
    for _ in range(20):
        with pytest.raises(KernelError):
            divergent.launch("early_return", 1, 64, [x, 9])
        x[:] = 0
        divergent.launch("early_return", 1, 64, [x, 64])
        assert (x == 2).all()


IN_A_BRANCH = r"""
extern "C" __global__ void barrier_in_a_branch(float* y, const float* x, int n) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < n) __syncthreads();  // here
}
"""
FAULTS: dict[str, Fault] = {
    "barrier_in_a_branch": both(60, 1, r"of 64 threads 60 wait at __syncthreads, \S+ .*; 4 have exited"),
}


@pytest.mark.parametrize("mode", ["trap", "check"])
@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_is_reported_with_its_line(tmp_path: Path, kernel: str, mode: str) -> None:
    check_fault(wrong_folder(tmp_path, IN_A_BRANCH), IN_A_BRANCH, kernel, FAULTS[kernel], mode)


PARTS_OF_WARPS = r"""
extern "C" __global__ void lanes_that_there_are(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    float neighbour = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
    y[threadIdx.x] = neighbour - ring[threadIdx.x ^ 1] + __all_sync(0xffffffff, n > 0);
}
"""


@pytest.mark.parametrize("mode", ["trap", "check"])
def test_an_incomplete_warp_waits_for_its_existing_lanes(tmp_path: Path, mode: str) -> None:
    device = Emulator(folder_with(tmp_path, parts=PARTS_OF_WARPS), mode)
    x, y = device.asarray(np.arange(48, dtype=np.float32)), device.empty((48,))
    device.launch("lanes_that_there_are", 1, 48, [y, x, 1], 48 * 4)
    assert (y == 1).all()
