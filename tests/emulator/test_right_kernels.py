"""Right kernels, which every mode must accept in every order of threads."""

import re
from pathlib import Path

import pytest
from helpers.kernel_folders import folder_with
from helpers.small_kernels import launch

from tinyfcn.devices.emulator import Emulator

RIGHT = r"""
extern "C" __global__ void reversed(float* y, const float* x, int n) {
    __shared__ float tile[64];
    for (int round = 0; round < n; ++round) {
        tile[threadIdx.x] = round ? y[threadIdx.x] : x[threadIdx.x];
        __syncthreads();
        y[threadIdx.x] = tile[63 - threadIdx.x];
        __syncthreads();
    }
}
extern "C" __global__ void vectors(float* y, const float* x, int n) {
    reinterpret_cast<float4*>(y)[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
}
extern "C" __global__ void atomics(float* y, const float* x, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&y[threadIdx.x % n], 1.0f);
    atomicMax(&y[threadIdx.x % n], 2.0f);
}
extern "C" __global__ void within_warps(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    float sum = ring[threadIdx.x ^ 1];
    if (threadIdx.x % 32 < 16) {
        __syncwarp(0x0000ffff);
        ring[threadIdx.x ^ 2] = sum;
        __syncwarp(0x0000ffff);
        sum = ring[threadIdx.x];
    }
    __syncwarp();
    y[threadIdx.x] = sum + ring[threadIdx.x & ~1];
}
extern "C" __global__ void known_through_another(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    int lane = threadIdx.x;
    if (lane == 0) ring[0] = x[0];
    if (lane < 2) __syncwarp(0x3);
    if (lane == 1 || lane == 2) __syncwarp(0x6);  // lane 2 knows through lane 1 what lane 0 did
    if (lane == 2) y[0] = ring[0];
}
extern "C" __global__ void everyone_reads_then_one_writes(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    if (threadIdx.x == 5) ring[0] = x[0];
    __syncthreads();
    y[threadIdx.x] = ring[0];
    __syncthreads();
    if (threadIdx.x == 40) ring[0] = 0;
}
__constant__ float table[4] = {1, 2, 3, 4};
__device__ float summed(const float* own, int n) {
    float sum = 0;
    for (int i = 0; i < n; ++i) sum += own[i] * table[i];
    return sum;
}
extern "C" __global__ void own_arrays(float* y, const float* x, int n) {
    float own[4];
    for (int i = 0; i < n; ++i) own[(i + threadIdx.x) % 4] = x[i];
    y[threadIdx.x] = summed(own, n);
}
extern "C" __global__ void bytes(float* y, const float* x, int n) {
    __shared__ unsigned char flags[64];
    flags[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = flags[threadIdx.x ^ 1];
}
extern "C" __global__ void other_bytes(float* y, const float* x, int n) {
    __shared__ float flags[64];  // of the same name as in the kernel above
    flags[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = flags[threadIdx.x ^ 1];
}
__device__ int offset_of_all;
__shared__ float outside[64];
__device__ float from_a_table(int i) {
    static constexpr float table[4] = {1, 2, 3, 4};
    return table[i % 4];
}
extern "C" __global__ void tables(float* y, const float* x, int n) {
    static const int order[4] = {3, 1, 0, 2};
    outside[threadIdx.x] = x[offset_of_all + order[threadIdx.x % 4]] + from_a_table(threadIdx.x);
    __syncthreads();
    y[threadIdx.x] = outside[63 - threadIdx.x];
}
extern "C" __global__ void in_a_lambda(float* y, const float* x, int n) {
    auto neighbour = [&](float mine) {
        __shared__ float tile[64];
        tile[threadIdx.x] = mine;
        __syncthreads();
        return tile[threadIdx.x ^ n];
    };
    y[threadIdx.x] = neighbour(x[threadIdx.x]);
}
extern "C" __global__ void read_by_one_alone(float* y, const float* x, int n) {
    __shared__ int flag[2];
    if (threadIdx.x == 0) flag[0] = n;
    int own = 0;
    for (int i = 0; i < n; ++i) {
        own += i;
        if (threadIdx.x * i < 0 + i && threadIdx.x == 0) own += flag[0];
    }
    y[threadIdx.x] = own;
}
extern "C" __global__ void filled_and_copied(float* y, const float* x, int n) {
    __shared__ float tile[64];
    if (threadIdx.x == 0) memset(tile + n, 0, sizeof tile - n * sizeof(float));
    if (threadIdx.x == 32) memcpy(tile, x, n * sizeof(float));
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
extern "C" __global__ void a_tile_of_vectors(float* y, const float* x, int n) {
    __shared__ float4 tile[16];
    if (threadIdx.x < 16) tile[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
    __syncthreads();
    const float4 mine = tile[threadIdx.x / 4];
    y[threadIdx.x] = threadIdx.x % 2 ? mine.x : mine.w;
}
extern "C" __global__ void two_tiles_in_turn(float* y, const float* x, int n) {
    __shared__ float tile[2][64];
    tile[0][threadIdx.x] = x[threadIdx.x];
    float sum = 0;
    for (int i = 0; i < n; ++i) {
        __syncthreads();
        tile[(i + 1) % 2][threadIdx.x] = x[threadIdx.x + i];
        sum += tile[i % 2][63 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void lanes_write_one_value(float* y, const float* x, int n) {
    __shared__ float sums[2];
    float sum = x[threadIdx.x / 32];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffff, sum, d);
    sums[threadIdx.x / 32] = sum;
    __syncthreads();
    y[threadIdx.x] = sums[0] + sums[1];
    if (threadIdx.x < 32) y[64] = n;
}
extern "C" __global__ void maximum_by_swaps(float* y, const float* x, int n) {
    int* place = reinterpret_cast<int*>(y);
    if (threadIdx.x == 0) *place = 0;
    __syncthreads();
    int old = *place, assumed;
    do {
        assumed = old;
        old = atomicCAS(place, assumed, __float_as_int(fmaxf(__int_as_float(assumed), x[threadIdx.x])));
    } while (old != assumed);
}
extern "C" __global__ void nothing_to_do(float* y, const float* x, int n) {}
extern "C" __global__ void infinities(float* y, const float* x, int n) {
    float e = expf(1000.0f * x[0]);
    y[threadIdx.x] = e > 1e30f ? logf(e) : e - 1;
}
"""


