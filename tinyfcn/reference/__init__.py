"""Every operation in NumPy, with the names and signatures of `tinyfcn.ops`: what the kernels are held against.

Plain formulas, true to float64, which also train where there is no GPU.
"""

from tinyfcn.reference.adam import adam_schedule, adam_step
from tinyfcn.reference.add import add, add_backward
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.reference.conv2d import conv2d, conv2d_backward
from tinyfcn.reference.conv2d_pool import conv2d_pool, conv2d_pool_backward
from tinyfcn.reference.conv_transpose2d import conv_transpose2d, conv_transpose2d_backward
from tinyfcn.reference.gather_normalise import gather_batch, gather_normalise
from tinyfcn.reference.max_pool2d import max_pool2d, max_pool2d_backward
from tinyfcn.reference.relu import relu, relu_backward
from tinyfcn.reference.segmentation_counts import segmentation_counts
from tinyfcn.reference.softmax_cross_entropy import softmax, softmax_cross_entropy

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
