"""What the emulator's modes find, and what they leave in peace: kernels wrong in one way each, and right ones."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with

from tinyfcn.devices.emulator import Emulator, emulator, library
from tinyfcn.errors import KernelError

# Each takes y (256 floats), x (256 floats from 0.5 to 1.5) and n. `// here` marks the line to be named, `// there` the
# other one of two.
WRONG = r"""
extern "C" __global__ void past_the_end(float* y, const float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i > n) return;
    float mine = x[i];  // here
    y[i] = mine;
}
extern "C" __global__ void far_away(float* y, const float* x, int n) {
    y[threadIdx.x] = x[threadIdx.x * 1000 + n];  // here
}
extern "C" __global__ void before_the_beginning(float* y, const float* x, int n) {
    int i = threadIdx.x;
    y[i] = x[i - n];  // here
}
extern "C" __global__ void overflow(float* y, const float* x, int n) {
    int i = threadIdx.x;
    y[i] = x[i * n / n];  // here
}
extern "C" __global__ void misaligned(float* y, const float* x, int n) {
    float4 v = *reinterpret_cast<const float4*>(x + threadIdx.x * n);  // here
    y[threadIdx.x] = v.x + v.w;
}
extern "C" __global__ void past_a_shared_array(float* y, const float* x, int n) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + n];  // here
}
extern "C" __global__ void past_a_local_array(float* y, const float* x, int n) {
    float own[4] = {1, 2, 3, 4};
    y[threadIdx.x] = own[n];  // here
}
__device__ float at(const float* tile, int i) { return tile[i]; }  // here, through a pointer
extern "C" __global__ void into_the_next_shared_array(float* y, const float* x, int n) {
    __shared__ float tile[64], other[64];
    tile[threadIdx.x] = other[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = at(tile, threadIdx.x + n) + at(other, threadIdx.x);
}
__device__ int byte_at(const unsigned char* flags, int i) { return flags[i]; }  // here, through a pointer
extern "C" __global__ void past_shared_bytes(float* y, const float* x, int n) {
    __shared__ unsigned char flags[64];
    flags[threadIdx.x] = x[threadIdx.x] > 1;
    __syncthreads();
    y[threadIdx.x] = byte_at(flags, threadIdx.x + n);
}
extern "C" __global__ void vector_past_the_end(float* y, const float* x, int n) {
    __shared__ float tile[6];
    if (threadIdx.x < 6) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    const float4 v = reinterpret_cast<const float4*>(tile)[n];  // here
    y[threadIdx.x] = v.x + v.w;
}
extern "C" __global__ void past_dynamic_shared(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x + n] = x[threadIdx.x];  // here
    __syncthreads();
    y[threadIdx.x] = ring[threadIdx.x];
}
extern "C" __global__ void divided_by_zero(float* y, const float* x, int n) {
    y[threadIdx.x] = x[threadIdx.x % n];  // here
}
extern "C" __global__ void shifted_too_far(float* y, const float* x, int n) {
    y[threadIdx.x] = x[1 >> n];  // here
}
extern "C" __global__ void too_large_for_the_stack(float* y, const float* x, int n) {  // here
    float own[100000];
    for (int i = 0; i < 100000; i++) own[i] = x[i % n];
    for (int i = 0; i < 100000; i++) y[i % n] = own[(i * 7) % 100000];
}
extern "C" __global__ void atomic_past_the_end(float* y, const float* x, int n) {
    atomicAdd(&y[n], x[threadIdx.x]);  // here
}
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
extern "C" __global__ void nothing_compared(float* y, const float* x, int n) {
    __shared__ float tile[64];
    float value = tile[threadIdx.x];  // here
    y[threadIdx.x] = value > n ? value : 0;
}
extern "C" __global__ void one_of_two_branches(float* y, const float* x, int n) {
    if (x[threadIdx.x] > 2)
        y[threadIdx.x] = x[threadIdx.x] * 2;
    else
        y[threadIdx.x + n] = x[threadIdx.x] * 2;  // here
}
extern "C" __global__ void one_place_in_two_branches(float* y, const float* x, int n) {
    if (x[threadIdx.x] > 2) {
        y[threadIdx.x + n] = x[threadIdx.x] * 2;
    } else {
        y[threadIdx.x + n] = x[threadIdx.x] * 3;  // here
    }
}
extern "C" __global__ void one_store_in_two_branches(float* y, const float* x, int n) {
    if (x[threadIdx.x] > 2) {
        y[threadIdx.x] = 0;
        y[threadIdx.x + n] = x[threadIdx.x];
    } else {
        y[threadIdx.x + n] = x[threadIdx.x];  // here
    }
}
extern "C" __global__ void filled_too_far(float* y, const float* x, int n) {
    __shared__ float tile[64];
    if (threadIdx.x == 0) memset(tile, 0, (64 + n) * sizeof(float));  // here
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void wrapped_round(float* y, const float* x, int n) {
    y[threadIdx.x] = x[threadIdx.x - (unsigned)n];  // here
}
extern "C" __global__ void no_array_at_all(float* y, const float* x, int n) {
    const float* nowhere = n > 0 ? nullptr : x;
    y[threadIdx.x] = nowhere[threadIdx.x];  // here
}
extern "C" __global__ void int_of_a_large_number(float* y, const float* x, int n) {
    y[threadIdx.x] = (int)(x[0] * 1e12f);  // here
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
extern "C" __global__ void barrier_in_a_branch(float* y, const float* x, int n) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < n) __syncthreads();  // here
}
extern "C" __global__ void narrow_shared_bytes(float* y, const float* x, int n) {
    __shared__ unsigned char flags[64];
    flags[threadIdx.x] = 1;  // there
    y[threadIdx.x] = flags[threadIdx.x ^ n];  // here
}
"""

BETWEEN_LANES = r"no __syncwarp\(\) or __syncthreads\(\) stands between"
BETWEEN_WARPS = r"no __syncthreads\(\) stands between"
# Kernel -> n, the number of blocks of 64 threads, and what trap mode and check mode say (None: nothing).
# fmt: off
SAYS: dict[str, tuple[int, int, str | None, str]] = {
    "past_the_end": (256, 5, r"touches x\[256\] \(x has 256 elements\)", r"reads x\[256\] \(x has 256 elements\)"),
    "far_away": (300, 1, r"thread \(0,0,0\) touches x\[300\]", r"thread \(0,0,0\) reads x\[300\]"),
    "before_the_beginning": (1, 1, None, r"thread \(0,0,0\) reads x\[-1\] \(x has 256 elements\)"),
    "overflow": (1 << 30, 1, *["computes 2 . 1073741824, which overflows 'int',"] * 2),
    "misaligned": (1, 1, *[r"takes a 'const struct float4' from the address of x\[1\], which is not a multiple"] * 2),
    "past_a_shared_array": (1, 1, *[r"uses the index 64 of an array of type 'float \[64\]'"] * 2),
    "past_a_local_array": (4, 1, *[r"uses the index 4 of an array of type 'float \[4\]'"] * 2),
    "into_the_next_shared_array": (1, 1,
        None, r"thread \(63,0,0\) reads tile\[64\] \(tile has 64 elements"),
    "past_shared_bytes": (1, 1, None, r"thread \(63,0,0\) reads flags\[64\] \(flags has 64 elements\)"),
    "vector_past_the_end": (1, 1, None, r"thread \(0,0,0\) reads tile\[7\] \(tile has 6 elements\)"),
    "past_dynamic_shared": (1, 1,
        r"touches ring\[64\] \(ring has 64 elements\)", r"thread \(63,0,0\) writes ring\[64\]"),
    "divided_by_zero": (0, 1, *["divides 0 by 0"] * 2),
    "shifted_too_far": (32, 1, *["shifts 1, of type 'int', by 32 bits"] * 2),
    "too_large_for_the_stack": (256, 1, *["needs more memory for its local variables than a thread has"] * 2),
    "atomic_past_the_end": (256, 1, r"touches y\[256\]", r"updates by an atomic y\[256\]"),
    "no_barrier": (1, 1,
        None, rf"a race: thread \(1,0,0\) writes tile\[1\].*thread \(0,0,0\) read it.*{BETWEEN_LANES}"),
    "no_barrier_before_the_next_round": (0, 1, None, rf"reads tile\[31\].*thread \(31,0,0\) wrote it.*{BETWEEN_WARPS}"),
    "added_without_atomics": (0, 1, None, rf"reads y\[0\].*, and thread \(\d+,0,0\) wrote it.*{BETWEEN_LANES}"),
    "blocks_write_the_same": (0, 2, None, r"writes y\[0\].*, and thread \(0,0,0\) of block \(0,0,0\) wrote it"),
    "blocks_read_each_other": (0, 2, None, r"reads y\[0\].*, and thread \(0,0,0\) of block \(0,0,0\) wrote it"),
    "atomic_and_plain": (0, 1, None, r"reads y\[0\].*, and thread \(\d+,0,0\) updated it by an atomic"),
    "atomics_beside_the_first_value": (0, 1,
        None, rf"thread \(1,0,0\) updates by an atomic total\[0\].*thread \(0,0,0\) wrote it.*{BETWEEN_LANES}"),
    "nothing_compared": (1, 1, None, r"thread \(0,0,0\) reads tile\[0\] at \S+, which no thread has written"),
    "one_of_two_branches": (256, 1, r"touches y\[256\]", r"thread \(0,0,0\) writes y\[256\]"),
    "one_place_in_two_branches": (256, 1, r"touches y\[256\]", r"thread \(0,0,0\) writes y\[256\]"),
    "one_store_in_two_branches": (256, 1, r"touches y\[256\]", r"thread \(0,0,0\) writes y\[256\]"),
    "filled_too_far": (1, 1, None, r"thread \(0,0,0\) writes tile\[64\] \(tile has 64 elements\)"),
    "wrapped_round": (1, 1, *[r"thread \(0,0,0\) \w+ an address far from all its arrays"] * 2),
    "no_array_at_all": (1, 1, *[r"thread \(0,0,0\) \w+ an address far from all its arrays \(a null pointer"] * 2),
    "int_of_a_large_number": (1, 1, None, "makes an int of a number that none holds, at"),
    "shared_not_filled": (63, 1, None, r"thread \(63,0,0\) reads tile\[63\] at \S+, which no thread has written"),
    "filled_by_another_block": (0, 2, None, r"reads tile\[0\] at \S+, which no thread has written; in block \(1,0,0\)"),
    "added_to_nothing": (0, 1, None, r"reads y\[0\] at \S+, which no thread has written"),
    "infinity_over_infinity": (1, 1, None, r"thread \(0,0,0\) computes a NaN"),
    "logarithm_of_a_negative": (2, 1, None, r"thread \(0,0,0\) computes a NaN"),
    "lanes_without_syncwarp": (1, 1, None, rf"ring\[\d+\].*{BETWEEN_LANES}"),
    "shuffles_order_no_memory": (1, 1, None, rf"reads ring\[1\].*{BETWEEN_LANES}"),
    "written_again_after_syncwarp": (1, 1, None, rf"ring\[\d+\].*{BETWEEN_LANES}"),
    "syncwarp_for_two_warps": (0, 1, None, rf"reads ring\[\d+\].*{BETWEEN_WARPS}"),
    "halves_of_a_warp_apart": (16, 1, None, rf"reads ring\[\d+\].*{BETWEEN_LANES}"),
    "barrier_in_a_branch": (60, 1, *[r"of 64 threads 60 wait at __syncthreads, \S+ .*; 4 have exited"] * 2),
    "narrow_shared_bytes": (1, 1, None, r"flags\[\d\].*wrote it|flags\[\d\].*read it"),
}
# fmt: on


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory.mktemp("wrong"), wrong=WRONG)


def launch(device: Emulator, kernel: str, n: int, blocks: int = 1) -> np.ndarray:
    """y, from an x of its own."""
    x = np.random.default_rng(0).uniform(0.5, 1.5, 256).astype(device.dtypes["float"])
    y = device.empty((256,))
    device.launch(kernel, blocks, 64, [y, device.asarray(x), n], 64 * x.itemsize)
    return y


def lines(kernel: str, mark: str) -> set[str]:
    """Where the marked lines of a kernel stand, and of the function before it."""
    before, after = WRONG.split(f" {kernel}(")
    first = before.rfind("\n}") + 2  # behind the function before it
    text = before[first:] + after[: after.index("\n}")]
    start = WRONG[:first].count("\n") + 1
    return {f"wrong.cu:{start + i}" for i, line in enumerate(text.split("\n")) if f"// {mark}" in line}


@pytest.mark.parametrize("mode", ["trap", "check"])
@pytest.mark.parametrize("kernel", SAYS)
def test_what_is_wrong_is_said_with_the_line(wrong: Path, kernel: str, mode: str) -> None:
    n, blocks, *said = SAYS[kernel]
    pattern = said[mode == "check"]
    device = Emulator(wrong, mode)
    if pattern is None:
        launch(device, kernel, n, blocks)  # trap mode looks at no values and no order
        return
    with pytest.raises(KernelError) as caught:
        launch(device, kernel, n, blocks)
    message = str(caught.value)
    assert message.startswith(f"{kernel} in wrong.cu: ")
    assert re.search(pattern, message), message
    named = set(re.findall(r"wrong\.cu:\d+", message))
    assert named >= lines(kernel, "here") and named <= lines(kernel, "here") | lines(kernel, "there"), message
    assert "race" not in message or named >= lines(kernel, "there"), message
    launch(device, "past_a_local_array", 3)  # the next launch is sound


@pytest.mark.parametrize("mode", ["trap", "check"])
def test_an_index_may_be_wrong_by_millions(wrong: Path, mode: str) -> None:
    with pytest.raises(KernelError, match=r"x\[3000000\] \(x has 256 elements\)"):
        launch(Emulator(wrong, mode), "far_away", 3_000_000)


def test_every_wrong_kernel_is_looked_at() -> None:
    assert set(re.findall(r"void (\w+)\(", WRONG)) == {*SAYS}


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
extern "C" __global__ void nothing_to_do(float* y, const float* x, int n) {}
extern "C" __global__ void infinities(float* y, const float* x, int n) {
    float e = expf(1000.0f * x[0]);
    y[threadIdx.x] = e > 1e30f ? logf(e) : e - 1;
}
"""
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


