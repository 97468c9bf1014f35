"""How good a prediction is. "IoU" is not one number, so each has its own name here.

Pixels are counted where the prediction is, by kernels/segmentation_counts.cu or its reference; the figures are made of
the counts here.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

ARTICLE_THRESHOLD = 0.1  # the source article calls a pixel a digit's where softmax gives that digit more
ARTICLE_BATCH = 4  # images whose IoU the article pools before it averages


def iou_per_class(counts: np.ndarray) -> np.ndarray:
    """Intersection over union for each class of a confusion matrix; nan for one that is nowhere."""
    both = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


@dataclass
class SegmentationScore:
    """What was predicted for some images, summed up by `result`. Batches are added in their order.

    classes: channels of the network: 11 (digits, background), 10 (no background: design early) or 2 (ink,
    background). Labels are 0 .. classes - 1; without a background channel, `background` marks the pixels that
    have no label. Those are left out of every figure but article_iou: such a network has no word for them.
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
        """Channels that stand for something other than background; they come first."""
        return self.classes - self.has_background

    def count(self, ops: Any, logits: Any, labels: Any) -> tuple[Any, Any]:
        """What `add` takes of logits (N, classes, H, W) and labels (N, H, W): computed and left on their device."""
        return ops.segmentation_counts(logits, labels, self.foreground, ARTICLE_THRESHOLD)

    def add(self, confusion: np.ndarray, overlap: np.ndarray, loss: float) -> None:
        """What `count` gave for a batch: int32 (N, classes, classes) and (N, 2); and the batch's mean loss."""
        self.counts += confusion.sum(axis=0)
        self.article.append(overlap)
        self.loss_sum += loss * len(overlap)
        self.images += len(overlap)

    def result(self) -> dict[str, Any]:
        """The figures, as fractions.

        digit_miou: for each digit, intersection over union summed over all images after argmax; the mean of
            the ten. None for binary labels. Without a background channel, on true ink only.
        miou: the same mean with the background as one more class.
        pixel_accuracy: the share of pixels called right.
        ink_iou: of ink against background, whichever digit.
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
    """The mean of the classes that are somewhere; None if none is."""
    there = iou[~np.isnan(iou)]
    return float(there.mean()) if len(there) else None


def _share(part: np.integer, whole: np.integer) -> float:
    return float(part / whole) if whole else 0.0
