"""Launches kernels/gather.cu."""

from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import INT32, checked, expect_array
from tinyfcn.ops.launcher import Launcher


def check_gather(values: Array, index: Array) -> None:
    expect_array("gather: values", values, (None,))
    expect_array("gather: index", index, (None,), INT32)


class Gather(Launcher):
    """An array's values in another order."""

    @checked(check_gather)
    def gather(self, values: Array, index: Array) -> Array:
        """values[index], (M,), from values (P,) and index (M,); 0 where an index is not 0 .. P - 1.

        Raises:
            ValueError: values or index has another number of axes than one, or no elements.
        """
        gathered = self.device.empty(index.shape, values.dtype)
        self.device.launch_for_each("gather", index.size, (values, index, gathered, values.size, index.size))
        return gathered
