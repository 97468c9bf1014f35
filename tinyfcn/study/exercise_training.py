"""Trains the classifier on kernels that a person wrote."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tinyfcn.adam_state import AdamState
from tinyfcn.data import builtin_digits
from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import KernelError
from tinyfcn.networks import Design
from tinyfcn.ops import Operations

OTHERS = {"trains": (3, 6)}  # the exercises whose kernels an exercise trains on besides its own
STEPS, BATCH, RATE, TESTED = 40, 32, 1e-2, 500
ACCURACY = 0.6  # has to be exceeded


def train(files: Sequence[Path], device: Callable[..., Device], notice: Callable[[str], None]) -> float:
    """The accuracy on digits that the classifier has not seen, after STEPS steps on the naive kernels of tinyfcn.

    The kernels in `files` replace those of their names.

    Raises:
        KernelError: a kernel does not compile or run.
    """
    images, labels = builtin_digits.draw_digits(STEPS * BATCH, 0)
    tested, right = builtin_digits.draw_digits(TESTED, 1)
    with tempfile.TemporaryDirectory(prefix="tinyfcn-") as name:
        folder = Path(name) / "kernels"
        replace_kernels(files, folder)
        ops = Operations(device(folder, naive=True))
        network = Design("classifier").build(ops)
        state = AdamState.create(ops, np.zeros(network.parameters.shape, np.float32), RATE, 0)
        on_device, indices = ops.asarray(images), np.arange(STEPS * BATCH, dtype=np.int32).reshape(STEPS, BATCH)
        for step, batch in enumerate(indices):
            ops.adam_schedule(state)
            x = ops.gather_normalise(on_device, ops.asarray(batch))
            loss = network.loss(x, ops.asarray(labels[batch].astype(np.int32)))
            ops.adam_step(network.parameters, network.gradients, state, loss)
            if step % 10 == 9:
                notice(f"step {step + 1} of {STEPS}, loss {ops.to_numpy(loss)[0]:.2f}")
        x = ops.gather_normalise(ops.asarray(tested), ops.asarray(np.arange(TESTED, dtype=np.int32)))
        logits = ops.to_numpy(network.forward(x))[:, :, 0, 0]
        return float((logits.argmax(axis=1) == right).mean())


def replace_kernels(files: Sequence[Path], folder: Path) -> None:
    """Copies the kernels of tinyfcn into a new folder, with the kernels of some files in place of those so named.

    Raises:
        KernelError: tinyfcn has no kernel of a file's.
    """
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", "ladder"))
    given = kernel_source.kernels()
    for file in files:
        shutil.copy(file, folder)
        for kernel in kernel_source.kernels(file).values():
            if kernel.name not in given:
                raise KernelError(f"{file.name}:{kernel.line}: tinyfcn has no kernel named {kernel.name} to replace")
            path = folder / f"{given[kernel.name].operation}.cu"
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(f"{kernel.name}(", f"{kernel.name}_given("), encoding="utf-8")
