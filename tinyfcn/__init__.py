"""tinyfcn: a small fully convolutional network from scratch, on hand-written CUDA kernels.

on("auto")              the operations, on a GPU or on the CPU
load("runs/fcn-1")      a trained network

import tinyfcn
model = tinyfcn.load("runs/fcn-1")
labels, masks = model.predict(image)      # image: uint8 (H, W), white digits on black
"""

from tinyfcn.model import Model, load
from tinyfcn.operations import Operations, on

__all__ = ["Model", "Operations", "load", "on"]
