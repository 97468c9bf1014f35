"""The figures of a prediction. There are several kinds of IoU, each with a name of its own.

Pixels are counted on the device, by kernels/segmentation_counts.cu or its reference. The figures are computed from
the counts.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyfcn.devices.device import Array
from tinyfcn.ops import Operations

ARTICLE_THRESHOLD = 0.1  # in the source article, a pixel is a digit's where the digit's softmax is above this
ARTICLE_BATCH = 4  # images over which the article pools an IoU before it averages


def iou_per_class(counts: np.ndarray) -> np.ndarray:
    """Intersection over union for each class of a confusion matrix; nan for a class that does not occur."""
    both = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


@dataclass
class SegmentationScore:
    """Counts of predicted and true pixels, from which `result` computes the figures. Batches are added in order.

    classes: channels of the network: 11 (digits, background), 10 (no background: design early) or 2 (ink,
    background). Labels are 0 .. classes - 1; without a background channel, `background` marks the pixels that
    have no label. They are left out of every figure but article_iou, since such a network cannot predict them.
    """

    classes: int
    background: int
    counts: np.ndarray = field(init=False)
    article: list[np.ndarray] = field(default_factory=list)
    loss_sum: float = 0.0
    images: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes), np.int64)

    @property
    def has_background(self) -> bool:
        """Whether the network has a channel for the background."""
        return self.background < self.classes

    @property
    def foreground(self) -> int:
        """The number of channels without the background, which comes last."""
        return self.classes - self.has_background

    def count(self, ops: Operations, logits: Array, labels: Array) -> tuple[Array, Array]:
        """The counts that `add` takes, from logits (N, classes, H, W) and labels (N, H, W). They stay on the device."""
        return ops.segmentation_counts(logits, labels, self.foreground, ARTICLE_THRESHOLD)

    def add(self, confusion: np.ndarray, overlap: np.ndarray, loss: float) -> None:
        """Adds a batch: the results of `count`, int32 (N, classes, classes) and (N, 2), and the mean loss."""
        self.counts += confusion.sum(axis=0)
        self.article.append(overlap)
        self.loss_sum += loss * len(overlap)
        self.images += len(overlap)

    def result(self) -> dict[str, Any]:
        """The figures, as fractions.

        digit_miou: for each digit, intersection over union summed over all images after argmax; the mean of
            the ten. None for binary labels. Without a background channel, on true ink only.
        miou: the same mean with the background as one more class.
        pixel_accuracy: the share of pixels that are predicted correctly.
        ink_iou: the IoU of ink, of all digits together.
        article_iou: softmax > 0.1 in each digit's channel, one IoU pooled over 4 images and all channels,
            then the mean.
        loss: mean cross-entropy.
        """
        per_class = iou_per_class(self.counts)
        total = self.counts.sum()
        ink = None
        if self.has_background:
            b = self.background
            background_only = self.counts[b, b]
            ink_both = total - self.counts[b].sum() - self.counts[:, b].sum() + background_only
            ink = _share(ink_both, total - background_only)
        both, either = np.concatenate(self.article).T
        groups = np.arange(0, self.images, ARTICLE_BATCH)
        both, either = np.add.reduceat(both, groups), np.add.reduceat(either, groups)
        return {
            "digit_miou": _mean(per_class[:10]) if self.classes > 2 else None,
            "miou": _mean(per_class) if self.has_background else None,
            "pixel_accuracy": _share(np.trace(self.counts), total),
            "ink_iou": ink,
            "article_iou": float(np.mean(both / np.maximum(either, 1))),
            "iou_per_class": [None if np.isnan(iou) else float(iou) for iou in per_class],
            "loss": self.loss_sum / self.images,
        }


def _mean(iou: np.ndarray) -> float | None:
    """The mean of the classes that occur; None if none does."""
    known = iou[~np.isnan(iou)]
    return float(known.mean()) if len(known) else None


def _share(part: np.integer, whole: np.integer) -> float:
    return float(part / whole) if whole else 0.0
