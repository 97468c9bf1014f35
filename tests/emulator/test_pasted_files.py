"""Kernel files that were written for nvcc: their headers, the host's code in them, and what the emulator lacks."""

from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with

from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import KernelError

WHOLE = r"""
#pragma once
#include <algorithm>
#include <cassert>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <iostream>
#include "helper_cuda.h"
#include "of_the_host.h"

#define WARP 32
#define CHECK(call) check((call), __FILE__, __LINE__)
using real = float;

cudaDeviceProp properties;
static int launches = 0;
cudaError_t prepare(int device);
torch::Tensor apply(torch::Tensor x, const torch::Tensor& weight);
extern "C" void call_from_c(int n) { k<<<n, 1>>>(nullptr); }
template <typename T> struct Square { __device__ static T of(T x) { return x * x; } };
constexpr int twice(int n) { return 2 * n; }
const int ROWS = twice(2);
extern __shared__ alignas(16) real ring[];
extern __shared__ real ring[];
__global__ void kernel(real* x, int n);  // a declaration
struct Timer {
    cudaEvent_t start;
    Timer() { cudaEventCreate(&start); }
} timer;

__device__ __forceinline__ float4 make_float4(float x) { return make_float4(x, x, x, x); }
__global__ void kernel(real* x, int n) {
    __shared__ alignas(16) real tile[WARP];
    static __shared__ real more[2];
    register int i = threadIdx.x;
    assert(n > 0 && "a size");
    if (i >= n) return;
    tile[i] = std::max(x[i], -FLT_MAX) + make_float4(0.5f).w;
    more[i % 2] = i % 2, ring[i] = INFINITY;
    __syncthreads();
    x[i] = ring[i] > INT_MAX ? Square<real>::of(tile[n - 1 - i]) + ROWS + more[i % 2] : NAN;
}
template <typename T> void run(T* x) { kernel<<<1, 32>>>(x, 3); }
template void run<float>(float* x);

int main(int argc, char** argv) {
    float* d_x;
    CHECK(cudaMalloc(&d_x, 32 * sizeof(float)));
    kernel<<<1, 32, 128>>>(d_x, 8);
    printf("%d\n", launches);
    std::cout << launches << std::endl;
}
"""


