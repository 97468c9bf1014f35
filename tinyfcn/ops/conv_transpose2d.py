"""Launches kernels/conv_transpose2d.cu: the naive forms here, the fast ones through correlation.py."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.add import add as add_up
from tinyfcn.ops.checks import expect_at_least_one, expect_positive, expect_shape
from tinyfcn.ops.conv2d import SUM_THREADS, bias_gradient
from tinyfcn.ops.fast_conv import correlate, correlate_transposed, correlate_weight
from tinyfcn.ops.relu import relu as rectify
from tinyfcn.ops.relu import relu_backward


def conv_transpose2d(
    device: Device,
    x: Any,
    weight: Any,
    bias: Any,
    stride: int = 1,
    padding: int = 0,
    add: Any = None,
    relu: bool = False,
) -> Any:
    """y (N, O, OH, OW) from x (N, C, H, W), weight (C, O, KH, KW), bias (O,); OH = (H - 1) S + KH - 2P.

    add (N, O, OH, OW): is added to y, where a skip connection joins. relu: y then is put through a ReLU, max(y, 0).

    Raises:
        ValueError: shapes that do not fit each other, or padding that leaves nothing.
    """
    sizes = _sizes(x, weight, stride, padding)
    n, _, _, _, o, _, _, out_height, out_width = sizes
    expect_shape("conv_transpose2d: bias", bias, (o,))
    shape = (n, o, out_height, out_width)
    if add is not None:
        expect_shape("conv_transpose2d: add", add, shape)
    y = correlate_transposed(device, x, weight, shape, stride, padding, bias, add, relu=relu)
    if y is not None:
        return y
    y = device.empty(shape, x.dtype)
    device.launch_for_each("conv_transpose2d_forward_naive", y.size, (x, weight, bias, y, *sizes, stride, padding))
    if add is not None:
        y = add_up(device, y, add)
    return rectify(device, y) if relu else y


def conv_transpose2d_backward(
    device: Device,
    dout: Any,
    x: Any,
    weight: Any,
    stride: int = 1,
    padding: int = 0,
    need_dx: bool = True,
    out: tuple[Any, Any] | None = None,
    through_relu: bool = False,
) -> tuple[Any, Any, Any]:
    """(dx, dweight, dbias), of the shapes of x, weight and bias, from dout (N, O, OH, OW).

    dx is None without `need_dx`; dweight and dbias are written into `out` where it is given. through_relu: x is what a
    ReLU put out, and dx the gradient of what that ReLU took: 0 where x is 0.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    sizes = _sizes(x, weight, stride, padding)
    n, _, _, _, o, _, _, out_height, out_width = sizes
    expect_shape("conv_transpose2d_backward: dout", dout, (n, o, out_height, out_width))
    dweight, dbias = out or (device.empty(weight.shape, x.dtype), device.empty((o,), x.dtype))
    expect_shape("conv_transpose2d_backward: dweight", dweight, weight.shape)
    expect_shape("conv_transpose2d_backward: dbias", dbias, (o,))
    with device.side_stream():  # only the optimiser needs them
        if not correlate_weight(device, x, dout, dweight, dbias, stride, padding, bias_of="fine"):
            arguments = (dout, x, dweight, *sizes, stride, padding)
            device.launch("conv_transpose2d_backward_weight_naive", weight.size, SUM_THREADS, arguments)
            bias_gradient(device, dout, dbias)
    if not need_dx:
        return None, dweight, dbias
    # Each input was stamped onto a patch of outputs; gathering that patch's gradient is a convolution.
    dx = correlate(device, dout, weight, x.shape, stride, padding, relu_mask=x if through_relu else None)
    if dx is None:
        dx = device.empty(x.shape, x.dtype)
        arguments = (dout, weight, dx, *sizes, stride, padding)
        device.launch_for_each("conv_transpose2d_backward_input_naive", dx.size, arguments)
        dx = relu_backward(device, dx, x) if through_relu else dx
    return dx, dweight, dbias


def _sizes(x: Any, weight: Any, stride: int, padding: int) -> tuple[int, ...]:
    """N, C, H, W, O, KH, KW, OH, OW as the kernels take them."""
    expect_at_least_one("conv_transpose2d: stride", stride)
    expect_shape("conv_transpose2d: x", x, (None,) * 4)
    n, c, height, width = x.shape
    expect_shape("conv_transpose2d: weight", weight, (c, None, None, None))
    _, o, kernel_height, kernel_width = weight.shape
    out_height = (height - 1) * stride + kernel_height - 2 * padding
    out_width = (width - 1) * stride + kernel_width - 2 * padding
    why = f"padding {padding} takes more than a {kernel_height}x{kernel_width} kernel, stride {stride}, gives"
    expect_positive("conv_transpose2d: the output's height", out_height, why)
    expect_positive("conv_transpose2d: the output's width", out_width, why)
    return n, c, height, width, o, kernel_height, kernel_width, out_height, out_width
