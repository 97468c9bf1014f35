"""The CUDA C++ sources: one `.cu` file an operation, and `common.cuh`, which the loader puts before each."""
