"""Launches kernels/conv2d.cu, the naive kernels; the fast ones are launched by fast_conv.py."""

from tinyfcn.devices.device import Array, Device
from tinyfcn.ops import fast_conv
from tinyfcn.ops.checks import checked, expect_array, expect_integer, expect_positive
from tinyfcn.ops.launcher import SUM_THREADS, Launcher
from tinyfcn.ops.relu import Relu
from tinyfcn.packed_weight import PackedWeight, orders


def check_conv2d(x: Array, weight: Array, bias: Array, stride: int, padding: int, packed: PackedWeight | None) -> None:
    _sizes(x, weight, stride, padding)
    expect_array("conv2d: bias", bias, weight.shape[:1], x.dtype)
    check_packed("conv2d", packed, weight)


def check_conv2d_backward(
    dout: Array,
    x: Array,
    weight: Array,
    stride: int,
    padding: int,
    out: tuple[Array, Array] | None,
    packed: PackedWeight | None,
) -> None:
    expect_array("conv2d_backward: dout", dout, output_shape(x, weight, stride, padding), x.dtype)
    check_gradient_out("conv2d_backward", out, weight, weight.shape[0])
    check_packed("conv2d_backward", packed, weight)


def check_gradient_out(operation: str, out: tuple[Array, Array] | None, weight: Array, channels: int) -> None:
    """Checks the two arrays that take dweight and dbias, where they are given."""
    if out is not None:
        expect_array(f"{operation}: dweight", out[0], weight.shape, weight.dtype)
        expect_array(f"{operation}: dbias", out[1], (channels,), weight.dtype)


def check_packed(operation: str, packed: PackedWeight | None, weight: Array) -> None:
    """Checks the two arrays of a packed weight, where it is given."""
    if packed is not None:
        for name, order in zip(("forward", "backward_input"), orders(weight.shape, packed.stride), strict=True):
            expect_array(f"{operation}: packed.{name}", getattr(packed, name), (order.size,), weight.dtype)


class Conv2d(Launcher):
    """Two-dimensional convolution (cross-correlation, as in every deep-learning library).

    Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016), chapter 2.
    """

    @checked(check_conv2d)
    def conv2d(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
        packed: PackedWeight | None = None,
    ) -> Array:
        """y (N, O, OH, OW) from x (N, C, H, W), weight (O, C, KH, KW), bias (O,); OH = (H + 2P - KH) // S + 1.

        relu: y passes through a ReLU, max(y, 0). packed: the weight as the fast kernels read it, if it is packed
        already.

        Raises:
            ValueError: mismatched shapes, or a kernel larger than the padded image.
        """
        sizes = _sizes(x, weight, stride, padding)
        n, _, _, _, o, _, _, out_height, out_width = sizes
        shape = n, o, out_height, out_width
        y = fast_conv.forward(self.device, x, weight, shape, stride, padding, bias, relu=relu, packed=packed)
        if y is not None:
            return y
        y = self.device.empty(shape, x.dtype)
        self.device.launch_for_each("conv2d_forward_naive", y.size, (x, weight, bias, y, *sizes, stride, padding))
        return Relu(self.device).relu(y) if relu else y

    @checked(check_conv2d_backward)
    def conv2d_backward(
        self,
        dout: Array,
        x: Array,
        weight: Array,
        stride: int = 1,
        padding: int = 0,
        need_dx: bool = True,
        out: tuple[Array, Array] | None = None,
        through_relu: bool = False,
        packed: PackedWeight | None = None,
    ) -> tuple[Array | None, Array, Array]:
        """(dx, dweight, dbias), of the shapes of x, weight and bias, from dout (N, O, OH, OW).

        dx is None without `need_dx`; dweight and dbias are written into `out` where it is given. through_relu: x is the
        output of a ReLU, and dx the gradient of that ReLU's input: 0 where x is 0. packed: as in conv2d.

        Raises:
            ValueError: mismatched shapes.
        """
        dweight, dbias = out or new_gradients(self.device, weight, weight.shape[0])
        weight_gradient(self.device, dout, x, dweight, dbias, stride, padding)
        if not need_dx:
            return None, dweight, dbias
        # Each output reads a window of inputs. Scattering its gradient over that window is a transposed convolution.
        relu_mask = x if through_relu else None
        dx = fast_conv.backward_input(
            self.device, dout, weight, x.shape, stride, padding, relu_mask=relu_mask, packed=packed
        )
        if dx is None:
            dx = input_gradient_naive(self.device, dout, x, weight, stride, padding)
            dx = Relu(self.device).relu_backward(dx, x) if through_relu else dx
        return dx, dweight, dbias


def new_gradients(device: Device, weight: Array, channels: int) -> tuple[Array, Array]:
    """Arrays for dweight (as weight) and dbias (channels,)."""
    return device.empty(weight.shape, weight.dtype), device.empty((channels,), weight.dtype)


def weight_gradient(
    device: Device, dout: Array, x: Array, dweight: Array, dbias: Array, stride: int, padding: int
) -> None:
    """Writes dweight and dbias of conv2d_backward, on a side stream: only the optimiser needs them."""
    with device.side_stream():
        if not fast_conv.backward_weight(device, dout, x, dweight, dbias, stride, padding):
            arguments = (dout, x, dweight, *_sizes(x, dweight, stride, padding), stride, padding)
            device.launch("conv2d_backward_weight_naive", dweight.size, SUM_THREADS, arguments)
            bias_gradient_naive(device, dout, dbias)


def input_gradient_naive(
    device: Device, dout: Array, x: Array, weight: Array, stride: int = 1, padding: int = 0
) -> Array:
    """dx of conv2d_backward by the naive kernel."""
    dx = device.empty(x.shape, x.dtype)
    arguments = (dout, weight, dx, *_sizes(x, weight, stride, padding), stride, padding)
    device.launch_for_each("conv2d_backward_input_naive", dx.size, arguments)
    return dx


def bias_gradient_naive(device: Device, dout: Array, dbias: Array) -> None:
    """Writes the sum of dout (N, O, OH, OW) over all axes but the channels into dbias (O,), by the naive kernel."""
    n, o, out_height, out_width = dout.shape
    device.launch("conv2d_backward_bias_naive", o, SUM_THREADS, (dout, dbias, n, o, out_height, out_width))


def output_shape(x: Array, weight: Array, stride: int = 1, padding: int = 0) -> tuple[int, int, int, int]:
    """(N, O, OH, OW), checked."""
    n, _, _, _, o, _, _, out_height, out_width = _sizes(x, weight, stride, padding)
    return n, o, out_height, out_width


def _sizes(x: Array, weight: Array, stride: int, padding: int) -> tuple[int, ...]:
    """N, C, H, W, O, KH, KW, OH, OW as the kernels take them."""
    expect_integer("conv2d: stride", stride, 1)
    expect_integer("conv2d: padding", padding, 0)
    expect_array("conv2d: x", x, (None,) * 4)
    n, c, height, width = x.shape
    expect_array("conv2d: weight", weight, (None, c, None, None), x.dtype)
    o, _, kernel_height, kernel_width = weight.shape
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    out_width = (width + 2 * padding - kernel_width) // stride + 1
    why = f"a {kernel_height}x{kernel_width} kernel over {height}x{width} pixels, padding {padding}"
    expect_positive("conv2d: the output's height", out_height, why)
    expect_positive("conv2d: the output's width", out_width, why)
    return n, c, height, width, o, kernel_height, kernel_width, out_height, out_width
