"""The devices, and the operations on each of them."""

import importlib
from collections.abc import Callable
from types import FunctionType
from typing import Any

from tinyfcn.devices import cuda
from tinyfcn.devices.cpu import Cpu
from tinyfcn.devices.cuda import Cuda
from tinyfcn.devices.device import Device
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError
from tinyfcn.ops import Operations
from tinyfcn.ops.checks import with_check
from tinyfcn.ops.launcher import Launcher

DEVICES: dict[str, Callable[..., Device]] = {"cuda": Cuda, "cpu": Cpu, "emulator": Emulator}
DEVICE_NAMES = ("auto", *DEVICES)


def operation_names() -> dict[str, str]:
    """Maps each operation, such as "conv2d_backward", to its module in tinyfcn/ops and tinyfcn/reference: "conv2d"."""
    classes = [each for each in Operations.__mro__ if issubclass(each, Launcher) and each not in (Launcher, Operations)]
    return {
        name: each.__module__.rpartition(".")[2]
        for each in sorted(classes, key=lambda each: each.__module__)
        for name, function in vars(each).items()
        if isinstance(function, FunctionType) and not name.startswith("_")
    }


class ReferenceOperations(Operations):
    """The operations in NumPy: the functions of `tinyfcn.reference`, which have the same names and signatures.

    Each runs after the same check of its arguments as the launcher.
    """


def reference_function(name: str, module: str) -> Callable[..., Any]:
    """A function of tinyfcn/reference. If it is missing, the result raises a KernelError that names its file."""
    path = f"tinyfcn.reference.{module}"
    try:
        return getattr(importlib.import_module(path), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != path:
            raise  # the file is there, and something that it imports is not

    def missing(*_: Any, **__: Any) -> Any:
        raise KernelError(f"{name} has no reference: write it in tinyfcn/reference/{module}.py, in NumPy")

    return missing


for _name, _module in operation_names().items():
    _launcher = getattr(Operations, _name)
    _check = getattr(_launcher, "check", lambda: None)
    setattr(ReferenceOperations, _name, with_check(_check, reference_function(_name, _module), _launcher))


def on(device: str = "auto", naive: bool = False) -> Operations:
    """The operations on a device.

    Args:
        device: "cuda" for the kernels on a GPU; "emulator" for the same kernels, compiled by a C++ compiler and run on
            the CPU, slow but everywhere; "cpu" for NumPy; "auto" for "cuda" where there is a GPU, else "cpu".
        naive: use the naive kernels even where there are fast ones.

    Raises:
        DeviceError: the device cannot be used on this machine; the message gives the reason.
        ValueError: there is no device of that name.
    """
    if device == "auto":
        device = "cpu" if cuda.why_not() else "cuda"
    if device not in DEVICES:
        raise ValueError(f"no device named {device!r}; there are {', '.join(DEVICE_NAMES)}")
    chosen = DEVICES[device](naive=naive)
    return Operations(chosen) if chosen.runs_kernels else ReferenceOperations(chosen)
