"""Cases of compose_m2nist."""

from typing import Any

import numpy as np

from tinyfcn.checks.case import COUNTS, Case, Results, both_forms
from tinyfcn.ops import Operations
from tinyfcn.ops.compose_m2nist import MAX_SHARED_IMAGES, place_m2nist_naive
from tinyfcn.reference.compose_m2nist import place_m2nist


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """None: bytes have no gradient."""
    return []


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """One or two images, rarely so many that each has one block; and the naive kernel's boxes for many images."""
    m = int(random.integers(1, 6))
    inputs = {
        "digits": random.integers(0, 256, (m, 28, 28)).astype(np.uint8),
        "digit_labels": random.integers(0, 10, m).astype(np.uint8),
        "seed": int(random.integers(1 << 32)),
        "step": random.integers(-(1 << 31), 1 << 31, 1).astype(np.int32),
        "count": int(random.integers(1, 3)) if random.integers(100) else MAX_SHARED_IMAGES + 1,
    }

    def boxes(ops: Operations, **inputs: Any) -> Results:
        if not ops.device.runs_kernels:
            return {"boxes": place_m2nist(**inputs)}
        return {"boxes": place_m2nist_naive(ops.device, **inputs)}

    def images(ops: Operations, **inputs: Any) -> Results:
        return dict(zip(("batch", "labels"), ops.compose_m2nist(**inputs), strict=True))

    alone = {"digit_count": m, "seed": inputs["seed"], "step": inputs["step"], "count": int(random.choice(COUNTS))}
    return [
        Case("compose_m2nist", "boxes", alone, boxes),
        *both_forms(Case("compose_m2nist", "images", inputs, images)),
    ]
