"""Launches kernels/conv2d.cu."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_at_least_one, expect_positive, expect_shape

SUM_THREADS = 64  # as in kernels/common.cuh: the block that owns one sum


def conv2d(device: Device, x: Any, weight: Any, bias: Any, stride: int = 1, padding: int = 0) -> Any:
    """y (N, O, OH, OW) from x (N, C, H, W), weight (O, C, KH, KW), bias (O,); OH = (H + 2P - KH) // S + 1.

    Raises:
        ValueError: shapes that do not fit each other, or a kernel larger than the padded picture.
    """
    sizes = _sizes(x, weight, stride, padding)
    n, _, _, _, o, _, _, out_height, out_width = sizes
    expect_shape("conv2d: bias", bias, (o,))
    y = device.empty((n, o, out_height, out_width), x.dtype)
    device.launch_for_each("conv2d_forward_naive", y.size, (x, weight, bias, y, *sizes, stride, padding))
    return y


def conv2d_backward(
    device: Device,
    dout: Any,
    x: Any,
    weight: Any,
    stride: int = 1,
    padding: int = 0,
    need_dx: bool = True,
    out: tuple[Any, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """(dx, dweight, dbias), of the shapes of x, weight and bias, from dout (N, O, OH, OW).

    dx is None without `need_dx`; dweight and dbias are written into `out` where it is given.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    sizes = _sizes(x, weight, stride, padding)
    n, _, _, _, o, _, _, out_height, out_width = sizes
    expect_shape("conv2d_backward: dout", dout, (n, o, out_height, out_width))
    dweight, dbias = out or (device.empty(weight.shape, x.dtype), device.empty((o,), x.dtype))
    expect_shape("conv2d_backward: dweight", dweight, weight.shape)
    device.launch("conv2d_backward_weight_naive", weight.size, SUM_THREADS, (dout, x, dweight, *sizes, stride, padding))
    bias_gradient(device, dout, dbias)
    dx = None
    if need_dx:
        dx = device.empty(x.shape, x.dtype)
        device.launch_for_each("conv2d_backward_input_naive", dx.size, (dout, weight, dx, *sizes, stride, padding))
    return dx, dweight, dbias


def bias_gradient(device: Device, dout: Any, dbias: Any) -> None:
    """Writes the sum of dout (N, O, OH, OW) over all but the channels into dbias (O,)."""
    n, o, out_height, out_width = dout.shape
    expect_shape("dbias", dbias, (o,))
    device.launch("conv2d_backward_bias_naive", o, SUM_THREADS, (dout, dbias, n, o, out_height, out_width))


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
