"""Records the kernels that a test launches, and checks that they have the form that it tests: fast or naive."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device

KERNELS = {*kernel_source.kernels()}
NAIVE = {name for name in KERNELS if name.endswith("_naive")}
# A naive kernel's name without "_naive" is its fast form's, or continues it: compose_m2nist_draw, of compose_m2nist.
FORMS = {name.removesuffix("_naive") for name in NAIVE}
FAST = {
    name
    for name in KERNELS - NAIVE
    if name.startswith("fast_conv_")
    or name in FORMS
    or any(form.startswith(f"{name}_") and form not in KERNELS for form in FORMS)
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
        device.launch = launch  # type: ignore[method-assign]


def expect_form(names: Iterable[str], naive: bool) -> None:
    """Fails if kernels of the other form are among those launched."""
    wrong = {*names} & (FAST if naive else NAIVE)
    assert not wrong, f"a test of the {'naive' if naive else 'fast'} kernels launched {', '.join(sorted(wrong))}"
