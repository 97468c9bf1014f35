"""Where kernels run: `cuda` (CuPy), or `emulator` (the same `.cu` files on the CPU). Allocate, move, launch."""
