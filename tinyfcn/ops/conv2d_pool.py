"""Convolution, ReLU and max-pooling in one launch: the epilogue of fast_conv_forward pools. There is no kernel file."""

from tinyfcn.devices.device import Array
from tinyfcn.ops import fast_conv
from tinyfcn.ops.add import Add
from tinyfcn.ops.checks import INT32, checked, expect_array
from tinyfcn.ops.conv2d import (
    Conv2d,
    check_gradient_out,
    check_packed,
    input_gradient_naive,
    new_gradients,
    output_shape,
    weight_gradient,
)
from tinyfcn.ops.launcher import Launcher
from tinyfcn.ops.max_pool2d import MaxPool2d, pooled_sizes
from tinyfcn.ops.relu import Relu
from tinyfcn.packed_weight import PackedWeight


def check_conv2d_pool(x: Array, weight: Array, bias: Array, packed: PackedWeight | None) -> None:
    pooled_sizes(output_shape(x, weight), 2, 2)
    expect_array("conv2d_pool: bias", bias, weight.shape[:1], x.dtype)
    check_packed("conv2d_pool", packed, weight)


def check_conv2d_pool_backward(
    dout: Array,
    max_index: Array,
    x: Array,
    weight: Array,
    out: tuple[Array, Array] | None,
    add: Array | None,
    packed: PackedWeight | None,
) -> None:
    n, o, _, _, out_height, out_width = pooled_sizes(output_shape(x, weight), 2, 2)
    expect_array("conv2d_pool_backward: dout", dout, (n, o, out_height, out_width), x.dtype)
    expect_array("conv2d_pool_backward: max_index", max_index, dout.shape, INT32)
    check_gradient_out("conv2d_pool_backward", out, weight, o)
    check_packed("conv2d_pool_backward", packed, weight)
    if add is not None:
        expect_array("conv2d_pool_backward: add", add, x.shape, x.dtype)


class Conv2dPool(Launcher):
    """A convolution, a ReLU and a 2x2 / 2 max-pooling."""

    @checked(check_conv2d_pool)
    def conv2d_pool(
        self, x: Array, weight: Array, bias: Array, packed: PackedWeight | None = None
    ) -> tuple[Array, Array]:
        """max_pool2d(conv2d(x, weight, bias, relu=True)), 2x2 / 2: y and max_index (N, O, OH // 2, OW // 2).

        The full-size map is never stored: it is four times as large, and has a gradient only at the max indices.
        packed: as in conv2d.

        Raises:
            ValueError: mismatched shapes, or an output smaller than the window.
        """
        pooled = fast_conv.forward_pool(self.device, x, weight, output_shape(x, weight), 1, 0, bias, packed=packed)
        if pooled is not None:
            return pooled
        return MaxPool2d(self.device).max_pool2d(Conv2d(self.device).conv2d(x, weight, bias, relu=True))

    @checked(check_conv2d_pool_backward)
    def conv2d_pool_backward(
        self,
        dout: Array,
        max_index: Array,
        x: Array,
        weight: Array,
        need_dx: bool = True,
        out: tuple[Array, Array] | None = None,
        through_relu: bool = False,
        add: Array | None = None,
        packed: PackedWeight | None = None,
    ) -> tuple[Array | None, Array, Array]:
        """(dx, dweight, dbias), of the shapes of x, weight and bias.

        dout (N, O, PH, PW): the gradient of the pre-activation at each max index, which is the gradient of y where y is
        above 0, else 0. add (as x): the gradient of x from a second use, added to dx before `through_relu`. The other
        arguments are as in conv2d_backward.

        Raises:
            ValueError: mismatched shapes.
        """
        device = self.device
        n, o, height, width = output_shape(x, weight)
        dweight, dbias = out or new_gradients(device, weight, o)
        with device.side_stream():  # only the optimiser needs them
            has_weight = fast_conv.backward_weight(device, dout, x, dweight, dbias, 1, 0, max_index)
        dx = None
        if need_dx:
            relu_mask, size = x if through_relu else None, (height, width)
            dx = fast_conv.backward_input(
                device,
                dout,
                weight,
                x.shape,
                1,
                0,
                add=add,
                relu_mask=relu_mask,
                max_index=max_index,
                size=size,
                packed=packed,
            )
        needs_input = need_dx and dx is None
        if has_weight and not needs_input:
            return dx, dweight, dbias

        # The gradient of the convolution's output at full size.
        dconv = MaxPool2d(device).max_pool2d_backward(dout, max_index, (n, o, height, width))
        if not has_weight:
            weight_gradient(device, dconv, x, dweight, dbias, 1, 0)
        if needs_input:
            dx = input_gradient_naive(device, dconv, x, weight)
            dx = dx if add is None else Add(device).add(dx, add)
            dx = Relu(device).relu_backward(dx, x) if through_relu else dx
        return dx, dweight, dbias
