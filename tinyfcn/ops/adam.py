"""Launches kernels/adam.cu."""

from typing import Any

from tinyfcn.devices.device import Device
from tinyfcn.ops.checks import expect_shape
from tinyfcn.reference.adam import AdamState


def adam_schedule(device: Device, state: AdamState) -> None:
    """Works out `state.rates` of the step that comes, beside whatever is launched before its `adam_step`."""
    s = state
    with device.side_stream():
        arguments = (s.step, s.rates, s.base_rate, s.warmup, s.steps, s.beta1, s.beta2)
        device.launch("adam_schedule", 1, 1, arguments)


def adam_step(device: Device, parameters: Any, gradients: Any, state: AdamState, loss: Any) -> None:
    """Updates `parameters` (P,) in place by `gradients` (P,), and the state with them. Nothing crosses to the host.

    `adam_schedule` comes before each step. `loss` (1,) is that of the batch which gave the gradients; it is kept in
    the state.

    Raises:
        ValueError: parameters, gradients and state of different sizes, a loss that is not one number.
    """
    count = parameters.size
    expect_shape("adam_step: gradients", gradients, (count,))
    expect_shape("adam_step: state.m", state.m, (count,))
    expect_shape("adam_step: loss", loss, (1,))
    s = state
    device.join()  # for the rates
    arrays = (parameters, gradients, s.m, s.v, s.l2, s.rates, s.step, loss, s.losses)
    numbers = (s.beta1, s.beta2, s.epsilon, count, s.losses.size)
    device.launch_for_each("adam_step", count, (*arrays, *numbers))
