"""Records the kernels that a test launches, and checks that they have the form that it tests: fast or naive."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device

NAIVE = {name for name in kernel_source.kernels() if name.endswith("_naive")}
FAST = {name for name in kernel_source.kernels() if name.startswith("fast_conv_")} | {
    "compose_m2nist",
    "softmax_cross_entropy",
    "softmax_cross_entropy_mean",
}


@contextmanager
def launched_names(device: Device) -> Iterator[list[str]]:
    """The names of all kernels launched inside the context, in order, including recorded launches."""
    names: list[str] = []
    launch = device.launch

    def recorded(kernel_name: str, *given: Any, **named: Any) -> None:
        names.append(kernel_name)
        launch(kernel_name, *given, **named)

    device.launch = recorded  # type: ignore[method-assign]
    try:
        yield names
    finally:
        del device.launch


def expect_form(names: Iterable[str], naive: bool) -> None:
    """Fails if kernels of the other form are among those launched."""
    wrong = {*names} & (FAST if naive else NAIVE)
    assert not wrong, f"a test of the {'naive' if naive else 'fast'} kernels launched {', '.join(sorted(wrong))}"