RIGHT_BLOCKS = r"""
__device__ unsigned finished;
extern "C" __global__ void last_block_sums(float* y, const float* x, int n) {
    __shared__ bool is_last;
    int block = blockIdx.x;
    if (threadIdx.x == n) y[block] = x[block];
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicAdd(&finished, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    if (threadIdx.x < gridDim.x) y[100 + threadIdx.x] = y[threadIdx.x] * 2;
    if (threadIdx.x == 0) finished = 0;
}
extern "C" __global__ void every_thread_has_a_fence(float* y, const float* x, int n) {
    __shared__ unsigned ticket;
    y[blockIdx.x * blockDim.x + threadIdx.x] = x[threadIdx.x];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) ticket = atomicInc(&finished, gridDim.x - 1);
    __syncthreads();
    if (ticket == gridDim.x - 1)
        for (int i = threadIdx.x; i < gridDim.x * blockDim.x; i += blockDim.x) y[i] += n;
}
"""


@pytest.mark.parametrize("kernel", ["last_block_sums", "every_thread_has_a_fence"])
def test_the_last_block_reads_what_others_wrote_before_a_fence(tmp_path: Path, kernel: str) -> None:
    folder = folder_with(tmp_path, right=RIGHT_BLOCKS)
    found = set()
    for mode in "trap", "check":
        for order, seed in ("forward", 0), ("reverse", 0), ("random", 0), ("random", 1):
            device = Emulator(folder, mode, order, seed)
            found |= {launch(device, kernel, 1, blocks=3).tobytes() for _ in range(2)}
    assert len(found) == 1


RIGHT_N = {
    "filled_and_copied": 8,
    "two_tiles_in_turn": 5,
    "read_by_one_alone": 7,
    "reversed": 3,
    "atomics": 7,
    "own_arrays": 4,
}


@pytest.mark.parametrize("kernel", re.findall(r"void (\w+)\(", RIGHT))
def test_right_kernels_pass_in_every_mode_and_order_with_one_result(tmp_path: Path, kernel: str) -> None:
    folder = folder_with(tmp_path, right=RIGHT)
    found = set()
    for mode in "trap", "check":
        for order, seed in ("forward", 0), ("reverse", 0), ("random", 0), ("random", 1):
            y = launch(Emulator(folder, mode, order, seed), kernel, RIGHT_N.get(kernel, 1))
            found.add(y.tobytes())
    assert len(found) == 1