DOUBLE = r"""
__device__ float third(float x) { return x / 3.0f; }
extern "C" __global__ void widened(float* y, const float* x, int n) {
    __shared__ float tile[64];
    extern __shared__ float ring[];
    float2 pair = {x[threadIdx.x], 1e-10f};
    tile[threadIdx.x] = ring[threadIdx.x] = pair.x + pair.y;
    __syncthreads();
    y[threadIdx.x] = third(expf(tile[63 - threadIdx.x])) + .1f + sqrtf(fmaxf(ring[threadIdx.x], 0.5F)) + rsqrtf(2.f)
        + __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1) + sizeof(float) * n + powf(1e-3f, 2);
}
"""


@pytest.mark.parametrize("mode", ["trap", "check"])
def test_double_precision_reaches_every_float_literal_and_function(tmp_path: Path, mode: str) -> None:
    device = Emulator(folder_with(tmp_path, double=DOUBLE), mode, precision="double")
    y = launch(device, "widened", 1)[:64]
    assert y.dtype == np.float64
    x = np.random.default_rng(0).uniform(0.5, 1.5, 256)[:64]
    tile = x + 1e-10
    expected = np.exp(tile[::-1]) / 3 + 0.1 + np.sqrt(tile) + np.sqrt(0.5) + x[np.arange(64) ^ 1] + 8 + 1e-6
    np.testing.assert_allclose(y, expected, rtol=1e-15)


