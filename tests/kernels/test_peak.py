"""Tests the two kernels that measure the peak of a GPU: a copy, and a known number of multiply-adds."""

import re

import numpy as np
import pytest
from helpers.bugs import OUTSIDE, RACE, Bug, Planted
from helpers.closeness import assert_close, assert_equal

from tinyfcn import Operations
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.ops import peak
from tinyfcn.reference import peak as reference


def check_copy(ops: Operations, count: int) -> None:
    x = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    assert_equal(ops.to_numpy(peak.copy(ops.device, ops.asarray(x))), x)


def check_multiply_add(ops: Operations, rounds: int) -> None:
    x = np.random.default_rng(rounds).uniform(0.5, 1.5, 300).astype(np.float32)
    found = ops.to_numpy(peak.multiply_add(ops.device, ops.asarray(x), 0.75, 0.5, rounds))
    chains = x.astype(np.float64)[:, None] + np.arange(reference.CHAINS)
    for _ in range(rounds):
        chains = chains * 0.75 + 0.5
    assert_close(found, chains.sum(axis=1), "one kernel")
    assert_close(reference.multiply_add(x.astype(np.float64), 0.75, 0.5, rounds), chains.sum(axis=1), "float64")


@pytest.mark.parametrize("count", [4, 1020, 1024, 1028, 4096, 4100, 8192])
def test_copy(ops: Operations, count: int) -> None:
    """The sizes are around one load of all threads of a block, and around all loads of a block."""
    check_copy(ops, count)


def test_a_size_that_is_no_multiple_of_four_is_refused(ops: Operations) -> None:
    with pytest.raises(ValueError, match="6 is not a multiple of 4"):
        peak.copy(ops.device, ops.asarray(np.zeros(6, np.float32)))


@pytest.mark.parametrize("rounds", [0, 1, 15, 16, 33])
def test_multiply_add(ops: Operations, rounds: int) -> None:
    check_multiply_add(ops, rounds)


def test_launcher_and_kernels_have_the_same_constants() -> None:
    text = (KERNELS / "peak.cu").read_text()
    for module, name in ((peak, "COPY_THREADS"), (peak, "COPY_FOURS"), (reference, "CHAINS")):
        assert re.search(rf"^constexpr int {name} = {getattr(module, name)};", text, re.MULTILINE), name


def check_two_blocks(ops: Operations) -> None:
    check_copy(ops, 8192)


def check_rounds(ops: Operations) -> None:
    check_multiply_add(ops, 17)


PLANTED = {
    "peak_copy": Planted(
        check_two_blocks,
        [
            (
                "float4s are stored to the wrong element",
                "(y)[first + k * COPY_THREADS] =",
                "(y)[first + (k ^ 1) * COPY_THREADS] =",
            ),
            ("the block index is forgotten", "blockIdx.x * COPY_THREADS * COPY_FOURS + threadIdx.x", "threadIdx.x"),
        ],
    ),
    "peak_multiply_add": Planted(
        check_rounds,
        [
            ("one round is left out", "round < rounds", "round + 1 < rounds"),
            ("one chain is not added", "float sum = 0.0f;", "float sum = -chain[3];"),
            ("all chains start from the same number", "x[element] + k", "x[element]"),
        ],
    ),
}

ZOO = {
    "peak_copy": [
        Bug("one float4 too many", {"< fours) held[k]": "<= fours) held[k]"},
            "check", OUTSIDE, ("held[k] = reinterpret_cast<const float4*>(x)",), "memcheck"),
        Bug("the float4s of a thread are stored next to each other",
            {"reinterpret_cast<float4*>(y)[first + k * COPY_THREADS]": "reinterpret_cast<float4*>(y)[first + k]"},
            "check", RACE, ("reinterpret_cast<float4*>(y)[first + k] = held[k]",)),
    ],
    "peak_multiply_add": [
        Bug("one thread too many", {"if (element >= count) return;": "if (element > count) return;"},
            "check", OUTSIDE, ("chain[k] = x[element] + k",), "memcheck"),
        Bug("two threads store to the same element", {"y[element] = sum": "y[element / 2] = sum"},
            "check", RACE, ("y[element / 2] = sum",)),
    ],
}  # fmt: skip
