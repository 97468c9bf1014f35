"""Cases of adam_schedule and adam_step."""

from typing import Any

import numpy as np

from tinyfcn.adam_state import AdamState
from tinyfcn.checks.case import COUNTS, Case, Results
from tinyfcn.ops import Operations


def adam(random: np.random.Generator, count: int, gradients: int = 3, steps: int = 5, warmup: int = 2) -> Case:
    """One step for each gradient. With the rate 1, parameters move about as far as they are from 0."""
    inputs = {
        "parameters": random.standard_normal(count),
        "gradients": random.standard_normal((gradients, count)),
        "losses": random.standard_normal((gradients, 1)),
        "l2": random.uniform(0, 1, count),
    }
    # Exact in float32, so that a rounded beta is no error of the kernel. Epsilon is large enough to matter.
    settings = {"base_rate": 1.0, "steps": steps, "warmup": warmup, "beta1": 7 / 8, "beta2": 31 / 32, "epsilon": 1 / 4}

    def forward(ops: Operations, parameters: Any, gradients: Any, losses: Any, l2: Any, **settings: Any) -> Results:
        state = AdamState.create(ops, ops.to_numpy(l2), **settings)
        for gradient, loss in zip(gradients, losses, strict=True):
            ops.adam_schedule(state)
            ops.adam_step(parameters, gradient, state, loss)
        kept = {name: getattr(state, name) for name in ("step", "rates", "losses", "m", "v")}
        return kept | {"parameters": parameters}

    return Case("adam", f"{gradients} steps", inputs | settings, forward)


def gradcheck_cases(random: np.random.Generator) -> list[Case]:
    """More than one block of parameters."""
    return [adam(random, 301)]


def sanitize_cases(random: np.random.Generator) -> list[Case]:
    """With and without warm-up and cosine, and past the end of the cosine."""
    gradients, steps, warmup = int(random.integers(1, 4)), *map(int, random.integers(0, 4, 2))
    return [adam(random, int(random.choice(COUNTS)), gradients, steps, warmup)]
