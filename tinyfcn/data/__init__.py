"""Digits (MNIST or built-in) and M2NIST images: where they are found and how they are checked."""

from tinyfcn.data.digits import DATASETS, Digits, FoundData, find_data, load_digits
from tinyfcn.data.m2nist_files import M2nist, read_m2nist, split_indices, write_m2nist

__all__ = [
    "DATASETS",
    "Digits",
    "FoundData",
    "M2nist",
    "find_data",
    "load_digits",
    "read_m2nist",
    "split_indices",
    "write_m2nist",
]
