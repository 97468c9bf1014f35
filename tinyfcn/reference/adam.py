"""The Adam optimiser in NumPy, over all of a network's parameters at once.

Kingma & Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.
"""

import numpy as np

from tinyfcn.adam_state import RING, AdamState


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
