"""Runs the `.cu` files on the CPU: the same text that the GPU runs, compiled by the machine's C++ compiler.

docs/emulator.md tells how, and what it finds: read `cuda_on_cpu.h`, `build.py`, `emulator.py`, `library.py`,
`threads.cpp`, `faults.cpp`, `shadow.cpp` with it, in this order.
"""

from tinyfcn.devices.emulator.emulator import Emulator

__all__ = ["Emulator"]
