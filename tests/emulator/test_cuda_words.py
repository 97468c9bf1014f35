"""CUDA's keywords and functions on the emulator: small kernels whose results are known without it."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with
from helpers.small_kernels import launch

from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError

WORDS = r"""
extern "C" __global__ void indices(int* out) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int* row = out + 6 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    row[0] = blockIdx.x; row[1] = blockIdx.y; row[2] = blockIdx.z;
    row[3] = threadIdx.x; row[4] = threadIdx.y; row[5] = threadIdx.z;
}

extern "C" __global__ void __launch_bounds__(128) arguments(
    float* __restrict__ out, const unsigned char* bytes, int i, float f, unsigned int u, unsigned long long l
) {
    if (threadIdx.x > 0) return;
    out[0] = bytes[1];
    out[1] = i;
    out[2] = f;
    out[3] = u == 0xfffffffe;
    out[4] = l == 0xfedcba9876543210ull;
}

extern "C" __global__ void reverse_static(float* x) {
    __shared__ float tile[64];
    float* mine = x + 64 * blockIdx.x;
    tile[threadIdx.x] = mine[threadIdx.x];
    __syncthreads();
    mine[threadIdx.x] = tile[63 - threadIdx.x];
}

extern "C" __global__ void reverse_dynamic(float* x) {
    extern __shared__ float tile[];
    float* mine = x + blockDim.x * blockIdx.x;
    tile[threadIdx.x] = mine[threadIdx.x];
    __syncthreads();
    mine[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void reverse_without_barrier(float* x) {
    extern __shared__ float tile[];
    float* mine = x + blockDim.x * blockIdx.x;
    tile[threadIdx.x] = mine[threadIdx.x];
    mine[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

template <int SIZE>
__device__ float tree_sum(float value) {
    __shared__ float partial[SIZE];
    int t = threadIdx.y * blockDim.x + threadIdx.x;
    partial[t] = value;
    #pragma unroll
    for (int half = SIZE / 2; half > 0; half /= 2) {
        __syncthreads();
        if (t < half) partial[t] += partial[t + half];
    }
    __syncthreads();
    return partial[0];
}

extern "C" __global__ void block_sums(const float* x, float* out) {
    float sum = tree_sum<256>(x[256 * blockIdx.x + 16 * threadIdx.y + threadIdx.x]);
    out[256 * blockIdx.x + 16 * threadIdx.y + threadIdx.x] = sum;
}

extern "C" __global__ void rotate(int* x, int times) {
    extern __shared__ int ring[];
    ring[threadIdx.x] = x[threadIdx.x];
    for (int i = 0; i < times; i++) {
        __syncthreads();
        int next = ring[(threadIdx.x + 1) % blockDim.x];
        __syncthreads();
        ring[threadIdx.x] = next;
    }
    x[threadIdx.x] = ring[threadIdx.x];
}

extern "C" __global__ void shuffles(const float* x, float* out) {
    int t = threadIdx.x, lane = t % warpSize;
    float down = x[t], all = x[t], scan = x[t];
    for (int d = 16; d > 0; d /= 2) down += __shfl_down_sync(0xffffffff, down, d);
    for (int d = 16; d > 0; d /= 2) all += __shfl_xor_sync(0xffffffff, all, d);
    for (int d = 1; d < 32; d *= 2) {
        float before = __shfl_up_sync(0xffffffff, scan, d);
        if (lane >= d) scan += before;
    }
    double third = __shfl_sync(0xffffffff, x[t] / 3.0, 3, 8);
    float beyond = __shfl_down_sync(0xffffffff, x[t], 5, 8) - __shfl_up_sync(0xffffffff, x[t], 6, 8);
    out[t] = lane == 0 ? down : 0;
    out[blockDim.x + t] = all;
    out[2 * blockDim.x + t] = scan;
    out[3 * blockDim.x + t] = (float)(third * 3.0);
    out[4 * blockDim.x + t] = beyond;
}

extern "C" __global__ void part_of_a_warp(const float* x, float* out) {
    float sum = x[threadIdx.x];
    if (threadIdx.x < 8) {
        for (int d = 4; d > 0; d /= 2) sum += __shfl_xor_sync(0xff, sum, d);
    } else {
        for (int d = 4; d > 0; d /= 2) sum -= __shfl_xor_sync(0xff00, sum, d);
    }
    out[threadIdx.x] = sum;
}

extern "C" __global__ void votes(const int* x, unsigned int* out) {
    int t = threadIdx.x;
    out[t] = __ballot_sync(0xffffffff, x[t] > 0);
    out[64 + t] = __any_sync(0xffffffff, x[t] > 5);
    out[128 + t] = __all_sync(0xffffffff, x[t] > 0);
    __syncwarp();
}

extern "C" __global__ void histogram(const int* x, int* counts, float* total, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicAdd(&counts[x[i]], 1);
    atomicAdd(total, 0.5f);
}

extern "C" __global__ void products(
    const unsigned int* a, const unsigned int* b, unsigned int* high, int* bits
) {
    int i = threadIdx.x;
    high[i] = __umulhi(a[i], b[i]);
    bits[3 * i] = __popc(a[i]);
    bits[3 * i + 1] = __clz(a[i]);
    bits[3 * i + 2] = __ffs(a[i]);
}

__constant__ float table[3] = {2.0f, 3.0f, 5.0f};
__device__ __forceinline__ float y0(float x) { return table[1] * x; }  // the C library has another y0

extern "C" __global__ void arithmetic(const float* x, float* out) {
    float nan = __int_as_float(0x7fc00000);
    float4 four = *reinterpret_cast<const float4*>(x);
    four = make_float4(four.w, four.z, four.y, four.x);
    out[0] = four.x;
    out[1] = y0(x[1]);
    out[2] = fmaxf(nan, x[1]);
    out[3] = max(x[1], nan);
    out[4] = min(-1, 2);
    out[5] = max(1u, 7);
    out[6] = __expf(x[0]) + rsqrtf(x[3]);
    out[7] = __float_as_int(x[0]) == 0x3f800000;
    out[8] = __float2int_rn(2.5f);
}
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(folder_with(tmp_path_factory.mktemp("words"), words=WORDS))


@pytest.mark.parametrize(
    ("grid", "block"),
    [(5, 7), (1, 1024), ((3, 2), (4, 5)), ((2, 3, 4), (3, 2, 5)), ((1, 1, 6), (1, 33, 1))],
)
def test_every_thread_of_every_block_runs_with_its_own_indices(words, grid, block):
    full_grid, full_block = [(*np.atleast_1d(size), 1, 1)[:3] for size in (grid, block)]
    expected = [
        (bx, by, bz, tx, ty, tz)
        for bz, by, bx in itertools.product(*map(range, reversed(full_grid)))
        for tz, ty, tx in itertools.product(*map(range, reversed(full_block)))
    ]
    out = words.empty((len(expected), 6), np.int32)
    words.launch("indices", grid, block, [out])
    np.testing.assert_array_equal(out, expected)


def test_arguments_keep_their_types_and_values(words):
    out, octets = words.empty((5,)), words.asarray(np.array([1, 255], np.uint8))
    words.launch("arguments", 2, 32, [out, octets, -7, 0.1, 0xFFFFFFFE, 0xFEDCBA9876543210])
    np.testing.assert_array_equal(out, np.float32([255, -7, 0.1, 1, 1]))


@pytest.mark.parametrize(
    ("kernel", "shared_bytes"), [("reverse_static", 0), ("reverse_dynamic", 256)], ids=["static", "dynamic"]
)
def test_a_barrier_lets_every_thread_see_shared_memory(words, kernel, shared_bytes):
    x = np.arange(3 * 64, dtype=np.float32)
    device_x = words.asarray(x)
    words.launch(kernel, 3, 64, [device_x], shared_bytes)
    np.testing.assert_array_equal(device_x, x.reshape(3, 64)[:, ::-1].ravel())


def test_without_the_barrier_the_result_is_visibly_wrong_in_every_block(words):
    x = words.asarray(np.ones(3 * 64, np.float32))
    words.launch("reverse_without_barrier", 3, 64, [x], 256)
    assert np.isnan(x.reshape(3, 64)[:, :32]).all(), "unwritten shared memory is NaN, and the first half reads it"


def test_barriers_inside_a_loop_of_a_template(words):
    x = np.random.default_rng(1).integers(-99, 99, (4, 256)).astype(np.float32)
    out = words.empty(x.shape)
    words.launch("block_sums", 4, (16, 16), [words.asarray(x), out])
    np.testing.assert_array_equal(out, np.repeat(x.sum(axis=1), 256).reshape(4, 256))


@pytest.mark.parametrize("threads", [1, 33, 1024])
def test_many_barriers_one_after_another(words, threads):
    x = words.asarray(np.arange(threads, dtype=np.int32))
    words.launch("rotate", 1, threads, [x, 50], 4 * threads)
    np.testing.assert_array_equal(x, np.roll(np.arange(threads), -50))


def test_shuffles_move_values_between_the_lanes_of_each_warp(words):
    x = np.random.default_rng(2).integers(-99, 99, 96).astype(np.float32)
    out = words.empty((5, 96))
    words.launch("shuffles", 1, 96, [words.asarray(x), out])
    warps, groups = x.reshape(3, 32), x.reshape(12, 8)
    down, up = groups.copy(), groups.copy()  # at a group's end a lane gets its own value
    down[:, :3], up[:, 6:] = groups[:, 5:], groups[:, :2]
    np.testing.assert_array_equal(out[0].reshape(3, 32)[:, 0], warps.sum(axis=1))
    np.testing.assert_array_equal(out[1], np.repeat(warps.sum(axis=1), 32))
    np.testing.assert_array_equal(out[2], warps.cumsum(axis=1).ravel())
    np.testing.assert_array_equal(out[3], np.repeat(groups[:, 3], 8))
    np.testing.assert_array_equal(out[4], (down - up).ravel())


def test_halves_of_a_warp_shuffle_apart_when_their_masks_say_so(words):
    x = np.arange(1, 17, dtype=np.float32)
    out = words.empty((16,))
    words.launch("part_of_a_warp", 1, 16, [words.asarray(x), out])
    np.testing.assert_array_equal(out[:8], np.full(8, 36))
    rest = x[8:]
    for d in (4, 2, 1):
        rest = rest - rest[np.arange(8) ^ d]
    np.testing.assert_array_equal(out[8:], rest)


def test_votes_count_the_lanes_of_their_own_warp(words):
    x = np.ones(64, np.int32)
    x[[3, 31]] = 0
    x[40] = 9
    out = words.empty((3, 64), np.uint32)
    words.launch("votes", 1, 64, [words.asarray(x), out])
    expected = [[0x7FFFFFF7, 0xFFFFFFFF], [0, 1], [0, 1]]
    np.testing.assert_array_equal(out, np.repeat(np.uint32(expected), 32, axis=1))


def test_atomics_add_up(words):
    x = np.random.default_rng(3).integers(0, 10, 1000).astype(np.int32)
    counts, total = words.asarray(np.zeros(10, np.int32)), words.asarray(np.zeros(1, np.float32))
    words.launch("histogram", 8, 128, [words.asarray(x), counts, total, 1000])
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=10))
    assert total[0] == 500


def test_integer_functions_are_exact(words):
    edges = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xD2511F53]
    pairs = list(itertools.product(edges, edges))
    pairs += np.random.default_rng(4).integers(0, 2**32, (200, 2)).tolist()
    a, b = (words.asarray(np.array(column, np.uint32)) for column in zip(*pairs, strict=True))
    high, bits = words.empty((len(pairs),), np.uint32), words.empty((len(pairs), 3), np.int32)
    words.launch("products", 1, len(pairs), [a, b, high, bits])
    assert high.tolist() == [(x * y) >> 32 for x, y in pairs]
    assert bits.tolist() == [
        [x.bit_count(), 32 - x.bit_length(), (x & -x).bit_length()] for x in (int(x) for x, _ in pairs)
    ]


def test_arithmetic_vectors_and_constants(words):
    out = words.empty((9,))
    words.launch("arithmetic", 1, 1, [words.asarray(np.array([1, 2, 3, 4], np.float32)), out])
    np.testing.assert_allclose(out, [4, 6, 2, 2, -1, 7, np.e + 0.5, 1, 2], rtol=1e-6)


def test_new_arrays_hold_fill_bytes_and_copies_are_independent(words):
    assert np.isnan(words.empty((3, 2))).all()
    assert np.isnan(words.empty((), np.float64))
    assert (words.empty((4,), np.int32) == -1515870811).all()
    host = np.zeros((2, 3), np.float32).T
    device = words.asarray(host)
    assert device.flags.c_contiguous
    back = words.to_numpy(device)
    device += 1
    assert not host.any() and not back.any()


def test_launches_from_several_python_threads_do_not_disturb_each_other(words):
    def rotated(threads: int) -> np.ndarray:
        x = words.asarray(np.arange(threads, dtype=np.int32))
        words.launch("rotate", 1, threads, [x, 1000], 4 * threads)
        return x

    sizes = [32, 64, 96, 128] * 4
    with ThreadPoolExecutor(4) as pool:
        for threads, x in zip(sizes, pool.map(rotated, sizes), strict=True):
            np.testing.assert_array_equal(x, np.roll(np.arange(threads), -1000))


def test_more_shared_memory_than_a_gpu_gives_is_refused(words):
    x = words.asarray(np.zeros(64, np.float32))
    with pytest.raises(KernelError, match=" 0 bytes of shared variables and 49156 of dynamic shared memory are more"):
        words.launch("reverse_dynamic", 1, 64, [x], 48 * 1024 + 4)


def test_too_many_blocks_are_refused(words):
    with pytest.raises(KernelError, match="4294836225 blocks are more than the emulator's 268435456"):
        words.launch("indices", (65535, 65535), 1, [words.empty((6,), np.int32)])


def test_an_unknown_kernel_is_named(words):
    with pytest.raises(KernelError, match="no kernel named upside_down"):
        words.launch("upside_down", 1, 1, [])


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


def test_double_precision_refuses_float32_arrays(tmp_path: Path) -> None:
    device = Emulator(folder_with(tmp_path, double=DOUBLE), precision="double")
    x = device.asarray(np.ones(256, np.float32))
    with pytest.raises(TypeError, match="widened: argument 'y' expects float64, got float32"):
        device.launch("widened", 1, 64, [x, x, 1])


def test_a_kernel_can_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = """extern "C" __global__ void talk(float* y, const float* x, int n) {
        if (threadIdx.x == 63) printf("thread %d of block %d: %d\\n", threadIdx.x, blockIdx.x, n);
    }"""
    launch(Emulator(folder_with(tmp_path, talk=text)), "talk", 5, 2)
    assert capfd.readouterr().out == "thread 63 of block 0: 5\nthread 63 of block 1: 5\n"
