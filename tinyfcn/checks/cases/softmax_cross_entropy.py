"""Cases of softmax and softmax_cross_entropy."""

from dataclasses import replace

import numpy as np

from tinyfcn.checks.case import COUNTS, EXTENTS, Case, both_forms

NAME = "softmax_cross_entropy"


def softmax(logits: np.ndarray) -> Case:
    """softmax alone. Its gradient is only computed together with that of the cross-entropy."""
    return Case(NAME, "softmax", {"logits": logits}, lambda ops, logits: {"p": ops.softmax(logits)})


def cross_entropy(logits: np.ndarray, labels: np.ndarray, unlabelled: str | None = None) -> Case:
    """softmax_cross_entropy; with `unlabelled`, positions of the last class are ignored.

    With "softmax", their gradient is not the gradient of any loss.
    """
    ignore = {} if unlabelled is None else {"ignore_index": logits.shape[1] - 1, "unlabelled": unlabelled}
    return Case(
        NAME,
        f"unlabelled {unlabelled}" if unlabelled else "all labelled",
        {"logits": logits, "labels": labels} | ignore,
        lambda ops, **inputs: {"loss": ops.softmax_cross_entropy(**inputs)[0]},
        ("logits",),
        lambda ops, dout, outputs, **inputs: (ops.softmax_cross_entropy(**inputs)[1],),
        smooth=unlabelled != "softmax",
    )


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """Every treatment of ignored positions; and logits up to 1e4, at more positions than several blocks sum at once."""
    logits, labels = random.standard_normal((2, 7, 5, 3)), random.integers(0, 7, (2, 5, 3)).astype(np.int32)
    # Rounded, so that they are exact in float32.
    large = np.round(1e4 * random.standard_normal((2, 7, 19, 21)))
    many = random.integers(0, 7, (2, 19, 21)).astype(np.int32)
    # The sums of more than 32 blocks of 256 positions take more than one round of a warp.
    long = cross_entropy(random.standard_normal((2, 3, 65, 65)), random.integers(0, 3, (2, 65, 65)).astype(np.int32))
    return [
        softmax(logits),
        replace(softmax(large), detail="softmax of 1e4"),
        *both_forms(cross_entropy(logits, labels)),
        *both_forms(cross_entropy(logits, labels, "zero")),
        *both_forms(cross_entropy(logits, labels, "softmax")),
        *both_forms(replace(cross_entropy(large, many), detail="logits of 1e4", smooth=False)),
        *both_forms(replace(long, detail="8,450 positions", smooth=False)),
    ]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Images, or single positions; one block or several; logits up to 1e4; the last class ignored or not."""
    n, k = random.choice(COUNTS), int(random.choice((1, 7)))  # two sizes, because a fast kernel is compiled for each
    shape = (n, k) if random.integers(2) else (int(random.integers(1, 5)), k, *random.choice(EXTENTS, 2))
    unlabelled = (None, "zero", "softmax")[int(random.integers(3))]

    def loss(*shape: int) -> Case:
        logits = random.standard_normal(shape) * random.choice((1, 1e4))
        return cross_entropy(logits, random.integers(0, k, (shape[0], *shape[2:])).astype(np.int32), unlabelled)

    few, many = loss(*shape), loss(int(random.integers(257, 800)), k)
    return [softmax(few.inputs["logits"]), *both_forms(few), many]
