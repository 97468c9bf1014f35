"""Cases of add."""

import numpy as np

from tinyfcn.checks.case import COUNTS, Case


def add(a: np.ndarray, b: np.ndarray, scale: float) -> Case:
    """scale * (a + b)."""
    return Case(
        "add",
        f"scale {scale}",
        {"a": a, "b": b, "scale": scale},
        lambda ops, **inputs: {"z": ops.add(**inputs)},
        ("a", "b"),
        lambda ops, dout, outputs, scale, **_: (ops.add_backward(dout, scale),) * 2,
    )


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """A mean."""
    a, b = random.standard_normal((2, 3, 5, 7))
    return [add(a, b, 0.5)]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Scales that launch a backward kernel, and scale 1, which does not."""
    a, b = random.standard_normal((2, random.choice(COUNTS)))
    return [add(a, b, float(random.choice((1, 0.5, -3))))]
