"""Tests kernels/common.cuh: the random generator, also in NumPy, against published test vectors; and permutations."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.bugs import ORDER, RACE, UNWRITTEN, Bug, Planted
from helpers.closeness import assert_close, assert_equal, on_device, positive

from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.ops import Operations
from tinyfcn.reference.philox import permutation, philox

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result. The third test vector has digits of pi.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

KERNEL = """
extern "C" __global__ void philox_words(const unsigned int* counters, const unsigned int* keys, unsigned int* words,
                                        int count) {
    int element = thread_number();
    if (element >= count) return;
    const unsigned int* c = counters + element * 4;
    Words result = philox(c[0], c[1], c[2], c[3], keys[element * 2], keys[element * 2 + 1]);
    for (int k = 0; k < 4; ++k) words[element * 4 + k] = result.word[k];
}
"""


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def add_kernel(folder: Path) -> Path:
    """Adds a kernel to the folder that returns the words of `philox` in its common.cuh."""
    (folder / "philox_words.cu").write_text(KERNEL)
    return folder


def check_philox(ops: Operations) -> None:
    """Compares with the test vectors, and with NumPy for random counters. `ops` needs the kernel of add_kernel."""
    random = np.random.default_rng(0).integers(0, 2**32, (700, 6)).astype(np.uint32)
    known = np.array([words(f"{counter} {key}") for counter, key, _ in KNOWN], np.uint32)
    both = np.concatenate([known, random])
    counters, keys = np.ascontiguousarray(both[:, :4]), np.ascontiguousarray(both[:, 4:])
    out = ops.device.empty((len(both), 4), np.uint32)
    ops.device.launch_for_each("philox_words", len(both), [*on_device(ops, counters, keys), out, len(both)])
    found = ops.to_numpy(out)
    np.testing.assert_array_equal(found[: len(KNOWN)], [words(result) for _, _, result in KNOWN])
    for row, result in zip(random, found[len(KNOWN) :], strict=True):
        np.testing.assert_array_equal(philox(tuple(row[:4]), tuple(row[4:])), result)


def test_kernel(ops: Operations, tmp_path: Path) -> None:
    shutil.copy(KERNELS / "common.cuh", tmp_path)
    check_philox(Operations(type(ops.device)(add_kernel(tmp_path))))


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_numpy(counter: str, key: str, result: str) -> None:
    assert philox(tuple(words(counter)), tuple(words(key))).tolist() == words(result)


def test_counters_are_broadcast() -> None:
    found = philox((np.arange(3)[:, None], np.arange(5), 7, 2**32 - 1), (9, 2**32 - 1))
    assert found.shape == (4, 3, 5) and found.dtype == np.uint32
    for i, j in np.ndindex(3, 5):
        assert found[:, i, j].tolist() == philox((i, j, 7, 2**32 - 1), (9, 2**32 - 1)).tolist()


def test_words_look_random() -> None:
    """Each bit of each word is set in half of 20,000 draws, within 4.5 standard deviations of 71."""
    found = philox((np.arange(20_000), 3, 0, 0), (1, 0))
    bits = (found[..., None] >> np.arange(32, dtype=np.uint32) & 1).sum(axis=1)
    assert abs(bits.astype(int) - 10_000).max() < 320


@pytest.mark.parametrize("count", [0, 1, 2, 1000, 60_000])
def test_a_permutation_has_every_number_once(count: int) -> None:
    order = permutation(count, seed=3, epoch=4)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_permutations_are_functions_of_seed_and_epoch() -> None:
    first = permutation(1000, seed=0, epoch=0)
    np.testing.assert_array_equal(first, permutation(1000, seed=0, epoch=0))
    others = [permutation(1000, seed, epoch) for seed, epoch in ((0, 1), (1, 0), (1, 1), (2**32 - 1, 2**31))]
    for a, b in itertools.combinations([first, *others, np.arange(1000)], 2):
        assert (a == b).sum() < 10, "two random orders of 1,000 numbers agree in one position on average"


def test_permutations_are_uniformly_distributed() -> None:
    """In 4,000 epochs, 0 is at each of four positions 1,000 times, within 4 standard deviations of 27."""
    positions = [int(np.flatnonzero(permutation(4, 5, epoch) == 0)[0]) for epoch in range(4000)]
    assert abs(np.bincount(positions, minlength=4) - 1000).max() < 110


def check_thread_number(ops: Operations) -> None:
    """Every element of several blocks has a thread."""
    x = np.random.default_rng(0).standard_normal((3, 7, 11, 5)).astype(np.float32)
    assert_equal(ops.to_numpy(ops.relu(ops.asarray(x))), np.maximum(x, 0))


def check_block_sum(ops: Operations) -> None:
    """Checks the gradient of a bias: one block sums each channel."""
    dout = positive(np.random.default_rng(0), 3, 5, 13, 17)
    x, weight = np.zeros((3, 1, 13, 17), np.float32), np.zeros((5, 1, 1, 1), np.float32)
    _, _, dbias = ops.conv2d_backward(*on_device(ops, dout, x, weight), need_dx=False)
    assert_close(ops.to_numpy(dbias), dout.sum(axis=(0, 2, 3), dtype=np.float64), "one kernel")


PLANTED = {
    "thread_number": Planted(
        check_thread_number,
        [
            ("a gap after each block", "blockIdx.x * blockDim.x", "blockIdx.x * (blockDim.x + 1)"),
            ("the thread index is forgotten", " + threadIdx.x", ""),
        ],
    ),
    "block_sum": Planted(
        check_block_sum,
        [
            ("a missing barrier", "__syncthreads();", ""),
            ("the last thread is left out", "thread < SUM_THREADS", "thread < SUM_THREADS - 1"),
            ("all threads write the same element", "partial[threadIdx.x] = mine", "partial[0] = mine"),
        ],
        naive=True,
    ),
    "philox": Planted(
        check_philox,
        [
            ("only nine rounds", "round < 10", "round < 9"),
            ("a wrong key constant", "0x9E3779B9u", "0x9E3779B1u"),
            ("swapped words", "high1 ^ c1 ^ key0", "high1 ^ c3 ^ key0"),
        ],
    ),
}

SUM = "__shared__ float partial ... return total;"  # the whole body of block_sum
SUM_READS = "++thread) total += partial[thread];"
WARPS = """__shared__ float partial[2];  // of each warp
    for (int d = 16; d > 0; d /= 2) mine += __shfl_down_sync(0xffffffff, mine, d);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
    __syncthreads();
    float total = 0.0f;
    if (threadIdx.x < 2) {
        total = partial[threadIdx.x];
        total += __shfl_xor_sync(0xffffffff, total, 1);
    }
    return total;"""

ZOO = {
    "block_sum": [
        Bug("no thread waits until all have written their parts", {"__syncthreads();": ""},
            "check", RACE, ("partial[threadIdx.x] = mine;", SUM_READS), "racecheck"),
        Bug("only the thread that sums waits at the barrier",
            {"__syncthreads();": "if (threadIdx.x == 0) __syncthreads();"},
            "trap", "of 64 threads 1 waits at __syncthreads", ("== 0) __syncthreads();",)),
        Bug("the sum reads past the end of shared memory", {"thread < SUM_THREADS": "thread <= SUM_THREADS"},
            "trap", "the index 64 of an array of type 'float [64]'", (SUM_READS,), "memcheck"),
        Bug("all threads write their parts to the same element", {"partial[threadIdx.x] = mine": "partial[0] = mine"},
            "check", RACE, ("partial[0] = mine",), "racecheck"),
        Bug("the total in shared memory has no initial value",
            {SUM: "__shared__ float total;\natomicAdd(&total, mine);\n__syncthreads();\nreturn total;"},
            "check", UNWRITTEN, ("atomicAdd(&total",)),
        Bug("floats are added atomically, in the order of arrival",
            {SUM: """__shared__ float total;
    if (threadIdx.x == 0) total = 0.0f;
    __syncthreads();
    atomicAdd(&total, mine);
    __syncthreads();
    return total;"""},
            "order", ORDER, ("loss[0] = total / count;",)),
        Bug("parts are stored in the order of arrival, not of the thread index",
            {"partial[threadIdx.x] = mine;": """__shared__ int next;
    if (threadIdx.x == 0) next = 0;
    __syncthreads();
    partial[atomicAdd(&next, 1)] = mine;"""},
            "order", ORDER, ("loss[0] = total / count;",)),
        Bug("the lanes of a warp are assumed to run in lockstep",
            {"float total = 0.0f; ... return total;": """for (int half = SUM_THREADS / 2; half > 0; half /= 2)
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    return partial[0];"""},
            "check", "no __syncwarp() or __syncthreads() stands between", ("partial[threadIdx.x] += ",), "racecheck"),
        Bug("the tree reduction starts with the whole block instead of half",
            {"float total = 0.0f; ... return total;": """for (int half = SUM_THREADS; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    return partial[0];"""},
            "trap", "the index 64 of an array of type 'float [64]'", ("partial[threadIdx.x] += ",), "memcheck"),
        Bug("two lanes shuffle, with 32 lanes in the mask", {SUM: WARPS},
            "trap", "wait at __shfl_xor_sync", ("total += __shfl_xor_sync",)),
    ],
    "thread_number": [
        Bug("the block index is forgotten", {"blockIdx.x * blockDim.x + threadIdx.x": "threadIdx.x"},
            "check", RACE, ("y[element] = ",)),
    ],
    "philox": [
        Bug("the high half of a product is computed from its low half",
            {"__umulhi(0xD2511F53u, c0)": "0xD2511F53u * c0 >> 32"},
            "trap", "by 32 bits", ("0xD2511F53u * c0 >> 32",)),
    ],
}  # fmt: skip
