"""The scaled sum of two arrays in NumPy: where a skip connection joins."""

import numpy as np


def add(a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """scale * (a + b); a and b have the same shape. scale 1/2 gives the mean."""
    z = a + b
    return z if scale == 1 else z * z.dtype.type(scale)


def add_backward(dz: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The gradient of a and of b: scale * dz."""
    return dz if scale == 1 else dz * dz.dtype.type(scale)
