"""What can be said of a kernel without running it: how many of its blocks fit into a multiprocessor, and its floor.

The floor is the time below which no program can do the same to arrays that lie in memory: the bytes that must be moved
over the memory's bandwidth, or the operations over the rate of multiply-adds, whichever is longer. What a cache holds
from the kernel before comes faster. It is a bound, and no measurement.
"""

from dataclasses import dataclass

from tinyfcn.devices.launch import ceil_div

WARP = 32
REGISTERS = 65536  # of a multiprocessor, in words of 32 bits
REGISTERS_AT_ONCE = 256  # are given to a warp at the least
PARTS = 4  # of a multiprocessor, each with a quarter of the registers and the warps


@dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor of an architecture holds at most: warps, blocks, bytes of shared memory.

    `reserved` bytes of that go to CUDA for each block; shared memory is given out in pieces of `piece` bytes.
    """

    warps: int
    blocks: int
    shared_bytes: int
    reserved: int = 1024
    piece: int = 128


# CUDA C++ Programming Guide, "Technical specifications per compute capability". Registers: 65,536 in all of them.
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64 * 1024, reserved=0, piece=256),
    "sm_80": Multiprocessor(64, 32, 164 * 1024),
    "sm_86": Multiprocessor(48, 16, 100 * 1024),
    "sm_89": Multiprocessor(48, 24, 100 * 1024),
    "sm_90": Multiprocessor(64, 32, 228 * 1024),
    "sm_100": Multiprocessor(64, 32, 228 * 1024),
    "sm_120": Multiprocessor(48, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Card:
    """A graphics card by its datasheet: bytes and float32 operations a second (a multiply-add is two)."""

    name: str
    architecture: str
    bandwidth: float
    operations: float
    source: str


# From datasheets: they say what to expect of a card, and never stand beside what was measured on one.
CARDS = {
    "t4": Card("NVIDIA T4", "sm_75", 0.300e12, 8.1e12, "T4 datasheet"),
    "a100": Card("NVIDIA A100 SXM 80 GB", "sm_80", 2.039e12, 19.5e12, "A100 datasheet"),
    "h100": Card("NVIDIA H100 SXM", "sm_90", 3.35e12, 67e12, "H100 datasheet"),
    "h200": Card("NVIDIA H200 SXM", "sm_90", 4.8e12, 67e12, "H200 datasheet"),
    "rtx5090": Card("NVIDIA GeForce RTX 5090", "sm_120", 1.792e12, 104.8e12, "RTX Blackwell whitepaper"),
}


def blocks_at_once(architecture: str, threads: int, registers: int, shared_bytes: int) -> int:
    """How many blocks of so many threads, registers a thread and bytes of shared memory a multiprocessor holds.

    By the rules of CUDA's occupancy calculator. 0: not even one fits.

    Raises:
        KeyError: an architecture that is not in MULTIPROCESSORS.
    """
    holds = MULTIPROCESSORS[architecture]
    warps = ceil_div(threads, WARP)
    at_once = min(holds.blocks, holds.warps // warps)
    if registers:
        for_a_warp = ceil_div(registers * WARP, REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
        at_once = min(at_once, REGISTERS // PARTS // for_a_warp * PARTS // warps)
    needed = ceil_div(shared_bytes + holds.reserved, holds.piece) * holds.piece
    if needed:
        at_once = min(at_once, holds.shared_bytes // needed)
    return at_once


def occupancy(architecture: str, threads: int, registers: int, shared_bytes: int) -> float:
    """The share of a multiprocessor's warps that can be in it at once, 0 .. 1."""
    warps = blocks_at_once(architecture, threads, registers, shared_bytes) * ceil_div(threads, WARP)
    return warps / MULTIPROCESSORS[architecture].warps


def floor_seconds(byte_count: float, operation_count: float, bandwidth: float, operations: float) -> float:
    """The time that moving the bytes takes or that doing the operations takes, whichever is longer."""
    return max(byte_count / bandwidth, operation_count / operations)