def test_a_double_device_takes_no_floats_of_32_bits(tmp_path: Path) -> None:
    device = Emulator(folder_with(tmp_path, double=DOUBLE), precision="double")
    x = device.asarray(np.ones(256, np.float32))
    with pytest.raises(TypeError, match="widened: argument 'y' expects float64, got float32"):
        device.launch("widened", 1, 64, [x, x, 1])


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
def test_a_warp_of_fewer_than_32_lanes_waits_for_those_that_there_are(tmp_path: Path, mode: str) -> None:
    device = Emulator(folder_with(tmp_path, parts=PARTS_OF_WARPS), mode)
    x, y = device.asarray(np.arange(48, dtype=np.float32)), device.empty((48,))
    device.launch("lanes_that_there_are", 1, 48, [y, x, 1], 48 * 4)
    assert (y == 1).all()


def test_what_a_kernel_prints_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = """extern "C" __global__ void talk(float* y, const float* x, int n) {
        if (threadIdx.x == 63) printf("thread %d of block %d: %d\\n", threadIdx.x, blockIdx.x, n);
    }"""
    launch(Emulator(folder_with(tmp_path, talk=text)), "talk", 5, 2)
    assert capfd.readouterr().out == "thread 63 of block 0: 5\nthread 63 of block 1: 5\n"


