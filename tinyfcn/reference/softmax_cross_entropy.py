"""Softmax over channels, and softmax followed by cross-entropy with integer labels, in NumPy."""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(logits) divided by its sum along axis 1; logits (N, K) or (N, K, H, W).

    The largest logit is subtracted first: the quotient stays the same, and exp cannot overflow.
    """
    p = logits - logits.max(axis=1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    return p


def softmax_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, ignore_index: int | None = None, unlabelled: str = "zero"
) -> tuple[np.ndarray, np.ndarray]:
    """The loss, shape (1,), and its gradient, of the logits' shape.

    Args:
        logits: (N, K) or (N, K, H, W).
        labels: integers 0 .. K - 1, (N,) or (N, H, W); a position labelled `ignore_index` adds 0 to the loss.
            A label that no class has makes it NaN.
        unlabelled: the gradient of such a position: "zero", the gradient of its loss, or "softmax", which
            TensorFlow's softmax_cross_entropy_with_logits returns for a one-hot row of zeros.

    The loss is the mean over all positions, ignored ones included.
    """
    if unlabelled not in ("zero", "softmax"):
        raise ValueError(f"softmax_cross_entropy: unlabelled must be one of zero, softmax, got {unlabelled!r}")
    shifted = logits - logits.max(axis=1, keepdims=True)
    dlogits = np.exp(shifted)
    total = dlogits.sum(axis=1, keepdims=True)
    dlogits /= total

    ignored = np.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
    known = ~ignored & (labels >= 0) & (labels < logits.shape[1])
    chosen = np.take_along_axis(shifted, np.where(known, labels, 0)[:, None], axis=1)[:, 0]
    losses = np.where(known, np.log(total[:, 0]) - chosen, np.where(ignored, 0, np.nan).astype(logits.dtype))
    classes = np.arange(logits.shape[1], dtype=labels.dtype).reshape(-1, *[1] * (labels.ndim - 1))
    dlogits -= (labels[:, None] == classes) & known[:, None]
    if ignore_index is not None and unlabelled == "zero":
        dlogits *= ~ignored[:, None]
    dlogits /= labels.size
    return losses.mean(dtype=logits.dtype).reshape(1), dlogits
