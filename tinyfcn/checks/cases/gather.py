"""Cases of gather."""

import numpy as np

from tinyfcn.checks.case import COUNTS, Case


def gather(random: np.random.Generator, values: int, count: int) -> Case:
    """`count` of `values` values; some indices lie outside."""
    inputs = {
        "values": random.standard_normal(values),
        "index": random.integers(-2, values + 2, count, dtype=np.int32),
    }
    return Case("gather", f"{count} of {values} values", inputs, lambda ops, **given: {"gathered": ops.gather(**given)})


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """None: nothing is differentiated through it."""
    return []


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Full and partial blocks."""
    return [gather(random, int(random.integers(1, 300)), int(random.choice(COUNTS)))]
