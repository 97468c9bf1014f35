"""The launchers: they check shapes, allocate outputs, and choose grid and block. Each operation has one module.

Each module has a class whose public methods are operations, and `Operations` inherits from all of them. An operation
that needs another one creates its class on the same device: Relu(self.device).relu(y). No operation waits for the
device or reads a value back. Floats have the device's type (`Device.dtypes`): float32, or float64 on an emulator of
double precision. Operations return None, arrays, or tuples of arrays, on the device.
"""

from tinyfcn.ops.adam import Adam
from tinyfcn.ops.add import Add
from tinyfcn.ops.compose_m2nist import ComposeM2nist
from tinyfcn.ops.conv2d import Conv2d
from tinyfcn.ops.conv2d_pool import Conv2dPool
from tinyfcn.ops.conv_transpose2d import ConvTranspose2d
from tinyfcn.ops.gather import Gather
from tinyfcn.ops.gather_normalise import GatherNormalise
from tinyfcn.ops.linear_cross_entropy import LinearCrossEntropy
from tinyfcn.ops.max_pool2d import MaxPool2d
from tinyfcn.ops.relu import Relu
from tinyfcn.ops.segmentation_counts import SegmentationCounts
from tinyfcn.ops.softmax_cross_entropy import SoftmaxCrossEntropy


class Operations(
    Adam,
    Add,
    ComposeM2nist,
    Conv2d,
    Conv2dPool,
    ConvTranspose2d,
    Gather,
    GatherNormalise,
    LinearCrossEntropy,
    MaxPool2d,
    Relu,
    SegmentationCounts,
    SoftmaxCrossEntropy,
):
    """All operations on one device. `tinyfcn.on` creates an instance: on a GPU, on the emulator, or in NumPy."""