@pytest.fixture(params=["trap", "check"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


def run(text: str, folder: Path, mode: str, n: int = 8, shared: int = 128) -> np.ndarray:
    """Launches `kernel` of a text on the floats 0 .. 31."""
    device = Emulator(folder_with(folder, pasted=text), mode)
    x = device.asarray(np.arange(32, dtype=np.float32))
    device.launch("kernel", 1, 32, [x, n], shared)
    return x


def test_a_whole_file_with_the_hosts_code_runs(tmp_path: Path, mode: str) -> None:
    x = run(WHOLE, tmp_path, mode)
    np.testing.assert_array_equal(x[:8], [(7 - i + 0.5) ** 2 + 4 + i % 2 for i in range(8)])
    np.testing.assert_array_equal(x[8:], np.arange(8, 32))


def test_an_assertion_that_fails_is_named(tmp_path: Path, mode: str) -> None:
    with pytest.raises(
        KernelError, match=r"thread \(0,0,0\) finds the assertion 'n > 0 && \"a size\"' false at pasted\.cu"
    ):
        run(WHOLE, tmp_path, mode, n=-1)
    trap = "__global__ void kernel(float* x, int n) {\n if (threadIdx.x == n) __trap();\n}"
    with pytest.raises(KernelError, match=r"thread \(8,0,0\) executes __trap\(\) at pasted\.cu:2"):
        run(trap, tmp_path, mode)


def test_dynamic_shared_memory_of_a_file_is_watched(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"writes ring\[7\] \(ring has 7 elements\) at pasted\.cu"):
        run(WHOLE, tmp_path, "check", shared=28)


HEADER = """// A header beside the kernel file.
#pragma once
#include "common.cuh"
#include "deeper.h"
typedef float real;
__device__ inline real halved(const real* x, int i) {
    return x[i] / DIVISOR;
}
"""


def test_headers_beside_a_file_are_read_with_it(tmp_path: Path, mode: str) -> None:
    (tmp_path / "of mine.h").write_text(HEADER)
    (tmp_path / "deeper.h").write_text('#include "of mine.h"\n#define DIVISOR 2')
    text = (
        '#include "of mine.h"\n# include "of mine.h"  // again\n'
        "__global__ void kernel(real* x, int n) {\n"
        "    x[threadIdx.x] = halved(x, threadIdx.x + n);\n    assert(n == 0);\n}"
    )
    np.testing.assert_array_equal(run(text, tmp_path, mode, n=0), np.arange(32) / 2)
    with pytest.raises(KernelError, match=r"kernel in pasted\.cu: thread .* reads x\[40\] .* at of mine\.h:7;"):
        run(text, tmp_path, "check", n=40)
    with pytest.raises(KernelError, match=r"'n == 0' false at pasted\.cu:5;"):
        run(text.replace(" + n", ""), tmp_path, mode, n=1)
    (tmp_path / "deeper.h").write_text("#define DIVISOR\n")
    with pytest.raises(KernelError, match=r"of mine\.h:7:\d+: error"):
        run(text, tmp_path, mode)
    (tmp_path / "deeper.h").write_text("\n__device__ void open() {\n")
    with pytest.raises(KernelError, match=r"deeper\.h:2: this \{ is not closed"):
        kernel_source.source("pasted", tmp_path)


WORDS = {
    "half": ("__device__ __half h;", r"pasted\.cu:1: __half: the emulator computes in float and double"),
    "ptx": (
        '__device__ int lane() {\n int l;\n asm volatile("mov.u32 %0, %laneid;" : "=r"(l));\n return l;\n}',
        r"pasted\.cu:3: asm: the emulator does not understand inline PTX",
    ),
    "tensor cores": (
        "#include <mma.h>\nusing namespace nvcuda;",
        r"pasted\.cu:2: nvcuda: the emulator has no tensor cores",
    ),
    "old shuffle": (
        "__device__ float g(float x) {\n return __shfl_down(x, 1);\n}",
        r"pasted\.cu:2: __shfl_down: GPUs since Volta have this only with a mask: __shfl_down_sync\(0xffffffff",
    ),
    "libraries": ("__device__ cuda::barrier<int> b;", r"pasted\.cu:1: cuda: the emulator has none of the CUDA Core"),
    "launches": (
        "__global__ void parent() {\n cudaDeviceSynchronize();\n}",
        r"pasted\.cu:2: cudaDeviceSynchronize: a kernel launches no kernels here",
    ),
    "textures": (
        "__device__ cudaTextureObject_t t;",
        r"pasted\.cu:1: cudaTextureObject_t: the emulator has no textures",
    ),
    "host function": (
        "float of_host(float x) { return x; }\n__device__ float g() { return of_host(1); }",
        r"pasted\.cu:1: of_host: only the host can call this function: write __device__ before it",
    ),
    "header": (
        '#include "mine.h"\n__device__ float g() { return mine(); }',
        r'pasted\.cu:1: #include "mine\.h": this header is not in the folder of the kernel file: put it there',
    ),
}


@pytest.mark.parametrize("what", WORDS)
def test_what_is_missing_is_named_with_its_line(tmp_path: Path, what: str) -> None:
    text, message = WORDS[what]
    use = "x[0] = lane();" if what == "ptx" else ""
    with pytest.raises(KernelError, match=rf"^pasted\.cu does not compile:\n{message}"):
        run(f"{text}\n__global__ void kernel(float* x, int n) {{ {use} }}", tmp_path, "trap")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("x[i] * INFINITY", r"relu\.cu:\d+: INFINITY: NVRTC has no INFINITY and no NAN: write __int_as_float"),
        ("x[i] * FLT_MAX", r"relu\.cu:\d+: FLT_MAX: NVRTC has no float\.h: write the number"),
    ],
)
def test_a_changed_kernel_of_tinyfcn_keeps_to_nvrtc(tmp_path: Path, change: str, message: str) -> None:
    common, text = ((KERNELS / name).read_text() for name in ("common.cuh", "relu.cu"))
    changed = text.replace("{\n", f"{{\n    float y0 = {change.replace('x[i]', '1.0f')};\n", 1)
    for name in "relu", "another":  # under another name it is somebody's own
        device = Emulator(folder_with(tmp_path / name, common, **{name: changed}))
        x = device.asarray(np.ones(4, np.float32))
        if name == "relu":
            with pytest.raises(KernelError, match=message):
                device.launch("relu_backward", 1, 4, [x, x, x, 4])
    folder = folder_with(tmp_path / "headers", common, relu="#include <float.h>\n" + text)
    with pytest.raises(
        KernelError, match=r"relu\.cu:1: #include float\.h: NVRTC, which compiles the kernels of tinyfcn"
    ):
        Emulator(folder).launch("relu_backward", 1, 4, [x, x, x, 4])


