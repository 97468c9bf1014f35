"""A batch gathered from byte pictures and brought into the network's range, in NumPy."""

import numpy as np


def gather_normalise(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(images[indices] - 127) / 127 as float32 (N, 1, H, W); images uint8 (M, H, W), indices int32 (N,)."""
    return (images[indices][:, None].astype(np.float32) - 127) / np.float32(127)