def test_dynamic_shared_memory_outside_of_a_kernel_is_refused(tmp_path: Path) -> None:
    text = """extern __shared__ float ring[];
    extern "C" __global__ void outside(float* y, const float* x, int n) { ring[0] = 1; }"""
    with pytest.raises(KernelError, match=r"outside\.cu: 'extern __shared__ float ring\[\];' stands outside of any"):
        launch(Emulator(folder_with(tmp_path, outside=text)), "outside", 5)


def test_arrays_are_a_processs_own(wrong: Path) -> None:
    device = Emulator(wrong)
    x = device.asarray(np.ones(3, np.float32))
    child = os.fork()
    if not child:
        x[:] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert (x == 1).all()


def test_structures_are_as_large_in_python_as_in_cpp(wrong: Path) -> None:
    device = Emulator(wrong)
    launch(device, "past_a_local_array", 3)
    (made,) = device._libraries.values()
    sizes = (ctypes.c_size_t * 5).in_dll(ctypes.CDLL(str(made.path)), "emulator_sizes")
    structures = [ctypes.sizeof(library._Launch), ctypes.sizeof(library._Region), library.RECORD.itemsize]
    assert [*sizes] == [*structures, 2 * emulator.MAX_SHARED, emulator.GUARD]


def test_an_accumulator_without_a_first_value_does_not_compile(tmp_path: Path) -> None:
    text = RIGHT.replace("float sum = 0;", "float sum;")
    with pytest.raises(KernelError, match=r"right\.cu:\d+:\d+: error: .sum. .*uninitialized"):
        launch(Emulator(folder_with(tmp_path, right=text)), "own_arrays", 4)


