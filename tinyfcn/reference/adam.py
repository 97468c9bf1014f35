"""The Adam optimiser in NumPy, over all of a network's parameters at once.

Kingma & Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

RING = 128  # losses that the state keeps


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


def adam_schedule(state: AdamState) -> None:
    """Computes `state.rates` for the next step."""
    t = int(state.step[0]) + 1
    warmup_factor = min(t / state.warmup, 1) if state.warmup else 1
    progress = min((t - 1) / state.steps, 1) if state.steps else 0
    state.rates[0] = state.base_rate * warmup_factor * (1 + np.cos(np.pi * progress)) / 2
    state.rates[1] = 1 - state.beta1**t
    state.rates[2] = 1 - state.beta2**t


def adam_step(parameters: np.ndarray, gradients: np.ndarray, state: AdamState, loss: np.ndarray) -> None:
    """Updates `parameters` (P,) in place with `gradients` (P,), and the state too.

    Call `adam_schedule` before each step. `loss` (1,) is the loss of the batch that gave the gradients; the state
    records it.
    """
    gradients = gradients + state.l2 * parameters
    state.m *= state.beta1
    state.m += (1 - state.beta1) * gradients
    state.v *= state.beta2
    state.v += (1 - state.beta2) * gradients**2
    m_hat = state.m / state.rates[1]
    v_hat = state.v / state.rates[2]
    parameters -= state.rates[0] * m_hat / (np.sqrt(v_hat) + state.epsilon)
    state.losses[state.step[0] % RING] = loss[0]
    state.step += 1
