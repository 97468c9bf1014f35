"""How good a prediction is. "IoU" is not one number, so each has its own name here."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

ARTICLE_THRESHOLD = 0.1  # the source article calls a pixel a digit's where softmax gives that digit more
ARTICLE_BATCH = 4  # pictures whose IoU the article pools before it averages


def confusion(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often class t was called p: int64 (classes, classes)[t, p], from integer arrays of one shape."""
    pairs = true.astype(np.int64).ravel() * classes + predicted.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def iou_per_class(counts: np.ndarray) -> np.ndarray:
    """Intersection over union for each class of a confusion matrix; nan for one that is nowhere."""
    both = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


@dataclass
class SegmentationScore:
    """What was predicted for some pictures, summed up by `result`. Scores of batches add up, in order.

    classes: channels of the network: 11 (digits, background), 10 (no background: design early) or 2 (ink,
    background). Labels are 0 .. classes - 1; without a background channel, `background` marks the pixels that
    have no label. Those are left out of every figure but article_iou: such a network has no word for them.
    """

    classes: int
    background: int
    counts: np.ndarray = field(init=False)
    article: list[np.ndarray] = field(default_factory=list)
    loss_sum: float = 0.0
    pictures: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes), np.int64)

    @property
    def has_background(self) -> bool:
        """Whether the network has a channel for the background."""
        return self.background < self.classes

    def add(self, probabilities: np.ndarray, labels: np.ndarray, loss: float) -> None:
        """Probabilities (N, classes, H, W), labels (N, H, W), and the batch's mean loss."""
        predicted = probabilities.argmax(axis=1)
        known = labels < self.classes
        self.counts += confusion(labels[known], predicted[known], self.classes)
        channels = self.classes - self.has_background
        claimed = probabilities[:, :channels] > ARTICLE_THRESHOLD
        true = labels[:, None] == np.arange(channels)[:, None, None]
        both = (claimed & true).sum(axis=(1, 2, 3))
        either = (claimed | true).sum(axis=(1, 2, 3))
        self.article.append(np.stack([both, either]))
        self.loss_sum += loss * len(labels)
        self.pictures += len(labels)

    def merge(self, other: "SegmentationScore") -> None:
        """Takes in the score of the pictures that follow."""
        self.counts += other.counts
        self.article += other.article
        self.loss_sum += other.loss_sum
        self.pictures += other.pictures

    def result(self) -> dict[str, Any]:
        """The figures, as fractions.

        digit_miou: for each digit, intersection over union summed over all pictures after argmax; the mean of
            the ten. None for binary labels. Without a background channel, on true ink only.
        miou: the same mean with the background as one more class.
        pixel_accuracy: the share of pixels called right.
        ink_iou: of ink against background, whichever digit.
        article_iou: softmax > 0.1 in each digit's channel, one IoU pooled over 4 pictures and all channels,
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
        both, either = np.concatenate(self.article, axis=1)
        groups = np.arange(0, self.pictures, ARTICLE_BATCH)
        both, either = np.add.reduceat(both, groups), np.add.reduceat(either, groups)
        return {
            "digit_miou": _mean(per_class[:10]) if self.classes > 2 else None,
            "miou": _mean(per_class) if self.has_background else None,
            "pixel_accuracy": _share(np.trace(self.counts), total),
            "ink_iou": ink,
            "article_iou": float(np.mean(both / np.maximum(either, 1))),
            "iou_per_class": [None if np.isnan(iou) else float(iou) for iou in per_class],
            "loss": self.loss_sum / self.pictures,
        }


def _mean(iou: np.ndarray) -> float | None:
    """The mean of the classes that are somewhere; None if none is."""
    there = iou[~np.isnan(iou)]
    return float(there.mean()) if len(there) else None


def _share(part: np.integer, whole: np.integer) -> float:
    return float(part / whole) if whole else 0.0
