"""Gather, in NumPy."""

import numpy as np


def gather(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """values[index], (M,), from values (P,) and index (M,); 0 where an index is not 0 .. P - 1."""
    inside = (index >= 0) & (index < values.size)
    return np.where(inside, values[np.where(inside, index, 0)], values.dtype.type(0))
