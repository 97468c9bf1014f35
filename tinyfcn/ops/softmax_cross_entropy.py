"""Launches kernels/softmax_cross_entropy.cu."""

from math import prod

from tinyfcn.devices.device import Array, Device
from tinyfcn.devices.launch import ceil_div
from tinyfcn.ops.checks import INT32, checked, expect_array, expect_integer, expect_within
from tinyfcn.ops.launcher import SUM_THREADS, Launcher

LOSS_THREADS, MAX_PARTS = 256, 512  # as in kernels/common.cuh and kernels/softmax_cross_entropy.cu
MAX_CLASSES = 32  # of the fast kernel, whose threads keep all logits of a position in registers
NO_LABEL = -(2**31)  # an ignore_index that equals no label
HINT = "; ignore_index leaves the positions of one label out"
UNLABELLED = {"zero": 0.0, "softmax": 1.0}  # the gradient of an ignored position is this times its softmax


def check_softmax(logits: Array) -> None:
    _sizes("softmax", logits)


def check_softmax_cross_entropy(
    self: Launcher, logits: Array, labels: Array, ignore_index: int | None, unlabelled: str
) -> None:
    n, k, _ = _sizes("softmax_cross_entropy", logits)
    shape = (n, *logits.shape[2:])
    check_labels("softmax_cross_entropy", self.device, labels, shape, k, ignore_index, unlabelled)


def check_labels(
    operation: str,
    device: Device,
    labels: Array,
    shape: tuple[int, ...],
    k: int,
    ignore_index: int | None,
    unlabelled: str,
) -> None:
    """Checks labels of `shape` for k classes, and what is asked of those that are ignored."""
    expect_array(f"{operation}: labels", labels, shape, INT32)
    if ignore_index is not None:
        expect_integer(f"{operation}: ignore_index", ignore_index, NO_LABEL)
    if unlabelled not in UNLABELLED:
        raise ValueError(f"{operation}: unlabelled must be one of {', '.join(UNLABELLED)}, got {unlabelled!r}")
    expect_within(f"{operation}: labels", device.readable(labels), k, ignore_index, HINT)


class SoftmaxCrossEntropy(Launcher):
    """Softmax over channels, and softmax followed by cross-entropy with integer labels."""

    @checked(check_softmax)
    def softmax(self, logits: Array) -> Array:
        """exp(logits) divided by its sum along axis 1; logits (N, K) or (N, K, H, W).

        Raises:
            ValueError: logits with a wrong number of dimensions, or without classes.
        """
        n, k, positions = _sizes("softmax", logits)
        p = self.device.empty(logits.shape, logits.dtype)
        self.device.launch_for_each("softmax", n * positions, (logits, p, n, k, positions))
        return p

    @checked(check_softmax_cross_entropy)
    def softmax_cross_entropy(
        self, logits: Array, labels: Array, ignore_index: int | None = None, unlabelled: str = "zero"
    ) -> tuple[Array, Array]:
        """The loss, shape (1,), and its gradient, of the logits' shape.

        Args:
            logits: (N, K) or (N, K, H, W).
            labels: int32 0 .. K - 1, (N,) or (N, H, W). A position labelled `ignore_index` adds 0 to the loss.
            unlabelled: the gradient of such a position: "zero", the gradient of its loss, or "softmax", which
                TensorFlow's softmax_cross_entropy_with_logits returns for a one-hot row of zeros.

        The loss is the mean over all positions, ignored ones included.

        Raises:
            ValueError: mismatched logits and labels, a label that no class has, or an unknown `unlabelled`. Where the
                host cannot read the labels, on a GPU and in a recording, a label that no class has makes the loss NaN.
        """
        n, k, positions = _sizes("softmax_cross_entropy", logits)
        device, count = self.device, n * positions
        rest = (positions, ignored_label(ignore_index), UNLABELLED[unlabelled])
        dlogits = device.empty(logits.shape, logits.dtype)
        loss = device.empty((1,), logits.dtype)
        if device.naive or k > MAX_CLASSES:
            losses = device.empty(labels.shape, logits.dtype)
            device.launch_for_each("softmax_cross_entropy_naive", count, (logits, labels, losses, dlogits, n, k, *rest))
            device.launch("softmax_cross_entropy_mean_naive", 1, SUM_THREADS, (losses, loss, count))
            return loss, dlogits
        blocks = loss_blocks(count)
        parts = loss if blocks == 1 else device.empty((blocks,), logits.dtype)
        arguments = (logits, labels, parts, dlogits, n, *rest)
        device.launch("softmax_cross_entropy", blocks, LOSS_THREADS, arguments, template=(k,))
        launch_mean(device, parts, loss)
        return loss, dlogits


def ignored_label(ignore_index: int | None) -> int:
    """ignore_index as the kernels take it."""
    return NO_LABEL if ignore_index is None else ignore_index


def loss_blocks(positions: int, threads: int = LOSS_THREADS) -> int:
    """The blocks that add up the losses of so many positions."""
    return max(1, min(ceil_div(positions, threads), MAX_PARTS))


def launch_mean(device: Device, parts: Array, loss: Array) -> None:
    """Adds up the blocks' parts of the mean, unless one block's part is the loss."""
    if parts is not loss:
        with device.side_stream():  # the gradients do not wait for the loss
            device.launch("softmax_cross_entropy_mean", 1, 32, (parts, loss, parts.size))


def _sizes(operation: str, logits: Array) -> tuple[int, int, int]:
    """N, K and the positions of an image, as the kernels take them."""
    expect_array(f"{operation}: logits", logits, (None,) * (4 if getattr(logits, "ndim", 2) >= 4 else 2))
    n, k, *image = logits.shape
    return n, k, prod(image)