def test_whose_a_file_is(tmp_path: Path) -> None:
    common, text = ((KERNELS / name).read_text() for name in ("common.cuh", "relu.cu"))
    own = "__global__ void my_relu(float* x) {}"
    folder_with(tmp_path, common, relu=text, add=own, mine=own.replace("my_relu", "mine"))
    assert [kernel_source.source(name, tmp_path).for_nvcc for name in ("relu", "add", "mine")] == [False, True, True]
    assert not any(kernel_source.source(name).for_nvcc for name in kernel_source.operations())


GROUPS = r"""#include <cooperative_groups.h>
#include <cooperative_groups/scan.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;
struct Best { float value; int index, more; };
__global__ void groups(float* out, const float* x, int* next, int n) {
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
    auto four = cg::tiled_partition<4>(warp);
    cg::grid_group grid = cg::this_grid();
    __shared__ float sums[32];
    float mine = x[grid.thread_rank()];
    float* row = out + 16 * grid.thread_rank();
    row[0] = cg::reduce(warp, mine, cg::plus<float>());
    row[1] = cg::reduce(four, mine, cg::greater<float>{});
    row[2] = four.shfl(mine, 1) + four.shfl_xor(mine, 1) + four.shfl_down(mine, 1) + four.shfl_up(mine, 2);
    row[3] = warp.meta_group_rank() * 100 + four.meta_group_rank() + warp.meta_group_size() * 10000;
    row[4] = four.thread_rank() * 10 + four.size() + four.ballot(four.thread_rank() > 1) * 100;
    Best best = cg::reduce(warp, Best{mine, (int)block.thread_rank(), 7}, [](Best a, Best b) {
        return a.value > b.value ? a : b;
    });
    row[5] = best.index + best.more;
    sums[warp.meta_group_rank()] = row[0];
    block.sync();
    row[6] = sums[0] + sums[1] + block.group_index().x + block.size() + grid.size() + grid.num_blocks();
    row[7] = cg::inclusive_scan(warp, 1) * 100 + cg::exclusive_scan(warp, 2);
    row[8] = -1;
    if (mine > n) {
        cg::coalesced_group active = cg::coalesced_threads();
        int first = active.thread_rank() == 0 ? atomicAdd(next, active.size()) : 0;
        row[8] = active.shfl(first, 0) + active.thread_rank();
    }
    auto odd = cg::binary_partition(warp, (int)mine & 1);
    row[9] = odd.size() * 100 + cg::reduce(odd, 1, cg::plus<int>()) + warp.any(mine > 90) * 10000;
    cg::sync(warp);
    sums[threadIdx.x / 2] = 0;
}
__global__ void of_the_grid(float* x, int n) {
    cg::this_grid().sync();
}
__global__ void in_a_branch(float* x, int n) {
    if (threadIdx.x < 8) cg::this_thread_block().sync();
}
"""


