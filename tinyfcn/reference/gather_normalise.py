"""A batch gathered from images of bytes, and normalised to the range of the networks' inputs, in NumPy."""

import numpy as np


def gather_normalise(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(images[indices] - 127) / 127 as float32 (N, 1, H, W); images uint8 (M, H, W), indices int32 (N,)."""
    return (images[indices][:, None].astype(np.float32) - 127) / np.float32(127)


def gather_batch(
    images: np.ndarray, labels: np.ndarray, order: np.ndarray, step: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images as `gather_normalise` gives them, and labels[indices] as int32, with indices = order[step % R].

    Args:
        images: uint8 (M, H, W).
        labels: uint8 (M,) or (M, H, W).
        order: int32 (R, N): the batches of R steps.
        step: int32 (1,): steps done.
    """
    indices = order[step[0] % len(order)]
    return gather_normalise(images, indices), labels[indices].astype(np.int32)
