"""Philox4x32-10, a counter-based random generator, in NumPy: the same words as `philox` in kernels/common.cuh.

Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

import numpy as np

_MULTIPLIER = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_KEY_STEP = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def philox(counter: tuple[np.ndarray | int, ...], key: tuple[int, int]) -> np.ndarray:
    """Four random words for each counter: uint32 (4, ...).

    Args:
        counter: four arrays or numbers below 2^32, broadcast against each other.
        key: two numbers below 2^32.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in np.broadcast_arrays(*counter))
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(10):
        product0, product1 = _MULTIPLIER[0] * c0, _MULTIPLIER[1] * c2
        c0, c1 = (product1 >> np.uint64(32)) ^ c1 ^ k0, product1 & _LOW
        c2, c3 = (product0 >> np.uint64(32)) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + np.uint64(_KEY_STEP[0])) & _LOW, (k1 + np.uint64(_KEY_STEP[1])) & _LOW
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0 .. count - 1 in an order that depends on (seed, epoch) alone: int32 (count,)."""
    keys = philox((np.arange(count), epoch, 0, 1), (seed, 0))
    return np.argsort(keys[0].astype(np.uint64) << np.uint64(32) | keys[1], kind="stable").astype(np.int32)
