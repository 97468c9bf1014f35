"""Runs the `.cu` files on the CPU: the same text that the GPU runs, compiled by the machine's C++ compiler.

How it works, in the order in which it happens:

1.  **Words** (`cuda_on_cpu.h`). A kernel is C++ but for some words: `__global__`, `threadIdx`, `__shared__`,
    `__shfl_down_sync` ... The header gives each a meaning on a CPU. Most are macros that say nothing, or a
    line of C++.

2.  **Build** (`build.py`). One C++ file is written for each `.cu` file: the header, then `common.cuh` and the
    kernel file inside a namespace, then one exported function a kernel that takes its arguments as a list of
    pointers. The compiler makes a shared library of it. `#line` makes it speak of `conv2d.cu` and of its
    lines; should it refuse, its words are the KernelError's. A library is kept in the cache folder under a
    hash of everything it was made of: an edited kernel is compiled at its next use, an unchanged one never
    again.

3.  **Launch** (`emulator.py`). An array is a NumPy array, a launch a call through ctypes that returns when
    the last thread has exited.

4.  **Threads** (`block.h`). The blocks run one after another on one core. So do the threads of a block, until
    one reaches a barrier; it waits there, halfway through its function, while the others catch up. To stop a
    function in the middle takes a stack of its own for each thread that waits: a fiber. Warp shuffles and
    votes work the same way, for the 32 lanes of a warp. When no thread can go on, because some wait where
    others never come, the launch ends with a KernelError that says how many wait at which line and how many
    have exited.

What differs from a GPU: one thread runs at a time and only changes at a barrier or a warp operation, so a
kernel that forgets a `__syncthreads()` may still come out right here. Multiplications and additions are never
fused, and `expf` and its like are the C library's: the last bits of a float differ. An access out of bounds
goes unnoticed, or ends the program. It is quick enough for tests and for looking into a kernel, not for
training.

What a kernel keeps to: `extern "C" __global__ void name(...)`; no system headers; a barrier or warp operation
is reached by all the threads it waits for, so no thread returns before it; no thread spins until another
writes. `__constant__` variables have the values written in the file.
"""

from tinyfcn.devices.emulator.emulator import Emulator

__all__ = ["Emulator"]
