"""Launches kernels/linear_cross_entropy.cu: the last layer, its loss and their gradients."""

from math import prod

from tinyfcn.devices.device import Array
from tinyfcn.ops import fast_conv
from tinyfcn.ops.checks import checked, expect_array
from tinyfcn.ops.conv2d import Conv2d, input_gradient_naive
from tinyfcn.ops.launcher import Launcher
from tinyfcn.ops.relu import Relu
from tinyfcn.ops.softmax_cross_entropy import (
    LOSS_THREADS,
    MAX_CLASSES,
    UNLABELLED,
    SoftmaxCrossEntropy,
    check_labels,
    ignored_label,
    launch_mean,
    loss_blocks,
)

WARP = 32
FEW = 4096  # positions: with blocks of a warp they fill 128 multiprocessors, and larger blocks would leave most idle
MAX_CHANNELS = 256  # of the fast kernel, whose weights lie in shared memory


def check_linear_cross_entropy(
    self: Launcher, x: Array, weight: Array, bias: Array, labels: Array, ignore_index: int | None, unlabelled: str
) -> None:
    expect_array("linear_cross_entropy: x", x, (None,) * 4)
    expect_array("linear_cross_entropy: weight", weight, (None, x.shape[1], 1, 1), x.dtype)
    expect_array("linear_cross_entropy: bias", bias, weight.shape[:1], x.dtype)
    shape = (x.shape[0], *x.shape[2:])
    check_labels("linear_cross_entropy", self.device, labels, shape, weight.shape[0], ignore_index, unlabelled)


class LinearCrossEntropy(Launcher):
    """A 1x1 convolution, which is a linear layer at each pixel, with the softmax cross-entropy of its outputs.

    "Fused linear cross-entropy": the logits are never stored. Hsu et al., "Liger Kernel: Efficient Triton kernels for
    LLM training" (2024).
    """

    @checked(check_linear_cross_entropy)
    def linear_cross_entropy(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        labels: Array,
        ignore_index: int | None = None,
        unlabelled: str = "zero",
        through_relu: bool = False,
    ) -> tuple[Array, Array, Array]:
        """The loss (1,), dlogits (N, K, H, W) and dx, of softmax_cross_entropy(conv2d(x, weight, bias), labels).

        Args:
            x: (N, C, H, W).
            weight, bias: (K, C, 1, 1) and (K,). Their gradients are conv2d_backward's, from dlogits.
            labels: int32 (N, H, W); `ignore_index` and `unlabelled` are as in softmax_cross_entropy.
            through_relu: x is the output of a ReLU, and dx the gradient of that ReLU's input: 0 where x is 0.

        Raises:
            ValueError: mismatched shapes, or as softmax_cross_entropy.
        """
        device, (n, c, *image), k = self.device, x.shape, weight.shape[0]
        if device.naive or k > MAX_CLASSES or c > MAX_CHANNELS:
            logits = Conv2d(device).conv2d(x, weight, bias)
            loss, dlogits = SoftmaxCrossEntropy(device).softmax_cross_entropy(logits, labels, ignore_index, unlabelled)
            relu_mask = x if through_relu else None
            dx = fast_conv.backward_input(device, dlogits, weight, x.shape, 1, 0, relu_mask=relu_mask)
            if dx is None:
                dx = input_gradient_naive(device, dlogits, x, weight)
                dx = Relu(device).relu_backward(dx, x) if through_relu else dx
            return loss, dlogits, dx
        positions = prod(image)
        threads = LOSS_THREADS if n * positions > FEW else WARP
        blocks = loss_blocks(n * positions, threads)
        loss, dx = device.empty((1,), x.dtype), device.empty(x.shape, x.dtype)
        dlogits = device.empty((n, k, *image), x.dtype)
        parts = loss if blocks == 1 else device.empty((blocks,), x.dtype)
        options = ignored_label(ignore_index), UNLABELLED[unlabelled], int(through_relu)
        arguments = (x, weight, bias, labels, parts, dlogits, dx, n, positions, *options)
        device.launch("linear_cross_entropy", blocks, threads, arguments, template=(k, c))
        launch_mean(device, parts, loss)
        return loss, dlogits, dx
