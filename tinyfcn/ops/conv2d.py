"""Launches kernels/conv2d.cu: the naive forms here, the fast ones through correlation.py."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_at_least_one, expect_positive, expect_shape
from tinyfcn.ops.fast_conv import correlate, correlate_transposed, correlate_weight
from tinyfcn.ops.relu import relu as rectify
from tinyfcn.ops.relu import relu_backward

SUM_THREADS = 64  # as in kernels/common.cuh: the block that owns one sum


def conv2d(
    device: Device, x: Any, weight: Any, bias: Any, stride: int = 1, padding: int = 0, relu: bool = False
) -> Any:
    """y (N, O, OH, OW) from x (N, C, H, W), weight (O, C, KH, KW), bias (O,); OH = (H + 2P - KH) // S + 1.

    relu: y is put through a ReLU, max(y, 0).

    Raises:
        ValueError: shapes that do not fit each other, or a kernel larger than the padded picture.
    """
    sizes = _sizes(x, weight, stride, padding)
    n, _, _, _, o, _, _, out_height, out_width = sizes
    expect_shape("conv2d: bias", bias, (o,))
    shape = (n, o, out_height, out_width)
    y = correlate(device, x, weight, shape, stride, padding, bias, relu=relu)
    if y is not None:
        return y
    y = device.empty(shape, x.dtype)
    device.launch_for_each("conv2d_forward_naive", y.size, (x, weight, bias, y, *sizes, stride, padding))
    return rectify(device, y) if relu else y


def conv2d_backward(
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
    expect_shape("conv2d_backward: dout", dout, output_shape(x, weight, stride, padding))
    dweight, dbias = out or (device.empty(weight.shape, x.dtype), device.empty(weight.shape[:1], x.dtype))
    expect_shape("conv2d_backward: dweight", dweight, weight.shape)
    expect_shape("conv2d_backward: dbias", dbias, weight.shape[:1])
    weight_gradient(device, dout, x, dweight, dbias, stride, padding)
    dx = input_gradient(device, dout, x, weight, stride, padding, through_relu) if need_dx else None
    return dx, dweight, dbias


def weight_gradient(device: Device, dout: Any, x: Any, dweight: Any, dbias: Any, stride: int, padding: int) -> None:
    """Writes dweight and dbias of conv2d_backward, beside what follows: only the optimiser needs them."""
    with device.side_stream():
        if not correlate_weight(device, dout, x, dweight, dbias, stride, padding):
            arguments = (dout, x, dweight, *_sizes(x, dweight, stride, padding), stride, padding)
            device.launch("conv2d_backward_weight_naive", dweight.size, SUM_THREADS, arguments)
            bias_gradient(device, dout, dbias)


def input_gradient(
    device: Device, dout: Any, x: Any, weight: Any, stride: int, padding: int, through_relu: bool = False
) -> Any:
    """dx of conv2d_backward."""
    # Each output saw a patch of inputs; sending its gradient back to that patch is a transposed convolution.
    dx = correlate_transposed(device, dout, weight, x.shape, stride, padding, relu_mask=x if through_relu else None)
    if dx is not None:
        return dx
    dx = device.empty(x.shape, x.dtype)
    arguments = (dout, weight, dx, *_sizes(x, weight, stride, padding), stride, padding)
    device.launch_for_each("conv2d_backward_input_naive", dx.size, arguments)
    return relu_backward(device, dx, x) if through_relu else dx


def bias_gradient(device: Device, dout: Any, dbias: Any) -> None:
    """Writes the sum of dout (N, O, OH, OW) over all but the channels into dbias (O,), with the naive kernel."""
    n, o, out_height, out_width = dout.shape
    device.launch("conv2d_backward_bias_naive", o, SUM_THREADS, (dout, dbias, n, o, out_height, out_width))


def output_shape(x: Any, weight: Any, stride: int = 1, padding: int = 0) -> tuple[int, int, int, int]:
    """(N, O, OH, OW), checked."""
    n, _, _, _, o, _, _, out_height, out_width = _sizes(x, weight, stride, padding)
    return n, o, out_height, out_width


def _sizes(x: Any, weight: Any, stride: int, padding: int) -> tuple[int, ...]:
    """N, C, H, W, O, KH, KW, OH, OW as the kernels take them."""
    expect_at_least_one("conv2d: stride", stride)
    expect_shape("conv2d: x", x, (None,) * 4)
    n, c, height, width = x.shape
    expect_shape("conv2d: weight", weight, (None, c, None, None))
    o, _, kernel_height, kernel_width = weight.shape
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    out_width = (width + 2 * padding - kernel_width) // stride + 1
    why = f"a {kernel_height}x{kernel_width} kernel over {height}x{width} pixels, padding {padding}"
    expect_positive("conv2d: the output's height", out_height, why)
    expect_positive("conv2d: the output's width", out_width, why)
    return n, c, height, width, o, kernel_height, kernel_width, out_height, out_width
