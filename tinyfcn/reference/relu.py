"""The rectified linear unit in NumPy. Nair & Hinton (2010)."""

import numpy as np


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0), of any shape."""
    return np.maximum(x, 0)


def relu_backward(dout: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dx from dout and the output y, all of one shape: dout where y > 0, else 0."""
    return dout * (y > 0)
