"""The random generator: NumPy and kernels/common.cuh against the vectors that its authors publish, and permutations."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.closeness import on_device

from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.operations import Operations
from tinyfcn.reference.philox import permutation, philox

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result. The third are digits of pi.
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
    """The kernel folder, with a kernel more that hands out what `philox` of its common.cuh gives."""
    (folder / "philox_words.cu").write_text(KERNEL)
    return folder


def check_philox(ops: Operations) -> None:
    """Known answers, and NumPy's for random counters; `ops` must be of a folder that add_kernel added to."""
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
    """Each bit of each word set half the time: 20,000 coins each, within 4.5 standard deviations of 71."""
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
        assert (a == b).sum() < 10, "two orders of 1,000 numbers share one place on the average"


def test_permutations_prefer_no_place() -> None:
    """Where number 0 comes to lie among four, in 4,000 epochs: 1,000 times each, within 4 standard deviations of 27."""
    places = [int(np.flatnonzero(permutation(4, 5, epoch) == 0)[0]) for epoch in range(4000)]
    assert abs(np.bincount(places, minlength=4) - 1000).max() < 110
