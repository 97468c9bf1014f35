"""Small IDX files, MNIST's format, for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX file of a uint8 array: magic 2049 for one dimension, 2051 for three; sizes big-endian."""
    return struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape) + array.tobytes()


def write_idx(path: Path, array: np.ndarray, gz: bool = False) -> Path:
    """Write `array` as an IDX file, gzipped under the name with .gz added if `gz`; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if gz:
        path = path.with_name(f"{path.name}.gz")
    path.write_bytes(gzip.compress(idx_bytes(array)) if gz else idx_bytes(array))
    return path


def write_mnist(folder: Path, count: int = 12, gz: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Write MNIST's four files, `count` random digits a split; returns their arrays by name."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for prefix in ("train", "t10k"):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        write_idx(folder / name, array, gz)
    return arrays
