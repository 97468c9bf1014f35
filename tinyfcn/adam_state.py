"""Adam's state on a device: what adam_schedule and adam_step read and write, in a kernel or in NumPy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

RING = 128  # losses that the state keeps
MAX_STEPS = (1 << 31) - 1  # the state counts steps in 32 bits


@dataclass
class AdamState:
    """Adam's state, as arrays on the device, and its settings.

    m, v (P,): exponential moving averages of the gradients and of their squares. step (1,): steps done. rates (3,): the
    rate of the last step, 1 - beta1^t, 1 - beta2^t. losses (RING,): the last losses; the loss of step t >= 1 is element
    (t - 1) % RING. l2 (P,): the weight of each parameter's penalty l2 / 2 * p^2.

    The rate rises linearly over `warmup` steps and falls with half a cosine to 0 at `steps` (Loshchilov & Hutter,
    "SGDR", 2017). With `steps` 0 it does not fall.
    """

    m: Any
    v: Any
    step: Any
    rates: Any
    losses: Any
    l2: Any
    base_rate: float
    steps: int
    warmup: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    @classmethod
    def create(cls, ops: Any, l2: np.ndarray, base_rate: float, steps: int, **settings: Any) -> "AdamState":
        """The state before the first step, on the device of `ops`; l2 (P,) also gives size and dtype."""
        zeros = np.zeros_like(l2)
        return cls(
            m=ops.asarray(zeros),
            v=ops.asarray(zeros),
            step=ops.asarray(np.zeros(1, np.int32)),
            rates=ops.asarray(np.zeros(3, l2.dtype)),
            losses=ops.asarray(np.zeros(RING, l2.dtype)),
            l2=ops.asarray(l2),
            base_rate=base_rate,
            steps=steps,
            **settings,
        )

    def last_losses(self, ops: Any, count: int) -> np.ndarray:
        """The last `count` losses, at most RING, oldest first; waits for the device."""
        done = int(ops.to_numpy(self.step)[0])
        return ops.to_numpy(self.losses)[np.arange(done - count, done) % RING]
