"""Accesses outside of memory, misaligned vectors, full stacks, and integer arithmetic that has no result."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.small_kernels import Fault, both, check_fault, kernel_names, launch, wrong_folder

from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError

# `// here` marks the line that a message must name.
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
extern "C" __global__ void wrapped_round(float* y, const float* x, int n) {
    y[threadIdx.x] = x[threadIdx.x - (unsigned)n];  // here
}
extern "C" __global__ void no_array_at_all(float* y, const float* x, int n) {
    const float* nowhere = n > 0 ? nullptr : x;
    y[threadIdx.x] = nowhere[threadIdx.x];  // here
}
extern "C" __global__ void vector_past_the_end(float* y, const float* x, int n) {
    __shared__ __align__(16) float tile[6];
    if (threadIdx.x < 6) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    const float4 v = reinterpret_cast<const float4*>(tile)[n];  // here
    y[threadIdx.x] = v.x + v.w;
}
extern "C" __global__ void past_a_shared_array(float* y, const float* x, int n) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + n];  // here
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
extern "C" __global__ void past_dynamic_shared(float* y, const float* x, int n) {
    extern __shared__ float ring[];
    ring[threadIdx.x + n] = x[threadIdx.x];  // here
    __syncthreads();
    y[threadIdx.x] = ring[threadIdx.x];
}
extern "C" __global__ void past_a_local_array(float* y, const float* x, int n) {
    float own[4] = {1, 2, 3, 4};
    y[threadIdx.x] = own[n];  // here
}
extern "C" __global__ void atomic_past_the_end(float* y, const float* x, int n) {
    atomicAdd(&y[n], x[threadIdx.x]);  // here
}
extern "C" __global__ void filled_too_far(float* y, const float* x, int n) {
    __shared__ float tile[64];
    if (threadIdx.x == 0) memset(tile, 0, (64 + n) * sizeof(float));  // here
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
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
extern "C" __global__ void too_large_for_the_stack(float* y, const float* x, int n) {  // here
    float own[100000];
    for (int i = 0; i < 100000; i++) own[i] = x[i % n];
    for (int i = 0; i < 100000; i++) y[i % n] = own[(i * 7) % 100000];
}
extern "C" __global__ void misaligned(float* y, const float* x, int n) {
    float4 v = *reinterpret_cast<const float4*>(x + threadIdx.x * n);  // here
    y[threadIdx.x] = v.x + v.w;
}
extern "C" __global__ void overflow(float* y, const float* x, int n) {
    int i = threadIdx.x;
    y[i] = x[i * n / n];  // here
}
extern "C" __global__ void divided_by_zero(float* y, const float* x, int n) {
    y[threadIdx.x] = x[threadIdx.x % n];  // here
}
extern "C" __global__ void shifted_too_far(float* y, const float* x, int n) {
    y[threadIdx.x] = x[1 >> n];  // here
}
"""


# fmt: off
FAULTS: dict[str, Fault] = {
    "past_the_end": Fault(256, 5, r"touches x\[256\] \(x has 256 elements\)", r"reads x\[256\] \(x has 256 elements\)"),
    "far_away": Fault(300, 1, r"thread \(0,0,0\) touches x\[300\]", r"thread \(0,0,0\) reads x\[300\]"),
    "before_the_beginning": Fault(1, 1, None, r"thread \(0,0,0\) reads x\[-1\] \(x has 256 elements\)"),
    "wrapped_round": both(1, 1, r"thread \(0,0,0\) \w+ an address far from all its arrays"),
    "no_array_at_all": both(1, 1, r"thread \(0,0,0\) \w+ an address far from all its arrays \(a null pointer"),
    "vector_past_the_end": Fault(1, 1, None, r"thread \(0,0,0\) reads tile\[7\] \(tile has 6 elements\)"),
    "past_a_shared_array": both(1, 1, r"uses the index 64 of an array of type 'float ?\[64\]'"),
    "into_the_next_shared_array": Fault(1, 1, None, r"thread \(63,0,0\) reads tile\[64\] \(tile has 64 elements"),
    "past_shared_bytes": Fault(1, 1, None, r"thread \(63,0,0\) reads flags\[64\] \(flags has 64 elements\)"),
    "past_dynamic_shared": Fault(
        1, 1, r"touches ring\[64\] \(ring has 64 elements\)", r"thread \(63,0,0\) writes ring\[64\]"
    ),
    "past_a_local_array": both(4, 1, r"uses the index 4 of an array of type 'float ?\[4\]'"),
    "atomic_past_the_end": Fault(256, 1, r"touches y\[256\]", r"updates by an atomic y\[256\]"),
    "filled_too_far": Fault(1, 1, None, r"thread \(0,0,0\) writes tile\[64\] \(tile has 64 elements\)"),
    "one_of_two_branches": Fault(256, 1, r"touches y\[256\]", r"thread \(0,0,0\) writes y\[256\]"),
    "one_place_in_two_branches": Fault(256, 1, r"touches y\[256\]", r"thread \(0,0,0\) writes y\[256\]"),
    "one_store_in_two_branches": Fault(256, 1, r"touches y\[256\]", r"thread \(0,0,0\) writes y\[256\]"),
    "too_large_for_the_stack": both(256, 1, "needs more memory for its local variables than a thread has"),
    "misaligned": both(1, 1, r"takes a 'const (struct )?float4' from the address of x\[1\], which is not a multiple"),
    "overflow": both(1 << 30, 1, "computes 2 . 1073741824, which overflows 'int',"),
    "divided_by_zero": both(0, 1, "divides 0 by 0"),
    "shifted_too_far": both(32, 1, "shifts 1, of type 'int', by 32 bits"),
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


@pytest.mark.parametrize("mode", ["trap", "check"])
def test_an_index_may_be_wrong_by_millions(wrong: Path, mode: str) -> None:
    with pytest.raises(KernelError, match=r"x\[3000000\] \(x has 256 elements\)"):
        launch(Emulator(wrong, mode), "far_away", 3_000_000)


def test_a_forked_process_has_its_own_arrays(wrong: Path) -> None:
    device = Emulator(wrong)
    x = device.asarray(np.ones(3, np.float32))
    child = os.fork()
    if not child:
        x[:] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert (x == 1).all()
