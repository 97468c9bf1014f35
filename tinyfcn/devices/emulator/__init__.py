"""Runs the `.cu` files on the CPU: the same text that the GPU runs, compiled by the machine's C++ compiler.

docs/emulator.md explains how it works and which bugs it finds. Read the files in this order: `cuda_on_cpu.h`,
`translate.py`, `build.py`, `emulator.py`, `library.py`, `threads.cpp`, `faults.cpp`, `shadow.cpp`.
"""

from tinyfcn.devices.emulator.emulator import Emulator

__all__ = ["Emulator"]
