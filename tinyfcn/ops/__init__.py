"""How each kernel is launched: shapes checked, outputs allocated, grid and block chosen. One module an operation.

Every function takes the device first; `tinyfcn.on` binds it. Nothing here waits for the device or reads a value back.
Floats are the device's (`Device.dtypes`): float32, or float64 on an emulator of that precision.
"""

from tinyfcn.ops.adam import adam_schedule, adam_step
from tinyfcn.ops.add import add, add_backward
from tinyfcn.ops.compose_m2nist import compose_m2nist
from tinyfcn.ops.conv2d import conv2d, conv2d_backward
from tinyfcn.ops.conv2d_pool import conv2d_pool, conv2d_pool_backward
from tinyfcn.ops.conv_transpose2d import conv_transpose2d, conv_transpose2d_backward
from tinyfcn.ops.gather_normalise import gather_batch, gather_normalise
from tinyfcn.ops.max_pool2d import max_pool2d, max_pool2d_backward
from tinyfcn.ops.relu import relu, relu_backward
from tinyfcn.ops.segmentation_counts import segmentation_counts
from tinyfcn.ops.softmax_cross_entropy import softmax, softmax_cross_entropy

__all__ = [
    "adam_schedule",
    "adam_step",
    "add",
    "add_backward",
    "compose_m2nist",
    "conv2d",
    "conv2d_backward",
    "conv2d_pool",
    "conv2d_pool_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "gather_batch",
    "gather_normalise",
    "max_pool2d",
    "max_pool2d_backward",
    "relu",
    "relu_backward",
    "segmentation_counts",
    "softmax",
    "softmax_cross_entropy",
]
