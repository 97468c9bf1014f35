"""Cases of segmentation_counts."""

from typing import Any

import numpy as np

from tinyfcn.checks.case import Case, Results
from tinyfcn.ops import Operations


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """None: counts have no gradient."""
    return []


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Ties, labels without a channel, and up to the largest number of classes."""
    n, k = int(random.integers(1, 4)), int(random.choice((1, 2, 10, 11, 32)))
    image = random.choice((1, 3, 8, 13, 19), 2)
    inputs = {
        "logits": np.round(random.standard_normal((n, k, *image)), int(random.integers(3))),
        "labels": random.integers(0, k + int(random.integers(2)), (n, *image)).astype(np.int32),
        "foreground": int(random.integers(0, k + 1)),
        "threshold": 0.1,
    }

    def forward(ops: Operations, **inputs: Any) -> Results:
        return dict(zip(("confusion", "overlap"), ops.segmentation_counts(**inputs), strict=True))

    return [Case("segmentation_counts", "", inputs, forward)]
