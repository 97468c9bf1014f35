"""Launches kernels/conv_transpose2d.cu, the naive kernels; the fast ones are launched by fast_conv.py."""

from tinyfcn.devices.device import Array
from tinyfcn.ops import fast_conv
from tinyfcn.ops.add import Add
from tinyfcn.ops.checks import checked, expect_array, expect_integer, expect_positive
from tinyfcn.ops.conv2d import bias_gradient_naive, check_gradient_out, check_packed, new_gradients
from tinyfcn.ops.launcher import SUM_THREADS, Launcher
from tinyfcn.ops.relu import Relu
from tinyfcn.packed_weight import PackedWeight


def check_conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array,
    stride: int,
    padding: int,
    add: Array | None,
    packed: PackedWeight | None,
) -> None:
    n, _, _, _, o, _, _, out_height, out_width = _sizes(x, weight, stride, padding)
    expect_array("conv_transpose2d: bias", bias, (o,), x.dtype)
    if add is not None:
        expect_array("conv_transpose2d: add", add, (n, o, out_height, out_width), x.dtype)
    check_packed("conv_transpose2d", packed, weight)


def check_conv_transpose2d_backward(
    dout: Array,
    x: Array,
    weight: Array,
    stride: int,
    padding: int,
    out: tuple[Array, Array] | None,
    packed: PackedWeight | None,
) -> None:
    n, _, _, _, o, _, _, out_height, out_width = _sizes(x, weight, stride, padding)
    expect_array("conv_transpose2d_backward: dout", dout, (n, o, out_height, out_width), x.dtype)
    check_gradient_out("conv_transpose2d_backward", out, weight, o)
    check_packed("conv_transpose2d_backward", packed, weight)


class ConvTranspose2d(Launcher):
    """Transposed convolution: the gradient of a convolution with respect to its input, used as a layer.

    Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016), chapter 4.
    """

    @checked(check_conv_transpose2d)
    def conv_transpose2d(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        stride: int = 1,
        padding: int = 0,
        add: Array | None = None,
        relu: bool = False,
        packed: PackedWeight | None = None,
    ) -> Array:
        """y (N, O, OH, OW) from x (N, C, H, W), weight (C, O, KH, KW), bias (O,); OH = (H - 1) S + KH - 2P.

        add (N, O, OH, OW) is added to y, where a skip connection joins. relu: y then passes through a ReLU, max(y, 0).
        packed: the weight as the fast kernels read it, if it is packed already.

        Raises:
            ValueError: mismatched shapes, or padding that crops the whole output.
        """
        sizes = _sizes(x, weight, stride, padding)
        n, _, _, _, o, _, _, out_height, out_width = sizes
        shape = (n, o, out_height, out_width)
        y = fast_conv.backward_input(
            self.device, x, weight, shape, stride, padding, bias, add, relu=relu, packed=packed
        )
        if y is not None:
            return y
        y = self.device.empty(shape, x.dtype)
        arguments = (x, weight, bias, y, *sizes, stride, padding)
        self.device.launch_for_each("conv_transpose2d_forward_naive", y.size, arguments)
        y = y if add is None else Add(self.device).add(y, add)
        return Relu(self.device).relu(y) if relu else y

    @checked(check_conv_transpose2d_backward)
    def conv_transpose2d_backward(
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
        output of a ReLU, and dx the gradient of that ReLU's input: 0 where x is 0. packed: as in conv_transpose2d.

        Raises:
            ValueError: mismatched shapes.
        """
        device, sizes = self.device, _sizes(x, weight, stride, padding)
        dweight, dbias = out or new_gradients(device, weight, weight.shape[1])
        with device.side_stream():  # only the optimiser needs them
            bias_of = fast_conv.BIAS_OF_X  # fast_conv's x is dout here
            if not fast_conv.backward_weight(device, x, dout, dweight, dbias, stride, padding, bias_of=bias_of):
                arguments = (dout, x, dweight, *sizes, stride, padding)
                device.launch("conv_transpose2d_backward_weight_naive", weight.size, SUM_THREADS, arguments)
                bias_gradient_naive(device, dout, dbias)
        if not need_dx:
            return None, dweight, dbias
        # Each input adds to a window of outputs. Gathering the gradients of that window is a convolution.
        relu_mask = x if through_relu else None
        dx = fast_conv.forward(device, dout, weight, x.shape, stride, padding, relu_mask=relu_mask, packed=packed)
        if dx is None:
            dx = device.empty(x.shape, x.dtype)
            arguments = (dout, weight, dx, *sizes, stride, padding)
            device.launch_for_each("conv_transpose2d_backward_input_naive", dx.size, arguments)
            dx = Relu(device).relu_backward(dx, x) if through_relu else dx
        return dx, dweight, dbias


def _sizes(x: Array, weight: Array, stride: int, padding: int) -> tuple[int, ...]:
    """N, C, H, W, O, KH, KW, OH, OW as the kernels take them."""
    expect_integer("conv_transpose2d: stride", stride, 1)
    expect_integer("conv_transpose2d: padding", padding, 0)
    expect_array("conv_transpose2d: x", x, (None,) * 4)
    n, c, height, width = x.shape
    expect_array("conv_transpose2d: weight", weight, (c, None, None, None), x.dtype)
    _, o, kernel_height, kernel_width = weight.shape
    out_height = (height - 1) * stride + kernel_height - 2 * padding
    out_width = (width - 1) * stride + kernel_width - 2 * padding
    why = f"padding {padding} crops all that a {kernel_height}x{kernel_width} kernel with stride {stride} gives"
    expect_positive("conv_transpose2d: the output's height", out_height, why)
    expect_positive("conv_transpose2d: the output's width", out_width, why)
    return n, c, height, width, o, kernel_height, kernel_width, out_height, out_width
