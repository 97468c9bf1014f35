"""Cases of relu."""

import numpy as np

from tinyfcn.checks.case import COUNTS, Case


def relu(x: np.ndarray) -> Case:
    """relu of x."""
    return Case(
        "relu",
        "",
        {"x": x},
        lambda ops, x: {"y": ops.relu(x)},
        ("x",),
        lambda ops, dout, outputs, x: (ops.relu_backward(dout, outputs["y"]),),
    )


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """Inputs are not near 0, where the slope changes."""
    x = random.standard_normal((3, 5, 7))
    return [relu(x + np.sign(x) * 1e-3)]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """Some inputs are 0."""
    return [relu(np.round(2 * random.standard_normal(random.choice(COUNTS))))]
