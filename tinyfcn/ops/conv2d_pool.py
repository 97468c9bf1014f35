"""A convolution, ReLU and max-pooling in one: no kernels of its own, the fast convolutions do it on the way."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.add import add as add_up
from tinyfcn.ops.checks import expect_shape
from tinyfcn.ops.conv2d import conv2d, input_gradient, output_shape, weight_gradient
from tinyfcn.ops.fast_conv import correlate, correlate_transposed, correlate_weight
from tinyfcn.ops.max_pool2d import max_pool2d, max_pool2d_backward
from tinyfcn.ops.relu import relu_backward


def conv2d_pool(device: Device, x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    """max_pool2d(conv2d(x, weight, bias, relu=True)), 2x2 / 2: y and max_index (N, O, OH // 2, OW // 2).

    The full-size map is never stored: it is four times as large, and only its max indices have a gradient.

    Raises:
        ValueError: shapes that do not fit each other, or an output smaller than the window.
    """
    shape = output_shape(x, weight)
    expect_shape("conv2d_pool: bias", bias, weight.shape[:1])
    if min(shape[2:]) >= 2:
        pooled = correlate(device, x, weight, shape, 1, 0, bias, pool=True)
        if pooled is not None:
            return pooled
    return max_pool2d(device, conv2d(device, x, weight, bias, relu=True))


def conv2d_pool_backward(
    device: Device,
    dout: Any,
    max_index: Any,
    x: Any,
    weight: Any,
    need_dx: bool = True,
    out: tuple[Any, Any] | None = None,
    through_relu: bool = False,
    add: Any = None,
) -> tuple[Any, Any, Any]:
    """(dx, dweight, dbias), of the shapes of x, weight and bias.

    dout (N, O, PH, PW): the gradient of the pre-activation at each max index: that of y, and 0 where y is 0. add (as
    x): the gradient of x from a second use, added to dx before `through_relu`. The rest as in conv2d_backward.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    n, o, height, width = output_shape(x, weight)
    expect_shape("conv2d_pool_backward: dout", dout, (n, o, height // 2, width // 2))
    expect_shape("conv2d_pool_backward: max_index", max_index, dout.shape)
    dweight, dbias = out or (device.empty(weight.shape, x.dtype), device.empty((o,), x.dtype))
    expect_shape("conv2d_pool_backward: dweight", dweight, weight.shape)
    expect_shape("conv2d_pool_backward: dbias", dbias, (o,))
    if add is not None:
        expect_shape("conv2d_pool_backward: add", add, x.shape)
    with device.side_stream():  # only the optimiser needs them
        has_weight = correlate_weight(device, dout, x, dweight, dbias, 1, 0, max_index)
    dx = None
    if need_dx:
        relu_mask, size = x if through_relu else None, (height, width)
        dx = correlate_transposed(
            device, dout, weight, x.shape, 1, 0, add=add, relu_mask=relu_mask, max_index=max_index, size=size
        )
    needs_input = need_dx and dx is None
    if has_weight and not needs_input:
        return dx, dweight, dbias

    dconv = max_pool2d_backward(device, dout, max_index, (n, o, height, width))
    if not has_weight:
        weight_gradient(device, dconv, x, dweight, dbias, 1, 0)
    if needs_input:
        dx = input_gradient(device, dconv, x, weight, 1, 0)
        dx = dx if add is None else add_up(device, dx, add)
        dx = relu_backward(device, dx, x) if through_relu else dx
    return dx, dweight, dbias
