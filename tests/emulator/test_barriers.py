"""Barriers and warp operations that some threads never reach, and those that wait for part of a warp."""

from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with
from helpers.small_kernels import Fault, both, check_fault, wrong_folder

from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.translate import translate
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import KernelError

DIVERGENT = r"""
extern "C" __global__ void around_a_barrier(float* x, int n) {
    if (threadIdx.x < n) {
        x[threadIdx.x] = 1;
        __syncthreads();
        x[threadIdx.x] = 2; }
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
extern "C" __global__ void returned_lane(float* x) {
    if (threadIdx.x == 9) return;
    x[threadIdx.x] = __shfl_sync(0xffffffff, x[threadIdx.x], 9);
}
extern "C" __global__ void one_returns_one_skips(float* x) {
    if (threadIdx.x == 0) return;
    if (threadIdx.x > 1) __syncthreads();
}
"""


@pytest.fixture(scope="module")
def divergent(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(folder_with(tmp_path_factory.mktemp("divergent"), divergent=DIVERGENT))


@pytest.mark.parametrize(
    ("kernel", "arguments", "expected"),
    [
        (
            "around_a_barrier",
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
        ("returned_lane", [], "__shfl_sync at divergent.cu:29 reads lane 9, which has returned"),
        (
            "one_returns_one_skips",
            [],
            "of 64 threads 62 wait at __syncthreads, divergent.cu:33 (the first is thread (2",
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
            divergent.launch("around_a_barrier", 1, 64, [x, 9])
        x[:] = 0
        divergent.launch("around_a_barrier", 1, 64, [x, 64])
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


RETURNED = r"""
extern "C" __global__ void halves(float* y, const float* x, int n) {
    __shared__ float tile[64];
    if (threadIdx.x >= n) return;
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[n - 1 - threadIdx.x];
}
extern "C" __global__ void loaded_by_the_returned(float* y, const float* x, int n) {
    __shared__ float tile[64];
    if (threadIdx.x >= n) return;
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
extern "C" __global__ void votes(float* y, const float* x, int n) {
    if (threadIdx.x >= n) return;
    y[threadIdx.x] = __ballot_sync(0xffffffff, threadIdx.x % 2);
}
extern "C" __global__ void active(float* y, const float* x, int n) {
    if (threadIdx.x >= n) return;
    if (threadIdx.x % 2) y[threadIdx.x] = __activemask();
    else y[threadIdx.x] = __popc(__activemask());
}
"""


@pytest.mark.parametrize("mode", ["trap", "check"])
def test_a_barrier_does_not_wait_for_threads_that_have_returned(tmp_path: Path, mode: str) -> None:
    device = Emulator(folder_with(tmp_path, returned=RETURNED), mode)
    x = np.arange(64, dtype=np.float32)

    def run(kernel: str, n: int) -> list[float]:
        y = device.asarray(np.zeros(64, np.float32))
        device.launch(kernel, 1, 64, [y, device.asarray(x), n])
        return y.tolist()

    assert run("halves", 40) == [*range(39, -1, -1), *[0] * 24]
    assert run("votes", 12) == [0xAAA] * 12 + [0] * 52
    assert run("active", 12) == [6, 0xAAA] * 6 + [0] * 52
    if mode == "check":
        with pytest.raises(KernelError, match=r"reads tile\[63\] at returned\.cu:14, which no thread has written"):
            run("loaded_by_the_returned", 40)
    else:
        assert np.isnan(run("loaded_by_the_returned", 40)).sum() == 24


def test_a_kernel_of_tinyfcn_waits_for_every_thread(tmp_path: Path) -> None:
    """The project's own kernels keep to CUDA's rule: a thread does not return before a barrier."""
    text = (KERNELS / "segmentation_counts.cu").read_text()
    changed = text.replace("int both = 0;", "if (threadIdx.x >= S) return;\n    int both = 0;")
    folder = folder_with(tmp_path, (KERNELS / "common.cuh").read_text(), segmentation_counts=changed)
    assert changed != text and "emulator::returns" not in translate("segmentation_counts", folder)
    assert "emulator::returns" in translate("returned", folder_with(tmp_path, returned=RETURNED))
