"""Launches kernels/adam.cu."""

from tinyfcn.adam_state import AdamState
from tinyfcn.devices.device import Array
from tinyfcn.ops.checks import checked, expect_array
from tinyfcn.ops.launcher import Launcher


def check_adam_schedule(state: AdamState) -> None:
    expect_array("adam_schedule: state.rates", state.rates, (3,))


def check_adam_step(parameters: Array, gradients: Array, state: AdamState, loss: Array) -> None:
    expect_array("adam_step: parameters", parameters, (None,))
    expect_array("adam_step: gradients", gradients, parameters.shape, parameters.dtype)
    for name in ("m", "v", "l2"):
        expect_array(f"adam_step: state.{name}", getattr(state, name), parameters.shape, parameters.dtype)
    expect_array("adam_step: loss", loss, (1,), parameters.dtype)


class Adam(Launcher):
    """The Adam optimiser over all of a network's parameters at once.

    Kingma & Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.
    """

    @checked(check_adam_schedule)
    def adam_schedule(self, state: AdamState) -> None:
        """Computes `state.rates` for the next step, on a side stream that the next `adam_step` joins.

        Raises:
            ValueError: the state's rates are not three numbers.
        """
        s = state
        with self.device.side_stream():
            arguments = (s.step, s.rates, s.base_rate, s.warmup, s.steps, s.beta1, s.beta2)
            self.device.launch("adam_schedule", 1, 1, arguments)

    @checked(check_adam_step)
    def adam_step(self, parameters: Array, gradients: Array, state: AdamState, loss: Array) -> None:
        """Updates `parameters` (P,) in place with `gradients` (P,), and the state too.

        Call `adam_schedule` before each step. `loss` (1,) is the loss of the batch that gave the gradients; the state
        records it. No value is copied to the host.

        Raises:
            ValueError: parameters, gradients and state differ in size, or the loss is not a single number.
        """
        count, s = parameters.size, state
        self.device.join()  # for the rates
        arrays = (parameters, gradients, s.m, s.v, s.l2, s.rates, s.step, loss, s.losses)
        numbers = (s.beta1, s.beta2, s.epsilon, count, s.losses.size)
        self.device.launch_for_each("adam_step", count, (*arrays, *numbers))