def test_what_no_kernel_wrote_is_not_brought_back_in_check_mode(wrong: Path) -> None:
    device = Emulator(wrong, "check")
    y = launch(device, "past_a_local_array", 3)  # 64 of 256
    line = 1 + WRONG[: WRONG.index("void past_a_local_array")].count("\n")
    with pytest.raises(
        KernelError, match=rf"element 64 .*\(256,\); past_a_local_array at wrong\.cu:{line} was the last"
    ):
        device.to_numpy(y)
    assert device.to_numpy(y[:64]).size == 64
    y[64:] = 0  # by NumPy
    device.to_numpy(y)
    with pytest.raises(KernelError, match="no kernel wrote element 0"):
        device.to_numpy(device.empty((2, 3), np.int32))
    device.to_numpy(device.empty((9,), np.uint8))  # a byte may have any value
    assert np.isnan(Emulator(wrong).to_numpy(device.empty((3,)))).all()


def test_check_mode_knows_who_wrote_an_element_last(wrong: Path) -> None:
    device = Emulator(wrong, "check")
    y = launch(device, "past_a_local_array", 3)
    (line,) = lines("past_a_local_array", "here")
    assert device.written_at(y, 63) == f"past_a_local_array at {line}"
    assert device.written_at(y, 64) is None
    assert device.written_at(device.asarray(np.ones(3)), 0) is None


