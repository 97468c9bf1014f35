"""Every figure of tinyfcn/metrics.py against a loop over single pixels, and against numbers worked out by hand."""

import json
import math
import warnings

import numpy as np
import pytest

import tinyfcn
from tinyfcn.metrics import SegmentationScore, iou_per_class

CLASSES = {"digits": (11, 10), "early": (10, 10), "binary": (2, 1)}  # channels, the label of the background


CPU = tinyfcn.on("cpu")


def add(total, probabilities, labels, loss=0.0):
    """Adds a batch of a network whose softmax gives these probabilities."""
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities)
    total.add(*total.count(CPU, logits, labels), loss)


def score(probabilities, labels, classes, background, loss=0.0):
    total = SegmentationScore(classes, background)
    add(total, probabilities, labels, loss)
    return total


def certain(predicted, classes):
    """Probabilities (N, classes, H, W) of a network that is sure of `predicted` (N, H, W)."""
    return np.ascontiguousarray(np.moveaxis(np.eye(classes, dtype=np.float32)[predicted], -1, 1))


def random_case(kind, count=9, seed=0):
    """Peaked probabilities, right in about half of the pixels, and labels of which half are background."""
    classes, background = CLASSES[kind]
    random = np.random.default_rng(seed)
    digits = 1 if kind == "binary" else 10
    labels = np.where(random.random((count, 6, 5)) < 0.5, background, random.integers(0, digits, (count, 6, 5)))
    labels = labels.astype(np.int32)
    logits = random.normal(0, 2, (count, classes, 6, 5))
    for n, y, x in np.argwhere(random.random(labels.shape) < 0.5):
        if labels[n, y, x] < classes:
            logits[n, labels[n, y, x], y, x] += 4
    p = np.exp(logits)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32), labels


def by_loops(p, labels, classes, background):
    """The same figures as SegmentationScore.result, pixel by pixel."""
    has_background = background < classes
    digits = classes - 1 if has_background else classes
    both, either = [0] * classes, [0] * classes
    right = known = ink_both = ink_either = 0
    article = []
    for first in range(0, len(labels), 4):
        group_both = group_either = 0
        for n in range(first, min(first + 4, len(labels))):
            for y, x in np.ndindex(labels.shape[1:]):
                true = int(labels[n, y, x])
                for k in range(digits):
                    claimed = p[n, k, y, x] > 0.1
                    group_both += claimed and true == k
                    group_either += claimed or true == k
                if true == background and not has_background:
                    continue  # no channel stands for it, so no call can be right
                called = max(range(classes), key=lambda k: (p[n, k, y, x], -k))
                known += 1
                right += called == true
                for k in range(classes):
                    both[k] += called == k and true == k
                    either[k] += called == k or true == k
                ink_both += called != background and true != background
                ink_either += called != background or true != background
        article.append(group_both / group_either if group_either else 0)
    iou = [b / e if e else math.nan for b, e in zip(both, either, strict=True)]
    there = [value for value in iou if not math.isnan(value)]
    digit_iou = [value for value in iou[:digits] if not math.isnan(value)]
    return {
        "digit_miou": sum(digit_iou) / len(digit_iou) if classes > 2 else None,
        "miou": sum(there) / len(there) if has_background else None,
        "pixel_accuracy": right / known,
        "ink_iou": ink_both / ink_either if has_background else None,
        "article_iou": sum(article) / len(article),
        "iou_per_class": [None if math.isnan(value) else value for value in iou],
    }


def numbers(value):
    """A figure as a list, with -1 for None."""
    return [-1 if each is None else each for each in (value if isinstance(value, list) else [value])]


def test_iou_by_hand():
    # class 0: both 1, either 1 + 1 + 2 = 4. class 1: 1 of 2. class 2: 1 of 3.
    counts = np.array([[1, 1, 0], [0, 1, 0], [2, 0, 1]])
    np.testing.assert_allclose(iou_per_class(counts), [1 / 4, 1 / 2, 1 / 3], rtol=1e-15)


def test_iou_of_an_absent_class_is_nan_and_of_one_never_predicted_right_is_0():
    counts = np.array([[5, 0, 0], [0, 0, 0], [1, 0, 0]])  # nothing is of class 1; class 2 was always missed
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero on the way
        iou = iou_per_class(counts)
    assert iou[0] == 5 / 6
    assert math.isnan(iou[1])
    assert iou[2] == 0


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("seed", range(3))
def test_against_loops(kind, seed):
    p, labels = random_case(kind, seed=seed)
    found = score(p, labels, *CLASSES[kind], loss=1.5).result()
    expected = by_loops(p, labels, *CLASSES[kind])
    assert found.pop("loss") == 1.5
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert numbers(found[name]) == pytest.approx(numbers(value), rel=1e-12), name
    assert 0.2 < found["pixel_accuracy"] < 0.9  # neither all right nor all wrong, or the figures could not differ


