"""tinyfcn: a small fully convolutional network from scratch, on hand-written CUDA kernels.

on("auto")              the operations, on a GPU or on the CPU
load("runs/fcn-1")      a trained network

import tinyfcn
model = tinyfcn.load("runs/fcn-1")
labels, masks = model.predict(image)      # image: uint8 (H, W), white digits on black
"""

from tinyfcn.installation import expect_installed

expect_installed()  # before the imports that would fail

from tinyfcn.model import Model, load  # noqa: E402
from tinyfcn.operations import on  # noqa: E402
from tinyfcn.ops import Operations  # noqa: E402

__all__ = ["Model", "Operations", "load", "on"]
