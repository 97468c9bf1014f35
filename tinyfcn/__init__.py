"""tinyfcn: a small fully convolutional network from scratch, from hand-written CUDA kernels up.

tinyfcn.on("auto") gives the operations on a device.
"""

from tinyfcn.operations import on

__all__ = ["on"]
