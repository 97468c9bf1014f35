"""The result of peak_multiply_add by a closed formula. The result of peak_copy is x itself."""

import numpy as np

CHAINS = 8  # as in kernels/peak.cu


def multiply_add(x: np.ndarray, scale: float, shift: float, rounds: int) -> np.ndarray:
    """y (I,): the sum of CHAINS numbers x + 0, x + 1, ... after `rounds` times c = c * scale + shift.

    Computed as a geometric series; scale must not be 1.
    """
    grown = scale**rounds
    chains = x[:, None] + np.arange(CHAINS)
    return (chains * grown + shift * (1 - grown) / (1 - scale)).sum(axis=1)
