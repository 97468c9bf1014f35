"""Cases of the two kernels that measure a GPU."""

from typing import Any

import numpy as np

from tinyfcn.checks.case import COUNTS, Case, Results
from tinyfcn.ops import Operations, peak
from tinyfcn.reference.peak import multiply_add


def copy(x: np.ndarray) -> Case:
    """peak_copy of x."""
    return Case(
        "peak", "copy", {"x": x}, lambda ops, x: {"y": peak.copy(ops.device, x) if ops.device.runs_kernels else x}
    )


def multiply_adds(x: np.ndarray, scale: float, shift: float, rounds: int) -> Case:
    """peak_multiply_add."""

    def forward(ops: Operations, **inputs: Any) -> Results:
        if not ops.device.runs_kernels:
            return {"y": multiply_add(**inputs)}
        return {"y": peak.multiply_add(ops.device, **inputs)}

    return Case("peak", "multiply-add", {"x": x, "scale": scale, "shift": shift, "rounds": rounds}, forward)


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """None: these kernels have no gradient."""
    return []


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Sizes around the blocks of 256 threads, and around the 4,096 floats that a block copies."""
    count, rounds = int(random.choice(COUNTS)), int(random.integers(0, 20))
    return [
        copy(random.standard_normal(4 * (count + 1024 * int(random.integers(2))))),
        multiply_adds(random.uniform(0, 1, count), 0.5, 1.0, rounds),
    ]
