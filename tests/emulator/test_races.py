"""Races between threads, warps and blocks, and the order in which threads and blocks run."""

from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with
from helpers.small_kernels import Fault, check_fault, kernel_names, wrong_folder

from tinyfcn.devices.emulator import Emulator

# `// here` marks the line that a message must name, and `// there` the other line of a race.
WRONG = r"""
extern "C" __global__ void no_barrier(float* y, const float* x, int n) {
    __shared__ float tile[256];
    tile[threadIdx.x] = x[threadIdx.x];  // here
    y[threadIdx.x] = tile[(threadIdx.x + n) % 64];  // there
}
extern "C" __global__ void no_barrier_before_the_next_round(float* y, const float* x, int n) {
    __shared__ float tile[64];
    float sum = 0;
    for (int round = 0; round < 2; ++round) {
        tile[threadIdx.x] = x[threadIdx.x] + round;  // there
        __syncthreads();
        sum += tile[63 - threadIdx.x];  // here
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void added_without_atomics(float* y, const float* x, int n) {
    if (threadIdx.x == 0) y[0] = 0;
    __syncthreads();
    y[0] += x[threadIdx.x];  // here
}
extern "C" __global__ void blocks_write_the_same(float* y, const float* x, int n) {
    if (threadIdx.x == 0) y[0] = x[blockIdx.x];  // here
}
extern "C" __global__ void blocks_read_each_other(float* y, const float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i];  // there
    __syncthreads();
    if (i == 64) y[i] += y[n];  // here
}
extern "C" __global__ void atomic_and_plain(float* y, const float* x, int n) {
    if (threadIdx.x == 0) y[0] = 0;
    __syncthreads();
    atomicAdd(&y[0], x[threadIdx.x]);  // there
    if (threadIdx.x == 63) y[1] = y[0];  // here
}
extern "C" __global__ void atomics_beside_the_first_value(float* y, const float* x, int n) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;  // there
    atomicAdd(&total, x[threadIdx.x]);  // here
    __syncthreads();
    if (threadIdx.x == 0) y[0] = total;
}
extern "C" __global__ void lanes_without_syncwarp(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x] = x[threadIdx.x];  // there
    y[threadIdx.x] = ring[threadIdx.x ^ n];  // here
}
extern "C" __global__ void shuffles_order_no_memory(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x] = x[threadIdx.x];  // there
    __shfl_sync(0xffffffff, n, 0);
    y[threadIdx.x] = ring[threadIdx.x ^ n];  // here
}
extern "C" __global__ void written_again_after_syncwarp(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    ring[threadIdx.x] *= 2;  // there
    y[threadIdx.x] = ring[threadIdx.x ^ n];  // here
}
extern "C" __global__ void syncwarp_for_two_warps(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x] = x[threadIdx.x];  // there
    __syncwarp();
    y[threadIdx.x] = ring[63 - threadIdx.x];  // here
}
extern "C" __global__ void halves_of_a_warp_apart(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x] = x[threadIdx.x];  // there
    if (threadIdx.x % 32 < 16) __syncwarp(0x0000ffff); else __syncwarp(0xffff0000);
    y[threadIdx.x] = ring[threadIdx.x ^ n];  // here
}
extern "C" __global__ void narrow_shared_bytes(float* y, const float* x, int n) {
    __shared__ unsigned char flags[64];
    flags[threadIdx.x] = 1;  // there
    y[threadIdx.x] = flags[threadIdx.x ^ n];  // here
}
extern "C" __global__ void lanes_write_different_values(float* y, const float* x, int n) {
    __shared__ float first;
    first = threadIdx.x < 7 ? n : x[threadIdx.x];  // here
    __syncthreads();
    y[threadIdx.x] = first;
}
extern "C" __global__ void last_write_of_the_block_differs(float* y, const float* x, int n) {
    if (threadIdx.x < 32) y[0] = threadIdx.x < 31 ? n : -1;  // here
}
extern "C" __global__ void warps_write_the_same(float* y, const float* x, int n) {
    __shared__ float first;
    if (threadIdx.x % 32 == 0) first = x[threadIdx.x];  // here
    __syncthreads();
    y[threadIdx.x] = first;
}
extern "C" __global__ void checked_then_added(float* y, const float* x, int n) {
    if (threadIdx.x == 0) y[0] = 0;
    __syncthreads();
    if (y[0] < n) atomicAdd(&y[0], 1.0f);  // here
}
extern "C" __global__ void swapped_in_another_place(float* y, const float* x, int n) {
    int* counts = reinterpret_cast<int*>(y);
    if (threadIdx.x < 2) counts[threadIdx.x] = 0;
    __syncthreads();
    int old = counts[0];  // here
    atomicCAS(&counts[1], old, old + 1);
    atomicAdd(&counts[0], n);  // there
}
extern "C" __global__ void swapped_without_atomics(float* y, const float* x, int n) {
    int* counts = reinterpret_cast<int*>(y);
    if (threadIdx.x == 0) counts[0] = 0;
    __syncthreads();
    int old = counts[0];
    atomicCAS(&counts[0], old, old + 1);  // there
    if (threadIdx.x == n) counts[0] = 1;  // here
}
__device__ unsigned finished;
extern "C" __global__ void last_block_without_a_fence(float* y, const float* x, int n) {
    __shared__ bool is_last;
    if (threadIdx.x == 0) {
        y[blockIdx.x] = x[blockIdx.x];  // there
        is_last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x < gridDim.x) y[100 + threadIdx.x] = y[threadIdx.x];  // here
}
extern "C" __global__ void last_block_with_a_late_write(float* y, const float* x, int n) {
    __shared__ bool is_last;
    if (threadIdx.x == 0) {
        __threadfence();
        y[blockIdx.x] = x[blockIdx.x];  // there
        is_last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x < gridDim.x) y[100 + threadIdx.x] = y[threadIdx.x];  // here
}
extern "C" __global__ void last_block_whose_other_threads_wrote(float* y, const float* x, int n) {
    __shared__ bool is_last;
    if (threadIdx.x == 1) y[blockIdx.x] = x[blockIdx.x];  // there
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x < gridDim.x) y[100 + threadIdx.x] = y[threadIdx.x];  // here
}
extern "C" __global__ void last_block_without_a_barrier(float* y, const float* x, int n) {
    __shared__ bool is_last;
    if (threadIdx.x == 0) {
        y[blockIdx.x] = x[blockIdx.x];  // there
        __threadfence();
        is_last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    if (threadIdx.x == 33 && blockIdx.x > 0) y[100] = y[0];  // here
}
"""


