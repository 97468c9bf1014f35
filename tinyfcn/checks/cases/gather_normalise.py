"""Cases of gather_normalise and gather_batch."""

from typing import Any

import numpy as np

from tinyfcn.checks.case import EXTENTS, Case, Results
from tinyfcn.ops import Operations


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """None: bytes have no gradient."""
    return []


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Some images are gathered twice, and most not at all. Labels are one an image, or one a pixel."""
    m, n, rows = map(int, random.integers(1, 10, 3))
    images = random.integers(0, 256, (m, *random.choice(EXTENTS, 2))).astype(np.uint8)
    order = random.integers(0, m, (rows, n)).astype(np.int32)
    shape = images.shape if random.integers(2) else (m,)
    stored = {
        "images": images,
        "labels": random.integers(0, 11, shape).astype(np.uint8),
        "order": order,
        "step": random.integers(0, 3 * rows, 1).astype(np.int32),
    }

    def batch(ops: Operations, **inputs: Any) -> Results:
        return dict(zip(("batch", "labels"), ops.gather_batch(**inputs), strict=True))

    alone = {"images": images, "indices": order[0]}
    return [
        Case("gather_normalise", "", alone, lambda ops, **inputs: {"batch": ops.gather_normalise(**inputs)}),
        Case("gather_normalise", "batch", stored, batch),
    ]