def test_check_mode_counts_what_it_looked_at(wrong: Path) -> None:
    for mode, accesses in ("check", 64), ("trap", 0):
        device = Emulator(wrong, mode)
        launch(device, "past_a_local_array", 3)
        statistics = device.statistics["past_a_local_array"]
        assert (statistics.launches, statistics.threads, statistics.accesses) == (1, 64, accesses)


def test_faults_outside_of_kernels_are_left_to_their_own_handlers(wrong: Path) -> None:
    code = f"""
import faulthandler, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from emulator.test_emulator_modes import Emulator, KernelError, launch
faulthandler.enable()
device = Emulator(Path({str(wrong)!r}), "check")
launch(device, "past_a_local_array", 3)
float("inf") - float("inf")
faulthandler._sigsegv()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGSEGV
    assert done.stderr.startswith("Fatal Python error: Segmentation fault")


ENDLESS = r"""
extern "C" __global__ void endless(float* y, const float* x, int n) {
    volatile float sum = 0;
    while (n > sum) sum = sum + x[0] * 0;  // here
    y[threadIdx.x] = sum;
}
extern "C" __global__ void endless_barriers(float* y, const float* x, int n) {
    while (n > 0) __syncthreads();
}
"""


@pytest.mark.parametrize("kernel", ["endless", "endless_barriers"])
@pytest.mark.parametrize("mode", ["trap", "check"])
def test_ctrl_c_ends_a_kernel_that_does_not_end(tmp_path: Path, kernel: str, mode: str) -> None:
    device = Emulator(folder_with(tmp_path, endless=ENDLESS), mode)
    launch(device, kernel, 0)
    ctrl_c = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    where = r" at endless\.cu:4; in block \(0,0,0\)" if kernel == "endless" else ""
    with pytest.raises(KeyboardInterrupt, match=f"{kernel} in endless.cu: stopped by Ctrl-C{where}"):
        launch(device, kernel, 1)
    launch(device, kernel, 0)


def test_ctrl_c_is_left_to_a_handler_that_somebody_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training has one, which lets the step at hand finish."""
    device = Emulator(folder_with(tmp_path, endless=ENDLESS.replace("x[0] * 0", "1.0f")))
    launch(device, "endless", 0)
    handled: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: handled.append(number))
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        y = launch(device, "endless", 5_000_000)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (y[:64] == 5_000_000).all() and handled == [signal.SIGINT]


def test_ctrl_c_is_pythons_where_another_thread_launches(tmp_path: Path) -> None:
    device = Emulator(folder_with(tmp_path, endless=ENDLESS.replace("x[0] * 0", "1.0f")))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(launch, device, "endless", 5_000_000)
        time.sleep(0.2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert not running.done() and (running.result()[:64] == 5_000_000).all()


def test_faults_in_several_python_threads(wrong: Path) -> None:
    def fault(kernel: str) -> str:
        with pytest.raises(KernelError) as caught:
            launch(Emulator(wrong, "check"), kernel, SAYS[kernel][0], SAYS[kernel][1])
        return str(caught.value)

    kernels = ["past_the_end", "too_large_for_the_stack", "no_barrier", "infinity_over_infinity"] * 4
    with ThreadPoolExecutor(4) as pool:
        for kernel, message in zip(kernels, pool.map(fault, kernels), strict=True):
            assert re.search(SAYS[kernel][3], message)


@pytest.mark.parametrize("what", ["mode", "order", "precision"])
def test_an_unknown_mode_is_named_with_those_there_are(wrong: Path, what: str) -> None:
    with pytest.raises(ValueError, match=f"no {what} named 'quick'; there are .*(check|reverse|double)"):
        Emulator(wrong, **{what: "quick"})