BETWEEN_LANES = r"no __syncwarp\(\) or __syncthreads\(\) stands between"
BETWEEN_WARPS = r"no __syncthreads\(\) stands between"
# fmt: off
FAULTS: dict[str, Fault] = {
    "no_barrier": Fault(1, 1, None,
        rf"a race: thread \(1,0,0\) writes tile\[1\].*thread \(0,0,0\) read it.*{BETWEEN_LANES}"),
    "no_barrier_before_the_next_round": Fault(0, 1, None,
        rf"reads tile\[31\].*thread \(31,0,0\) wrote it.*{BETWEEN_WARPS}"),
    "added_without_atomics": Fault(0, 1, None, rf"reads y\[0\].*, and thread \(\d+,0,0\) wrote it.*{BETWEEN_LANES}"),
    "blocks_write_the_same": Fault(0, 2, None, r"writes y\[0\].*, and thread \(0,0,0\) of block \(0,0,0\) wrote it"),
    "blocks_read_each_other": Fault(0, 2, None, r"reads y\[0\].*, and thread \(0,0,0\) of block \(0,0,0\) wrote it"),
    "atomic_and_plain": Fault(0, 1, None,
        r"reads y\[0\].*, and thread \(\d+,0,0\) updated it by an atomic .*or read it by an atomic"),
    "atomics_beside_the_first_value": Fault(0, 1, None,
        rf"thread \(1,0,0\) updates by an atomic total\[0\].*thread \(0,0,0\) wrote it.*{BETWEEN_LANES}"),
    "lanes_without_syncwarp": Fault(1, 1, None, rf"ring\[\d+\].*{BETWEEN_LANES}"),
    "shuffles_order_no_memory": Fault(1, 1, None, rf"reads ring\[1\].*{BETWEEN_LANES}"),
    "written_again_after_syncwarp": Fault(1, 1, None, rf"ring\[\d+\].*{BETWEEN_LANES}"),
    "syncwarp_for_two_warps": Fault(0, 1, None, rf"reads ring\[\d+\].*{BETWEEN_WARPS}"),
    "halves_of_a_warp_apart": Fault(16, 1, None, rf"reads ring\[\d+\].*{BETWEEN_LANES}"),
    "lanes_write_different_values": Fault(3, 1, None, rf"writes first\[0\].*wrote it.*{BETWEEN_LANES}"),
    "last_write_of_the_block_differs": Fault(3, 1, None, rf"\(31,0,0\) writes y\[0\].*wrote it.*{BETWEEN_LANES}"),
    "warps_write_the_same": Fault(0, 1, None, rf"writes first\[0\].*wrote it.*{BETWEEN_WARPS}"),
    "checked_then_added": Fault(9, 1, None, r"a race: .*y\[0\].*(updated it by an atomic|read it)"),
    "swapped_in_another_place": Fault(1, 1, None, r"a race: .*y\[0\].*(updated it by an atomic|read it)"),
    "swapped_without_atomics": Fault(63, 1, None, r"writes y\[0\].*updated it by an atomic"),
    "last_block_without_a_fence": Fault(0, 3, None, r"reads y\[0\].* of block \(0,0,0\) wrote it"),
    "last_block_with_a_late_write": Fault(0, 3, None, r"reads y\[0\].* of block \(0,0,0\) wrote it"),
    "last_block_whose_other_threads_wrote": Fault(0, 3, None, r"reads y\[0\].* of block \(0,0,0\) wrote it"),
    "last_block_without_a_barrier": Fault(0, 3, None, r"reads y\[0\].* of block \(0,0,0\) wrote it"),
    "narrow_shared_bytes": Fault(1, 1, None, r"flags\[\d\].*wrote it|flags\[\d\].*read it"),
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


ORDERS = r"""
extern "C" __global__ void turns(int* turn, int* next) {
    turn[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}
extern "C" __global__ void turns_after_a_barrier(int* turn, int* next) {
    __syncthreads();
    turn[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}
extern "C" __global__ void two_turns(int* turn, int* next) {
    turn[threadIdx.x] = atomicAdd(next, 1);
    __syncthreads();
    turn[blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}
"""


@pytest.mark.parametrize("kernel", ["turns", "turns_after_a_barrier"])
def test_threads_and_blocks_run_in_the_order_asked_for(tmp_path: Path, kernel: str) -> None:
    folder = folder_with(tmp_path, orders=ORDERS)

    def turns(order: str, seed: int = 0) -> np.ndarray:
        device = Emulator(folder, order=order, seed=seed)
        turn = device.empty((15,), np.int32)
        device.launch(kernel, 3, 5, [turn, device.asarray(np.zeros(1, np.int32))])
        return turn

    np.testing.assert_array_equal(turns("forward"), np.arange(15))
    np.testing.assert_array_equal(turns("reverse"), np.arange(15)[::-1])
    shuffled = [turns("random", seed).reshape(3, 5) for seed in (1, 2, 1)]
    np.testing.assert_array_equal(shuffled[0], shuffled[2])
    assert (shuffled[0] != shuffled[1]).any()
    for turn in shuffled:
        assert sorted(turn.ravel()) == [*range(15)]
        assert all(sorted(block // 5) == [block[0] // 5] * 5 for block in turn), "one block after another"
    device = Emulator(folder, order="random", seed=1)
    before_and_after = device.empty((2, 20), np.int32)
    device.launch("two_turns", 1, 20, [before_and_after, device.asarray(np.zeros(1, np.int32))])
    assert (before_and_after[0] + 20 != before_and_after[1]).any(), "a new order after every barrier"
