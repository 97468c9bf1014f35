"""Launches kernels/adam.cu."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_shape
from tinyfcn.reference.adam import AdamState


def adam_step(device: Device, parameters: Any, gradients: Any, state: AdamState) -> None:
    """Updates `parameters` (P,) in place by `gradients` (P,), and the state with them. Nothing crosses to the host.

    Raises:
        ValueError: parameters, gradients and state of different sizes.
    """
    count = parameters.size
    expect_shape("adam_step: gradients", gradients, (count,))
    expect_shape("adam_step: state.m", state.m, (count,))
    s = state
    schedule = (s.step, s.rates, s.base_rate, s.warmup, s.steps, s.beta1, s.beta2)
    device.launch("adam_schedule", 1, 1, schedule)
    arguments = (parameters, gradients, s.m, s.v, s.l2, s.rates, s.beta1, s.beta2, s.epsilon, count)
    device.launch_for_each("adam_step", count, arguments)
