"""Launches kernels/softmax_cross_entropy.cu."""

from math import prod
from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.devices.launch import ceil_div
from tinyfcn.ops.checks import expect_at_least_one, expect_shape
from tinyfcn.ops.conv2d import SUM_THREADS

LOSS_THREADS, MAX_PARTS = 256, 512  # as in kernels/softmax_cross_entropy.cu
MAX_CLASSES = 32  # whose logits a thread's registers hold
NOTHING = -(2**31)  # an ignore_index that no label has
UNLABELLED = {"zero": 0.0, "softmax": 1.0}  # what an ignored place's softmax is multiplied by to give its gradient


def softmax(device: Device, logits: Any) -> Any:
    """exp(logits) over their sum along axis 1; logits (N, K) or (N, K, H, W)."""
    n, k, places = _sizes("softmax", logits)
    p = device.empty(logits.shape, logits.dtype)
    device.launch_for_each("softmax", n * places, (logits, p, n, k, places))
    return p


def softmax_cross_entropy(
    device: Device, logits: Any, labels: Any, ignore_index: int | None = None, unlabelled: str = "zero"
) -> tuple[Any, Any]:
    """The loss, shape (1,), and its gradient, of the logits' shape.

    Args:
        logits: (N, K) or (N, K, H, W).
        labels: int32 0 .. K - 1, (N,) or (N, H, W), their range checked where they were loaded; a place labelled
            `ignore_index` adds 0 to the loss.
        unlabelled: the gradient of such a place: "zero", as mathematics has it, or "softmax", what TensorFlow
            (softmax_cross_entropy_with_logits) returns for a one-hot row of zeros: softmax - 0.

    The loss is the mean over all places, ignored ones included.

    Raises:
        ValueError: logits and labels that do not fit each other.
    """
    n, k, places = _sizes("softmax_cross_entropy", logits)
    expect_shape("softmax_cross_entropy: labels", labels, (n, *logits.shape[2:]))
    if unlabelled not in UNLABELLED:
        raise ValueError(
            f"softmax_cross_entropy: unlabelled must be one of {', '.join(UNLABELLED)}, got {unlabelled!r}"
        )
    ignored = NOTHING if ignore_index is None else ignore_index
    rest = (places, ignored, UNLABELLED[unlabelled])
    dlogits = device.empty(logits.shape, logits.dtype)
    loss = device.empty((1,), logits.dtype)
    if device.naive or k > MAX_CLASSES:
        losses = device.empty(labels.shape, logits.dtype)
        arguments = (logits, labels, losses, dlogits, n, k, *rest)
        device.launch_for_each("softmax_cross_entropy_naive", n * places, arguments)
        device.launch("softmax_cross_entropy_mean_naive", 1, SUM_THREADS, (losses, loss, n * places))
        return loss, dlogits
    blocks = max(1, min(ceil_div(n * places, LOSS_THREADS), MAX_PARTS))
    parts = loss if blocks == 1 else device.empty((blocks,), logits.dtype)
    arguments = (logits, labels, parts, dlogits, n, *rest)
    device.launch("softmax_cross_entropy", blocks, LOSS_THREADS, arguments, template=(k,))
    if blocks > 1:
        with device.side_stream():  # the gradients do not wait for the loss
            device.launch("softmax_cross_entropy_mean", 1, 32, (parts, loss, blocks))
    return loss, dlogits


def _sizes(operation: str, logits: Any) -> tuple[int, int, int]:
    """N, K and the places in a picture, as the kernels take them."""
    expect_shape(f"{operation}: logits", logits, (None,) * (2 if len(logits.shape) < 4 else 4))
    n, k, *picture = logits.shape
    expect_at_least_one(f"{operation}: the number of classes", k)
    return n, k, prod(picture)
