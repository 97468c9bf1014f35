"""The devices: `cuda` (through CuPy), `emulator` (the same `.cu` files on the CPU), and `cpu`, without kernels."""
