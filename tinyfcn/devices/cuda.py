"""Kernels on an NVIDIA GPU, through CuPy: NVRTC compiles the `.cu` text once, CuPy caches the result on disk.

Importing this module needs neither a GPU nor CuPy; making a `Cuda` does.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device
from tinyfcn.errors import DeviceError, KernelError


@cache
def import_cupy() -> Any:
    """CuPy, or a DeviceError that says what is missing and how to get it."""
    home = cache_folder()
    existing = next(folder for folder in (home, *home.parents) if os.path.exists(folder))
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        # CuPy fails on import when it cannot make its cache folder.
        os.environ["CUPY_CACHE_DIR"] = tempfile.mkdtemp(prefix="tinyfcn-cupy-")
        atexit.register(shutil.rmtree, os.environ["CUPY_CACHE_DIR"], ignore_errors=True)
    try:
        import cupy
    except (ImportError, OSError) as error:
        raise DeviceError(f"CuPy cannot be imported ({error}): pip install cupy-cuda12x") from None
    return cupy


def cache_folder() -> Path:
    """Where CuPy keeps compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))


def load_nvrtc() -> Any:
    """CuPy's binding of NVRTC; DeviceError if CuPy or NVRTC is missing, with the command that supplies it."""
    import_cupy()
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise DeviceError(
            f"NVRTC cannot be loaded ({error}): pip install 'cuda-toolkit[nvrtc,cudart]==12.*', "
            "or 13.* beside a CuPy for CUDA 13"
        ) from None
    return nvrtc


def why_not() -> str | None:
    """Why this machine cannot run kernels on a GPU, or None where it can."""
    try:
        if not import_cupy().is_available():
            return "no NVIDIA GPU with a working driver was found (nvidia-smi tells what the driver sees)"
        load_nvrtc()
    except DeviceError as error:
        return str(error)
    return None


class Cuda(Device):
    """The current CUDA device.

    Raises:
        DeviceError: no CuPy, no GPU, or no driver.
    """

    name = "cuda"

    def __init__(self, kernels: Path = kernel_source.KERNELS) -> None:
        super().__init__(kernels)
        reason = why_not()
        if reason:
            raise DeviceError(f"the device 'cuda' cannot be used: {reason}; --device cpu works everywhere")
        self.cupy = import_cupy()
        self.array_type = self.cupy.ndarray
        self._functions: dict[str, Any] = {}

    def empty(self, shape: Sequence[int], dtype: Any = None) -> Any:
        return self.cupy.empty(shape, self.dtypes["float"] if dtype is None else dtype)

    def asarray(self, array: np.ndarray) -> Any:
        return self.cupy.array(np.ascontiguousarray(array))

    def to_numpy(self, array: Any) -> np.ndarray:
        with self._errors("a kernel before this copy"):
            return self.cupy.asnumpy(array)

    def _launch(
        self,
        kernel: kernel_source.Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: list[Any],
        shared_bytes: int,
    ) -> None:
        function = self._function(kernel)
        with self._errors(f"{kernel.name} in {kernel.operation}.cu"):
            function(grid, block, tuple(arguments), shared_mem=shared_bytes)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turns what the driver says into a KernelError. A launch returns at once: its errors may come later."""
        try:
            yield
        except (self.cupy.cuda.runtime.CUDARuntimeError, self.cupy.cuda.driver.CUDADriverError) as error:
            raise KernelError(f"{what}: {error}") from None

    def _function(self, kernel: kernel_source.Kernel) -> Any:
        if kernel.name not in self._functions:
            text = kernel_source.read(kernel.operation, self.kernels)
            module = self.cupy.RawModule(code=text, options=("-std=c++17",))
            try:
                self._functions[kernel.name] = module.get_function(kernel.name)
            except self.cupy.cuda.compiler.CompileException as error:
                raise KernelError(f"{kernel.operation}.cu does not compile:\n{error}") from None
        return self._functions[kernel.name]