@pytest.mark.parametrize("kind", CLASSES)
def test_a_perfect_prediction_scores_1(kind):
    classes, background = CLASSES[kind]
    _, labels = random_case(kind)
    probabilities = certain(np.minimum(labels, classes - 1), classes)
    if kind == "early":  # it says nothing of background: at a tenth in every channel, it claims nothing either
        probabilities = np.where(labels[:, None] < 10, probabilities, np.float32(0.1))
    found = score(probabilities, labels, classes, background).result()
    for name in ("digit_miou", "miou", "pixel_accuracy", "ink_iou", "article_iou"):
        assert found[name] in (1.0, None), name
    assert found["iou_per_class"] == [1.0] * classes


def test_which_figures_a_kind_has():
    none = {kind: set() for kind in CLASSES}
    for kind, (classes, background) in CLASSES.items():
        result = score(*random_case(kind), classes, background).result()
        none[kind] = {name for name, value in result.items() if value is None}
        json.dumps(result, allow_nan=False)  # plain numbers, so that it can be written to result.json
    assert none == {"digits": set(), "early": {"miou", "ink_iou"}, "binary": {"digit_miou"}}


def test_early_is_scored_on_true_ink_only():
    labels = np.full((1, 2, 4), 10, np.int32)
    labels[0, 0] = 3, 3, 3, 5
    called = np.full((1, 2, 4), 3)  # of the background too, which costs nothing
    found = score(certain(called, 10), labels, 10, 10).result()
    assert found["iou_per_class"][3] == 3 / 4
    assert found["iou_per_class"][5] == 0
    assert found["digit_miou"] == pytest.approx(3 / 8)  # of the two digits that are there
    assert found["pixel_accuracy"] == 3 / 4
    assert found["article_iou"] == pytest.approx(3 / 9)  # but the article counts what is claimed of the background


def test_digit_miou_leaves_the_background_out():
    labels = np.full((1, 4, 4), 10, np.int32)
    labels[0, 0, :2] = 0, 1
    called = np.full((1, 4, 4), 10)
    called[0, 0, 0] = 0
    found = score(certain(called, 11), labels, 11, 10).result()
    assert found["digit_miou"] == 1 / 2
    assert found["miou"] == pytest.approx((1 + 0 + 14 / 15) / 3)
    assert found["pixel_accuracy"] == 15 / 16
    assert found["ink_iou"] == 1 / 2


def test_ink_iou_asks_for_ink_not_for_the_digit():
    labels = np.full((1, 1, 4), 10, np.int32)
    labels[0, 0, :3] = 1, 2, 3
    called = np.array([[[4, 4, 10, 4]]])  # every digit wrong; two pixels of ink found, one missed, one invented
    found = score(certain(called, 11), labels, 11, 10).result()
    assert found["ink_iou"] == 2 / 4
    assert found["digit_miou"] == 0


def test_article_iou_is_pooled_over_four_images_then_averaged():
    labels = np.full((5, 1, 2), 10, np.int32)
    labels[:, 0, 0] = 7
    called = np.full((5, 1, 2), 10)
    called[0, 0, 0] = 7  # right in one image of the first four, and in the fifth
    called[4, 0, 0] = 7
    found = score(certain(called, 11), labels, 11, 10).result()
    assert found["article_iou"] == pytest.approx((1 / 4 + 1) / 2)


def test_article_iou_claims_what_is_above_a_tenth():
    labels = np.zeros((4, 1, 1), np.int32)
    p = np.zeros((4, 11, 1, 1), np.float32)
    p[:, 0] = 0.4
    p[:, 1] = 0.11  # claimed too, though it is not the largest
    p[:, 2] = 0.09  # not claimed
    p[:, 10] = 0.4
    assert score(p, labels, 11, 10).result()["article_iou"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("kind", CLASSES)
def test_adding_batches_equals_adding_all_at_once(kind):
    p, labels = random_case(kind, count=11)
    at_once = score(p, labels, *CLASSES[kind], loss=2.0)
    total = SegmentationScore(*CLASSES[kind])
    losses = iter((1.0, 2.0, 4.0))
    for part in (slice(0, 5), slice(5, 8), slice(8, 11)):  # not multiples of the article's four
        add(total, p[part], labels[part], next(losses))
    expected = at_once.result() | {"loss": (5 * 1 + 3 * 2 + 3 * 4) / 11}
    assert total.result() == expected


@pytest.mark.parametrize("kind", CLASSES)
def test_a_device_counts_to_the_same_figures(ops, kind):
    p, labels = random_case(kind)
    total = SegmentationScore(*CLASSES[kind])
    total.add(*map(ops.to_numpy, total.count(ops, ops.asarray(np.log(p)), ops.asarray(labels))), loss=0.0)
    assert total.result() == score(p, labels, *CLASSES[kind]).result()


def test_images_without_ink_give_figures_that_json_can_hold():
    labels = np.full((2, 3, 3), 10, np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(certain(labels, 11), labels, 11, 10).result()
        early = score(certain(labels - 1, 10), labels, 10, 10).result()
    for result in (found, early):
        json.dumps(result, allow_nan=False)
    assert found["miou"] == found["pixel_accuracy"] == 1
