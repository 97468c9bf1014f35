"""The counts from which the scores of a segmentation are computed, for each image, in NumPy."""

import numpy as np

from tinyfcn.reference.softmax_cross_entropy import softmax


def segmentation_counts(
    logits: np.ndarray, labels: np.ndarray, foreground: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's confusion, int32 (N, K, K)[true, predicted], and overlap, int32 (N, 2): both, either.

    Args:
        logits: (N, K, H, W). The largest is the prediction, among equals the first.
        labels: int32 (N, H, W). Pixels with other labels than 0 .. K - 1 are not in the confusion.
        foreground: the number of foreground channels, which come first.
        threshold: a pixel is claimed for each foreground channel where softmax is above it. Among all pairs of a
            pixel and such a channel, `both` are claimed and true, `either` are claimed or true.
    """
    n, k = logits.shape[:2]
    # The first True. NumPy's argmax of the logits themselves takes twice as long.
    predicted = (logits == logits.max(axis=1, keepdims=True)).argmax(axis=1)
    known = (labels >= 0) & (labels < k)
    cells = (np.arange(n)[:, None, None] * k + labels) * k + predicted
    confusion = np.bincount(cells[known], minlength=n * k * k).reshape(n, k, k)

    claimed = softmax(logits)[:, :foreground] > threshold
    true = labels[:, None] == np.arange(foreground)[:, None, None]
    both, either = (pairs.sum(axis=(1, 2, 3)) for pairs in (claimed & true, claimed | true))
    return confusion.astype(np.int32), np.stack([both, either], axis=1).astype(np.int32)