def test_cooperative_groups(tmp_path: Path, mode: str) -> None:
    text = GROUPS.replace("    sums[threadIdx.x / 2] = 0;\n", "")
    device = Emulator(folder_with(tmp_path, groups=text), mode)
    x = np.random.default_rng(0).permutation(128).astype(np.float32)
    out, next_ = device.empty((128, 16)), device.asarray(np.zeros(1, np.int32))
    device.launch("groups", 2, 64, [out, device.asarray(x), next_, 100])
    warps, fours = x.reshape(4, 32), x.reshape(32, 4)
    threads = np.arange(128)

    def each(of_warps: np.ndarray, size: int = 32) -> np.ndarray:
        return np.repeat(of_warps, size)

    np.testing.assert_array_equal(out[:, 0], each(warps.sum(1)))
    np.testing.assert_array_equal(out[:, 1], each(fours.max(1), 4))
    down, up = fours.copy(), fours.copy()
    down[:, :3], up[:, 2:] = fours[:, 1:], fours[:, :2]
    np.testing.assert_array_equal(out[:, 2], (fours[:, 1:2] + fours[:, [1, 0, 3, 2]] + down + up).ravel())
    np.testing.assert_array_equal(out[:, 3], threads % 64 // 32 * 100 + threads % 64 // 4 + 20000)
    np.testing.assert_array_equal(out[:, 4], threads % 4 * 10 + 4 + 0b1100 * 100)
    np.testing.assert_array_equal(out[:, 5], each(warps.argmax(1) + np.array([0, 32, 0, 32]) + 7))
    np.testing.assert_array_equal(out[:, 6], each(x.reshape(2, 64).sum(1) + np.arange(2), 64) + 64 + 128 + 2)
    np.testing.assert_array_equal(out[:, 7], (threads % 32 + 1) * 100 + threads % 32 * 2)
    assert sorted(out[x > 100, 8]) == [*range((x > 100).sum())] and (out[x <= 100, 8] == -1).all()
    sizes = np.where(x % 2 == 1, each((warps % 2 == 1).sum(1)), each((warps % 2 == 0).sum(1)))
    np.testing.assert_array_equal(out[:, 9], sizes * 101 + each((warps > 90).any(1)) * 10000)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("groups", r"a race: .* writes sums\[\d+\] at groups\.cu:36, and thread .* (read|wrote) it"),
        (
            "of_the_grid",
            r"waits for the whole grid, whose blocks the emulator runs one after another, at groups\.cu:39",
        ),
        ("in_a_branch", r"of 64 threads 8 wait at __syncthreads, groups\.cu:42 .*; 56 have exited"),
    ],
)
def test_a_bug_with_cooperative_groups_is_named(tmp_path: Path, kernel: str, message: str) -> None:
    device = Emulator(folder_with(tmp_path, groups=GROUPS), "check")
    x = device.asarray(np.arange(128 * 16, dtype=np.float32))
    arguments = [x, device.asarray(np.ones(128, np.float32)), device.asarray(np.zeros(1, np.int32)), 0]
    with pytest.raises(KernelError, match=message):
        device.launch(kernel, 2, 64, arguments if kernel == "groups" else [x, 1])


@pytest.mark.slow
@pytest.mark.cupy
def test_a_gpus_compiler_takes_the_same_cooperative_groups(tmp_path: Path) -> None:
    found = nvrtc.compile_for("groups", "sm_90", folder_with(tmp_path, groups=GROUPS), ["groups", "of_the_grid"])
    assert {each.kernel for each in found} >= {"groups", "of_the_grid"}


VECTORS = """#include <cuda_runtime.h>
template <int N> __global__ void copy(const float* x, float* y) {
    __shared__ float first[N], second[8];
    int t = threadIdx.x;
    reinterpret_cast<float4*>(second)[t] = reinterpret_cast<const float4*>(x)[t];
    reinterpret_cast<float4*>(y)[t] = reinterpret_cast<float4*>(second)[t];
    first[t] = 0;
}
"""


def test_shared_arrays_lie_behind_each_other_as_nvcc_lays_them(tmp_path: Path) -> None:
    """PTX promises no more than 4 bytes; in practice a float4 fits where whole ones precede it."""
    file = tmp_path / "vectors.cu"
    file.write_text(VECTORS)
    device = Emulator(file)
    x, y = device.asarray(np.arange(8, dtype=np.float32)), device.empty((8,))
    device.launch("copy", 1, 2, [x, y], template=(12,))
    assert device.to_numpy(y).tolist() == [*range(8)]
    with pytest.raises(KernelError, match=r"second\[0\], which is not a multiple of its size, at vectors\.cu:5; decl"):
        device.launch("copy", 1, 2, [x, y], template=(13,))
